"""Engines: built from an artifact for one target, kept in its folder with what they are written beside them."""

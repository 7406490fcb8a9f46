"""Graph passes: one file, one exact rewriting, one report of what it changed and what it refused."""

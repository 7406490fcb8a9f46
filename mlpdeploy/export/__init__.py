"""From a model to a verified artifact folder."""

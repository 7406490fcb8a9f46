"""One module per command: its options, one call, what it prints. `cli.py` lists them."""

"""The commands: one file each, a function whose parameters are the flags. `cli.py` calls them."""

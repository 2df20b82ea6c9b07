"""Layouts of stored transcoders, one file each; ``load.py`` has the table of them."""

"""Keyed files: the stores, one for each kind of file, and what works on them."""

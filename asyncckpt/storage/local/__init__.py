"""Checkpoints in a directory of the local file system."""

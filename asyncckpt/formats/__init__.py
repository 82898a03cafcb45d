"""The layouts of a state file."""

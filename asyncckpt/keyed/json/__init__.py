"""The JSON kind: one object, an entry on each line."""

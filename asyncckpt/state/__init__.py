"""The state in memory: its tree, its leaves, its index, and the copies taken of it."""

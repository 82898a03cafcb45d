"""Where checkpoints are kept: what a store promises, and the stores that there are."""

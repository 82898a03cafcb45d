"""Cuts: moments at which every task that takes part is at rest, so that a checkpoint captures one point."""

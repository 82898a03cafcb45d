"""The loop, threads, memory and the garbage collector: what blocking jobs run on, and nothing of checkpoints."""

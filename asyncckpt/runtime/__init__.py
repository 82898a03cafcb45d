"""Support for blocking jobs beside an event loop: threads, pacing, memory, the garbage collector. No checkpoints."""

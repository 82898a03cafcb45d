"""Ready-made checkpointing for programs of other libraries, each module imported only by those who use it."""

"""Arrays as sources and targets of bytes."""

"""The disk: every mutation, the blocks, the publish protocol."""

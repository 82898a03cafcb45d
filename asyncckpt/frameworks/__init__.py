"""The arrays of other libraries than numpy, as leaves of a state."""

"""The npz kind: a zip file of arrays, rewritten as a whole."""

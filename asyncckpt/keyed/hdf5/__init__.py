"""The HDF5 kind: files that every HDF5 reader takes, and that a kill never harms."""

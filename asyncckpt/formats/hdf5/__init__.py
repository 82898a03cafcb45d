"""The format HDF5: the layout of ``state.h5``, written without libhdf5."""

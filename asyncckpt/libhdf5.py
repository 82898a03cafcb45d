"""Import h5py; every other module imports it from here, so that it may be used for the first time in an exit handler.

h5py unregisters its conversions of Python objects in an exit handler. A handler that is registered while exit handlers
run is never called, and libhdf5 would then crash when the process ends. In that case `run_at_exit` unregisters the
conversions.
"""

from __future__ import annotations

import h5py
from h5py import h5d, h5l, h5o, h5t
from h5py._conv import unregister_converters  # which h5py's own exit handler calls

from asyncckpt.runtime.exiting import is_exiting, run_at_exit

if is_exiting():
    run_at_exit(unregister_converters)

__all__ = ["h5d", "h5l", "h5o", "h5py", "h5t"]

"""h5py, imported here and nowhere else, so that it can be used first in an exit handler.

h5py undoes its conversions of Python objects in an exit handler of its own. One that is registered while exit handlers
run is never called, and libhdf5 then crashes as the process ends.
"""

from __future__ import annotations

import h5py
from h5py import h5d, h5l, h5o, h5t

from asyncckpt.runtime.exiting import before_the_end, is_exiting

if is_exiting():
    before_the_end(h5py._conv.unregister_converters)  # noqa: SLF001 - what h5py's own handler calls

__all__ = ["h5d", "h5l", "h5o", "h5py", "h5t"]

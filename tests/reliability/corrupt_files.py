"""Damage of files of many keys: the same as of checkpoints, with what each kind can promise.

A log and an HDF5 file have digests of every value, an npz file a CRC-32 of each member; a JSON file has none. Where the
last commit itself is damaged, a log or an HDF5 file shows the flush before it, as after a power cut.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

import asyncckpt

from .corrupt import DETECTED, EQUAL, SIZES, Subject, make_state
from .files import EXTENSIONS
from .workload import same

if TYPE_CHECKING:
    from pathlib import Path

EARLIER: Final = "the flush before"
CHANGED: Final = "changed, where there are no digests"
_FALLS_BACK: Final = ("keyed-msgpack", "keyed-hdf5")


class OursFile(Subject):
    """A reader of a file that was flushed twice."""

    harmless = (EQUAL, DETECTED, EARLIER, CHANGED)

    def __init__(self, form: str) -> None:
        self._form = form
        self._states: list[dict[str, Any]] = []
        self._path: Path

    def make(self, root: Path, size: str) -> Path:
        """Flush two states."""
        assert size in SIZES
        root.mkdir()
        self._path = root / f"woof{EXTENSIONS[self._form]}"
        for step in (1, 2):
            self._states.append(make_state(size, step))
            with asyncckpt.Checkpointer.from_file(self._path) as chk:
                chk.update(self._states[-1])
        return self._path

    def look(self, root: Path) -> str:
        """Load all keys."""
        del root
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with asyncckpt.Checkpointer.from_file(self._path) as chk:
                    found = dict(chk)
            except asyncckpt.CheckpointError:
                return DETECTED
            except Exception as error:  # noqa: BLE001 - any other is a loss
                return f"it raised {error!r}"
        if same(found, self._states[1]):
            return EQUAL
        if self._form in _FALLS_BACK and (same(found, self._states[0]) or not found):
            return EARLIER
        return CHANGED if self._form == "keyed-json" else f"it is silently wrong: {[*found]}"

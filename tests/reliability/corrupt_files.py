"""Damage of keyed files: the same as of checkpoints, with what each kind can promise.

A log and an HDF5 file have digests of every value, an npz file a CRC-32 of each member; a JSON file has none. Where the
last commit itself is damaged, a log or an HDF5 file shows the flush before it, as after a power cut, and says so; that
no key is left is accepted only of a file that is shorter than its first commit was.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncckpt

from .damage import DETECTED, EQUAL, SIZES, Subject, make_state
from .files import EXTENSIONS
from .replaced_files import REPLACEMENTS, fresh
from .workload import same

if TYPE_CHECKING:
    from collections.abc import Iterator

EARLIER: Final = "the flush before"
CHANGED: Final = "changed, where there are no digests"
NEW: Final = "no keys, as before the first commit"
_FALLS_BACK: Final = ("keyed-msgpack", "keyed-hdf5")
_STALE: Final = "as it was after the flush before"
_MORE: Final = {"with a byte more": 1, "with 4096 bytes more": 4096}


class OursFile(Subject):
    """A reader of a file that was flushed twice."""

    harmless = (EQUAL, DETECTED, EARLIER, CHANGED, NEW)

    def __init__(self, form: str) -> None:
        self._form = form
        self._states: list[dict[str, Any]] = []
        self._path: Path
        self._first = b""
        self._nbytes = 0

    def make(self, root: Path, size: str) -> Path:
        """Flush two states."""
        assert size in SIZES
        root.mkdir()
        self._path = root / f"woof{EXTENSIONS[self._form]}"
        for step in (1, 2):
            self._states.append(make_state(size, step))
            with asyncckpt.Checkpointer.from_file(self._path) as chk:
                chk.update(self._states[-1])
            self._first = self._first or self._path.read_bytes()
        self._nbytes = self._path.stat().st_size
        return self._path

    def damage_files(self, root: Path, path: Path) -> Iterator[str]:
        """See `Subject`."""
        others = {form: root / f"other{extension}" for form, extension in EXTENSIONS.items() if form != self._form}
        for other in others.values():
            with asyncckpt.Checkpointer.from_file(other) as chk:
                chk.update(self._states[1])
        hows = (*REPLACEMENTS, _STALE, *others, *_MORE)
        for how, _ in zip(hows, fresh(root), strict=False):
            if how in REPLACEMENTS:
                REPLACEMENTS[how](path)
            elif how == _STALE:
                path.write_bytes(self._first)
            elif how in others:
                others[how].rename(path)
            else:
                with path.open("ab") as file:
                    file.write(bytes(_MORE[how]))
            yield f"the file {'swapped with one that is ' if how in others else ''}{how}"

    def go_on(self, root: Path) -> str | None:
        """See `Subject`: a key is set, or that is refused and the file is as it was.

        Never through a link that leads out of the directory: a library with a mistake would replace a device.
        """
        if not Path(os.path.realpath(self._path)).is_relative_to(root.parent.resolve()):
            return None
        before = self._path.read_bytes() if self._path.is_file() else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with asyncckpt.Checkpointer.from_file(self._path) as chk:
                    chk["next"] = 1
            except (asyncckpt.CheckpointError, OSError):
                is_same = before is None or self._path.read_bytes() == before
                return None if is_same else "a change was refused, and the file is not as it was"
            except Exception as error:  # noqa: BLE001 - any other is a loss
                return f"a change raised {error!r}"
            with asyncckpt.Checkpointer.from_file(self._path) as chk:
                return None if chk.get("next") == 1 else "a key that was set afterwards is not there"

    def look(self, root: Path) -> str:
        """Load all keys."""
        del root
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                with asyncckpt.Checkpointer.from_file(self._path) as chk:
                    found = dict(chk)
            except asyncckpt.CheckpointError:
                return DETECTED
            except OSError as error:
                return f"it raised {error!r}" if self._path.is_file() else DETECTED
            except Exception as error:  # noqa: BLE001 - any other is a loss
                return f"it raised {error!r}"
        has_warned = any(issubclass(each.category, asyncckpt.CheckpointWarning) for each in told)
        return self._judge(found, has_warned=has_warned)

    def _is_nothing(self) -> bool:
        return not self._path.exists() or (self._path.is_file() and not self._path.stat().st_size)

    def _judge(self, found: dict[str, Any], *, has_warned: bool) -> str:
        if same(found, self._states[1]):
            return EQUAL
        data = self._path.read_bytes() if self._path.is_file() else b""
        if same(found, self._states[0]) and (data == self._first or self._form in _FALLS_BACK):
            # What a log lacks at its end may be what a crash has kept from coming: nobody need be told.
            is_told = has_warned or data == self._first or (self._form == "keyed-msgpack" and len(data) < self._nbytes)
            return EARLIER if is_told else f"it is {EARLIER}, and nobody was told"
        is_short = self._path.is_file() and self._form in _FALLS_BACK and len(data) < len(self._first)
        if not found and (is_short or self._is_nothing()):
            return NEW
        return CHANGED if self._form == "keyed-json" else f"it is silently wrong: {[*found]}"

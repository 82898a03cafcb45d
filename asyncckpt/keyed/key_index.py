"""The index of an asynchronous view: the keys of a file, and those of the dicts in its values, in memory.

It is looked at and changed on the loop's thread, without waiting for anything. The names of a value are shared with
its store and with other indexes, so they never change: an index changes copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncckpt.errors import CheckpointerUsageError, CheckpointKeyError
from asyncckpt.keyed.engine import missing
from asyncckpt.state.selection import join_path

if TYPE_CHECKING:
    from collections.abc import KeysView

    from asyncckpt.keyed.base import Store
    from asyncckpt.keyed.engine import Path
    from asyncckpt.keyed.values import CapturedValue, Names, PackedValue


class KeyIndex:
    """Names by their names; see `asyncckpt.keyed.values.Names`."""

    def __init__(self, names: dict[str, Names], place: str, *, keeps: bool = True) -> None:
        self._names = names
        self._place = place
        self._keeps = keeps

    @classmethod
    def of(cls, store: Store, place: str) -> KeyIndex:
        """Read what a store has."""
        return cls(dict(store.entries), place, keeps=store.keeps)

    def copy(self) -> KeyIndex:
        """Return an index that changes by itself."""
        return KeyIndex(dict(self._names), self._place, keeps=self._keeps)

    def __len__(self) -> int:
        """Return the number of top-level keys."""
        return len(self._names)

    def view(self) -> KeysView[str]:
        """Return the top-level keys, as they are from now on."""
        return self._names.keys()

    def keys(self) -> list[str]:
        """Return the top-level keys."""
        return list(self._names)

    def find(self, path: Path) -> bool | None:
        """Tell whether there is a value at a path; None if the index does not reach so deep."""
        at: Any = self._names
        for part in path:
            if at is False:
                return None
            try:
                if not isinstance(at, dict) or part not in at:
                    return False
            except TypeError:  # no key of a dict
                return False
            at = at[part]
        return True

    def contains(self, path: Path) -> bool:
        """Tell whether there is a value at a path.

        Raises:
            CheckpointerUsageError: The index does not reach so deep.
        """
        found = self.find(path)
        if found is None:
            message = (
                f"whether {path!r} is in {self._place} takes reading {path[0]!r}, whose keys the index in memory does"
                " not hold: use `await chk.get(key)`, or `await chk.delete_parameter(key)` to delete it"
            )
            raise CheckpointerUsageError(message)
        return found

    def check(self, path: Path) -> None:
        """Check that there is a value at a path, as far as is known.

        Raises:
            CheckpointKeyError: There is none.
        """
        if self.find(path) is False:
            raise missing(path, self._place, self.keys())

    def check_way(self, path: Path) -> None:
        """Check that a value may be put at a path, as far as is known: that it leads through dicts.

        Raises:
            CheckpointKeyError: It does not.
            TypeError: It is no path into dicts.
        """
        try:
            hash(path)
        except TypeError as error:
            message = f"{path!r} is no path into nested dicts, whose keys are hashable: {error}"
            raise TypeError(message) from None
        at: Any = self._names
        for number, part in enumerate(path[:-1], 1):
            if not isinstance(at, dict) or part not in at:
                return
            at = at[part]
            if at is None:
                message = f"no key {path!r} in {self._place}: at {join_path(path[:number])!r} is no dict"
                raise CheckpointKeyError(message, key=path, known=self.keys())

    def note(self, path: Path, captured: CapturedValue | PackedValue | None) -> None:
        """Show a value that is put, or the deletion of one."""
        if captured is None:
            if self.find(path):
                del self._owner(path)[path[-1]]
        elif self._keeps:
            self._owner(path)[path[-1]] = captured.names

    def _owner(self, path: Path) -> dict[Any, Names]:
        """Return the dict that the last part of a path is in, to be changed: a copy, as are those on the way."""
        at = self._names
        for part in path[:-1]:
            below = at.get(part, {})
            if not isinstance(below, dict):  # not known, or no dict: the job will say so
                return {}
            at[part] = dict(below)
            at = at[part]  # type: ignore[assignment]
        return at

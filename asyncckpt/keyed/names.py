"""The index of an asynchronous view: the keys of a file, and those of the dicts in its values, in memory.

Pending writes show in it at once. It is looked at and changed on the loop's thread, without waiting for anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncckpt.errors import CheckpointerUsageError, CheckpointKeyError
from asyncckpt.keyed.engine import missing
from asyncckpt.state.selection import join_path

if TYPE_CHECKING:
    from asyncckpt.keyed.base import Store
    from asyncckpt.keyed.engine import Path
    from asyncckpt.keyed.values import Names


class NameIndex:
    """Names by their names; see `asyncckpt.keyed.values.Names`."""

    def __init__(self, names: dict[str, Names], place: str, *, keeps: bool = True) -> None:
        self._names = names
        self._place = place
        self._keeps = keeps

    @classmethod
    def of(cls, store: Store, place: str) -> NameIndex:
        """Read what a store has."""
        return cls({key: entry.names for key, entry in store.entries.items()}, place, keeps=store.keeps)

    def __len__(self) -> int:
        """Return the number of top-level keys."""
        return len(self._names)

    def keys(self) -> list[str]:
        """Return the top-level keys."""
        return list(self._names)

    def contains(self, path: Path) -> bool:
        """Tell whether there is a value at a path.

        Raises:
            CheckpointerUsageError: The index does not reach so deep.
        """
        at: Any = self._names
        for part in path:
            if at is False:
                message = (
                    f"whether {path!r} is in {self._place} takes reading {path[0]!r}, which has too many keys for the"
                    " index in memory: use `await chk.get(...)`"
                )
                raise CheckpointerUsageError(message)
            try:
                if not isinstance(at, dict) or part not in at:
                    return False
            except TypeError:  # no key of a dict
                return False
            at = at[part]
        return True

    def check(self, path: Path) -> None:
        """Check that there is a value at a path.

        Raises:
            CheckpointKeyError: There is none.
        """
        if not self.contains(path):
            raise missing(path, self._place, self.keys())

    def check_way(self, path: Path) -> None:
        """Check that a value may be put at a path, as far as is known: that it leads through dicts.

        Raises:
            CheckpointKeyError: It does not.
        """
        at: Any = self._names
        for number, part in enumerate(path[:-1], 1):
            if not isinstance(at, dict) or part not in at:
                return
            at = at[part]
            if at is None:
                message = f"no key {path!r} in {self._place}: at {join_path(path[:number])!r} is no dict"
                raise CheckpointKeyError(message, key=path, known=self.keys())

    def add(self, path: Path, names: Names) -> None:
        """Show a value that is put."""
        at: Any = self._names
        for part in path[:-1]:
            if not self._keeps or not isinstance(at, dict):  # not known, or no dict: the job will say so
                return
            at = at.setdefault(part, {})
        if self._keeps and isinstance(at, dict):
            at[path[-1]] = names

    def remove(self, path: Path) -> None:
        """Show that a value is deleted."""
        at: Any = self._names
        for part in path[:-1]:
            at = at.get(part)
            if not isinstance(at, dict):
                return
        at.pop(path[-1], None)

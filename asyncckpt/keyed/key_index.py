"""The index of an asynchronous view: the keys of a file and of the dicts in its values, in memory.

It is read and changed on the loop's thread, which never waits for it. The key tree of a value is shared with its
store and with other indexes, so an index never changes it but replaces it by a copy.
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
    from asyncckpt.keyed.key_tree import KeyTree
    from asyncckpt.keyed.values import CapturedValue, PackedValue


class KeyIndex:
    """The keys of a file, each with the key tree of its value."""

    def __init__(self, trees: dict[str, KeyTree], file_name: str, *, keeps: bool = True) -> None:
        self._trees = trees
        self._file_name = file_name
        self._keeps = keeps

    @classmethod
    def of(cls, store: Store, file_name: str) -> KeyIndex:
        """Return the index of a store."""
        return cls(dict(store.entries), file_name, keeps=store.keeps)

    def copy(self) -> KeyIndex:
        """Return an independent copy."""
        return KeyIndex(dict(self._trees), self._file_name, keeps=self._keeps)

    def __len__(self) -> int:
        """Return the number of top-level keys."""
        return len(self._trees)

    def view(self) -> KeysView[str]:
        """Return a live view of the top-level keys."""
        return self._trees.keys()

    def keys(self) -> list[str]:
        """Return the top-level keys."""
        return list(self._trees)

    def find(self, path: Path) -> bool | None:
        """Tell whether there is a value at a path; None if the index does not have the keys to tell."""
        at: Any = self._trees
        for part in path:
            if at is False:
                return None
            try:
                if not isinstance(at, dict) or part not in at:
                    return False
            except TypeError:  # not hashable
                return False
            at = at[part]
        return True

    def contains(self, path: Path) -> bool:
        """Tell whether there is a value at a path.

        Raises:
            CheckpointerUsageError: The index does not have the keys to tell.
        """
        found = self.find(path)
        if found is None:
            message = (
                f"{self._file_name}: the index in memory does not have the keys of the value of {path[0]!r}, so it"
                f" cannot tell whether there is {path!r}: use `await chk.get(key)` or `await chk.delete_parameter(key)`"
            )
            raise CheckpointerUsageError(message)
        return found

    def check(self, path: Path) -> None:
        """Check that there is a value at a path, as far as the index can tell.

        Raises:
            CheckpointKeyError: There is none.
        """
        if self.find(path) is False:
            raise missing(path, self._file_name, self.keys())

    def check_way(self, path: Path) -> None:
        """Check that all but the last part of a path are dicts, as far as the index can tell.

        Raises:
            CheckpointKeyError: One of them is not.
            TypeError: A part is not hashable.
        """
        try:
            hash(path)
        except TypeError as error:
            message = f"{path!r} is not a path into nested dicts, whose keys are hashable: {error}"
            raise TypeError(message) from None
        at: Any = self._trees
        for number, part in enumerate(path[:-1], 1):
            if not isinstance(at, dict) or part not in at:
                return
            at = at[part]
            if at is None:
                message = f"no key {path!r} in {self._file_name}: {join_path(path[:number])!r} is not a dict"
                raise CheckpointKeyError(message, key=path, known=self.keys())

    def note(self, path: Path, captured: CapturedValue | PackedValue | None) -> None:
        """Apply a write, or a deletion."""
        if captured is None:
            if self.find(path):
                del self._owner(path)[path[-1]]
        elif self._keeps:
            self._owner(path)[path[-1]] = captured.key_tree

    def _owner(self, path: Path) -> dict[Any, KeyTree]:
        """Return a copy of the dict that the last part of a path is in, to be changed; copy those on the way to it."""
        at = self._trees
        for part in path[:-1]:
            below = at.get(part, {})
            if not isinstance(below, dict):  # not known, or not a dict, which the job will report
                return {}
            at[part] = dict(below)
            at = at[part]  # type: ignore[assignment]
        return at

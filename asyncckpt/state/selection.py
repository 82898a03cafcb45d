"""Select leaves by paths and globs."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_ANY_DEPTH: Final = "**"
_GLOB_CHARACTERS: Final = frozenset("*?[")
_DECIMAL: Final = re.compile("[0-9]{1,18}")


class Selection:
    """The patterns of a `select=`, relative to a node of the tree.

    A pattern is split at slashes; each part is matched against one key with the rules of `fnmatch` (``*``, ``?``,
    ``[seq]``), and ``**`` against any number of keys. A path is selected when the pattern matches it or one of its
    prefixes, so ``params`` and ``params/*`` both select everything below ``params``. A part that equals a key matches
    it, whatever characters it has.
    """

    __slots__ = ("_rests", "patterns")

    def __init__(self, rests: frozenset[tuple[str, ...]], patterns: tuple[str, ...] = ()) -> None:
        self._rests = rests
        self.patterns = patterns

    @classmethod
    def parse(cls, patterns: str | Iterable[str]) -> Selection:
        """Make the selection at the root."""
        each = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        return cls(frozenset(tuple(part for part in pattern.split("/") if part) for pattern in each), each)

    @property
    def is_whole(self) -> bool:
        """Whether the node and everything below it is selected."""
        return any(all(part == _ANY_DEPTH for part in rest) for rest in self._rests)

    def below(self, key: object) -> Selection:
        """Return the selection relative to the child at `key`."""
        if self.is_whole:
            return self
        spelled = join_path([key])
        parts = spelled.split("/") if "/" in spelled else [spelled]  # a key with slashes is matched like nested keys
        rests = self._rests
        for part in parts:
            rests = frozenset(after for rest in rests for after in _advance(rest, part))
        return Selection(rests)

    def positions(self, count: int) -> list[int]:
        """Return which positions of a container with `count` leaves are selected."""
        lasts = {rest[-1] for rest in self._rests if rest}
        candidates: Iterable[int] = range(count)
        if not any(set(last) & _GLOB_CHARACTERS for last in lasts):
            candidates = sorted(int(last) for last in lasts if _DECIMAL.fullmatch(last) and int(last) < count)
        return [position for position in candidates if self.below(position).is_whole]


def _advance(rest: tuple[str, ...], part: str) -> Iterable[tuple[str, ...]]:
    if not rest:
        yield rest  # matched further up
    elif rest[0] == _ANY_DEPTH:
        yield rest
        yield from _advance(rest[1:], part)
    elif part == rest[0] or fnmatchcase(part, rest[0]):
        yield rest[1:]


def join_path(keys: Sequence[object]) -> str:
    """Return a path: keys and positions, joined by slashes."""
    return "/".join(key if type(key) is str else _spell(key) for key in keys)


def _spell(key: object) -> str:
    try:
        text = repr(key) if not isinstance(key, str) else str(key)
    except (ValueError, RecursionError):  # an int with more digits than Python converts
        text = hex(key) if isinstance(key, int) else f"<{type(key).__qualname__}>"
    return text if len(text) <= 80 else text[:77] + "..."  # noqa: PLR2004 - long enough to recognize a key

"""What a crash may leave of a directory: a model of a disk on which only what was synced is certain.

1. A synced file has its bytes. An unsynced one may have its old bytes, its new ones, a part of them that ends at a
   sector (512 B) or a page (4 KiB), zeros in the place of any of it with the size already advanced, or all but one
   sector or page in the midst of them. Of a large write, some of these places are tried: the first ones, the last
   ones, and others spread evenly between.
2. A sync that failed has made nothing durable, and neither does a second one: the kernel marks the pages clean. What
   is written again after it is dirty again, those bytes and no others.
3. Each change of a directory's entries since its sync is there or not, whatever became of the others; a rename or an
   exchange is one change. This holds every order a file system may write in. The order that ext4's journal keeps, in
   which the changes of all directories come one after the other and any sync takes along what was before it, is a part
   of that, and is tried whole where the rest can only be sampled.
4. Where the combinations are few, all are tried; else a sample of them, drawn from a seed.

A crash is a pair of a moment and a choice for each thing pending then; what it leaves is a `State`: paths and bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from .disks import Change

SECTOR_NBYTES = 512
PAGE_NBYTES = 4096
_CUTS_MAX = 24
_HOLES_MAX = 12

State = tuple[tuple[str, bytes | None], ...]
"""What a crash leaves: each path with the digest of its bytes, or None for a directory; sorted."""


@dataclass(slots=True, eq=False)
class Inode:
    """A file or directory."""

    is_directory: bool
    entries: dict[str, Inode] = field(default_factory=dict)
    """As the program sees them."""
    synced_entries: dict[str, Inode] = field(default_factory=dict)
    pending: list[tuple[int, dict[str, Inode | None]]] = field(default_factory=list)
    """Changes since the sync: the moment, and what each name stands for after it."""
    data: bytes = b""
    synced_data: bytes = b""
    doubt: bytearray = field(default_factory=bytearray)
    """A 1 for each byte of the data that a failed sync has left as it may be on the disk, and no sync will write."""
    variants: list[bytes] | None = None
    """The digests of what a crash may leave of the data, if it was looked up since the last change."""

    @property
    def is_pending(self) -> bool:
        """Whether a crash may leave something else than what the program sees."""
        return bool(self.pending) if self.is_directory else self.data != self.synced_data


class CrashModel:
    """The disk below one directory, and what a crash may leave of it."""

    def __init__(self, source: Path, home: Path | None = None) -> None:
        """Take what is there.

        Args:
            source: The directory.
            home: Where the changes happen, if that is a copy of it.
        """
        self.home = source if home is None else home
        self.top = Inode(is_directory=True)
        self.store: dict[bytes, bytes] = {}
        """All contents that a file may have, by digest."""
        self.moment = 0
        self._any_sync = 0  # ext4: what came before this moment is durable
        self._load(source, self.top)

    def _load(self, path: Path, node: Inode) -> None:
        for entry in path.iterdir():
            child = Inode(is_directory=entry.is_dir())
            if child.is_directory:
                self._load(entry, child)
            else:
                child.data = child.synced_data = entry.read_bytes()
            node.entries[entry.name] = node.synced_entries[entry.name] = child

    def _node(self, path: Path) -> Inode:
        node = self.top
        for part in path.relative_to(self.home).parts:
            node = node.entries[part]
        return node

    # --- the record ---------------------------------------------------------------------------------------------------

    def apply(self, change: Change) -> None:
        """Do what was recorded."""
        self.moment += 1
        if change.path.name.endswith(" (deleted)"):
            return  # an open file without a name: no crash brings it to light
        is_synced = change.name in ("sync", "sync_directory")
        if self.home not in (change.path, *change.path.parents):
            if is_synced and not change.has_failed:
                self._any_sync = self.moment
            return
        if change.has_failed:
            if change.name == "sync":
                _doubt(self._node(change.path))
            return
        if is_synced:
            self._any_sync = self.moment
            self._sync(self._node(change.path))
        elif change.name == "write":
            self._write(self._node(change.path), change.offset, change.data)
        elif change.name == "truncate":
            node = self._node(change.path)
            node.data, node.variants = node.data[: change.offset].ljust(change.offset, b"\0"), None
            del node.doubt[change.offset :]
        elif change.name == "set_mode":
            return
        else:
            self._link(change)

    def _sync(self, node: Inode) -> None:
        if node.is_directory:
            node.synced_entries, node.pending = dict(node.entries), []
        else:
            node.synced_data, node.variants = _reached(node), None

    def _write(self, node: Inode, offset: int, data: bytes) -> None:
        old = node.data.ljust(offset, b"\0")
        node.data, node.variants = old[:offset] + data + old[offset + len(data) :], None
        if node.doubt:
            node.doubt[offset : offset + len(data)] = bytes(max(0, min(len(node.doubt) - offset, len(data))))

    def _link(self, change: Change) -> None:
        parent, name = self._node(change.path.parent), change.path.name
        there = parent.entries.get(name)
        after: dict[str, Inode | None] = {}
        if change.name == "mkdir":
            after[name] = Inode(is_directory=True)
        elif change.name == "create" or (change.name == "open_lock" and there is None):
            after[name] = Inode(is_directory=False)
        elif change.name == "open_lock":
            return
        elif change.name in ("unlink", "rmdir"):
            after[name] = None
        else:
            assert change.target is not None
            assert change.target.parent == change.path.parent, "only names within one directory are changed"
            after[name] = parent.entries[change.target.name] if change.name == "exchange" else None
            after[change.target.name] = there
        parent.pending.append((self.moment, after))
        _take(parent.entries, after)

    # --- what a crash leaves ------------------------------------------------------------------------------------------

    def states(self, limit: int, chance: random.Random) -> Iterator[State]:
        """Give what a crash at this moment may leave, each once: all there is, or a sample of about `limit`."""
        pending = list(self._pending())
        counts = [1 << len(each.pending) if each.is_directory else len(self._variants(each)) for each in pending]
        choices: Iterable[tuple[int, ...]]
        if math.prod(counts) <= limit:
            choices = itertools.product(*map(range, counts))
        else:
            choices = itertools.chain(
                self._as_ext4(pending, counts),
                (tuple(chance.randrange(count) for count in counts) for _ in range(limit)),
            )
        given = set()
        for choice in choices:
            state = self._state(dict(zip(pending, choice, strict=True)))
            if state not in given:
                given.add(state)
                yield state

    def make(self, state: State, root: Path) -> None:
        """Make a directory of a state."""
        root.mkdir()
        for path, digest in state:
            if digest is None:
                (root / path).mkdir()
            else:
                (root / path).write_bytes(self.store[digest])

    def seen(self) -> State:
        """Give what the program sees, and another that starts when this one was killed."""
        return self._walk(lambda node: node.entries, lambda node: self._keep(node.data))

    def certain(self) -> State:
        """Give the one state in which nothing survived that was not synced."""
        return self._state({})

    def _pending(self) -> Iterator[Inode]:
        """Give what is pending, of all that any crash can bring to light."""
        seen: set[int] = set()
        waiting = [self.top]
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if node.is_pending:
                yield node
            waiting += node.synced_entries.values()
            waiting += [each for _, after in node.pending for each in after.values() if each is not None]

    def _as_ext4(self, pending: list[Inode], counts: list[int]) -> Iterator[tuple[int, ...]]:
        """Give the choices of a journal that keeps the order of all changes, from the last sync on."""
        moments = sorted({at for node in pending for at, _ in node.pending if at > self._any_sync})
        for last in [self._any_sync, *moments]:
            entries = [sum(1 << bit for bit, (at, _) in enumerate(node.pending) if at <= last) for node in pending]
            for data in range(3):  # the old bytes, the new ones, zeros
                yield tuple(
                    entries[at] if node.is_directory else min(data, counts[at] - 1) for at, node in enumerate(pending)
                )

    def _variants(self, node: Inode) -> list[bytes]:
        if node.variants is None:
            node.variants = [self._keep(data) for data in dict.fromkeys(torn(node.synced_data, node.data))]
        return node.variants

    def _keep(self, data: bytes) -> bytes:
        digest = hashlib.blake2b(data, digest_size=16).digest()
        self.store[digest] = data
        return digest

    def _state(self, choice: dict[Inode, int]) -> State:
        def entries_of(node: Inode) -> dict[str, Inode]:
            chosen = choice.get(node, 0)
            if not chosen:
                return node.synced_entries
            entries = dict(node.synced_entries)
            for bit, (_, after) in enumerate(node.pending):
                if chosen >> bit & 1:
                    _take(entries, after)
            return entries

        return self._walk(entries_of, lambda node: self._variants(node)[choice.get(node, 0)])

    def _walk(self, entries_of: Callable[[Inode], dict[str, Inode]], digest_of: Callable[[Inode], bytes]) -> State:
        found: list[tuple[str, bytes | None]] = []
        waiting: list[tuple[str, Inode]] = [("", self.top)]
        while waiting:
            path, node = waiting.pop()
            for name, child in entries_of(node).items():
                below = f"{path}/{name}" if path else name
                if child.is_directory:
                    found.append((below, None))
                    waiting.append((below, child))
                else:
                    found.append((below, digest_of(child)))
        return tuple(sorted(found))


def _take(entries: dict[str, Inode], after: dict[str, Inode | None]) -> None:
    for name, node in after.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def _doubt(node: Inode) -> None:
    """Leave open, from now on, what is on the disk of all that has not been synced."""
    new = np.frombuffer(node.data, np.uint8)
    old = np.frombuffer(node.synced_data[: len(new)].ljust(len(new), b"\0"), np.uint8)
    unsynced = new != old
    unsynced[len(node.synced_data) :] = True
    unsynced[: len(node.doubt)] |= np.frombuffer(node.doubt, np.bool_)
    node.doubt = bytearray(unsynced.tobytes())


def _reached(node: Inode) -> bytes:
    """Return what a sync makes of a file: in doubt, what was there before, or zeros, or at the end nothing."""
    if not node.doubt:
        return node.data
    found = np.frombuffer(node.data, np.uint8).copy()
    doubt = np.frombuffer(node.doubt, np.bool_)
    old = np.frombuffer(node.synced_data[: len(found)].ljust(len(found), b"\0"), np.uint8)
    found[: len(doubt)][doubt] = old[: len(doubt)][doubt]
    certain = np.flatnonzero(~doubt)
    end = len(found) if len(doubt) < len(found) else int(certain[-1]) + 1 if len(certain) else 0
    return found[: max(end, min(len(node.synced_data), len(found)))].tobytes()


def torn(old: bytes, new: bytes) -> Iterator[bytes]:
    """Give what a crash may leave of a file whose bytes were to change: the old, the new, and torn between.

    Sectors that are the same in both stay. Behind the old end there may be zeros, with the size advanced.
    """
    yield old
    if old == new:
        return
    yield new
    before = old[: len(new)].ljust(len(new), b"\0")  # of a new file: zeros
    yield before
    if len(new) < len(old):
        yield new + old[len(new) :]  # the size is the last to change
    first, last = _changed_range(before, new)
    cuts = range(SECTOR_NBYTES, len(new), SECTOR_NBYTES)
    for cut in _spread(cuts[max(first // SECTOR_NBYTES - 1, 0) : last // SECTOR_NBYTES + 1], _CUTS_MAX):
        if cut >= len(old):
            yield new[:cut]
        yield new[:cut] + before[cut:]
        yield before[:cut] + new[cut:]
        hole = slice(cut - SECTOR_NBYTES, cut)
        yield new[: hole.start] + before[hole] + new[cut:]
    pages = range(0, len(new), PAGE_NBYTES)
    for begin in _spread(pages[first // PAGE_NBYTES : last // PAGE_NBYTES + 1], _HOLES_MAX):
        hole = slice(begin, begin + PAGE_NBYTES)
        yield new[:begin] + before[hole] + new[hole.stop :]


def _spread(places: Sequence[int], limit: int) -> Sequence[int]:
    """Choose places if there are too many: a third of them the first, a third the last, the others between."""
    if len(places) <= limit:
        return places
    third = limit // 3
    between = places[third:-third]
    return (*places[:third], *(between[at * len(between) // third] for at in range(third)), *places[-third:])


def _changed_range(one: bytes, other: bytes) -> tuple[int, int]:
    """Return where the first and the last difference of two texts of one length lie."""
    different = np.flatnonzero(np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8))
    return (int(different[0]), int(different[-1])) if len(different) else (len(one), len(one))


class Shelf:
    """Makes directories of states quickly: contents are written once, and linked if nobody changes files in place."""

    def __init__(self, place: Path, store: dict[bytes, bytes], *, links: bool) -> None:
        self._place = str(place)
        self._store = store
        self._links = links
        self._made: set[bytes] = set()
        os.makedirs(self._place, exist_ok=True)  # noqa: PTH103 - strings are quicker, here and below

    def make(self, state: State, root: Path) -> None:
        """Make a directory of a state."""
        base = str(root)
        os.mkdir(base)  # noqa: PTH102
        for path, digest in state:
            target = f"{base}/{path}"
            if digest is None:
                os.mkdir(target)  # noqa: PTH102
                continue
            source = f"{self._place}/{digest.hex()}" if self._links else target
            if source == target or digest not in self._made:
                self._made.add(digest)
                with open(source, "wb") as file:  # noqa: PTH123 - as above
                    file.write(self._store[digest])
            if source != target:
                os.link(source, target)

"""The document of a store that says which checkpoints a commit discards, because the run went back to an earlier step.

1. It is written before that commit, and names the checkpoint that is about to be committed. Its entry is in force once
   that checkpoint is there, so what it discards goes with the commit itself, wherever a process is killed.
2. A checkpoint is told from another one of the same step by the time in its manifest. An entry therefore never discards
   what is saved later, and may stay where it is.
3. Readers leave out what is discarded. The next writer deletes what a killed one has left.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.errors import CheckpointError
from asyncckpt.storage.results import DISCARDS_NAME, SHORTAGES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from asyncckpt.storage.base import CheckpointStore
    from asyncckpt.storage.results import Listing

FORMAT_VERSION: Final = 1


class _Entry(NamedTuple):
    step: int | None
    """The step whose commit discards; None if it has been committed."""
    created: float | None
    """The time in the manifest of that checkpoint."""
    later: dict[int, float | None]
    """The steps that it discards, with the times in their manifests; None if the manifest was damaged."""


def note_discards(store: CheckpointStore, step: int | None, created: float | None, later: Iterable[int]) -> None:
    """Write, before a checkpoint is committed, what its commit discards; only for the store's writer.

    Args:
        store: The store.
        step: The step that is about to be committed; None if that has been done.
        created: The time in its manifest.
        later: The steps that go.

    Raises:
        OSError: The store failed, or there are too many steps. What was there before still is.
    """
    entries = [
        _Entry(None, None, left) for entry in _in_force(store) if (left := _left(store, entry, entry.later.keys()))
    ]
    times = {each: _created(store, each) for each in later}
    entries.append(_Entry(step, created, {each: time for each, (is_there, time) in times.items() if is_there}))
    content = {"format_version": FORMAT_VERSION, "discards": [entry._asdict() for entry in entries]}
    store.write_document(DISCARDS_NAME, (json.dumps(content, separators=(",", ":")) + "\n").encode("ascii"))


def discarded(store: CheckpointStore, steps: Collection[int]) -> list[int]:
    """Return those of the steps that a commit has discarded, and that have not been deleted yet."""
    return sorted({step for entry in _in_force(store) for step in _left(store, entry, steps)})


def without(listing: Listing, steps: Collection[int]) -> Listing:
    """Return a listing without steps."""
    if not steps:
        return listing
    return listing._replace(
        records={step: record for step, record in listing.records.items() if step not in steps},
        incomplete=listing.incomplete.difference(steps),
    )


def _in_force(store: CheckpointStore) -> list[_Entry]:
    return [
        entry for entry in _read(store) if entry.step is None or _created(store, entry.step) == (True, entry.created)
    ]


def _left(store: CheckpointStore, entry: _Entry, steps: Collection[int]) -> dict[int, float | None]:
    return {
        step: time
        for step, time in entry.later.items()
        if step in steps and step != entry.step and _created(store, step) == (True, time)
    }


def _created(store: CheckpointStore, step: int) -> tuple[bool, float | None]:
    """Return whether a step is committed, and the time in its manifest; None if that is damaged."""
    try:
        with store.open(step) as reader:
            return True, reader.manifest.created
    except CheckpointError:
        return not store.missing([step]), None


def _read(store: CheckpointStore) -> list[_Entry]:
    """Read the document; none if there is none, or it cannot be understood: then nothing is deleted.

    Raises:
        OSError: The system is short of descriptors or memory, which says nothing of the document.
    """
    try:
        text = store.read_document(DISCARDS_NAME)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return []
    if text is None:
        return []
    try:
        content = json.loads(text.decode("ascii"))
        if content["format_version"] != FORMAT_VERSION:
            return []
        return [
            _Entry(entry["step"], entry["created"], {int(step): time for step, time in entry["later"].items()})
            for entry in content["discards"]
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []

"""The document that says which metric ranks the checkpoints of a store, for managers that open it later.

1. No checkpoint depends on it. What is wrong with it is a remark, never an error: a save must not fail because of it.
2. What cannot be read, or was written by a later release, is left as it is.
"""

from __future__ import annotations

import json
import reprlib
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.storage.results import METRIC_NAME, SHORTAGES

if TYPE_CHECKING:
    from asyncckpt.storage.base import CheckpointStore

FORMAT_VERSION: Final = 1


class StoredMetric(NamedTuple):
    """What ranks the checkpoints of a store."""

    metric_name: str
    higher_is_better: bool


class MetricFile(NamedTuple):
    """What the document says."""

    stored: StoredMetric | None
    """None where there is no document, or none that can be used."""
    problem: str | None = None
    """Why it cannot be used, in words; None where nothing is wrong."""
    may_be_written: bool = True
    """Whether a writer may replace it."""


def read_stored_metric(store: CheckpointStore) -> MetricFile:
    """Read the document of a store.

    Raises:
        OSError: The system is short of descriptors or memory, which says nothing of the document: retention that went
            on without the metric might prune the best.
    """
    try:
        text = store.read_document(METRIC_NAME)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return MetricFile(None, f"cannot be read ({error.strerror})", may_be_written=False)
    if text is None:
        return MetricFile(None)
    try:
        content = json.loads(text.decode("ascii"))
        version = content["format_version"]
        if type(version) is int and version > FORMAT_VERSION:
            problem = f"has format version {version}, and this asyncckpt knows {FORMAT_VERSION}: use a later release"
            return MetricFile(None, problem, may_be_written=False)
        stored = StoredMetric(content["metric_name"], content["higher_is_better"])
        if version != FORMAT_VERSION or [type(value) for value in stored] != [str, bool]:
            return MetricFile(None, "is damaged (a value is not of its type)")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return MetricFile(None, f"is damaged ({type(error).__name__}: {reprlib.repr(str(error))})")
    return MetricFile(stored)


def write_stored_metric(store: CheckpointStore, stored: StoredMetric) -> None:
    """Write the document; only for the store's writer.

    Raises:
        OSError: The store failed, or the metric's name is too long. What was there before still is.
    """
    text = json.dumps({"format_version": FORMAT_VERSION, **stored._asdict()}) + "\n"
    store.write_document(METRIC_NAME, text.encode("ascii"))

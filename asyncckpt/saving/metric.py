"""The metric: which one ranks checkpoints, where a store keeps its name, and the warnings about saves that lack it.

1. A manager without a metric's name uses the one that its directory was saved with. A manager with a name uses its own,
   with the stored direction if the stored name is the same and no direction was given; a contradiction is warned of.
2. No checkpoint depends on the document that names the metric. What is wrong with it is a remark, never an error: a
   save must not fail because of it. What cannot be read, or was written by a later release, is left as it is.
3. What is checked is what retention will use: the training_info as it is read back from the checkpoint.
4. Each way of lacking the metric is warned of once, because many loops measure only at some steps; with
   `metric_required` every such save is refused.
"""

from __future__ import annotations

import json
import reprlib
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.errors import MetricMissingError, brief, nearest
from asyncckpt.saving.retention import metric_of
from asyncckpt.storage.results import METRIC_NAME, SHORTAGES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asyncckpt.config import Settings
    from asyncckpt.saving.catalog import Catalog
    from asyncckpt.saving.retention import RetentionPolicy
    from asyncckpt.storage.base import CheckpointStore

FORMAT_VERSION: Final = 1
_SHOWN_KEYS: Final = 20
_COMPARED_KEYS: Final = 1000
_LIKENESS: Final = 0.5


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


class PolicyRequest(NamedTuple):
    """The retention options of a manager, before they are combined with the stored metric of the directory."""

    policy: RetentionPolicy
    is_direction_given: bool
    """Whether `higher_is_better` was given, even if with its default."""

    def resolve(self, file: MetricFile) -> tuple[RetentionPolicy, tuple[str, ...]]:
        """Return the policy for a directory with this stored metric, and warnings."""
        stored = file.stored
        if stored is None:
            problem = file.problem and f"{METRIC_NAME}, which names the metric, {file.problem}; it is ignored"
            return self.policy, (problem,) if problem else ()
        name, direction = self.policy.metric_name, self.policy.higher_is_better
        if name is None or (name == stored.metric_name and not self.is_direction_given):
            policy = replace(self.policy, metric_name=stored.metric_name, higher_is_better=stored.higher_is_better)
        else:
            policy = self.policy
        is_other_direction = self.is_direction_given and direction != stored.higher_is_better
        if name in (None, stored.metric_name) and not is_other_direction:
            return policy, ()
        given = f"metric_name={_shown(name)}, higher_is_better={direction}"
        remark = (
            f"the checkpoints were saved with metric_name={_shown(stored.metric_name)},"
            f" higher_is_better={stored.higher_is_better}, as {METRIC_NAME} says, and this manager was given {given}:"
            f" it uses metric_name={_shown(policy.metric_name)}, higher_is_better={policy.higher_is_better}"
        )
        return policy, (remark,)


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
    """Write the document of a store; only for its writer.

    Raises:
        OSError: The store failed, or the metric's name is too long. What was there before still is.
    """
    text = json.dumps({"format_version": FORMAT_VERSION, **stored._asdict()}) + "\n"
    store.write_document(METRIC_NAME, text.encode("ascii"))


def store_metric(store: CheckpointStore, policy: RetentionPolicy, file: MetricFile) -> tuple[str, ...]:
    """Write the metric of a policy if the store, whose document is given, lacks it; only for its writer.

    Returns:
        Remarks.
    """
    if policy.metric_name is None or not file.may_be_written:
        return ()
    metric = StoredMetric(policy.metric_name, policy.higher_is_better)
    try:
        if metric != file.stored:
            write_stored_metric(store, metric)
    except OSError as error:  # the next manager tries again
        return (f"the metric could not be stored for those who open the directory later: {error}",)
    return ()


class MetricWatch:
    """Checks that what is saved has the metric. Used on the loop's thread only."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._settings = settings
        self._warned: set[tuple[bool, str | None]] = set()

    def check(self, step: int, info: Mapping[str, object]) -> str | None:
        """Return a warning about a training_info without the metric; None if it has it, or this was warned of before.

        Raises:
            MetricMissingError: It lacks the metric, and `metric_required` is set.
        """
        name = self._catalog.ranking.policy.metric_name
        if name is None or metric_of(info, name) is not None:
            return None
        kind = type(info[name]).__name__ if name in info else None
        way = (bool(info), kind)
        if way in self._warned and not self._settings.metric_required:
            return None
        self._warned.add(way)
        problem = f"step {step}: {_lack(name, info)}"
        if self._settings.metric_required:
            message = f"{problem}. Pass the metric, or leave out metric_required"
            raise MetricMissingError(message, step=step, metric_name=name, known=list(islice(info, _SHOWN_KEYS)))
        is_stored = self._settings.metric_name is None
        origin = f" (this metric is named by {METRIC_NAME} in the directory)" if is_stored else ""
        return (
            f"{problem}{origin}. Such a checkpoint ranks last, and while there are no others keep_top_k prunes nothing;"
            " metric_required=True refuses it"
        )


def _lack(name: str, info: Mapping[str, object]) -> str:
    """Describe how a training_info lacks the metric, which keys it has, and which is the nearest."""
    metric = _shown(name)
    if name in info:
        value = info[name]
        return (
            f"the metric {metric} is {reprlib.repr(value)} ({type(value).__name__}), which is not a number;"
            f" the keys of training_info are {_listed(info)}"
        )
    if not info:
        return f"there is no metric {metric}: training_info is empty"
    close = nearest(name, islice(info, _COMPARED_KEYS), likeness=_LIKENESS)
    return (
        f"there is no metric {metric} in training_info, whose keys are {_listed(info)}"
        f"{f' (did you mean {_shown(close[0])}?)' if close else ''}"
    )


def _listed(info: Mapping[str, object]) -> str:
    shown = ", ".join(_shown(key) for key in islice(info, _SHOWN_KEYS))
    return shown if len(info) <= _SHOWN_KEYS else f"{shown} and {len(info) - _SHOWN_KEYS} more"


def _shown(name: str | None) -> str:
    return brief(repr(name))

"""The metric: which one ranks checkpoints, and the warnings about saves that lack it. Pure: no I/O.

1. A manager without a metric's name uses the one that its directory was saved with. A manager with a name uses its own,
   with the stored direction if the stored name is the same and no direction was given; a contradiction is warned of.
2. What is checked is what retention will use: the training_info as it is read back from the checkpoint.
3. Each way of lacking the metric is warned of once, because many loops measure only at some steps; with
   `metric_required` every such save is refused.
"""

from __future__ import annotations

import reprlib
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.errors import MetricMissingError, brief, nearest
from asyncckpt.saving.retention import metric_of
from asyncckpt.saving.stored_metric import StoredMetric
from asyncckpt.storage.results import METRIC_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asyncckpt.saving.catalog import Catalog
    from asyncckpt.saving.retention import RetentionPolicy
    from asyncckpt.saving.stored_metric import MetricFile

_SHOWN_KEYS: Final = 20
_COMPARED_KEYS: Final = 1000
_LIKENESS: Final = 0.5


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


def metric_to_store(policy: RetentionPolicy, file: MetricFile) -> StoredMetric | None:
    """Return the metric that a writer with this policy has to store; None if nothing is to be changed."""
    if policy.metric_name is None or not file.may_be_written:
        return None
    metric = StoredMetric(policy.metric_name, policy.higher_is_better)
    return None if metric == file.stored else metric


class MetricWatch:
    """Checks that what is saved has the metric. Used on the loop's thread only."""

    def __init__(self, catalog: Catalog, given_name: str | None, *, is_required: bool) -> None:
        self._catalog = catalog
        self._given_name = given_name
        self._is_required = is_required
        self._warned: set[tuple[bool, str | None]] = set()

    def check(self, step: int, info: Mapping[str, object]) -> str | None:
        """Return a warning about a training_info without the metric; None if it has it, or this was warned of before.

        Raises:
            MetricMissingError: It lacks the metric, and `metric_required` is set.
        """
        name = self._catalog.policy.metric_name
        if name is None or metric_of(info, name) is not None:
            return None
        kind = type(info[name]).__name__ if name in info else None
        way = (bool(info), kind)
        if way in self._warned and not self._is_required:
            return None
        self._warned.add(way)
        problem = f"step {step}: {_lack(name, info)}"
        if self._is_required:
            message = f"{problem}. Pass the metric, or leave out metric_required"
            raise MetricMissingError(message, step=step, metric_name=name, known=list(islice(info, _SHOWN_KEYS)))
        origin = "" if self._given_name is not None else f" (this metric is named by {METRIC_NAME} in the directory)"
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

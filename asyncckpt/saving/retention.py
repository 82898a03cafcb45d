"""Retention: which checkpoints are kept, and why; which one is the best. Pure: nothing is deleted here.

1. A metric is a real number in ``training_info``; a bool, a str or anything else counts as missing.
2. A ranking puts the greatest metric first (or the smallest), then NaN and missing metrics alike; among equals the
   higher step comes first. Without a metric's name the order is that of the steps, the highest first.
3. Retention is a union: a checkpoint is kept if any rule keeps it. With neither `keep_top_k` nor `keep_latest_k` every
   checkpoint is kept.
4. `keep_top_k` ranks the periodic steps: the multiples of `save_period`, or all steps if that is None. While none of
   them has the metric it keeps them all: a misspelt name must not cost the best.
5. Without `keep_top_k` every multiple of `save_period` is kept, unless `keep_periodic` is False; without a
   `save_period` this rule keeps nothing.
6. Protection (the newest, the one just committed, those being loaded) is added to the rules, and does not count in a
   ranking.
7. The loop's thread decides after each commit. The cost grows with what changes and with the numbers in the policy;
   checkpoints that a permanent rule keeps are not looked at again.
"""

from __future__ import annotations

import math
import numbers
from bisect import insort
from dataclasses import dataclass, fields
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from asyncckpt.runtime.pacing import Pacer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from asyncckpt.config import Settings

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """The options that decide which checkpoints are kept; `CheckpointingConfig` has their meanings and bounds."""

    metric_name: str | None = None
    higher_is_better: bool = True
    save_period: int | None = None
    keep_top_k: int | None = None
    keep_latest_k: int | None = None
    keep_every: int | None = None
    keep_periodic: bool = True

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is ever pruned."""
        return self.keep_top_k is None and self.keep_latest_k is None

    def why_nothing_is_pruned(self, *, least: int | None = None) -> str | None:
        """Explain why no step that `should_save` allows will ever be pruned, although retention was asked for.

        Args:
            least: `should_save` allows multiples of this step; by default, of ``save_period``.

        Returns:
            What was asked for, which rule keeps everything, and the ways out; None if the policy prunes, or none of its
            options asks for that.
        """
        asked = [f"{name}={value}" for name, value in self._limits().items()]
        # A rule that keeps the first multiple of save_period keeps every multiple of it: each rule goes by multiples.
        least = least or self.save_period or 1
        keeping = [rule for rule in _permanent_rules(self) if rule.keeps(least)]
        if not (asked and keeping):
            return None
        period = "" if self.save_period is None else f" with save_period={self.save_period}"
        reasons = "; and ".join(f"{rule.why(least)}: {rule.way_out}" for rule in keeping)
        return f"{', '.join(asked)}{period} keeps every step that should_save allows, forever. Reason: {reasons}"

    def _limits(self) -> dict[str, object]:
        """Return the options that ask for less than everything to be kept."""
        options = {
            "keep_top_k": self.keep_top_k,
            "keep_latest_k": self.keep_latest_k,
            "keep_every": self.keep_every,
            "keep_periodic": None if self.keep_periodic else False,
        }
        return {name: value for name, value in options.items() if value is not None}

    @classmethod
    def from_settings(cls, settings: Settings) -> RetentionPolicy:
        """Take a manager's options."""
        return cls(**{option.name: getattr(settings, option.name) for option in fields(cls)})


class Candidate(NamedTuple):
    """A committed checkpoint, for retention."""

    step: int
    metric: float | None
    """As `metric_of` returns it: None if the checkpoint has none."""


class Verdict(NamedTuple):
    """Whether a checkpoint is kept, and why."""

    step: int
    is_kept: bool
    reason: str
    """Every rule that keeps it, or every rule that might have: "latest", "not among the 2 most recent"."""


class BestChoice(NamedTuple):
    """The best checkpoint, and warnings about the choice."""

    step: int | None
    """None if there is no checkpoint at all."""
    warnings: tuple[str, ...] = ()
    """That checkpoints lack the metric, and were left out."""


class _Rule(NamedTuple):
    keeps: Callable[[int], bool]
    why: Callable[[int], str]
    why_not: Callable[[int], str] | None = None
    """None for a protection, whose absence explains nothing."""
    way_out: str = ""
    """What to do if a permanent rule keeps too much; empty for the others. A rule is permanent if it will always keep
    what it keeps now, whatever is added and removed."""


def metric_of(training_info: Mapping[str, object], metric_name: str | None) -> float | None:
    """Look up the metric in a training_info.

    Args:
        training_info: What the caller passed with the checkpoint, or what was read back.
        metric_name: The metric's key; None if no metric has a name.

    Returns:
        The number (NaN and infinities too), or None if there is no such key or its value is not a real number: a bool,
        a str, None, a list.
    """
    value = None if metric_name is None else training_info.get(metric_name)
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value  # not converted: an int of any size compares exactly
    return float(value) if isinstance(value, numbers.Real) else None


def plan_prune(
    candidates: Collection[Candidate],
    policy: RetentionPolicy,
    *,
    exclude_latest: bool = True,
    protect: Collection[int] = frozenset(),
    committed: int | None = None,
) -> tuple[Verdict, ...]:
    """Decide for each checkpoint whether it is kept, and why.

    Args:
        candidates: The committed, intact checkpoints, in any order, each step once.
        policy: The rules.
        exclude_latest: Whether the newest is kept whatever the rules say.
        protect: Steps that are being loaded; they are kept.
        committed: The step whose commit leads to this pruning; it is kept.

    Returns:
        One verdict for each candidate, in the order of the steps.
    """
    ranking = Ranking(policy, candidates)
    return tuple(ranking.verdicts(exclude_latest=exclude_latest, protect=protect, committed=committed))


class Ranking:
    """Checkpoints, ranked by their metric, which are added and removed one by one.

    Attributes:
        policy: The rules.
    """

    def __init__(
        self, policy: RetentionPolicy, candidates: Iterable[tuple[int, float | None]] = (), pacer: Pacer | None = None
    ) -> None:
        """Rank candidates, or pairs like them; a pacer is for a thread that has thousands."""
        batches = (pacer or Pacer(yields=False)).batches

        def paced(items: Iterable[ItemT]) -> Iterator[ItemT]:
            return chain.from_iterable(batches(items))

        self.policy: Final = policy
        self._metrics: dict[int, float | None] = dict(paced(candidates))
        self._steps = sorted(self._metrics)
        scores = {step: score for step in paced(self._steps) if (score := self._score(step)) is not None}
        self._ranked = [step for step in self._steps if step not in scores]  # the best comes last
        self._ranked += sorted(scores, key=scores.__getitem__)  # numbers, which sort faster than tuples
        self._permanent_rules = _permanent_rules(policy)
        prunable = set(self._steps)
        for rule in self._permanent_rules:
            prunable.difference_update(step for step in paced(self._steps) if rule.keeps(step))
        self._prunable_periodic = set(filter(self._is_periodic, paced(prunable)))
        self._prunable_others = prunable - self._prunable_periodic
        self._missing = {step for step, metric in self._metrics.items() if metric is None}
        self._measured = {step for step in paced(self._metrics.keys() - self._missing) if self._is_periodic(step)}
        self._best: BestChoice | None = None  # until something changes

    def add(self, candidate: Candidate) -> None:
        """Add a checkpoint, in the place of one with the same step."""
        step, metric = candidate
        self.remove([step])
        self._best = None
        self._metrics[step] = metric
        insort(self._steps, step)
        insort(self._ranked, step, key=self._sort_key)
        if not any(rule.keeps(step) for rule in self._permanent_rules):
            (self._prunable_periodic if self._is_periodic(step) else self._prunable_others).add(step)
        if metric is None:
            self._missing.add(step)
        elif self._is_periodic(step):
            self._measured.add(step)

    def remove(self, steps: Iterable[int]) -> None:
        """Remove the steps that are there."""
        gone = self._metrics.keys() & set(steps)
        if not gone:
            return
        self._best = None
        for step in gone:
            del self._metrics[step]
        self._steps = [step for step in self._steps if step not in gone]
        self._ranked = [step for step in self._ranked if step not in gone]
        for each in (self._prunable_periodic, self._prunable_others, self._measured, self._missing):
            each.difference_update(gone)

    def best(self) -> BestChoice:
        """Choose the checkpoint with the best metric, of equals the one with the higher step.

        Checkpoints without the metric are left out. If none has it, the latest is returned instead. NaN is a metric,
        and the worst. Without a metric's name the latest is the best.
        """
        if self._best is None:
            self._best = self._choose_best()
        return self._best

    def to_prune(
        self, *, exclude_latest: bool = True, protect: Collection[int] = frozenset(), committed: int | None = None
    ) -> list[int]:
        """Return the steps that nothing keeps, ascending: those of `plan_prune`, which has the same arguments."""
        protections = self._protections(exclude_latest=exclude_latest, protect=protect, committed=committed)
        steps = set(self._prunable_others)
        if not self._top_prunes_nothing:
            steps |= self._prunable_periodic.difference(self._top())
        return sorted(steps.difference(self._most_recent(), *protections.values()))

    def verdicts(self, *, exclude_latest: bool, protect: Collection[int], committed: int | None) -> Iterator[Verdict]:
        """Return the verdicts of `plan_prune`, which has the same arguments."""
        protections = self._protections(exclude_latest=exclude_latest, protect=protect, committed=committed)
        rules = [*self._rules(), *(_protection(phrase, steps) for phrase, steps in protections.items())]
        return (_verdict(step, rules) for step in self._steps)

    # --- the ranking --------------------------------------------------------------------------------------------------

    def _sort_key(self, step: int) -> tuple[bool, float, int]:
        """Return the key that sorts the ranking: the best has the greatest."""
        score = self._score(step)
        return score is not None, 0 if score is None else score, step

    def _score(self, step: int) -> float | None:
        """Return what a step is ranked by, more of which is better; None if its metric is missing or NaN."""
        metric = None if self.policy.metric_name is None else self._metrics[step]
        if metric is None or (isinstance(metric, float) and math.isnan(metric)):
            return None
        return metric if self.policy.higher_is_better else -metric

    def _choose_best(self) -> BestChoice:
        name = self.policy.metric_name
        if name is None or not self._missing:
            return BestChoice(self._ranked[-1] if self._ranked else None)
        missing, count = sorted(self._missing), len(self._steps)
        lack = (
            f"{len(missing)} of {count} checkpoints lack the metric {name!r} and are left out of the choice of the"
            f" best; their steps: {', '.join(map(str, missing))}"
        )
        if len(missing) == count:
            latest = self._steps[-1]
            return BestChoice(
                latest,
                (lack, f"no checkpoint has the metric {name!r}: the latest, step {latest}, is taken as the best"),
            )
        return BestChoice(next(step for step in reversed(self._ranked) if step not in self._missing), (lack,))

    # --- the rules ----------------------------------------------------------------------------------------------------

    def _is_periodic(self, step: int) -> bool:
        """Whether keep_top_k applies to a step."""
        return self.policy.keep_top_k is not None and step % (self.policy.save_period or 1) == 0

    @property
    def _top_prunes_nothing(self) -> bool:
        """Whether keep_top_k keeps all periodic steps, because none of them has the metric."""
        return self.policy.metric_name is not None and not self._measured

    def _top(self) -> set[int]:
        """Return the steps that keep_top_k keeps, if it prunes any."""
        periodic = filter(self._is_periodic, reversed(self._ranked))
        return set(islice(periodic, self.policy.keep_top_k or 0))

    def _most_recent(self) -> set[int]:
        """Return the steps that keep_latest_k keeps."""
        return set(islice(reversed(self._steps), self.policy.keep_latest_k or 0))

    def _protections(
        self, *, exclude_latest: bool, protect: Collection[int], committed: int | None
    ) -> dict[str, Collection[int]]:
        """Return the steps that are kept whatever the rules say, by the reason."""
        return {
            "latest": self._steps[-1:] if exclude_latest else [],
            "just committed": [] if committed is None else [committed],
            "being loaded": protect,
        }

    def _rules(self) -> list[_Rule]:
        policy = self.policy
        rules = []
        if policy.keep_top_k is not None:
            rules.append(self._top_rule(policy.keep_top_k))
        if policy.keep_latest_k is not None:
            phrase = f"among the {policy.keep_latest_k} most recent"
            rules.append(
                _Rule(keeps=self._most_recent().__contains__, why=lambda _: phrase, why_not=lambda _: f"not {phrase}")
            )
        before = len(self._permanent_rules) - (policy.keep_every is not None)  # the reasons end with that of keep_every
        return [*self._permanent_rules[:before], *rules, *self._permanent_rules[before:]]

    def _top_rule(self, top_k: int) -> _Rule:
        period, name = self.policy.save_period, self.policy.metric_name
        whose = "" if period is None else f" multiples of save_period={period}"
        phrase = (
            f"among the {top_k} most recent{whose}" if name is None else f"among the {top_k} best{whose} by {name!r}"
        )

        def measured(step: int) -> str:
            if name is None:
                return phrase
            metric = self._metrics[step]
            return f"{phrase} ({'no metric' if metric is None else format(metric)})"

        def why_not(step: int) -> str:
            if period is not None and step % period != 0:
                return f"not a multiple of save_period={period}"
            return f"not {measured(step)}"

        if self._top_prunes_nothing:
            none = "checkpoint" if period is None else f"multiple of save_period={period}"
            reason = f"keep_top_k={top_k} prunes nothing while no {none} has the metric {name!r}"
            return _Rule(keeps=self._is_periodic, why=lambda _: reason, why_not=why_not)
        return _Rule(keeps=self._top().__contains__, why=measured, why_not=why_not)


def _permanent_rules(policy: RetentionPolicy) -> list[_Rule]:
    """Return the rules that go by the step alone, each of which keeps all multiples of some number."""
    if policy.keeps_all:
        why = "neither keep_top_k nor keep_latest_k is set"
        return [_Rule(keeps=lambda _: True, why=lambda _: why, way_out="set one of them to prune the rest")]
    rules = []
    if policy.keep_top_k is None and policy.save_period is not None and policy.keep_periodic:
        way_out = "pass keep_periodic=False to give up this rule, or keep_top_k=k to keep the k best of them"
        remark = ", all of which are kept with keep_periodic=True"
        rules.append(_multiples_rule("save_period", policy.save_period, way_out, remark))
    if policy.keep_every is not None:
        way_out = "pass a keep_every that not every step to be saved is a multiple of, or leave it out"
        rules.append(_multiples_rule("keep_every", policy.keep_every, way_out))
    return rules


def _multiples_rule(option: str, period: int, way_out: str, remark: str = "") -> _Rule:
    phrase = f"multiple of {option}={period}"
    return _Rule(
        keeps=lambda step: step % period == 0,
        why=lambda _: phrase + remark,
        why_not=lambda _: f"not a {phrase}",
        way_out=way_out,
    )


def _protection(phrase: str, steps: Collection[int]) -> _Rule:
    return _Rule(keeps=steps.__contains__, why=lambda _: phrase)


def _verdict(step: int, rules: Sequence[_Rule]) -> Verdict:
    keeping = [rule.why(step) for rule in rules if rule.keeps(step)]
    if keeping:
        return Verdict(step=step, is_kept=True, reason="; ".join(keeping))
    failed = [rule.why_not(step) for rule in rules if rule.why_not is not None]
    return Verdict(step=step, is_kept=False, reason="; ".join(failed))

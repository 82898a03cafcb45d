"""Which checkpoints stay, and why; which one is best. Pure: decisions only, somebody else deletes.

1. A metric is a real number in ``training_info``; a bool, a str or anything else counts as absent.
2. A ranking puts the greatest metric first (or the smallest), then NaN and absent metrics alike; among equals the
   higher step comes first. Without a metric's name the order is that of the steps, the highest first.
3. Retention is a union: a checkpoint stays if any rule keeps it. With neither `keep_top_k` nor `keep_latest_k` every
   checkpoint stays.
4. `keep_top_k` ranks the periodic steps: the multiples of `save_period`, or all steps if that is None. Without
   `keep_top_k` every multiple of `save_period` stays; a `save_period` of None then keeps nothing by itself.
5. Protection (the newest, the one just committed, those being loaded) comes on top: it takes no place in a ranking.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from asyncckpt.config import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """The options that decide who stays; `asyncckpt.config.CheckpointingConfig` has their meanings and bounds."""

    metric_name: str | None = None
    higher_is_better: bool = True
    save_period: int | None = None
    keep_top_k: int | None = None
    keep_latest_k: int | None = None
    keep_every: int | None = None

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is ever pruned."""
        return self.keep_top_k is None and self.keep_latest_k is None

    @classmethod
    def from_settings(cls, settings: Settings) -> RetentionPolicy:
        """Take a manager's options."""
        return cls(
            metric_name=settings.metric_name,
            higher_is_better=settings.higher_is_better,
            save_period=settings.save_period,
            keep_top_k=settings.keep_top_k,
            keep_latest_k=settings.keep_latest_k,
            keep_every=settings.keep_every,
        )


class Candidate(NamedTuple):
    """A committed checkpoint as retention sees it."""

    step: int
    metric: float | None
    """As `metric_of` gives it: None where the checkpoint has none."""


class Verdict(NamedTuple):
    """What becomes of a checkpoint, and why."""

    step: int
    is_kept: bool
    reason: str
    """Every rule that keeps it, or every rule that might have: "latest", "not among the 2 most recent"."""


class BestChoice(NamedTuple):
    """The best checkpoint, and what the caller should be warned of."""

    step: int | None
    """None if there is no checkpoint at all."""
    missing_steps: tuple[int, ...]
    """The steps left out because they lack the metric, ascending; empty if no metric has a name."""
    is_fallback: bool
    """Whether no checkpoint has the metric, so that the latest stands in."""
    warnings: tuple[str, ...]
    """What to warn of, in words; empty if nothing is odd."""


class _Rule(NamedTuple):
    kept: Collection[int]
    why: Callable[[Candidate], str]
    why_not: Callable[[Candidate], str] | None
    """None for a protection, whose absence explains nothing."""


def metric_of(training_info: Mapping[str, object], metric_name: str | None) -> float | None:
    """Look up the metric in a training_info.

    Args:
        training_info: What the caller passed with the checkpoint, or what was read back.
        metric_name: The metric's key; None if no metric has a name.

    Returns:
        The number (NaN and infinities too), or None where there is no such key or its value is no real number: a bool,
        a str, None, a list.
    """
    value = None if metric_name is None else training_info.get(metric_name)
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value  # not converted: an int of any size compares exactly
    return float(value) if isinstance(value, numbers.Real) else None


def choose_best(candidates: Collection[Candidate], policy: RetentionPolicy) -> BestChoice:
    """Choose the checkpoint with the best metric, of equals the one with the higher step.

    Checkpoints without the metric are left out. If none has it, the latest stands in. NaN is a metric, and the worst.
    With no metric's name the latest is the best, and nothing is odd about that.
    """
    if policy.metric_name is None or not candidates:
        latest = max((candidate.step for candidate in candidates), default=None)
        return BestChoice(step=latest, missing_steps=(), is_fallback=False, warnings=())
    measured = [candidate for candidate in candidates if candidate.metric is not None]
    missing = tuple(sorted(candidate.step for candidate in candidates if candidate.metric is None))
    best = _ranked(measured or candidates, policy)[0].step
    warnings = []
    if missing:
        steps = ", ".join(map(str, missing))
        warnings.append(
            f"{len(missing)} of {len(candidates)} checkpoints lack the metric {policy.metric_name!r} and are left out "
            f"of the choice of the best; their steps: {steps}"
        )
    if not measured:
        warnings.append(
            f"no checkpoint has the metric {policy.metric_name!r}: the latest, step {best}, stands in for the best"
        )
    return BestChoice(step=best, missing_steps=missing, is_fallback=not measured, warnings=tuple(warnings))


def plan_prune(
    candidates: Collection[Candidate],
    policy: RetentionPolicy,
    *,
    exclude_latest: bool = True,
    protect: Collection[int] = frozenset(),
    committed: int | None = None,
) -> tuple[Verdict, ...]:
    """Decide for each checkpoint whether it stays, and say why.

    Args:
        candidates: The committed, intact checkpoints, in any order, each step once.
        policy: The rules.
        exclude_latest: Whether the newest stays whatever the rules say.
        protect: Steps that are being loaded; they stay.
        committed: The step whose commit led to this; it stays.

    Returns:
        One verdict for each candidate, in the order of the steps.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.step)
    rules = _rules(ordered, policy)
    if exclude_latest and ordered:
        rules.append(_protection({ordered[-1].step}, "latest"))
    if committed is not None:
        rules.append(_protection({committed}, "just committed"))
    rules.append(_protection(protect, "being loaded"))
    return tuple(_verdict(candidate, rules) for candidate in ordered)


def _rules(ordered: Sequence[Candidate], policy: RetentionPolicy) -> list[_Rule]:
    top_k, latest_k, every, period = policy.keep_top_k, policy.keep_latest_k, policy.keep_every, policy.save_period
    if policy.keeps_all:
        return [_protection({candidate.step for candidate in ordered}, "neither keep_top_k nor keep_latest_k is set")]
    rules = []
    if top_k is not None:
        rules.append(_top_rule(ordered, policy, top_k))
    elif period is not None:
        rules.append(_multiples_rule(ordered, "save_period", period))
    if latest_k is not None:
        newest = {candidate.step for candidate in ordered[::-1][:latest_k]}
        phrase = f"among the {latest_k} most recent"
        rules.append(_Rule(kept=newest, why=lambda _: phrase, why_not=lambda _: f"not {phrase}"))
    if every is not None:
        rules.append(_multiples_rule(ordered, "keep_every", every))
    return rules


def _top_rule(ordered: Sequence[Candidate], policy: RetentionPolicy, top_k: int) -> _Rule:
    period, name = policy.save_period, policy.metric_name
    periodic = [candidate for candidate in ordered if period is None or candidate.step % period == 0]
    whose = "" if period is None else f" multiples of save_period={period}"
    phrase = f"among the {top_k} most recent{whose}" if name is None else f"among the {top_k} best{whose} by {name!r}"

    def measured(candidate: Candidate) -> str:
        if name is None:
            return phrase
        return f"{phrase} ({'no metric' if candidate.metric is None else format(candidate.metric)})"

    def why_not(candidate: Candidate) -> str:
        if period is not None and candidate.step % period != 0:
            return f"not a multiple of save_period={period}"
        return f"not {measured(candidate)}"

    top = {candidate.step for candidate in _ranked(periodic, policy)[:top_k]}
    return _Rule(kept=top, why=measured, why_not=why_not)


def _multiples_rule(ordered: Sequence[Candidate], option: str, every: int) -> _Rule:
    phrase = f"multiple of {option}={every}"
    return _Rule(
        kept={candidate.step for candidate in ordered if candidate.step % every == 0},
        why=lambda _: phrase,
        why_not=lambda _: f"not a {phrase}",
    )


def _protection(steps: Collection[int], phrase: str) -> _Rule:
    return _Rule(kept=steps, why=lambda _: phrase, why_not=None)


def _verdict(candidate: Candidate, rules: Sequence[_Rule]) -> Verdict:
    keeping = [rule.why(candidate) for rule in rules if candidate.step in rule.kept]
    if keeping:
        return Verdict(step=candidate.step, is_kept=True, reason="; ".join(keeping))
    failed = [rule.why_not(candidate) for rule in rules if rule.why_not is not None]
    return Verdict(step=candidate.step, is_kept=False, reason="; ".join(failed))


def _ranked(candidates: Collection[Candidate], policy: RetentionPolicy) -> list[Candidate]:
    """Order candidates, the best first."""

    def rank(candidate: Candidate) -> tuple[bool, float, int]:
        metric = candidate.metric
        if policy.metric_name is None or metric is None or (isinstance(metric, float) and math.isnan(metric)):
            return (False, 0, candidate.step)
        return (True, metric if policy.higher_is_better else -metric, candidate.step)

    return sorted(candidates, key=rank, reverse=True)

"""Who stays, why, and who is best: against a model written from the rules' text, and examples."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncckpt.config import resolve_settings
from asyncckpt.saving.retention import Candidate, Ranking, RetentionPolicy, metric_of, plan_prune

LOSSES = {1: 0.5, 2: 0.3, 3: 0.7, 4: 0.2, 5: 0.4, 6: 0.8}
BLIND = dict.fromkeys(range(1, 7))

METRICS = st.none() | st.sampled_from([0.0, -0.0, 1.0, 2.0, math.nan, math.inf, -math.inf, 10**400]) | st.floats()
CHECKPOINTS = st.dictionaries(st.integers(0, 40), METRICS, max_size=12)
POLICIES = st.builds(
    RetentionPolicy,
    metric_name=st.sampled_from([None, "loss"]),
    higher_is_better=st.booleans(),
    save_period=st.none() | st.integers(1, 6),
    keep_top_k=st.none() | st.integers(0, 6),
    keep_latest_k=st.none() | st.integers(0, 6),
    keep_every=st.none() | st.integers(1, 10),
    keep_periodic=st.booleans(),
)


def candidates_of(metrics: dict[int, Any]) -> list[Candidate]:
    """Make candidates from a mapping of step to metric."""
    return [Candidate(step=step, metric=metric) for step, metric in metrics.items()]


def kept(metrics: dict[int, Any], policy: RetentionPolicy, **options: Any) -> list[int]:
    """Give the steps that stay."""
    return [verdict.step for verdict in plan_prune(candidates_of(metrics), policy, **options) if verdict.is_kept]


def reasons(metrics: dict[int, Any], policy: RetentionPolicy, **options: Any) -> dict[int, str]:
    """Give each step's reason."""
    return {verdict.step: verdict.reason for verdict in plan_prune(candidates_of(metrics), policy, **options)}


def beats(first: int, second: int, metrics: dict[int, Any], policy: RetentionPolicy) -> bool:
    """Say whether one step ranks before another: the rules' text, as a comparison of two."""
    if policy.metric_name is not None:
        values = [metrics[step] for step in (first, second)]
        worst = [value is None or value != value for value in values]  # noqa: PLR0124 - NaN
        if worst[0] != worst[1]:
            return worst[1]
        if not worst[0] and values[0] != values[1]:
            return bool(values[0] > values[1]) == policy.higher_is_better
    return first > second


def model_kept(metrics: dict[int, Any], policy: RetentionPolicy) -> set[int]:
    """Give the steps that the rules keep, each step judged alone by counting those before it."""
    if policy.keep_top_k is None and policy.keep_latest_k is None:
        return set(metrics)
    periodic = [step for step in metrics if policy.save_period is None or step % policy.save_period == 0]
    is_blind = policy.metric_name is not None and all(metrics[step] is None for step in periodic)
    result = set()
    for step in metrics:
        if policy.keep_top_k is not None and step in periodic:
            if is_blind or sum(beats(other, step, metrics, policy) for other in periodic) < policy.keep_top_k:
                result.add(step)
        elif policy.keep_top_k is None and policy.save_period is not None and policy.keep_periodic and step in periodic:
            result.add(step)
        if policy.keep_latest_k is not None and sum(other > step for other in metrics) < policy.keep_latest_k:
            result.add(step)
        if policy.keep_every is not None and step % policy.keep_every == 0:
            result.add(step)
    return result


@given(
    CHECKPOINTS, POLICIES, st.booleans(), st.frozensets(st.integers(0, 40), max_size=3), st.none() | st.integers(0, 40)
)
@example(LOSSES, RetentionPolicy(metric_name="loss", higher_is_better=False, keep_top_k=3), True, frozenset(), 6)  # noqa: FBT003
@example(BLIND, RetentionPolicy(metric_name="los", keep_top_k=1), False, frozenset(), None)  # noqa: FBT003
@example(BLIND | {5: 1.0}, RetentionPolicy(metric_name="r", keep_top_k=1, save_period=4), True, frozenset(), 6)  # noqa: FBT003
@example(BLIND, RetentionPolicy(save_period=1, keep_latest_k=1, keep_periodic=False), True, frozenset(), 6)  # noqa: FBT003
def test_plan_matches_the_rules(
    metrics: dict[int, Any],
    policy: RetentionPolicy,
    exclude_latest: bool,
    protect: frozenset[int],
    committed: int | None,
) -> None:
    """The plan keeps exactly what the rules and the protections keep, in step order, and says why for each."""
    verdicts = plan_prune(
        candidates_of(metrics), policy, exclude_latest=exclude_latest, protect=protect, committed=committed
    )
    protected = protect | ({committed} if committed is not None else set())
    if exclude_latest and metrics:
        protected |= {max(metrics)}
    assert [verdict.step for verdict in verdicts] == sorted(metrics)
    expected = model_kept(metrics, policy) | (protected & set(metrics))
    assert {verdict.step for verdict in verdicts if verdict.is_kept} == expected
    assert all(verdict.reason for verdict in verdicts)
    assert all(verdict.reason.startswith("not ") for verdict in verdicts if not verdict.is_kept)


@given(CHECKPOINTS, POLICIES)
@example({1: math.nan, 2: None}, RetentionPolicy(metric_name="loss"))
def test_best_matches_the_rules(metrics: dict[int, Any], policy: RetentionPolicy) -> None:
    """The best is the step that no other one with the metric beats, or the latest if there is none."""
    choice = Ranking(policy, candidates_of(metrics)).best()
    with_metric = [step for step in metrics if policy.metric_name is None or metrics[step] is not None]
    if not metrics:
        assert choice.step is None
    elif not with_metric:
        assert choice.step == max(metrics)
        assert len(choice.warnings) == 2
    else:
        assert choice.step in with_metric
        assert not any(beats(other, choice.step, metrics, policy) for other in with_metric)
        assert len(choice.warnings) == (len(with_metric) < len(metrics))


@given(CHECKPOINTS, POLICIES)
def test_pruning_is_settled_at_once(metrics: dict[int, Any], policy: RetentionPolicy) -> None:
    """What stays after a prune stays after another one: a plan does not depend on who was pruned before."""
    survivors = kept(metrics, policy)
    assert kept({step: metrics[step] for step in survivors}, policy) == survivors


@given(
    st.lists(st.tuples(st.integers(0, 12), st.none() | METRICS | st.just("leaves")), max_size=20),
    CHECKPOINTS,
    POLICIES,
    st.booleans(),
    st.frozensets(st.integers(0, 12), max_size=3),
)
def test_checkpoints_that_come_and_go(
    changes: list[tuple[int, Any]],
    metrics: dict[int, Any],
    policy: RetentionPolicy,
    exclude_latest: bool,
    protect: frozenset[int],
) -> None:
    """However it came to be, a ranking chooses the best and prunes what a new one would, and a plan says the same."""
    ranking, left = Ranking(policy, candidates_of(metrics)), dict(metrics)
    for step, metric in changes:
        ranking.best()
        if metric == "leaves":
            ranking.remove([step, 99])
            left.pop(step, None)
        else:
            ranking.add(Candidate(step, metric))
            left[step] = metric
    assert ranking.best() == Ranking(policy, candidates_of(left)).best()
    committed = changes[-1][0] if changes else None
    protections: dict[str, Any] = {"exclude_latest": exclude_latest, "protect": protect, "committed": committed}
    verdicts = plan_prune(candidates_of(left), policy, **protections)
    assert ranking.to_prune(**protections) == [verdict.step for verdict in verdicts if not verdict.is_kept]


@pytest.mark.parametrize("is_stepwise", [False, True])
def test_worked_example(is_stepwise: bool) -> None:
    """Losses .5 .3 .7 .2 .4 .8 with keep_top_k=3, lower better, leave 2, 4, 5 and the newest, 6."""
    policy = RetentionPolicy(metric_name="loss", higher_is_better=False, keep_top_k=3)
    left: dict[int, Any] = {}
    for step, loss in LOSSES.items():
        left[step] = loss
        if is_stepwise or step == max(LOSSES):
            left = {survivor: left[survivor] for survivor in kept(left, policy, committed=step)}
    assert list(left) == [2, 4, 5, 6]


def test_reasons_are_words() -> None:
    """Each verdict says which rules keep the checkpoint, or which might have."""
    policy = RetentionPolicy(metric_name="loss", higher_is_better=False, keep_top_k=2, keep_latest_k=1, keep_every=3)
    assert reasons(LOSSES, policy, protect={1}, committed=5) == {
        1: "being loaded",
        2: "among the 2 best by 'loss' (0.3)",
        3: "multiple of keep_every=3",
        4: "among the 2 best by 'loss' (0.2)",
        5: "just committed",
        6: "among the 1 most recent; multiple of keep_every=3; latest",
    }
    assert reasons({1: 0.5, 2: None, 4: 0.1, 5: 0.2}, policy, exclude_latest=False) == {
        1: "not among the 2 best by 'loss' (0.5); not among the 1 most recent; not a multiple of keep_every=3",
        2: "not among the 2 best by 'loss' (no metric); not among the 1 most recent; not a multiple of keep_every=3",
        4: "among the 2 best by 'loss' (0.1)",
        5: "among the 2 best by 'loss' (0.2); among the 1 most recent",
    }


def test_reasons_name_the_period() -> None:
    """With a save_period the reasons speak of its multiples."""
    by_metric = RetentionPolicy(metric_name="loss", save_period=10, keep_top_k=1)
    assert reasons({7: 9.0, 10: 1.0, 20: 2.0, 21: 0.0}, by_metric) == {
        7: "not a multiple of save_period=10",
        10: "not among the 1 best multiples of save_period=10 by 'loss' (1.0)",
        20: "among the 1 best multiples of save_period=10 by 'loss' (2.0)",
        21: "latest",
    }
    all_periodic = RetentionPolicy(save_period=10, keep_latest_k=1)
    assert reasons({7: None, 10: None, 21: None}, all_periodic) == {
        7: "not a multiple of save_period=10; not among the 1 most recent",
        10: "multiple of save_period=10, all of which are kept with keep_periodic=True",
        21: "among the 1 most recent; latest",
    }


def test_a_name_that_no_checkpoint_has_prunes_nothing() -> None:
    """While none of what keep_top_k ranks has the metric, all of it stays, and the reason says so; NaN is a metric."""
    policy = RetentionPolicy(metric_name="los", keep_top_k=1)
    blind: dict[int, Any] = BLIND
    assert kept(blind, policy, exclude_latest=False) == list(blind)
    assert set(reasons(blind, policy, exclude_latest=False).values()) == {
        "keep_top_k=1 prunes nothing while no checkpoint has the metric 'los'"
    }
    assert kept(blind | {3: 0.0}, policy, exclude_latest=False) == [3]
    assert kept(blind | {3: math.nan}, policy, exclude_latest=False) == [6]
    assert kept(blind, RetentionPolicy(metric_name="los", keep_top_k=1, keep_latest_k=1), exclude_latest=False) == [
        *blind
    ]


def test_only_what_is_ranked_decides_whether_the_metric_is_there() -> None:
    """The metric of a step that is no multiple of save_period does not let keep_top_k prune those that are."""
    policy = RetentionPolicy(metric_name="loss", save_period=10, keep_top_k=1)
    losses = {7: 0.1, 10: None, 20: None, 30: None, 33: 0.2}
    assert kept(losses, policy) == [10, 20, 30, 33]
    assert reasons(losses, policy)[10] == (
        "keep_top_k=1 prunes nothing while no multiple of save_period=10 has the metric 'loss'"
    )
    assert kept(losses | {20: 0.3}, policy) == [20, 33]


@given(POLICIES, st.integers(0, 40))
@example(RetentionPolicy(save_period=10, keep_latest_k=2), 4)
@example(RetentionPolicy(save_period=10, keep_top_k=2, keep_every=5), 4)
@example(RetentionPolicy(save_period=10, keep_latest_k=2, keep_every=20, keep_periodic=False), 4)
@example(RetentionPolicy(keep_every=100), 4)
@example(RetentionPolicy(save_period=3, keep_periodic=False), 4)
def test_a_policy_that_never_prunes_says_so(policy: RetentionPolicy, count: int) -> None:
    """It does exactly if something was asked for, and every step that should_save allows stays, many as they are."""
    period = policy.save_period or 1
    steps = range(0, (count + 20) * period, period)
    asks = [policy.keep_top_k, policy.keep_latest_k, policy.keep_every] != [None] * 3 or not policy.keep_periodic
    stays = kept({step: float(step % 7) for step in steps}, policy, exclude_latest=False) == list(steps)
    said = policy.why_nothing_is_pruned()
    assert (said is not None) == (asks and stays)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"keep_latest_k": 2, "save_period": 10},
            ["keep_latest_k=2", "save_period=10", "keep_periodic=False", "keep_top_k=k"],
        ),
        ({"keep_top_k": 1, "save_period": 10, "keep_every": 5}, ["keep_top_k=1", "keep_every=5", "pass a keep_every"]),
        ({"keep_latest_k": 1, "keep_every": 1}, ["keep_latest_k=1", "keep_every=1", "pass a keep_every"]),
        ({"keep_every": 100}, ["keep_every=100", "neither keep_top_k nor keep_latest_k is set"]),
    ],
)
def test_what_is_said_of_a_policy_that_never_prunes(options: dict[str, Any], words: list[str]) -> None:
    """The options, the rule that keeps everything, and the way out."""
    said = RetentionPolicy(**options).why_nothing_is_pruned()
    assert said is not None
    assert all(word in said for word in words)


def test_nothing_is_pruned_without_a_limit() -> None:
    """With neither keep_top_k nor keep_latest_k everything stays, whatever the other options are."""
    policy = RetentionPolicy(metric_name="loss", save_period=2, keep_every=3)
    assert kept(LOSSES, policy, exclude_latest=False) == list(LOSSES)
    assert reasons(LOSSES, policy)[1] == "neither keep_top_k nor keep_latest_k is set"


def test_no_metric_name_ranks_by_recency() -> None:
    """Without a metric's name keep_top_k keeps the most recent periodic steps, and metrics do not matter."""
    policy = RetentionPolicy(save_period=2, keep_top_k=2)
    assert kept(LOSSES, policy, exclude_latest=False) == [4, 6]
    assert kept({**LOSSES, 7: 1.0}, policy, exclude_latest=False) == [4, 6]


def test_latest_alone() -> None:
    """Without a save_period keep_latest_k alone keeps just those; with one, all its multiples stay too."""
    assert kept(LOSSES, RetentionPolicy(keep_latest_k=2)) == [5, 6]
    assert kept(LOSSES, RetentionPolicy(keep_latest_k=2, save_period=3)) == [3, 5, 6]
    named = RetentionPolicy(keep_latest_k=2, save_period=3, keep_periodic=False)
    assert kept(LOSSES, named) == [5, 6]
    assert reasons(LOSSES, named)[3] == "not among the 2 most recent"


def test_missing_and_nan_rank_worst() -> None:
    """A checkpoint without the metric, or with NaN, goes first; among these the higher step is better."""
    metrics = {1: -math.inf, 2: None, 3: math.nan, 4: None}
    policy = RetentionPolicy(metric_name="loss", keep_top_k=2)
    assert kept(metrics, policy, exclude_latest=False) == [1, 4]
    lower = RetentionPolicy(metric_name="loss", higher_is_better=False, keep_top_k=3)
    assert kept(metrics, lower, exclude_latest=False) == [1, 3, 4]


def test_ties_go_to_the_higher_step() -> None:
    """Of equal metrics the higher step is better, for retention and for the best, in both directions."""
    for higher_is_better in (True, False):
        policy = RetentionPolicy(metric_name="loss", higher_is_better=higher_is_better, keep_top_k=1)
        metrics = {9: 1.0, 10: 1.0, 2: 1.0}
        assert kept(metrics, policy, exclude_latest=False) == [10]
        assert Ranking(policy, candidates_of(metrics)).best().step == 10


def test_a_commit_never_prunes_itself() -> None:
    """A save below the latest step stays, even if no rule keeps it."""
    assert kept({1: None, 5: None, 6: None}, RetentionPolicy(keep_latest_k=1), committed=1) == [1, 6]


def test_zero_keeps_only_the_protected() -> None:
    """keep_top_k=0 keeps nothing but the newest, and nothing at all where that is not protected."""
    assert kept(LOSSES, RetentionPolicy(keep_top_k=0)) == [6]
    assert kept(LOSSES, RetentionPolicy(keep_top_k=0), exclude_latest=False) == []


def test_best_warns_of_checkpoints_without_the_metric() -> None:
    """The warning counts and lists the steps left out; if all are, a second one names the latest that stands in."""
    policy = RetentionPolicy(metric_name="loss", higher_is_better=False)
    some = Ranking(policy, candidates_of({3: 0.5, 10: None, 2: None, 4: 0.25})).best()
    assert some.step == 4
    assert some.warnings == (
        "2 of 4 checkpoints lack the metric 'loss' and are left out of the choice of the best; their steps: 2, 10",
    )
    none = Ranking(policy, candidates_of({9: None, 10: None})).best()
    assert none.step == 10
    assert len(none.warnings) == 2
    assert none.warnings[1] == "no checkpoint has the metric 'loss': the latest, step 10, is taken as the best"


def test_best_without_oddities_does_not_warn() -> None:
    """All have the metric, or no metric has a name, or there is no checkpoint: nothing to warn of."""
    policy = RetentionPolicy(metric_name="loss")
    for candidates, chosen, step in (
        (candidates_of({1: 0.5, 2: math.nan}), policy, 1),
        (candidates_of({1: None, 2: None}), RetentionPolicy(), 2),
        ([], policy, None),
    ):
        choice = Ranking(chosen, candidates).best()
        assert choice == (step, ())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        (0.5, 0.5),
        (-math.inf, -math.inf),
        (10**400, 10**400),
        (2**53 + 1, 2**53 + 1),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3.0),
        (Fraction(1, 2), 0.5),
        (True, None),
        (np.True_, None),
        ("0.5", None),
        (None, None),
        ([0.5], None),
        (1j, None),
    ],
)
def test_metric_of(value: object, expected: float | None) -> None:
    """Only a real number is a metric; a bool, a str or a container counts as absent."""
    assert metric_of({"loss": value}, "loss") == expected
    assert (metric_of({"loss": value}, "loss") is None) == (expected is None)


def test_metric_of_absent_key() -> None:
    """No such key, or no metric's name: no metric."""
    assert metric_of({"loss": 1.0}, "return") is None
    assert metric_of({"loss": 1.0}, None) is None
    assert math.isnan(metric_of({"loss": math.nan}, "loss") or 0.0)


def test_policy_from_settings() -> None:
    """Every option of the policy is taken from the manager's settings, and has the same default."""
    assert RetentionPolicy.from_settings(resolve_settings("runs", {})) == RetentionPolicy()
    options = {
        "metric_name": "loss",
        "higher_is_better": False,
        "save_period": 7,
        "keep_top_k": 1,
        "keep_latest_k": 2,
        "keep_every": 5,
        "keep_periodic": False,
    }
    assert RetentionPolicy.from_settings(resolve_settings("runs", options)) == RetentionPolicy(**options)  # type: ignore[arg-type]

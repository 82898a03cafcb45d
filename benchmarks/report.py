"""The Markdown table: what was measured, which goals are met, and how each system was used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import measures
from benchmarks.goals import evaluate
from benchmarks.samples import FLOORS
from benchmarks.scale import FULL, SCALES
from benchmarks.systems import NAMES, OURS, PEERS, SYSTEMS
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from benchmarks.goals import Verdict
    from benchmarks.samples import Samples
    from benchmarks.scale import Scale
    from benchmarks.store import Results

_PREAMBLE = """\
Medians, with [least .. greatest] where there are several samples. Each sample is from a fresh process, with the systems
taking turns. Before each of them, floors included, freed memory is returned, the disk comes to rest, and more memory
than the measurement takes is touched and freed, so that its pages only have to be cleared. (A virtual machine gets
memory that was free for some seconds back from its host, at up to five times the cost.) *Blocked* is how long the
caller waits until it may change the state again; *stalls* are how late a 1 ms ticker is called on the same loop between
the call and durability; *durable* is the time from the call until every file and directory is synced. *Warm* files are
in the page cache, *cold* ones are not."""

_SUMMARY: Final = ("blocked", "stall_max", "durable", "load_warm")
_SUMMARY_SYSTEMS: Final = (*OURS, "torch_checkpointing", "torch DCP", "Orbax", "safetensors", "torch.save")
_GOAL_HEAD: Final = ("workload", "system", "measure", "measured", "against", "ratio", "goal", "")


def write_report(results: Results) -> str:
    """Write the whole report."""
    samples, scale = results.samples, SCALES[results.scale]
    lines = [
        f"# Benchmark, {scale.name} size",
        "",
        _PREAMBLE,
        "",
        *machine(results),
        "",
        *_goals(_verdicts(samples), scale),
    ]
    for workload in WORKLOADS:
        if workload.name in samples.workloads():
            lines += ["", f"## {workload.title_at(scale)}", "", *measured(results, workload.name)]
    lines += ["", "## How each system is used", "", *_usage(samples)]
    return "\n".join(lines) + "\n"


def machine(results: Results) -> Iterator[str]:
    """Name the machine and the versions, and how long the measuring took."""
    minutes = sum(session.seconds for sessions in results.sessions.values() for session in sessions) / 60
    yield from _table(("machine", ""), (*results.facts().items(), ("measured in", f"{minutes:.1f} minutes")))


def measured(results: Results, workload: str) -> Iterator[str]:
    """Write what was measured of one workload, and when."""
    yield f"Processes: {', '.join(_processes(results.samples, workload))}."
    yield from (
        f"Measured on {session.started} UTC, in {session.seconds / 60:.1f} minutes; load average {session.load_average}"
        " at the start."
        for session in results.sessions[workload]
    )
    yield ""
    yield from _workload(results.samples, workload)


def _processes(samples: Samples, workload: str) -> Iterator[str]:
    """Yield how many processes our systems and the others had; fewer if one failed or is still to be measured."""
    numbers: dict[str, set[int]] = {}
    for sample in samples.all:
        if sample.workload == workload and sample.system != FLOORS:
            numbers.setdefault(sample.system, set()).add(sample.round)
    for name, is_ours in (("asyncckpt", True), ("peers", False)):
        counts = sorted({len(found) for system, found in numbers.items() if (system not in PEERS) is is_ours})
        if counts:
            yield f"{name} {' to '.join(map(str, (counts[0], *counts[1:][-1:])))} each"


def missed(results: Results) -> Iterator[str]:
    """Say how many goals are met, and list those that are not."""
    verdicts, scale = _verdicts(results.samples), SCALES[results.scale]
    yield from _caution(scale)
    yield f"{_count(verdicts)} goals are met. Those that are not:"
    yield ""
    yield from _table(_GOAL_HEAD, (_goal_row(verdict, scale) for verdict in verdicts if verdict.is_met is False))


def summary(results: Results) -> Iterator[str]:
    """Compare the systems that a newcomer would choose from, in one workload, by medians."""
    samples = results.samples
    yield from _table(
        ("", *(measures.title(name) for name in _SUMMARY)),
        (
            (_bold(system), *_medians(samples, system))
            for system in _SUMMARY_SYSTEMS
            if system in samples.systems("arrays")
        ),
    )


def _medians(samples: Samples, system: str) -> Iterator[str]:
    for name in _SUMMARY:
        found = samples.spread("arrays", system, name)
        yield "" if found is None else measures.number(name, found.median)


def _verdicts(samples: Samples) -> list[Verdict]:
    return [verdict for verdict in evaluate(samples) if verdict.goal.workload in samples.workloads()]


def _count(verdicts: Sequence[Verdict]) -> str:
    outcomes = [verdict.is_met for verdict in verdicts if verdict.is_met is not None]
    return f"{sum(outcomes)} of {len(outcomes)}"


def _caution(scale: Scale) -> Iterator[str]:
    if scale is not FULL:
        yield "The goals are meant for the full size; here they are only a look."
        yield ""


def _goals(verdicts: Sequence[Verdict], scale: Scale) -> Iterator[str]:
    yield f"## Goals: {_count(verdicts)} met"
    yield ""
    yield from _caution(scale)
    yield from _table(_GOAL_HEAD, (_goal_row(verdict, scale) for verdict in verdicts))


def _goal_row(verdict: Verdict, scale: Scale) -> tuple[str, ...]:
    goal = verdict.goal
    workload = next(each.title_at(scale) for each in WORKLOADS if each.name == goal.workload)
    measured = "" if verdict.measured is None else measures.spread(goal.measure, verdict.measured)
    against = ""
    if verdict.reference is not None:
        value = measures.number(goal.measure, verdict.reference.value)
        against = f"{verdict.reference.name} {value}".strip()
    ratio = "" if verdict.ratio is None else f"{verdict.ratio:.2f}"
    outcome = {True: "met", False: "**missed**", None: "not measured"}[verdict.is_met]
    sign = ">=" if goal.is_more_better else "<="
    names = (workload, verdict.system, measures.title(goal.measure), measured, against)
    return (*names, ratio, f"{sign} {goal.factor:g}", outcome)


def _workload(samples: Samples, workload: str) -> Iterator[str]:
    floors = [sample.measure for sample in samples.all if (sample.workload, sample.system) == (workload, FLOORS)]
    rows = []
    for name in dict.fromkeys(floors):
        found = samples.spread(workload, FLOORS, name)
        if found is not None:
            rows.append((measures.title(name), measures.spread(name, found)))
    if rows:
        yield from _table(("floor", ""), rows)
        yield ""

    systems = [system for system in NAMES if system in samples.systems(workload)]
    failed = [system for system in NAMES if samples.failure(workload, system) is not None]
    names = dict.fromkeys(
        sample.measure for sample in samples.all if sample.workload == workload and sample.system != FLOORS
    )
    for group in _groups(list(names)):
        yield from _table(
            ("system", *(measures.title(name) for name in group)),
            ((_bold(system), *_cells(samples, workload, system, group)) for system in systems),
        )
        yield ""
    for system in failed:
        yield f"- {system}: {samples.failure(workload, system)}"


def _groups(names: Sequence[str]) -> Iterator[list[str]]:
    """Split the measures into tables that fit a page."""
    prefixes = (("blocked, ",), ("durable, ",), ("first_",), ("load", "restore", "gc_"))
    rest = [name for name in names if not name.startswith(sum(prefixes, ()))]
    groups = (rest, *([name for name in names if name.startswith(prefix)] for prefix in prefixes))
    yield from (group for group in groups if group)


def _cells(samples: Samples, workload: str, system: str, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        found = samples.spread(workload, system, name)
        yield "" if found is None else measures.spread(name, found)


def _usage(samples: Samples) -> Iterator[str]:
    measured = {sample.system for sample in samples.all}
    yield "What a system does not sync itself (files, directories) is synced by the benchmark, in its durable time."
    yield ""
    yield from _table(
        ("system", "usage", "syncs itself", ""),
        (
            (entry.name, entry.usage, entry.syncs, "" if entry.name in measured else "not measured")
            for entry in SYSTEMS.values()
        ),
    )


def _bold(system: str) -> str:
    return system if system in PEERS else f"**{system}**"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"

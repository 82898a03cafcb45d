"""The report, made from the ledger alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .rig import OURS
from .rigs import RIGS
from .seeded import ALL_BUGS, SEPARATOR, control_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .ledger import Ledger, Sum
    from .rig import Rig

GUARANTEE = (
    "After a kill, a power cut, a full disk or an I/O error at any moment, every acknowledged checkpoint that retention"
    " still keeps loads bit for bit; nothing half-written is ever listed; the next save works; no failure is silent."
)
_HEAD = f"""\
# Reliability

*{GUARANTEE}*

`make torture` generates this page, with all its numbers, from the record of what the rigs in
[tests/reliability](../tests/reliability) have tried (`build/reliability/ledger.jsonl`). The rigs continue where they
stopped, add up the results of all seeds, and count no case twice. "Lost" is any case in which the sentence above did
not hold: a checkpoint that is missing, older than acknowledged, listed but not loadable, or not equal bit for bit; a
next save that failed; a failure that was not reported; a hang.
"""


def write_report(ledger: Ledger, path: Path) -> None:
    """Write the report."""
    path.write_text("\n".join(lines(ledger)).rstrip() + "\n")


def lines(ledger: Ledger) -> Iterator[str]:
    """Give the report's lines."""
    yield _HEAD
    yield f"The sources as they are: `{ledger.sources}`. Run on:"
    yield ""
    for machine in ledger.machines:
        yield "- " + ", ".join(f"{value} {name}" if name == "cores" else value for name, value in machine.items())
    yield ""
    yield "## What was tried"
    yield ""
    yield "| rig | cases tried | of these, with the sources as they are | lost | goal |"
    yield "|---|---:|---:|---:|---:|"
    ours = [rig for rig in RIGS if rig.subject == OURS and rig.name != "seeded-bugs"]
    for rig in ours:
        total = ledger.sum(rig.name, rig.subject)
        skipped = ledger.skipped.get((rig.name, rig.subject))
        if total.units == 0:
            yield f"| {rig.name} | **not run{f': {skipped}' if skipped else ''}** | | | {rig.goal:,} |"
        else:
            note = f" (the last time not run: {skipped})" if skipped else ""
            tried = f"{total.tried:,} {rig.cases}{note} | {total.tried_now:,}"
            yield f"| {rig.name} | {tried} | {total.lost:,} | {rig.goal:,} |"
    yield ""
    for rig in ours:
        yield from _describe(rig, ledger.sum(rig.name, rig.subject))
    yield from _seeded(ledger)
    yield from _peers(ledger)


def _describe(rig: Rig, total: Sum) -> Iterator[str]:
    tries = rig.tries[0].upper() + rig.tries[1:].rstrip(".")
    counts = ", ".join(f"{number:,} {kind}" for kind, number in sorted(total.counts.items()))
    yield f"**{rig.name}.** {tries}." + (f" Counted: {counts}." if counts else "")
    yield ""
    for unit, text in total.losses[:10]:
        yield f"- LOST in `{unit}`: {' '.join(text.split())[:300]}"
    if total.losses:
        yield ""


def _seeded(ledger: Ledger) -> Iterator[str]:
    """Tell which rig sees which mistake."""
    yield "## Known mistakes, and which rig sees them"
    yield ""
    yield (
        "Each mistake was made in a copy of the library. A rig that should see a mistake and does not is a loss. A"
        " mistake is seen if the copy loses something that a copy without a mistake does not lose. The other rigs"
        " tried the same workload without seeing it; a kill, for instance, never shows that a sync is missing."
    )
    yield ""
    found: dict[str, dict[str, int]] = {}
    entries = {key.unit: entry for key, entry in ledger.entries.items() if key.rig == "seeded-bugs"}
    bugs = {bug.name: bug for bug in ALL_BUGS}
    for unit, entry in entries.items():
        name, rig, *_ = unit.split(SEPARATOR)
        control = entries.get(control_of(bugs[name], rig)) if name in bugs else None
        if control is not None:
            # What is lost without a mistake as well is no proof that the mistake was seen.
            found.setdefault(name, {})[rig] = entry["counts"].get("seen", 0) * (not control["lost"])
    yield "| mistake | seen by | not seen by | not tried with |"
    yield "|---|---|---|---|"
    rigs = sorted({rig for by_rig in found.values() for rig in by_rig})
    for bug in ALL_BUGS:
        by_rig = found.get(bug.name, {})
        seen = ", ".join(rig for rig in rigs if by_rig.get(rig))
        unseen = ", ".join(rig for rig in rigs if by_rig.get(rig) == 0)
        untried = ", ".join(rig for rig in rigs if rig not in by_rig)
        yield f"| {bug.name} | {seen or '**no rig**'} | {unseen} | {untried} |"
    yield ""
    caught = sum(any(found.get(bug.name, {}).values()) for bug in ALL_BUGS)
    yield f"{caught} of {len(ALL_BUGS)} are seen."
    yield ""


def _peers(ledger: Ledger) -> Iterator[str]:
    """Put others beside us, in the rigs that can try them."""
    peers = [rig for rig in RIGS if rig.subject != OURS]
    if not peers:
        return
    yield "## Others under the same rigs"
    yield ""
    yield (
        "A case is lost if what a saver had acknowledged did not load, or loaded with other bytes and no error."
        " That is not a fault if it was never promised, so the table says what each of them promises."
    )
    yield ""
    yield "| rig | who | what it promises | cases tried | lost | counted |"
    yield "|---|---|---|---:|---:|---|"
    for name in dict.fromkeys(rig.name for rig in peers):
        for rig in [each for each in RIGS if each.name == name]:
            total = ledger.sum(rig.name, rig.subject)
            skipped = ledger.skipped.get((rig.name, rig.subject))
            promise = "the sentence above" if rig.subject == OURS else rig.promise
            counts = ", ".join(f"{number:,} {kind}" for kind, number in sorted(total.counts.items()))
            if total.units:
                yield f"| {name} | {rig.subject} | {promise} | {total.tried:,} | {_share(total)} | {counts} |"
            else:
                yield f"| {name} | {rig.subject} | {promise} | **not run{f': {skipped}' if skipped else ''}** | | |"
    yield ""


def _share(total: Sum) -> str:
    share = 100 * total.lost / max(total.tried, 1)
    return f"{total.lost:,} ({share:.0f} %)" if total.lost else "0"

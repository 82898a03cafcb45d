"""The report, made from the ledger alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .rig import OURS
from .rigs import RIGS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .ledger import Ledger

GUARANTEE = (
    "After a kill, a power cut, a full disk or an I/O error at any moment, every acknowledged checkpoint that retention"
    " still keeps loads bit for bit; nothing half-written is ever listed; the next save works; no failure is silent."
)


def write_report(ledger: Ledger, path: Path) -> None:
    """Write the report."""
    path.write_text("\n".join(lines(ledger)) + "\n")


def lines(ledger: Ledger) -> Iterator[str]:
    """Give the report's lines."""
    yield "# Reliability"
    yield ""
    yield f"*{GUARANTEE}*"
    yield ""
    yield "| rig | what is tried | cases tried | lost |"
    yield "|---|---|---:|---:|"
    for rig in RIGS:
        if rig.subject != OURS:
            continue
        total = ledger.sum(rig.name, rig.subject)
        skipped = ledger.skipped.get((rig.name, rig.subject))
        if total.units == 0:
            yield f"| {rig.name} | {rig.tries} | **not run{f': {skipped}' if skipped else ''}** | |"
        else:
            yield f"| {rig.name} | {rig.tries} | {total.tried:,} {rig.cases} | {total.lost} |"

"""Rig: known mistakes are made in a copy of the library, and the other rigs must see them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .cut_mistakes import CUT_BUGS
from .mistakes import BUGS, Bug, seed
from .rig import HUNG, RIG_FAILED, SAID_NOTHING, Result, Rig

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ROOT = Path(__file__).parents[2]
_RIGS = ("kill", "concurrency", "fault", "power-cut")  # the quickest first
ALL_BUGS = (*BUGS, *CUT_BUGS)
_BESIDE = ("two-writers/1", "pipeline/1", "readers/msgpack/1")
_WORKLOAD = "msgpack/burst/1"
SEPARATOR = " | "
SOUND = "no mistake"


def units_for(bug: Bug, rig: str) -> tuple[str, ...]:
    """Return what a rig tries: the unit in which it must see a mistake, or the workload in which another rig must."""
    seen_by = dict(bug.seen_by)
    if rig in seen_by:
        return (seen_by[rig],)
    if rig == "concurrency":
        return _BESIDE
    return (next((unit for other, unit in bug.seen_by if other != "concurrency"), _WORKLOAD),)


def control_of(bug: Bug, rig: str) -> str:
    """Return the unit in which a rig tries, with no mistake made, what it tries with this one."""
    return SEPARATOR.join((SOUND, rig, " ".join(units_for(bug, rig))))


def _pairs() -> Iterator[tuple[Bug, str]]:
    """Give each mistake with the quickest rig that must see it; then the others that must; then all the rest."""
    yield from ((bug, bug.seen_by[0][0]) for bug in ALL_BUGS)
    yield from ((bug, rig) for bug in ALL_BUGS for rig, _ in bug.seen_by)
    yield from ((bug, rig) for rig in _RIGS for bug in BUGS)


def _units(pairs: Iterable[tuple[Bug, str]]) -> tuple[str, ...]:
    """Name the units of pairs, each once, and the control of each before it."""
    return tuple(
        dict.fromkeys(unit for bug, rig in pairs for unit in (control_of(bug, rig), f"{bug.name}{SEPARATOR}{rig}"))
    )


_UNITS = _units(_pairs())
_QUICK = _units(itertools.islice(_pairs(), len(ALL_BUGS)))


class SeededBugs(Rig):
    """Tries the rigs themselves."""

    name = "seeded-bugs"
    tries = (
        "Known mistakes about durability, and about cuts, are made in a copy of the library, one at a time; the other"
        " rigs must see each, and see nothing in a copy without a mistake."
    )
    cases = "pairs of a mistake, or of none, and a rig"
    quick = len(_QUICK)
    goal = len(_UNITS)
    seconds = 290.0
    is_of_sources = True

    def units(self, seed: int) -> Iterator[str]:  # noqa: ARG002 - the same for all seeds
        """Give every pair, the same for all seeds."""
        return iter(_UNITS)

    def run(self, unit: str, scratch: Path) -> Result:
        """Make a mistake, and let a rig look."""
        name, rig, *tried = unit.split(SEPARATOR)
        result = Result(tried=1)
        tree = scratch / "tree"
        for folder in ("asyncckpt", "tests/reliability"):  # compiled as well, which spares most of an import
            shutil.copytree(_ROOT / folder, tree / folder)
        if name == SOUND:
            found = look(tree, rig, tuple(tried[0].split()))
            result.count("controls")
            if found:
                result.losses.append(f"{rig} loses in {tried[0]} with no mistake made, so that it sees none: {found}")
            return result
        bug = next(bug for bug in ALL_BUGS if bug.name == name)
        try:
            seed(bug, tree / "asyncckpt")
        except ValueError as error:
            result.losses.append(str(error))
            return result
        found = look(tree, rig, units_for(bug, rig))
        if found is not None and found.startswith((RIG_FAILED, HUNG, SAID_NOTHING)):
            result.losses.append(f"with {bug.name!r}, nothing works: {found}")  # whatever that shows
            return result
        result.count("seen" if found else "not seen")
        if not found and rig in dict(bug.seen_by):
            result.losses.append(f"{rig} does not see that {bug.name}")
        return result


def look(tree: Path, rig: str, units: tuple[str, ...]) -> str | None:
    """Let a rig look at a copy of the library; return what it saw, if it did."""
    ledger = tree / "ledger.jsonl"
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [
            sys.executable,
            "-m",
            "tests.reliability",
            "--rigs",
            rig,
            "--jobs",
            "1",
            "--until-lost",
            "--ledger",
            ledger,
            "--minutes",
            "4",
            "--units",
            *units,
        ],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    entries = [json.loads(line) for line in ledger.read_text().splitlines()]
    if not any("tried" in entry or "skipped" in entry for entry in entries):
        return f"{SAID_NOTHING} with {done.returncode}, before it tried anything"
    return next((str(entry["losses"][0]) for entry in entries if entry.get("lost")), None)

"""What was tried, remembered: one JSON line for each unit, only ever appended.

1. Of several lines of one unit the last one counts: nothing is counted twice.
2. A line says which sources were tried: a digest of the library's and of the rigs'. A unit that lost something is run
   again when they have changed; one that lost nothing stays counted, unless it is about the sources themselves.
3. A line that a kill has torn is left out. Older lines have the sources by the name of `library`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .rig import Result

if TYPE_CHECKING:
    from pathlib import Path

    from .rig import Rig


class Key(NamedTuple):
    """Which unit."""

    rig: str
    subject: str
    unit: str


@dataclass(slots=True)
class Sum:
    """The sum over the units of a rig."""

    units: int = 0
    tried: int = 0
    tried_now: int = 0
    """Cases tried with the sources as they are now."""
    lost: int = 0
    seconds: float = 0.0
    losses: list[tuple[str, str]] = field(default_factory=list)
    """Unit and text."""
    counts: Counter[str] = field(default_factory=Counter)


class Ledger:
    """The memory of one file."""

    def __init__(self, path: Path, sources: str) -> None:
        self.path = path
        self.sources = sources
        self.entries: dict[Key, dict[str, Any]] = {}
        self.skipped: dict[tuple[str, str], str] = {}
        """Why a rig did not run the last time: by rig and subject."""
        self.machines: list[dict[str, str]] = []
        """Where units were run, the last place last."""
        if path.exists():
            for line in path.read_bytes().splitlines():
                try:
                    self._take(json.loads(line))
                except ValueError:
                    continue

    def _take(self, entry: dict[str, Any]) -> None:
        if "machine" in entry:
            self.machines = [*(each for each in self.machines if each != entry["machine"]), entry["machine"]]
            return
        rig, subject = entry["rig"], entry["subject"]
        if "skipped" in entry:
            self.skipped[rig, subject] = entry["skipped"]
            return
        self.skipped.pop((rig, subject), None)
        if "library" in entry:
            entry["sources"] = entry.pop("library")
        self.entries[Key(rig, subject, entry["unit"])] = entry

    def _append(self, entry: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            torn = os.fstat(fd).st_size > 0 and self.path.read_bytes()[-1:] != b"\n"
            os.write(fd, b"\n" * torn + json.dumps(entry).encode() + b"\n")
        finally:
            os.close(fd)
        self._take(entry)

    def begin(self, machine: dict[str, str]) -> None:
        """Note where the units that follow are run."""
        if self.machines[-1:] != [machine]:
            self._append({"machine": machine})

    def skip(self, rig: Rig, why: str) -> None:
        """Note that a rig cannot run here."""
        self._append({"rig": rig.name, "subject": rig.subject, "skipped": why})

    def add(self, rig: Rig, unit: str, result: Result, seconds: float) -> None:
        """Remember a unit."""
        self._append(
            {
                "rig": rig.name,
                "subject": rig.subject,
                "unit": unit,
                "tried": result.tried,
                "lost": len(result.losses),
                "losses": result.losses[: Result.enough],
                "counts": result.counts,
                "seconds": round(seconds, 3),
                "sources": self.sources,
            }
        )

    def has(self, rig: Rig, unit: str) -> bool:
        """Whether a unit need not be run again."""
        entry = self.entries.get(Key(rig.name, rig.subject, unit))
        if entry is None:
            return False
        return entry["sources"] == self.sources or not (entry["lost"] or rig.is_of_sources)

    def sum(self, rig: str, subject: str) -> Sum:
        """Sum the units of a rig."""
        total = Sum()
        for key, entry in self.entries.items():
            if key[:2] != (rig, subject):
                continue
            total.units += 1
            total.tried += entry["tried"]
            total.tried_now += entry["tried"] * (entry["sources"] == self.sources)
            total.lost += entry["lost"]
            total.seconds += entry["seconds"]
            total.losses += [(key.unit, text) for text in entry["losses"]]
            total.counts.update(entry["counts"])
        return total


def sources_digest(*packages: Path) -> str:
    """Return what tells one state of packages' sources from another."""
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted(package.rglob("*.py")):
            digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]

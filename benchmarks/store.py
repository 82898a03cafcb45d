"""The stored results of a run: one JSON file for each workload, with its samples, and when and where they were taken.

1. A workload's file holds samples of one scale. Samples of several sessions are combined only on request.
2. A session is one invocation. Each workload lists its own, which may differ in date, load, and versions.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.samples import Failure, Sample, Samples
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


@dataclass(slots=True, kw_only=True)
class Session:
    """One invocation of the benchmark, as far as it concerns one workload."""

    started: str
    """Date and time, UTC."""
    load_average: str
    """Over 1, 5 and 15 minutes, when it started."""
    seconds: float = 0.0
    processes: int = 0
    facts: Mapping[str, str]
    """The machine and the versions."""


@dataclass(slots=True, kw_only=True)
class Results:
    """All measurements at one scale."""

    scale: str
    samples: Samples = field(default_factory=Samples)
    sessions: dict[str, list[Session]] = field(default_factory=dict)
    """By workload."""

    def facts(self) -> dict[str, str]:
        """Return the machine and the versions; a fact that differs between sessions has all of its values."""
        found: dict[str, dict[str, None]] = {}
        for session in (each for sessions in self.sessions.values() for each in sessions):
            for name, value in session.facts.items():
                found.setdefault(name, {})[value] = None
        return {name: "; ".join(values) for name, values in found.items()}

    def write(self, workload: str, out: Path) -> None:
        """Write one workload's file, one sample per line, atomically, so that the run may end at any moment."""
        lists: dict[str, Iterable[Any]] = {
            "sessions": self.sessions[workload],
            "samples": [sample for sample in self.samples.all if sample.workload == workload],
            "failures": [failure for failure in self.samples.failures if failure.workload == workload],
        }
        content = [f'"scale": {json.dumps(self.scale)}']
        content += [
            f'"{name}": [\n' + ",\n".join(json.dumps(asdict(each)) for each in items) + "\n]"
            for name, items in lists.items()
        ]
        pending = out / f".{workload}.json"
        pending.write_text("{" + ",\n".join(content) + "}\n")
        pending.replace(out / f"{workload}.json")


def read(out: Path, *, scale: str | None = None, without: Iterable[str] = ()) -> Results:
    """Read the results in `out`, except for some workloads.

    Args:
        out: The folder.
        scale: The expected scale; None for the one that is found ("full" if there are no results).
        without: The names of workloads to leave out, because they are measured again.

    Raises:
        ValueError: The results are not all of one scale.
    """
    contents = {
        workload.name: json.loads((out / f"{workload.name}.json").read_text())
        for workload in WORKLOADS
        if workload.name not in without and (out / f"{workload.name}.json").exists()
    }
    scales = {content["scale"] for content in contents.values()}
    if len(scales | ({scale} - {None})) > 1:
        raise ValueError(f"{out} holds results of another size ({', '.join(sorted(scales))}): give another --out")
    results = Results(scale=scale or next(iter(scales), "full"))
    for name, content in contents.items():
        results.samples.extend(Sample(**each) for each in content["samples"])
        results.samples.failures.extend(Failure(**each) for each in content["failures"])
        results.sessions[name] = [Session(**each) for each in content["sessions"]]
    return results

"""The samples of a run, and their summary as medians and spreads."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

FLOORS = "floors"
"""The name of the machine's own limits among the systems."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One number of one process."""

    workload: str
    system: str
    measure: str
    value: float
    round: int = 0
    is_censored: bool = False
    """Whether the measurement was abandoned at this value; the true one is greater."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A measurement that failed, and why."""

    workload: str
    system: str
    reason: str


class Spread(NamedTuple):
    """The samples of one measure."""

    median: float
    least: float
    greatest: float
    samples: int
    is_censored: bool


class Samples:
    """All samples of a run, by (workload, system, measure)."""

    def __init__(self, samples: Iterable[Sample] = (), failures: Iterable[Failure] = ()) -> None:
        self.all: list[Sample] = []
        self.failures: list[Failure] = list(failures)
        self._values: defaultdict[tuple[str, str, str], list[Sample]] = defaultdict(list)
        self.extend(samples)

    def extend(self, samples: Iterable[Sample]) -> None:
        """Add samples."""
        for sample in samples:
            self.all.append(sample)
            self._values[sample.workload, sample.system, sample.measure].append(sample)

    def spread(self, workload: str, system: str, measure: str) -> Spread | None:
        """Summarize one measure, or return None if there is no sample of it."""
        samples = self._values.get((workload, system, measure))
        if not samples:
            return None
        values = [sample.value for sample in samples]
        is_censored = any(sample.is_censored for sample in samples)
        return Spread(statistics.median(values), min(values), max(values), len(values), is_censored)

    def median(self, workload: str, system: str, measure: str) -> float | None:
        """Return the median of one measure, or None if there is no sample of it."""
        spread = self.spread(workload, system, measure)
        return None if spread is None else spread.median

    def systems(self, workload: str) -> list[str]:
        """Name the systems that have samples of a workload, in the order of their first one."""
        return list(dict.fromkeys(sample.system for sample in self.all if sample.workload == workload))

    def workloads(self) -> list[str]:
        """Name the workloads that have samples, in the order of their first one."""
        return list(dict.fromkeys(sample.workload for sample in self.all))

    def failure(self, workload: str, system: str) -> str | None:
        """Return why a system has no samples of a workload, or fewer; None if nothing failed."""
        reasons = [each.reason for each in self.failures if (each.workload, each.system) == (workload, system)]
        return reasons[0] if reasons else None


def read_lines(path: Path) -> Iterator[Sample]:
    """Read what a worker wrote, one sample a line."""
    for line in path.read_text().splitlines():
        yield Sample(**json.loads(line))


def as_line(sample: Sample) -> str:
    """Write a sample the way that `read_lines` reads it."""
    return json.dumps(asdict(sample)) + "\n"

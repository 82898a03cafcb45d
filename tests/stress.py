"""Runs the suite again and again, in another order each time, and sometimes beside a load: `make stress-test`.

The runs have 2 and 4 workers by turns, and every third has two busy processes for each core beside it. Each prints its
seed; `make test PYTEST_ARGS="--randomly-seed=SEED"` has the same order. What a run has printed is kept in build/stress.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ROOT = Path(__file__).parents[1]
_COLUMNS = "{:>4}  {:>10}  {:>7}  {:>4}  {:>6}  {:>6}  {:>7}  {:>7}"


class Run(NamedTuple):
    """One run of the suite."""

    number: int
    seed: int
    workers: int
    load: int
    """How many busy processes are beside it."""


def plan(count: int, seed: int | None, cores: int) -> list[Run]:
    """Plan so many runs; the seeds follow from the first, which is drawn if there is none."""
    first = random.SystemRandom().getrandbits(31) if seed is None else seed
    return [
        Run(number, first + number, (2, 4)[number % 2], 2 * cores * (number % 3 == 2))  # of ten, three
        for number in range(count)
    ]


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many processes busy."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def play(run: Run, arguments: Sequence[str]) -> tuple[bool, str]:
    """Run the suite; return whether nothing failed, and the row of the table."""
    log = _ROOT / "build" / "stress" / f"{run.number + 1}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    verdicts = log.with_suffix(".xml")
    verdicts.unlink(missing_ok=True)
    options = [f"-n{run.workers}", f"--randomly-seed={run.seed}", f"--junit-xml={verdicts}", "-rfE", *arguments]
    begun = time.monotonic()
    with busy(run.load), log.open("w") as output:
        command = [sys.executable, "-m", "pytest", *options]
        status = subprocess.run(command, cwd=_ROOT, stdout=output, stderr=output, check=False).returncode  # noqa: S603
    seconds = time.monotonic() - begun
    tests, failed, skipped = _count(verdicts)
    passed = tests - failed - skipped
    row = (run.number + 1, run.seed, run.workers, run.load, passed, failed, skipped, f"{seconds:.0f}")
    is_well = status == 0 and failed == 0 and passed > 0
    return is_well, _COLUMNS.format(*row) + ("" if is_well else f"  pytest ended with {status}: see {log}")


def _count(verdicts: Path) -> tuple[int, int, int]:
    """Return how many tests there were, failed or ended in an error, and were skipped."""
    if not verdicts.exists():
        return 0, 0, 0
    suites = ET.parse(verdicts).findall("testsuite")  # noqa: S314 - our own child's
    names = (("tests",), ("failures", "errors"), ("skipped",))
    tests, failed, skipped = (sum(int(each.attrib[name]) for each in suites for name in row) for row in names)
    return tests, failed, skipped


def main() -> int:
    """Run; return the exit status: 1 if anything failed in any of the runs."""
    parser = argparse.ArgumentParser("tests/stress.py", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=10, help="how many (10)")
    parser.add_argument("--seed", type=int, help="of the first run; the others have those that follow")
    options, arguments = parser.parse_known_args()
    print(_COLUMNS.format("run", "seed", "workers", "load", "passed", "failed", "skipped", "seconds"), flush=True)
    is_well = True
    for run in plan(options.runs, options.seed, os.cpu_count() or 1):
        is_good, row = play(run, arguments)
        print(row, flush=True)
        is_well = is_well and is_good
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())

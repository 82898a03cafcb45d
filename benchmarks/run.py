"""Run the whole benchmark, at once or in parts: `python -m benchmarks.run [--quick] [--resume] [--minutes M]`."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import page, store
from benchmarks.machine import describe, load_average
from benchmarks.plots import write_plots
from benchmarks.report import write_report
from benchmarks.samples import FLOORS, Failure, read_lines
from benchmarks.scale import FULL, QUICK, SCALES
from benchmarks.systems import NAMES, SYSTEMS
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.scale import Scale
    from benchmarks.store import Results, Session
    from benchmarks.workloads import Turn, Workload

RESULTS: Final = Path(__file__).parent / "results"
_PACKAGES: Final = (*dict.fromkeys(entry.package for entry in SYSTEMS.values()), "msgpack", "xxhash", "jax")
_ENVIRONMENT: Final = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One invocation of the benchmark: what is measured, where, until when, and the results so far."""

    scale: Scale
    base: Path
    """Where the checkpoints go."""
    out: Path
    systems: frozenset[str]
    rounds: int | None
    until: float
    """No process is started after this moment of `time.monotonic`."""
    results: Results
    facts: Mapping[str, str]

    def measure(self, workload: Workload) -> int:
        """Measure what is missing; return how many processes are left because the time is over."""
        samples = self.results.samples
        done = {(sample.system, sample.round) for sample in samples.all if sample.workload == workload.name}
        missing = [
            turn
            for turn in workload.turns(self.scale, self.rounds)
            if turn.system in self.systems and turn not in done and not samples.failure(workload.name, turn.system)
        ]
        if not missing or time.monotonic() > self.until:
            return len(missing)
        session = store.Session(
            started=f"{datetime.now(UTC):%Y-%m-%d %H:%M}", load_average=load_average(), facts=self.facts
        )
        self.results.sessions.setdefault(workload.name, []).append(session)
        for index, turn in enumerate(missing):
            if time.monotonic() > self.until:
                return len(missing) - index
            if samples.failure(workload.name, turn.system) is None:
                self._measure_system(workload, turn, session)
                self.results.write(workload.name, self.out)
        return 0

    def _measure_system(self, workload: Workload, turn: Turn, session: Session) -> None:
        """Measure in a fresh process, and add what it wrote to the samples."""
        print(f"{workload.name}: {turn.system}, process {turn.number + 1} ", end="", flush=True)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=self.base, ignore_cleanup_errors=True) as root:
            checkpoints, out = Path(root, "checkpoints"), Path(root, "samples.jsonl")
            checkpoints.mkdir()
            out.touch()
            command = [
                sys.executable,
                "-m",
                "benchmarks.worker",
                workload.name,
                turn.system,
                str(checkpoints),
                str(out),
            ]
            command += ["--round", str(turn.number), *(["--quick"] if self.scale is QUICK else [])]
            reason = _call(command, self.scale.timeout * workload.patience)
            self.results.samples.extend(read_lines(out))
        if reason:
            failure = Failure(workload=workload.name, system=turn.system, reason=reason)
            self.results.samples.failures.append(failure)
            print(f"({reason}) ", end="")
        session.processes += 1
        seconds = time.perf_counter() - start
        session.seconds += seconds
        print(f"{seconds:.1f} s", flush=True)


def main() -> None:
    """Measure, write the samples, the table and the plots."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the running process is killed, too
    args = _parse()
    out: Path = args.out or (RESULTS / "quick" if args.quick else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    results = store.read(out) if args.report_only else _measure(args, QUICK if args.quick else FULL, out)
    (out / "table.md").write_text(write_report(results))
    for path in (out / "table.md", *write_plots(results.samples, SCALES[results.scale], out)):
        print(path)
    if out.resolve() == RESULTS:
        for path in page.PAGES:
            path.write_text(page.fill(path.read_text(), results))
            print(path)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round, under two minutes")
    parser.add_argument(
        "--resume", action="store_true", help="measure only what --out does not hold yet, instead of everything again"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no process after this many minutes")
    workloads = [workload.name for workload in WORKLOADS]
    parser.add_argument("--workloads", nargs="+", choices=workloads, default=workloads, metavar="NAME")
    systems = [FLOORS, *NAMES]
    parser.add_argument("--systems", nargs="+", choices=systems, default=systems, metavar="NAME")
    parser.add_argument("--rounds", type=int, help="processes for each system, peers too")
    parser.add_argument("--dir", type=Path, default=Path("build/bench"), help="where the checkpoints go: a real disk")
    parser.add_argument("--out", type=Path, help="where the results go")
    parser.add_argument(
        "--report-only", action="store_true", help="write the table, plots and pages again from earlier samples"
    )
    return parser.parse_args()


def _measure(args: argparse.Namespace, scale: Scale, out: Path) -> Results:
    args.dir.mkdir(parents=True, exist_ok=True)
    run = Run(
        scale=scale,
        base=args.dir.resolve(),
        out=out,
        systems=frozenset(args.systems),
        rounds=args.rounds,
        until=time.monotonic() + args.minutes * 60,
        results=store.read(out, scale=scale.name, without=() if args.resume else args.workloads),
        facts=describe(args.dir, _PACKAGES),
    )
    chosen = [workload for workload in WORKLOADS if workload.needs(scale) and workload.name in args.workloads]
    left = sum(run.measure(workload) for workload in chosen)
    if left:
        print(f"{left} processes are left: go on with --resume")
    return run.results


def _call(command: list[str], timeout: float) -> str:
    """Run a process, and kill everything it started; return why it failed, or an empty string."""
    process = subprocess.Popen(  # noqa: S603 - the command is this package's own
        command,
        env={**os.environ, **_ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"took more than {timeout:.0f} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what is left of it and its children: a session of their own
        process.wait()
    lines = [line for line in errors.splitlines() if line.strip()]
    return "" if process.returncode == 0 else (lines[-1] if lines else f"ended with {process.returncode}")


if __name__ == "__main__":
    main()

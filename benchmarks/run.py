"""The whole benchmark in one go: `python -m benchmarks.run [--quick]`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.machine import describe
from benchmarks.plots import write_plots
from benchmarks.report import write_report
from benchmarks.samples import FLOORS, Failure, Sample, Samples, read_lines
from benchmarks.scale import FULL, QUICK
from benchmarks.systems import NAMES, SYSTEMS
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from benchmarks.scale import Scale
    from benchmarks.workloads import Workload

RESULTS: Final = Path(__file__).parent / "results"
_PACKAGES: Final = (*dict.fromkeys(entry.package for entry in SYSTEMS.values()), "msgpack", "xxhash", "jax")
_ENVIRONMENT: Final = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the benchmark: what is measured, where, and what came out so far."""

    scale: Scale
    base: Path
    """Where the checkpoints go."""
    systems: frozenset[str]
    rounds: int | None
    samples: Samples

    def measure(self, workload: Workload) -> None:
        """Give every system its turn in every round; each round starts with another one."""
        systems = [name for name in workload.systems_at(self.scale) if name in self.systems]
        for number in range(self.rounds or workload.rounds_at(self.scale)):
            turn = number % len(systems) if systems else 0
            for system in systems[turn:] + systems[:turn]:
                if self.samples.failure(workload.name, system) is None:
                    self._measure_system(workload, system, number)

    def _measure_system(self, workload: Workload, system: str, number: int) -> None:
        """Measure in a fresh process, and add what it wrote to the samples."""
        print(f"{workload.name}, round {number + 1}: {system} ", end="", flush=True)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=self.base, ignore_cleanup_errors=True) as root:
            checkpoints, out = Path(root, "checkpoints"), Path(root, "samples.jsonl")
            checkpoints.mkdir()
            out.touch()
            command = [sys.executable, "-m", "benchmarks.worker", workload.name, system, str(checkpoints), str(out)]
            command += ["--round", str(number), *(["--quick"] if self.scale is QUICK else [])]
            reason = _call(command, self.scale.timeout * workload.patience)
            self.samples.extend(read_lines(out))
        if reason:
            self.samples.failures.append(Failure(workload=workload.name, system=system, reason=reason))
            print(f"({reason}) ", end="")
        print(f"{time.perf_counter() - start:.1f} s", flush=True)


def main() -> None:
    """Measure, write the samples, the table and the plots."""
    args = _parse()
    scale = QUICK if args.quick else FULL
    out: Path = args.out or (RESULTS / "quick" if args.quick else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    if args.report_only:
        samples, facts = _read(out)
    else:
        samples, facts = _measure(args, scale, out)
    (out / "table.md").write_text(write_report(samples, facts, scale))
    for path in (out / "table.md", *write_plots(samples, scale, out)):
        print(path)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round, under two minutes")
    workloads = [workload.name for workload in WORKLOADS]
    parser.add_argument("--workloads", nargs="+", choices=workloads, default=workloads, metavar="NAME")
    systems = [FLOORS, *NAMES]
    parser.add_argument("--systems", nargs="+", choices=systems, default=systems, metavar="NAME")
    parser.add_argument("--rounds", type=int, help="processes for each system")
    parser.add_argument("--dir", type=Path, default=Path("build/bench"), help="where the checkpoints go: a real disk")
    parser.add_argument("--out", type=Path, help="where the results go")
    parser.add_argument("--report-only", action="store_true", help="write the table and plots of earlier samples anew")
    return parser.parse_args()


def _measure(args: argparse.Namespace, scale: Scale, out: Path) -> tuple[Samples, dict[str, str]]:
    args.dir.mkdir(parents=True, exist_ok=True)
    facts = describe(args.dir, _PACKAGES)
    run = Run(
        scale=scale, base=args.dir.resolve(), systems=frozenset(args.systems), rounds=args.rounds, samples=Samples()
    )
    start = time.perf_counter()
    for workload in WORKLOADS:
        if workload.needs(scale) and workload.name in args.workloads:
            run.measure(workload)
            _write(workload.name, run.samples, out)
    facts["the run took"] = f"{(time.perf_counter() - start) / 60:.1f} minutes"
    (out / "machine.json").write_text(json.dumps(facts, indent=1) + "\n")
    return run.samples, facts


def _call(command: list[str], timeout: float) -> str:
    """Run a process and all that it starts; return why it failed, or an empty string."""
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


def _write(workload: str, samples: Samples, out: Path) -> None:
    kinds: dict[str, list[Sample] | list[Failure]] = {"samples": samples.all, "failures": samples.failures}
    content = (
        f'"{kind}": [\n' + ",\n".join(json.dumps(asdict(each)) for each in all_ if each.workload == workload) + "\n]"
        for kind, all_ in kinds.items()
    )
    (out / f"{workload}.json").write_text("{" + ",\n".join(content) + "}\n")  # one sample a line


def _read(out: Path) -> tuple[Samples, dict[str, str]]:
    samples = Samples()
    for workload in WORKLOADS:
        path = out / f"{workload.name}.json"
        if path.exists():
            content = json.loads(path.read_text())
            samples.extend(Sample(**each) for each in content["samples"])
            samples.failures.extend(Failure(**each) for each in content["failures"])
    return samples, json.loads((out / "machine.json").read_text())


if __name__ == "__main__":
    main()

"""Runs rigs: each unit in a process of its own, several at once, until there is enough, or time is up."""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import pickle
import platform
import selectors
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import asyncckpt

from . import files
from .checks import prepare
from .ledger import Ledger, sources_digest
from .report import write_report
from .rig import HUNG, OURS, RIG_FAILED, SAID_NOTHING, Result
from .rigs import RIGS
from .workloads import make_workload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .rig import Rig

ROOT = Path(__file__).parents[2]
LEDGER = ROOT / "build" / "reliability" / "ledger.jsonl"
MEMORY = Path("/dev/shm")  # noqa: S108 - private directories are made in it


@dataclass(frozen=True, slots=True)
class Running:
    """A unit in its process."""

    rig: Rig
    unit: str
    pid: int
    pipe: int
    scratch: Path
    begun: float


class Plan:
    """Which units of a rig come next."""

    def __init__(  # noqa: PLR0913
        self, rig: Rig, ledger: Ledger, seed: int, wanted: int, units: list[str] | None, *, is_quick: bool = False
    ) -> None:
        self.rig = rig
        self.wanted = wanted
        self._ledger = ledger
        self._units_of = rig.quick_units if is_quick else rig.units
        self._given: set[str] = set()
        self._units = self._walk(seed) if units is None else iter(units)
        self.is_exhausted = False

    def _walk(self, seed: int) -> Iterator[str]:
        for number in itertools.count(seed):
            units = [unit for unit in self._units_of(number) if unit not in self._given]
            if not units:
                return
            self._given.update(units)
            yield from (unit for unit in units if not self._ledger.has(self.rig, unit))

    @property
    def done(self) -> int:
        """How many cases have been tried."""
        return self._ledger.sum(self.rig.name, self.rig.subject).tried

    def next(self) -> str | None:
        """Give a unit, or None if there is none left or enough was tried."""
        unit = None if self.done >= self.wanted else next(self._units, None)
        self.is_exhausted = self.is_exhausted or unit is None
        return unit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run rigs as the command line says; return the exit status."""
    options = parse(arguments)
    warnings.simplefilter("ignore", asyncckpt.CheckpointWarning)  # a rig that wants them catches them
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    chosen = [rig for rig in RIGS if options.rigs is None or rig.name in options.rigs.split(",")]
    if options.replay is not None:
        rig = next(rig for rig in RIGS if rig.name == options.replay[0] and rig.subject == options.subject)
        return replay(rig, options.replay[1])
    if options.until_lost:
        Result.enough = 1
    if options.quick:
        options.ledger.unlink(missing_ok=True)
    ledger = Ledger(options.ledger, sources_digest(Path(asyncckpt.__file__).parent, Path(__file__).parent))
    is_well = True
    if options.minutes > 0:
        ledger.begin(describe_machine())
        able = []
        for rig in chosen:
            why = rig.missing()
            if why is None:
                able.append(rig)
            else:
                ledger.skip(rig, why)
                print(f"{rig.name} ({rig.subject}): SKIPPED: {why}")
                is_well = is_well and not (options.require and rig.subject == OURS)
        if options.units is None:
            warm_up()
        plans = [
            Plan(rig, ledger, options.seed, wanted(rig, options), options.units, is_quick=options.quick) for rig in able
        ]
        work_off(
            plans, ledger, time.monotonic() + 60 * options.minutes, options.jobs, is_patient=not options.until_lost
        )
        for plan in plans:
            is_well = tell(plan, ledger, must_reach=options.quick) and is_well
    if options.report is not None:
        write_report(ledger, options.report)
    return 0 if is_well else 1


def warm_up() -> None:
    """Import what the library imports when it is used, before units are forked from here."""
    for name in ("msgpack/save/0", "hdf5/save/0", *(f"{form}/update/0" for form in files.FORMS)):
        scratch = make_scratch()
        prepare(make_workload(name), scratch)
        shutil.rmtree(scratch)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("tests.reliability", description=__doc__)
    names = dict.fromkeys(rig.name for rig in RIGS)
    parser.add_argument("--rigs", help=f"which, with commas between: {', '.join(names)}; all by default")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long; 0 runs nothing")
    parser.add_argument("--cases", type=int, help="how many cases of each rig the ledger shall have in the end")
    parser.add_argument("--seed", type=int, default=1, help="the first seed; what the ledger has is not run again")
    # One more than there are cores: a unit waits for its threads and processes, and for the kernel's disks.
    parser.add_argument("--jobs", type=int, default=(os.cpu_count() or 1) + 1, help="how many units at once")
    parser.add_argument("--ledger", type=Path, default=LEDGER, help="what is remembered, and added to")
    parser.add_argument("--quick", action="store_true", help="a fresh ledger, and the goals of CI, to be reached")
    parser.add_argument("--require", action="store_true", help="a rig that cannot run here is a failure")
    parser.add_argument("--units", nargs="+", help="only these units of the rigs")
    parser.add_argument("--until-lost", action="store_true", help="stop at the first loss")
    parser.add_argument("--report", type=Path, help="write the report of the ledger here")
    parser.add_argument("--replay", nargs=2, metavar=("RIG", "UNIT"), help="run one unit here, and print what it says")
    parser.add_argument("--subject", default=OURS, help="whose unit to replay")
    options = parser.parse_args(arguments)
    unknown = {*(options.rigs or "").split(","), *(options.replay or ())[:1]} - {*names, ""}
    if unknown:
        parser.error(f"no rig is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return options


def wanted(rig: Rig, options: argparse.Namespace) -> int:
    """Return how many cases of a rig there shall be."""
    if options.cases is not None:
        return int(options.cases)
    return rig.quick if options.quick else rig.goal


def work_off(plans: list[Plan], ledger: Ledger, deadline: float, jobs: int, *, is_patient: bool) -> None:
    """Run units, always of the rig that is furthest from its goal, until all have enough or time is up."""
    running: dict[int, Running] = {}
    selector = selectors.DefaultSelector()
    try:
        while True:
            while sum(each.rig.load for each in running.values()) < jobs and time.monotonic() < deadline:
                # Of one rig's units several may run at once, and be more than its goal asks for by then.
                waiting = [plan for plan in plans if not plan.is_exhausted]
                if not waiting:
                    break
                busy = [each.rig for each in running.values()]
                plan = min(waiting, key=lambda each: (each.done + busy.count(each.rig)) / max(each.wanted, 1))
                unit = plan.next()
                if unit is not None:
                    started = start(plan.rig, unit)
                    running[started.pipe] = started
                    selector.register(started.pipe, selectors.EVENT_READ)
            if not running:
                return
            ready = {key.fd for key, _ in selector.select(1.0)}
            for each in list(running.values()):
                is_late = time.monotonic() - each.begun > each.rig.seconds
                if each.pipe in ready or is_late:
                    selector.unregister(each.pipe)
                    del running[each.pipe]
                    result = finish(each, is_late=is_late and each.pipe not in ready)
                    ledger.add(each.rig, each.unit, result, time.monotonic() - each.begun)
                    for loss in result.losses[:5] if each.rig.subject == OURS else ():
                        print(f"LOST: {each.rig.name} ({each.rig.subject}) {each.unit}: {loss}", flush=True)
                    if result.losses and not is_patient:
                        return
    finally:
        for each in running.values():
            finish(each, is_late=True)
        selector.close()


def start(rig: Rig, unit: str) -> Running:
    """Start a unit in a process, and a process group, of its own."""
    scratch = make_scratch()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.close(reading)
        run_child(rig, unit, scratch, writing)
    os.close(writing)
    return Running(rig, unit, pid, reading, scratch, time.monotonic())


def run_child(rig: Rig, unit: str, scratch: Path, pipe: int) -> NoReturn:
    """Run a unit and send what came of it."""
    gc.freeze()  # what was imported is no garbage, and each collection would go through it
    try:
        try:
            result = rig.run(unit, scratch)
        except BaseException:  # noqa: BLE001 - it is reported
            result = Result(losses=[f"{RIG_FAILED}: {traceback.format_exc()}"])
        with os.fdopen(pipe, "wb") as file:
            pickle.dump(result, file)
    finally:
        os._exit(0)


def finish(each: Running, *, is_late: bool) -> Result:
    """Receive what came of a unit, and clear up after it."""
    if is_late:
        os.killpg(each.pid, signal.SIGKILL)
    with os.fdopen(each.pipe, "rb") as file:
        data = file.read() if not is_late else b""
    status = os.waitstatus_to_exitcode(os.waitpid(each.pid, 0)[1])
    shutil.rmtree(each.scratch, ignore_errors=True)
    if is_late:
        return Result(losses=[f"{HUNG}: no end after {each.rig.seconds} s"])
    if not data:
        return Result(losses=[f"{SAID_NOTHING} with {status} and said nothing"])
    found: Result = pickle.loads(data)  # noqa: S301 - our own child's
    return found


def replay(rig: Rig, unit: str) -> int:
    """Run one unit in this process and print what it says."""
    scratch = make_scratch()
    try:
        result = rig.run(unit, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{result.tried} {rig.cases}, {len(result.losses)} lost; {result.counts}")
    for loss in result.losses:
        print(f"LOST: {loss}")
    return 1 if result.losses else 0


def tell(plan: Plan, ledger: Ledger, *, must_reach: bool) -> bool:
    """Print a rig's sum; return whether nothing of ours was lost, what must be lost was, and enough was tried."""
    rig = plan.rig
    total = ledger.sum(rig.name, rig.subject)
    is_short = must_reach and total.tried < plan.wanted
    is_blind = rig.must_lose and total.tried > 0 and total.lost == 0
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(total.counts.items()))
    print(
        f"{rig.name} ({rig.subject}): {total.tried:,} {rig.cases}, {total.lost} lost, in {total.seconds:.1f} s"
        + (f"; {counts}" if counts else "")
        + (f"; TOO FEW: {plan.wanted} were asked for" if is_short else "")
        + ("; BLIND: this mistake must be seen" if is_blind else "")
    )
    return not is_short and not is_blind and (total.lost == 0 or rig.subject != OURS)


def make_scratch() -> Path:
    """Make a directory, in memory if there is such a place."""
    return Path(tempfile.mkdtemp(prefix="rig-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))


def describe_machine() -> dict[str, str]:
    """Return what the report says of where the rigs ran."""
    return {
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cores": str(os.cpu_count()),
    }


if __name__ == "__main__":
    sys.exit(main())

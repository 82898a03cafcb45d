"""Shared by the examples: a meter of the loop's stalls, and a demo that kills an example in the middle of a save."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import asyncckpt

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

TICK = 0.001  # seconds


def new_parser(doc: str, *, directory: str, save_period: int, format: str) -> argparse.ArgumentParser:
    """Return a parser of the options that every example has, with the given defaults."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--dir", type=Path, default=Path(directory), help="where the checkpoints go")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-period", type=int, default=save_period, help="steps between two saves")
    parser.add_argument("--format", choices=["msgpack", "hdf5"], default=format)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--demo", action="store_true", help="kill a run in the middle of a save, resume it, compare")
    parser.add_argument("--short", action="store_true", help="a run of seconds")
    return parser


def run(main: Coroutine[Any, Any, None], loop: str) -> None:
    """Run `main` to its end on asyncio's own loop, or on uvloop."""
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


class SaveMeter:
    """Measures what saving costs: the timings of each save, and the delays of a 1 ms timer with and without a save.

    The program's own work delays the timer, too: what saving adds is the difference between the two.
    """

    def __init__(self) -> None:
        self.blocked: list[float] = []  # seconds that `await manager.save(...)` took
        self.durable: list[float] = []  # seconds from the call of `save` until its checkpoint was safe
        self.busy: list[float] = []  # share of that time in which the loop's thread was computing
        self.late: dict[bool, list[float]] = {True: [], False: []}  # seconds, by whether a save was in progress
        self._began: deque[tuple[float, float]] = deque()  # of the saves in progress: by wall clock, by CPU time
        self._latest_stall = 0.0  # the longest since the last report

    async def tick(self) -> None:
        """Measure the loop's delays, forever."""
        while True:
            was_saving, start = bool(self._began), time.perf_counter()
            await asyncio.sleep(TICK)
            late = time.perf_counter() - start - TICK
            self.late[was_saving or bool(self._began)].append(late)
            self._latest_stall = max(self._latest_stall, late)

    def begin(self) -> None:
        """Record that a save begins; call this right before `save`."""
        self._began.append((time.perf_counter(), time.thread_time()))

    async def report(self, handle: asyncckpt.SaveHandle, text: str) -> None:
        """Wait until the save is durable, and print what it cost."""
        try:
            await handle
        finally:
            clock, work = self._began.popleft()  # saves end in the order in which they began
        self.busy.append((time.thread_time() - work) / (time.perf_counter() - clock))
        self.blocked.append(handle.timings.blocked)
        self.durable.append(handle.timings.committed)
        save = f"save blocked {ms(self.blocked[-1])}, durable after {ms(self.durable[-1])}"
        print(f"step {handle.step}: {text} | {save} | longest stall of the loop {ms(self._latest_stall)}", flush=True)
        self._latest_stall = 0.0

    def summary(self) -> str:
        """Return a summary of all saves in two lines."""
        if not self.blocked:
            return "nothing was saved"
        stalls = [
            f"{ms(max(late, default=0.0))} {when} (99% below {ms(float(np.quantile(late, 0.99)) if late else 0.0)})"
            for when, late in (("beside a save", self.late[True]), ("without one", self.late[False]))
        ]
        return (
            f"{len(self.blocked)} saves, median: blocked {ms(statistics.median(self.blocked))}, durable after "
            f"{ms(statistics.median(self.durable))}, in which the loop was busy {statistics.median(self.busy):.0%}\n"
            f"longest stall of the loop: {', '.join(stalls)}"
        )


def ms(seconds: float) -> str:
    """Format seconds as milliseconds."""
    return f"{seconds * 1000:.1f} ms"


def kill_and_resume(args: argparse.Namespace, *, kill_from: int, important: Callable[[Any], Any]) -> Any:
    """Show that a run killed in the middle of a save ends exactly like an uninterrupted one.

    Args:
        args: The example's own options, for two runs in new directories `uninterrupted` and `killed` in `args.dir`.
        kill_from: The first step in whose save the run may be killed.
        important: Selects the part of a final state that has to be equal.

    Returns:
        The resumed run's last checkpoint, or None if the runs differ.
    """
    options = {name: value for name, value in vars(args).items() if name not in {"dir", "demo", "short"}}
    command = [sys.executable, sys.argv[0], *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]
    whole, cut = args.dir / "uninterrupted", args.dir / "killed"
    for directory in (whole, cut):
        shutil.rmtree(directory, ignore_errors=True)

    print(f"== A run that nobody interrupts, in {whole}", flush=True)
    subprocess.run([*command, f"--dir={whole}"], check=True)  # noqa: S603 - our own command line
    print(f"\n== The same run, to be killed in the middle of a save, in {cut}", flush=True)
    with subprocess.Popen([*command, f"--dir={cut}"]) as child:  # noqa: S603 - our own command line
        pending = kill_in_save(child, cut, kill_from)
    if pending is None:
        print("FAIL: the run ended, and no save could be caught")
        return None
    print(f"killed while it saved step {pending}; on the disk are")
    for path in sorted(cut.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            print(f"    {path.relative_to(cut)!s:40}{path.stat().st_blocks * 512:>12,} bytes")
    print("\n== Started again", flush=True)
    subprocess.run([*command, f"--dir={cut}"], check=True)  # noqa: S603 - our own command line

    print("\n== The two results")
    expected, found = asyncio.run(newest(whole)), asyncio.run(newest(cut))
    leaves = list(compare(important(expected.state), important(found.state)))
    n_bytes = sum(size for _, size, _ in leaves)
    different = [path for path, _, is_same in leaves if not is_same]
    print(f"steps {expected.step} and {found.step}: {len(leaves)} leaves, {n_bytes:,} bytes compared bit for bit")
    if different or expected.step != found.step:
        print(f"FAIL: the killed run ended otherwise; {len(different)} leaves differ: {', '.join(different[:10])}")
        return None
    print("PASS: the killed run ended exactly like the one never interrupted")
    return found


def kill_in_save(child: subprocess.Popen[bytes], directory: Path, kill_from: int) -> int | None:
    """Kill the child between the first byte and the commit of a save. Return the step, or None if the child ended.

    The child is stopped before its files are examined: if the save has been committed by then, it may continue with the
    next one.
    """
    while child.poll() is None:
        time.sleep(0.0002)
        for file in files_being_written(directory):
            step = int(file.parent.name.removeprefix("tmp_step_"))
            if step < kill_from:
                continue
            child.send_signal(signal.SIGSTOP)
            time.sleep(0.05)  # a thread stops when its system call ends
            if file.exists():
                child.kill()
                return step
            child.send_signal(signal.SIGCONT)
    return None


def files_being_written(directory: Path) -> list[Path]:
    """Return the state files that have bytes and are not committed."""
    try:
        return [file for file in directory.glob("tmp_step_*/state.*") if file.stat().st_blocks]
    except FileNotFoundError:  # committed in the meantime
        return []


async def newest(directory: Path) -> Any:
    """Load the newest checkpoint in a directory."""
    async with asyncckpt.CheckpointManager(directory, read_only=True) as manager:
        return await manager.load("latest")


def compare(expected: Any, found: Any, path: str = "") -> Iterator[tuple[str, int, bool]]:
    """Yield each leaf's path, its size in bytes, and whether both sides hold the same bits."""
    if isinstance(expected, np.random.Generator) and isinstance(found, np.random.Generator):
        expected, found = expected.bit_generator.state, found.bit_generator.state
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        for key, value in expected.items():
            yield from compare(value, found[key], f"{path}/{key}")
    elif isinstance(expected, list | tuple | deque) and type(expected) is type(found) and len(expected) == len(found):
        for index, value in enumerate(expected):
            yield from compare(value, found[index], f"{path}/{index}")
    elif isinstance(expected, np.ndarray) and isinstance(found, np.ndarray):
        is_alike = expected.dtype == found.dtype and expected.shape == found.shape
        yield path, expected.nbytes, is_alike and expected.tobytes() == found.tobytes()
    else:
        yield path, 8, type(expected) is type(found) and repr(expected) == repr(found)

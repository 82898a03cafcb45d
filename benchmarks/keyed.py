"""Keyed files, with a ticker on the loop: `python -m benchmarks.keyed [--kinds hdf5 json] [--mib M] [--keys N]`.

One value of a GiB, and very many small ones, through the asynchronous view of each kind of file. Each kind has a
process of its own, which also measures the idle loop and how long `gc.collect()` takes. No stall can be shorter than
those of the idle loop, and a collection of the oldest generation, which a program's own objects trigger, takes as long
as `gc.collect()`. "Elsewhere" is the longest delay of a process that only sleeps: the machine was busy for that long.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks import machine, measures
from benchmarks.loops import Witness, ticking
from benchmarks.states import MIB

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from asyncckpt import Checkpointer

SUFFIXES: Final = {"hdf5": ".h5", "msgpack": ".msgpack", "json": ".json", "npz": ".npz", "memory": None}
_IDLE_SECONDS: Final = 2.0
_LIMIT: Final = 0.010


class _Run:
    """Measures one kind, in this process."""

    def __init__(self, kind: str, root: Path) -> None:
        self.kind = kind
        self.root = root
        self._memory: dict[str, Any] = {}
        self._witness = Witness()

    def make(self, name: str) -> Checkpointer:
        """Return the checkpointer of a file; the same one for the same name."""
        import asyncckpt

        suffix = SUFFIXES[self.kind]
        if suffix is None:
            return asyncckpt.DictCheckpointer(self._memory.setdefault(name, {}))
        return asyncckpt.Checkpointer.from_file(self.root / f"{name}{suffix}")

    async def timed(self, what: str, doing: Coroutine[Any, Any, Any]) -> Any:
        """Await something while a ticker runs, and print how long it took."""
        before = machine.reset_peak_memory()
        async with ticking() as ticker:
            start = time.perf_counter()
            found = await doing
            seconds = time.perf_counter() - start
        peak = machine.peak_memory() - before
        longest, p99 = ticker.stalls
        elsewhere = self._witness.longest_since(start)
        cells = (
            self.kind,
            what,
            measures.number("durable", seconds),
            measures.number("stall_max", longest) + (" !" if longest > _LIMIT else ""),
            measures.number("stall_p99", p99),
            measures.number("stall_max", elsewhere) if elsewhere else "",
            measures.number("peak_nbytes", peak),
        )
        print("| " + " | ".join(cells) + " |", flush=True)
        return found

    async def big(self, nbytes: int) -> None:
        """Measure one large value."""
        value = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
        chk = self.make("big")
        view = await chk.__aenter__()
        await self.timed("large: save", view.save_parameter("key", value))
        await self.timed("large: flush", view.flush())
        await self.timed("large: close", chk.__aexit__(None, None, None))
        chk = self.make("big")
        view = await self.timed("large: open", chk.__aenter__())
        loaded = await self.timed("large: load", view.load_parameter("key"))
        if not np.array_equal(loaded, value):
            message = f"{self.kind} did not give back what it was given"
            raise AssertionError(message)
        del loaded

        async def delete() -> None:
            await view.delete_parameter("key")
            await view.flush()

        await self.timed("large: delete, flush", delete())
        await chk.__aexit__(None, None, None)

    async def many(self, count: int) -> None:
        """Measure many small values."""
        values = [{"a": number, "b": np.full(4, number, float), "c": "text"} for number in range(count)]
        chk = self.make("many")
        view = await chk.__aenter__()

        async def save() -> None:
            for number, value in enumerate(values):
                await view.save_parameter(f"key{number}", value)

        async def load() -> None:
            for number in range(0, count, 8):
                await view.load_parameter(f"key{number}")

        async def delete() -> None:
            for number in range(0, count, 2):
                await view.delete_parameter(f"key{number}")
            await view.flush()

        await self.timed("many: save", save())
        await self.timed("many: flush", view.flush())
        await self.timed("many: close", chk.__aexit__(None, None, None))
        chk = self.make("many")
        view = await self.timed("many: open", chk.__aenter__())
        await self.timed("many: load an eighth", load())
        await self.timed("many: delete half, flush", delete())
        await chk.__aexit__(None, None, None)

    async def run(self, nbytes: int, count: int) -> None:
        """Measure everything."""
        await self.make("first").__aenter__()  # the imports
        gc.collect()
        start = time.perf_counter()
        gc.collect()
        seconds = measures.number("gc_collect", time.perf_counter() - start)
        print(f"| {self.kind} | gc.collect() | {seconds} | | | | |")
        await self.timed("idle", asyncio.sleep(_IDLE_SECONDS))
        if nbytes:
            await self.big(nbytes)
        if count:
            await self.many(count)
        self._witness.stop()


def main() -> None:
    """Measure each kind, in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=SUFFIXES, default=list(SUFFIXES))
    parser.add_argument("--mib", type=int, default=1024, help="size of the large value; 0 for none")
    parser.add_argument("--keys", type=int, default=20_000, help="how many small ones; 0 for none")
    parser.add_argument("--dir", type=Path, default=Path("build/bench"), help="where the files go: a real disk")
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    if len(args.kinds) == 1:
        with tempfile.TemporaryDirectory(dir=args.dir) as root:
            asyncio.run(_Run(args.kinds[0], Path(root)).run(args.mib * MIB, args.keys))
        return
    print(
        "| kind | | took | longest stall | stall, p99 | elsewhere | peak extra memory |\n" + "|---" * 7 + "|",
        flush=True,
    )
    for kind in args.kinds:
        options = ["--mib", str(args.mib), "--keys", str(args.keys), "--dir", str(args.dir)]
        subprocess.run([sys.executable, "-m", "benchmarks.keyed", "--kinds", kind, *options], check=True)  # noqa: S603 - this module


if __name__ == "__main__":
    main()

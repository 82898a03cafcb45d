"""Rig: readers in other processes, a second writer, and slow disks."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import asyncckpt

from .contents import content, expected, version_of
from .directories import FORMS
from .disks import Change, ShimDisk
from .processes import run_forked
from .rig import Result, Rig
from .workload import same

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_READERS = 2
_SECONDS = 4.0
_STEPS = range(1, 7)
_KEPT = 4
"""The step that nobody deletes and retention keeps: whatever overwrites it, it is there at every moment."""
_NOT_FOUND = "pruned meanwhile"


class Concurrency(Rig):
    """Readers and writers at once."""

    name = "concurrency"
    tries = (
        "Processes list, load and verify without pause while another saves, overwrites, deletes and prunes as fast"
        " as it can: no error except not-found for a step that was deleted, no wrong byte, and no moment without a"
        " step that is overwritten and not pruned. A second writer is refused while the first lives, and admitted"
        " when it is killed. States change while their saves wait for a slow disk."
    )
    cases = "loads and saves"
    quick = 1000
    goal = 1_000_000
    seconds = 200.0

    def units(self, seed: int) -> Iterator[str]:
        """Give one unit for each way."""
        for form in FORMS:
            yield f"readers/{form}/{seed}"
        yield f"pipeline/{seed}"
        yield f"two-writers/{seed}"

    def run(self, unit: str, scratch: Path) -> Result:
        """Run a unit."""
        kind, *rest = unit.split("/")
        seed = int(rest[-1])
        result = Result()
        if kind == "readers":
            read_while_writing(scratch / "root", rest[0], seed, result)
        elif kind == "pipeline":
            run_pipeline(scratch / "root", seed, result)
        else:
            try_second_writer(scratch / "root", seed, result)
        return result


# --- readers beside a writer ------------------------------------------------------------------------------------------


def read_while_writing(root: Path, form: str, seed: int, result: Result) -> None:
    """Let readers load what a writer changes."""
    context = multiprocessing.get_context("fork")
    told: Any = context.SimpleQueue()
    root.mkdir()
    has_begun = context.Event()
    writer = context.Process(target=write_on, args=(root, form, seed, has_begun))
    readers = [context.Process(target=read_on, args=(root, seed, number, told)) for number in range(_READERS)]
    writer.start()
    if not has_begun.wait(60):
        result.losses.append("the writer does not save")
    for process in readers:
        process.start()
    for _ in readers:
        counts, losses = told.get()
        for kind, number in counts.items():
            result.count(kind, number)
            result.tried += number * (kind != _NOT_FOUND)
        result.losses += losses
    os.kill(writer.pid or 0, signal.SIGKILL)
    for process in (writer, *readers):
        process.join()
    if writer.exitcode != -signal.SIGKILL:
        result.losses.append(f"the writer ended by itself, with {writer.exitcode}")
    ended = run_forked(lambda: asyncio.run(load_all(root, seed, form)))
    if ended.error or ended.value:
        result.losses.append(f"after the writer was killed: {ended.error or ended.value}")


def write_on(root: Path, form: str, seed: int, has_begun: Any) -> None:
    """Save, overwrite, delete and prune until killed; say when the step that is kept is there."""
    chance = random.Random(seed)  # noqa: S311 - seeded on purpose

    async def main() -> None:
        versions = dict.fromkeys(_STEPS, -1)
        versions[_KEPT] = 0
        async with asyncckpt.CheckpointManager(root, format=form, keep_latest_k=2, keep_every=_KEPT) as manager:
            await (await manager.save(_KEPT, content(seed, _KEPT, 0), training_info={"version": 0}))
            has_begun.set()
            while True:
                step = _KEPT if chance.random() < 0.4 else chance.choice(_STEPS)
                if step != _KEPT and chance.random() < 0.1 and step in manager.steps():
                    with contextlib.suppress(asyncckpt.CheckpointNotFoundError):  # pruned by what was queued before
                        await manager.delete(step)
                    continue
                version = versions[step] = versions[step] + 1
                state = content(seed, step, version)
                await manager.save(step, state, training_info={"version": version}, overwrite=True)

    asyncio.run(main())


def read_on(root: Path, seed: int, number: int, told: Any) -> None:
    """Load for some seconds; tell what was met."""
    counts: dict[str, int] = {}
    losses: list[str] = []
    chance = random.Random(f"{seed} {number}")  # noqa: S311 - seeded on purpose
    newest: dict[int, int] = {}

    async def read(manager: asyncckpt.CheckpointManager) -> None:
        await manager.refresh()
        if _KEPT not in manager.steps():
            losses.append(f"step {_KEPT} is not listed: {manager.steps()}")
        for step in manager.steps():
            try:
                if chance.random() < 0.3:
                    await manager.verify(step)
                    kind = "verified"
                else:
                    loaded = await manager.load(step, lazy=chance.random() < 0.2)
                    version = int(loaded.state["version"])
                    if not same(as_arrays(loaded.state), expected(seed, step, version)):
                        losses.append(f"step {step} has wrong bytes for version {version}")
                    if version < newest.get(step, 0):
                        losses.append(f"step {step} went back from version {newest[step]} to {version}")
                    newest[step] = version
                    kind = "loaded"
            except asyncckpt.CheckpointNotFoundError as error:
                kind = _NOT_FOUND
                if step == _KEPT:
                    losses.append(f"step {_KEPT}, which is only overwritten, is not found: {error}")
            counts[kind] = counts.get(kind, 0) + 1

    async def main() -> None:
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            async with asyncckpt.CheckpointManager(root, read_only=True) as manager:
                if _KEPT not in manager.steps():
                    losses.append(f"step {_KEPT} is not listed by a new reader: {manager.steps()}")
                for _ in range(chance.randint(1, 5)):
                    await read(manager)
            counts["listed"] = counts.get("listed", 0) + 1

    try:
        asyncio.run(main())
    except Exception as error:  # noqa: BLE001 - it is the loss
        losses.append(f"a reader met {error!r}")
    told.put((counts, losses))


def as_arrays(value: Any) -> Any:
    """Return a state with its mapped arrays as plain ones."""
    import numpy as np

    if isinstance(value, dict):
        return {key: as_arrays(each) for key, each in value.items()}
    if isinstance(value, list):
        return [as_arrays(each) for each in value]
    return np.array(value) if isinstance(value, np.ndarray) else value


async def load_all(root: Path, seed: int, form: str) -> str | None:
    """Load everything; return what is wrong."""
    async with asyncckpt.CheckpointManager(root, format=form) as manager:
        for step in manager.steps():
            if await version_of(manager, step, seed) < 0:
                return f"step {step} does not load"
    return None


# --- a slow disk ------------------------------------------------------------------------------------------------------


def run_pipeline(root: Path, seed: int, result: Result) -> None:
    """Save one state behind the other, each changed as soon as it may be, on a disk that holds each write.

    A write is let go when the next states have been captured: whoever captures into memory that is still being written
    is seen.
    """
    seed *= 50  # large: captured in threads, into buffers of the pool
    captured = threading.Semaphore(0)

    def hold(change: Change) -> None:
        if change.name == "write" and change.path.name.startswith("state."):
            captured.acquire(timeout=1.0)

    async def main() -> None:
        async with asyncckpt.CheckpointManager(root, disk=ShimDisk(hold), max_staged_nbytes=64 << 20) as manager:
            for step in range(1, 13):
                state = content(seed, step, 0)
                await manager.save(step, state, training_info={"version": 0})
                for array in state["arrays"]:
                    array.fill(0xAA)
                if step > 1:
                    captured.release()
            captured.release(100)
            await manager.flush()
            for step in range(1, 13):
                result.tried += 1
                if await version_of(manager, step, seed) != 0:
                    result.losses.append(f"step {step} does not load as it was captured")

    asyncio.run(main())
    result.count("saved to a slow disk", 12)


# --- a second writer --------------------------------------------------------------------------------------------------


def try_second_writer(root: Path, seed: int, result: Result) -> None:
    """Try to write beside a writer in another process, then after it was killed, and beside one in this process."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    writer = context.Process(target=_hold_lock, args=(root, seed, ready))
    writer.start()
    ready.wait(30)

    async def try_to_save(step: int) -> Exception | None:
        async with asyncckpt.CheckpointManager(root) as manager:
            try:
                await (await manager.save(step, content(seed, step, 0), training_info={"version": 0}))
            except asyncckpt.CheckpointError as error:
                return error
        return None

    def expect(what: str, is_refused: bool, told: Exception | None) -> None:
        result.tried += 1
        cause = told if told is None or told.__cause__ is None else told.__cause__
        if is_refused != isinstance(cause, asyncckpt.DirectoryLockedError):
            result.losses.append(f"{what}: {told!r}")

    expect("beside another process", True, asyncio.run(try_to_save(2)))  # noqa: FBT003
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    expect("after the other was killed", False, asyncio.run(try_to_save(2)))  # noqa: FBT003

    async def twice() -> None:
        async with asyncckpt.CheckpointManager(root) as first:
            await (await first.save(3, content(seed, 3, 0), training_info={"version": 0}))
            expect("beside another manager", True, await try_to_save(4))  # noqa: FBT003
            pid = os.fork()
            if pid == 0:
                signal.pause()  # an orphan, as a vector environment leaves them
                os._exit(0)
            orphans.append(pid)
        expect("beside an orphan of a closed one", False, await try_to_save(4))  # noqa: FBT003

    orphans: list[int] = []
    asyncio.run(twice())
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    result.count("tries to write beside a writer", 4)


def _hold_lock(root: Path, seed: int, ready: Any) -> None:
    async def main() -> None:
        async with asyncckpt.CheckpointManager(root) as manager:
            await (await manager.save(1, content(seed, 1, 0), training_info={"version": 0}))
            ready.set()
            await asyncio.sleep(60)

    asyncio.run(main())

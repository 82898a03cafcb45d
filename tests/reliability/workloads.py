"""What a program does with its checkpoints, made from a name: the rigs kill it, fail it and cut its power.

A workload begins with a directory that has some checkpoints (or what a killed writer left of them), and plays sessions:
in each, a manager is opened, acted on, and closed. Everything that it does and that is acknowledged goes to a log.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

import asyncckpt

from .history import Event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from .disks import ShimDisk

FORMATS = ("msgpack", "hdf5")
LARGE_EVERY = 50
Log = "Callable[[Event], object]"
Action = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Workload:
    """What is done."""

    form: str
    seed: int
    sessions: tuple[tuple[Action, ...], ...]
    steps: tuple[int, ...] = (1, 2, 3)
    """What is there before."""
    leftovers: tuple[str, ...] = ()
    """Directories that a killed writer has left: copies of step 1, or `old_step_3`, the only copy of step 3."""
    below: str = "."
    """Directories that must be made."""
    keep_latest: int | None = None
    keep_every: int | None = None
    exchanges: bool = True
    """Whether the disk can exchange two names."""
    options: dict[str, Any] = field(default_factory=dict)

    def before(self) -> list[Event]:
        """Tell what happened before."""
        events = [Event(kind, step, 0) for step in self.steps for kind in ("begin", "ack")]
        return [*events, Event("keep", self.keep_latest or 0, self.keep_every or 0)]


_KINDS: dict[str, dict[str, Any]] = {
    "first": {"sessions": ((("save", (4,)),),), "steps": (), "below": "a/b/c"},
    "save": {"sessions": ((("save", (4,)),),)},
    "recover": {
        "sessions": ((("save", (4,)),),),
        "leftovers": ("tmp_step_9", "trash_step_8", "old_step_2", "old_step_3"),
    },
    "overwrite": {"sessions": ((("save", (3,)),),)},
    "overwrite-renaming": {"sessions": ((("save", (3,)),),), "exchanges": False},
    "prune": {"sessions": ((("save", (4,)), ("flush", ())),), "keep_latest": 2},
    "delete": {"sessions": ((("delete", (2,)),),)},
    "finalize": {"sessions": ((("finalize", (3,)),),)},
    "finalize-renaming": {"sessions": ((("finalize", (3,)),),), "exchanges": False},
    "burst": {"sessions": ((("burst", (4, 5, 5, 6)), ("delete", (4,)), ("save", (4,))),), "keep_latest": 3},
}
"""Workloads by what they show. A new way of changing the disk is added here, and to `random_sessions`."""

KINDS = tuple(_KINDS)
_ACTIONS = ("save", "save", "overwrite", "delete", "finalize", "discard", "burst", "flush")


def workload_names(seed: int, *, randoms: int) -> Iterator[str]:
    """Name every kind in both formats, and so many random workloads that no other seed has."""
    for form in FORMATS:
        for kind in KINDS:
            yield f"{form}/{kind}/{seed}"
    for number in range(randoms):
        yield f"{FORMATS[number % 4 == 0]}/random/{seed * randoms + number}"


def make_workload(name: str) -> Workload:
    """Make the workload of a name: `FORMAT/KIND/SEED`, with a kind of `KINDS` or `random`."""
    form, kind, seed = name.split("/")
    if kind != "random":
        return Workload(form=form, seed=int(seed), **_KINDS[kind])
    chance = random.Random(name)  # noqa: S311 - seeded on purpose
    steps = tuple(sorted(chance.sample(range(1, 8), chance.randint(0, 3))))
    return Workload(
        form=form,
        seed=int(seed),
        sessions=random_sessions(chance, set(steps)),
        steps=steps,
        leftovers=tuple(chance.sample(("tmp_step_90", "trash_step_91", "trash_step_91.1"), chance.randint(0, 2)))
        if steps
        else (),
        below=chance.choice((".", ".", "runs/a")) if not steps else ".",
        keep_latest=chance.choice((None, 1, 2, 3)),
        keep_every=chance.choice((None, 2)),
        exchanges=chance.random() < 0.7,
    )


def random_sessions(chance: random.Random, there: set[int]) -> tuple[tuple[Action, ...], ...]:
    """Make sessions of actions that make sense: what is deleted may be there."""
    sessions = []
    for _ in range(chance.randint(1, 2)):
        actions: list[Action] = []
        for _ in range(chance.randint(1, 4)):
            kind = chance.choice(_ACTIONS)
            if kind in ("overwrite", "delete") and not there:
                kind = "save"
            if kind == "overwrite":
                actions.append(("save", (chance.choice(sorted(there)),)))
            elif kind == "delete":
                step = chance.choice(sorted(there))
                there.discard(step)
                actions.append(("delete", (step,)))
            elif kind == "burst":
                steps = tuple(chance.randint(1, 12) for _ in range(chance.randint(2, 4)))
                there.update(steps)
                actions.append(("burst", steps))
            elif kind == "flush":
                actions.append(("flush", ()))
            else:
                step = chance.randint(1, 12)
                if kind != "discard":
                    there.add(step)
                actions.append((kind, (step,)))
        sessions.append(tuple(actions))
    return tuple(sessions)


# --- contents ---------------------------------------------------------------------------------------------------------


def content(seed: int, step: int, version: int) -> dict[str, Any]:
    """Make a state that nobody else has: of sizes that fall on and beside the boundaries of pages and sectors.

    Those of every `LARGE_EVERY`th seed are large enough to be captured in threads and written past the page cache.
    """
    chance = np.random.default_rng([seed, step, version])
    sizes = [int(each) for each in chance.choice([0, 1, 511, 512, 513, 4095, 4096, 4097, 9000], 3)]
    if seed and seed % LARGE_EVERY == 0:
        sizes[1] = 1_300_000
    return {
        "step": step,
        "version": version,
        "arrays": [chance.integers(0, 256, size, np.uint8) for size in sizes],
        "matrix": chance.standard_normal((3, int(chance.integers(1, 40)))),
        "words": [f"{each:x}" for each in chance.integers(0, 1 << 60, int(chance.integers(0, 40)))],
        "big": int(chance.integers(0, 1 << 62)) ** 3,
    }


def same(found: Any, expected: Any) -> bool:
    """Whether two states are equal to the bit."""
    if type(found) is not type(expected):
        return False
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()
    return bool(found == expected)


USERS_FILES = ("mine", "sub/deep/file")


def users_bytes(seed: int, step: int, version: int, name: str) -> bytes:
    """Make the contents of a file that a user writes."""
    return np.random.default_rng([seed, step, version, len(name)]).bytes(700) + f"{step} {version}".encode()


# --- playing ----------------------------------------------------------------------------------------------------------


async def fill(workload: Workload, root: Path) -> None:
    """Make the directory that a workload begins with."""
    root.mkdir(parents=True, exist_ok=True)
    if not workload.steps:
        return
    async with asyncckpt.CheckpointManager(root, format=workload.form) as manager:
        for step in workload.steps:
            await (await manager.save(step, content(workload.seed, step, 0), training_info={"version": 0}))
    for name in workload.leftovers:
        if name != "old_step_3":
            shutil.copytree(root / f"step_{workload.steps[0]}", root / name)
    if "old_step_3" in workload.leftovers:
        (root / "step_3").rename(root / "old_step_3")


async def play(  # noqa: PLR0913
    workload: Workload,
    root: Path,
    disk: ShimDisk,
    log: Any,
    *,
    is_patient: bool = False,
    before_closing: Callable[[Player, asyncckpt.CheckpointManager], Awaitable[None]] | None = None,
) -> list[Exception]:
    """Play a workload.

    Args:
        workload: What.
        root: Where; `fill` has been there.
        disk: What changes the disk.
        log: Called with each `Event` when it happens.
        is_patient: Whether to go on with the next action when one fails.
        before_closing: Called at the end of each session.

    Returns:
        The errors of actions that failed, if patient.
    """
    player = Player(workload, root / workload.below, disk, log, is_patient=is_patient)
    for session in workload.sessions:
        await player.play(session, before_closing)
    return player.errors


class Player:
    """Plays sessions.

    Attributes:
        versions: The last version of each step whose save was begun.
    """

    def __init__(self, workload: Workload, root: Path, disk: ShimDisk, log: Any, *, is_patient: bool) -> None:
        self.workload = workload
        self.root = root
        self.disk = disk
        self.log = log
        self.is_patient = is_patient
        self.errors: list[Exception] = []
        self.versions = dict.fromkeys(workload.steps, 0)

    async def play(
        self,
        session: tuple[Action, ...],
        before_closing: Callable[[Player, asyncckpt.CheckpointManager], Awaitable[None]] | None,
    ) -> None:
        """Play a session."""
        retention: Any = {"keep_latest_k": self.workload.keep_latest}
        if self.workload.keep_latest is not None:
            retention["keep_every"] = self.workload.keep_every
        options = {"format": self.workload.form, **retention, **self.workload.options}
        try:
            async with asyncckpt.CheckpointManager(self.root, disk=self.disk, **options) as manager:
                for kind, steps in session:
                    try:
                        await getattr(self, kind)(manager, *steps)
                    except asyncckpt.CheckpointNotFoundError:
                        if kind != "delete":  # retention was first
                            raise
                        self.log(Event("deleted", *steps))
                    except (OSError, asyncckpt.CheckpointError) as error:
                        self._fail(error)
                if before_closing is not None:
                    await before_closing(self, manager)
        except (OSError, asyncckpt.CheckpointError, ExceptionGroup) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self.is_patient:
            raise error
        self.errors.append(error)

    def _next(self, step: int) -> int:
        version = self.versions[step] = self.versions.get(step, -1) + 1
        self.log(Event("begin", step, version))
        return version

    async def save(self, manager: asyncckpt.CheckpointManager, step: int) -> None:
        """Save a step, and wait."""
        await self.burst(manager, step)

    async def burst(self, manager: asyncckpt.CheckpointManager, *steps: int) -> None:
        """Save steps one behind the other, with a state that changes as soon as it may."""
        handles = []
        for step in steps:
            version = self._next(step)
            state = content(self.workload.seed, step, version)
            handle = await manager.save(
                step, state, training_info={"version": version}, run_config={"lr": 0.1}, overwrite=True
            )
            handles.append((handle, step, version))
            for array in state["arrays"]:
                array.fill(0xAA)
            state.clear()
        failed: Exception | None = None
        for handle, step, version in handles:
            try:
                await handle
            except asyncckpt.CheckpointError as error:
                failed = error
            else:
                self.log(Event("ack", step, version))
        if failed is not None:
            raise failed

    async def flush(self, manager: asyncckpt.CheckpointManager) -> None:
        """Wait for all."""
        await manager.flush()

    async def delete(self, manager: asyncckpt.CheckpointManager, step: int) -> None:
        """Delete a step."""
        self.log(Event("delete", step))
        await manager.delete(step)
        self.log(Event("deleted", step))

    async def finalize(self, manager: asyncckpt.CheckpointManager, step: int) -> None:
        """Commit a directory that the user has filled."""
        version = self._next(step)
        async with manager.checkpoint(step, {"version": version}, {"lr": 0.1}) as path:
            await asyncio.to_thread(self._write_users_files, path, step, version)
        self.log(Event("ack", step, version))

    async def discard(self, manager: asyncckpt.CheckpointManager, step: int) -> None:
        """Begin a directory, and think better of it."""
        with_error = RuntimeError("thought better of it")
        try:
            async with manager.checkpoint(step, {"version": 99}) as path:
                await asyncio.to_thread(self._write_users_files, path, step, 99)
                raise with_error
        except RuntimeError as error:
            if error is not with_error:
                raise

    def _write_users_files(self, path: Path, step: int, version: int) -> None:
        """Write as a user does: nothing is synced. It goes through our disk, so that it is in the record."""
        import os

        for folder in ("sub", "sub/deep"):
            self.disk.mkdir(path / folder)
        for name in USERS_FILES:
            fd = self.disk.create(path / name)
            try:
                data = users_bytes(self.workload.seed, step, version, name)
                done = 0
                while done < len(data):
                    done += self.disk.write(fd, [data[done:]], done)
            finally:
                os.close(fd)

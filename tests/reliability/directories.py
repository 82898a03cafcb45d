"""Workloads of a directory of checkpoints: a manager that saves, overwrites, deletes, finalizes and prunes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import random
import shutil
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import asyncckpt

from .history import Event, History
from .workload import LARGE_EVERY, Action, Healing, Known, Looked, Workload, same

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from .changes import Made
    from .disks import ShimDisk

FORMS = ("msgpack", "hdf5")
NEXT_STEP = 1_000_000  # saved after a crash


@dataclass(frozen=True, slots=True)
class DirectoryWorkload(Workload):
    """What is done with one directory."""

    is_changed_in_place = False
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
    keep_top: int | None = None
    """How many of the best stay. The metric is the version: what was overwritten oftener is better, or worse."""
    higher_is_better: bool = True

    def history(self, events: Iterable[Event] = ()) -> History:
        """See `Workload`."""
        history = self.history_of(dict.fromkeys(self.steps, 0))
        retention = (
            Event("keep", self.keep_latest or 0, self.keep_every or 0),
            Event("keep-top", self.keep_top or 0, int(self.higher_is_better)),
        )
        for event in (*retention, *events):
            history.take(event)
        return history

    def history_of(self, found: Mapping[int, int]) -> History:
        """See `Workload`."""
        return History.of(Event(kind, *each) for each in found.items() for kind in ("begin", "ack"))

    def next_start(self) -> DirectoryWorkload:
        """See `Workload`."""
        return DirectoryWorkload(self.form, self.seed, ((("save", (NEXT_STEP - 1,)),),), below=self.below)

    def is_tidying(self, changes: Sequence[Made], at: int) -> bool:
        """See `Workload`: whoever lists what a killed writer left tries to clear it away; the first save must."""
        locks = sum(each.name == "open" and each.path.name == ".lock" for each in changes[: at + 1])
        return bool(self.leftovers) and locks <= 1

    async def fill(self, root: Path) -> None:
        """See `Workload`."""
        root.mkdir(parents=True, exist_ok=True)
        if not self.steps:
            return
        async with asyncckpt.CheckpointManager(root, format=self.form) as manager:
            for step in self.steps:
                await (await manager.save(step, content(self.seed, step, 0), training_info={"version": 0}))
        for name in self.leftovers:
            if name != "old_step_3":
                shutil.copytree(root / f"step_{self.steps[0]}", root / name)
        if "old_step_3" in self.leftovers:
            (root / "step_3").rename(root / "old_step_3")

    async def play(
        self,
        root: Path,
        disk: ShimDisk,
        log: Callable[[Event], object],
        *,
        is_patient: bool = False,
        healing: Healing | None = None,
    ) -> list[Exception]:
        """See `Workload`."""
        player = _Player(self, root / self.below, disk, log, is_patient=is_patient)
        for session in self.sessions:
            await player.play(session, healing)
        return player.errors

    def look(self, root: Path, known: Known, *, saves: bool = True) -> Looked:
        """See `Workload`."""
        # What a reader sees that changes nothing, before the recovery.
        listed = [step for step, _, _ in asyncckpt._load_checkpoint_history(root)] if root.exists() else []
        if not root.exists() and not saves:
            return Looked({}, None)
        found, problem = _loop(os.getpid()).run_until_complete(self._survey(root, listed, known, saves=saves))
        strange = [
            path.name
            for path in root.iterdir()
            if path.name != ".lock" and (not path.name.startswith("step_") or not path.name[5:].isdigit())
        ]
        return Looked(found, problem or (f"left behind: {strange}" if strange else None))

    async def _survey(
        self, root: Path, listed: list[int], known: Known, *, saves: bool
    ) -> tuple[dict[int, int], str | None]:
        found: dict[int, int] = {}
        problem = None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            async with asyncckpt.CheckpointManager(root, format=self.form) as manager:
                if manager.steps() != listed:
                    problem = f"readers saw the steps {listed} before recovery, and {manager.steps()} after it"
                for step in manager.steps():
                    digest = _digest(step, manager._catalog.get(step).path)
                    if digest not in known:
                        known[digest] = await version_of(manager, step, self.seed)
                    found[step] = known[digest]
                if saves:
                    state = content(self.seed, NEXT_STEP, 0)
                    await (await manager.save(NEXT_STEP, state, training_info={"version": 0}))
                    if await version_of(manager, NEXT_STEP, self.seed) != 0:
                        problem = "the next save does not load"
        return found, problem


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
    "prune-by-metric": {"sessions": ((("save", (1,)), ("save", (4,)), ("save", (5,)), ("flush", ())),), "keep_top": 2},
    "delete": {"sessions": ((("delete", (2,)),),)},
    "finalize": {"sessions": ((("finalize", (3,)),),)},
    "finalize-renaming": {"sessions": ((("finalize", (3,)),),), "exchanges": False},
    "burst": {"sessions": ((("burst", (4, 5, 5, 6)), ("delete", (4,)), ("save", (4,))),), "keep_latest": 3},
}
"""Workloads by what they show. A new way of changing the disk is added here, and to `random_sessions`."""

KINDS = tuple(_KINDS)
_ACTIONS = ("save", "save", "overwrite", "delete", "finalize", "discard", "burst", "flush")


def make_workload(name: str) -> DirectoryWorkload:
    """Make the workload of a name."""
    form, kind, seed = name.split("/")
    if kind != "random":
        return DirectoryWorkload(form=form, seed=int(seed), **_KINDS[kind])
    chance = random.Random(name)  # noqa: S311 - seeded on purpose
    steps = tuple(sorted(chance.sample(range(1, 8), chance.randint(0, 3))))
    return DirectoryWorkload(
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
        keep_top=chance.choice((None, None, 1, 2)),
        higher_is_better=chance.random() < 0.5,
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


USERS_FILES = ("mine", "sub/deep/file")


def users_bytes(seed: int, step: int, version: int, name: str) -> bytes:
    """Make the contents of a file that a user writes."""
    return np.random.default_rng([seed, step, version, len(name)]).bytes(700) + f"{step} {version}".encode()


# --- looking ----------------------------------------------------------------------------------------------------------

expected = functools.lru_cache(64)(content)


@functools.cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """Return the loop on which a process looks: to make one each time takes longer than to look."""
    del process
    return asyncio.new_event_loop()


def _digest(step: int, path: Path) -> bytes:
    """Return what tells a checkpoint's names and bytes from all others'."""
    digest = hashlib.blake2b(b"%d" % step)
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            with open(f"{folder}/{name}", "rb") as file:  # noqa: PTH123 - strings are quicker
                data = file.read()
            digest.update(f"{folder[len(str(path)) :]}/{name} {len(data)} ".encode() + data)
    return digest.digest()


async def version_of(manager: asyncckpt.CheckpointManager, step: int, seed: int) -> int:
    """Load a step and compare every bit with what was saved; return its version, or -1."""
    try:
        record = manager._catalog.get(step)
        if (record.path / "mine").exists():
            await manager.verify(step)
            version = int(record.training_info["version"])
            data = [(record.path / name).read_bytes() for name in USERS_FILES]
            return version if data == [users_bytes(seed, step, version, name) for name in USERS_FILES] else -1
        if b"config.yaml" in (record.path / "manifest.json").read_bytes():
            await manager.verify(step)  # a file that loading does not read
        loaded = await manager.load(step)
        version = int(loaded.state["version"])
        is_same = same(loaded.state, expected(seed, step, version)) and loaded.training_info == {"version": version}
    except (asyncckpt.CheckpointError, KeyError, ValueError, OSError):
        return -1
    return version if is_same else -1


def retention_of(latest: int | None, every: int | None, top: int | None, *, higher_is_better: bool = True) -> Any:
    """Return a manager's options; the metric is the version."""
    options: dict[str, Any] = {"keep_latest_k": latest, "keep_top_k": top}
    if top is not None:
        options |= {"metric_name": "version", "higher_is_better": higher_is_better}
    if latest is not None or top is not None:
        options["keep_every"] = every
    return options


# --- playing ----------------------------------------------------------------------------------------------------------


class _Player:
    """Plays sessions.

    Attributes:
        versions: The last version of each step whose save was begun.
    """

    def __init__(self, workload: DirectoryWorkload, root: Path, disk: ShimDisk, log: Any, *, is_patient: bool) -> None:
        self.workload = workload
        self.root = root
        self.disk = disk
        self.log = log
        self.is_patient = is_patient
        self.errors: list[Exception] = []
        self.versions = dict.fromkeys(workload.steps, 0)

    async def play(self, session: tuple[Action, ...], healing: Healing | None) -> None:
        """Play a session."""
        retention = retention_of(
            self.workload.keep_latest,
            self.workload.keep_every,
            self.workload.keep_top,
            higher_is_better=self.workload.higher_is_better,
        )
        try:
            async with asyncckpt.CheckpointManager(
                self.root, disk=self.disk, format=self.workload.form, **retention
            ) as manager:
                for kind, steps in session:
                    try:
                        await getattr(self, kind)(manager, *steps)
                    except asyncckpt.CheckpointNotFoundError:
                        if kind != "delete":  # retention was first
                            raise
                        self.log(Event("deleted", *steps))
                    except (OSError, asyncckpt.CheckpointError) as error:
                        self._fail(error)
                if healing is not None and healing.is_due(self.errors):
                    await self._look_and_save(manager, healing)
        except (OSError, asyncckpt.CheckpointError, ExceptionGroup) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self.is_patient:
            raise error
        self.errors.append(error)

    async def _look_and_save(self, manager: asyncckpt.CheckpointManager, healing: Healing) -> None:
        healing.heal()
        with contextlib.suppress(asyncckpt.CheckpointError, ExceptionGroup):  # what failed was told to its handle
            await manager.flush()  # retention may be taking steps away
        await manager.refresh()
        found = {step: await version_of(manager, step, self.workload.seed) for step in manager.steps()}
        healing.problem = healing.judge(found)
        step = max(self.versions, default=1)
        try:
            await self.burst(manager, step, step + 1)
        except Exception as error:  # noqa: BLE001 - it is the loss
            healing.problem = (
                healing.problem or f"the next save of the same manager on the healed disk failed: {error!r}"
            )

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

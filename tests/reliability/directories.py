"""Workloads of a directory of checkpoints: a manager that saves, overwrites, deletes, finalizes and prunes."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import random
import shutil
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncckpt

from .contents import content, version_of
from .directory_player import DirectoryPlayer
from .disks import ShimDisk
from .history import Event, History
from .workload import Action, Healing, Known, Looked, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from .changes import Made

FORMS = ("msgpack", "hdf5")
NEXT_STEP = 1_000_000  # saved after a crash
_LASTING = (".lock", ".asyncckpt.json")  # what stands in a directory besides its checkpoints


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
    is_layered: bool = False
    """Whether what is there before lies in a lower layer of overlayfs, so that it cannot be renamed."""

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
        sessions = ((("save", (NEXT_STEP - 1,)),),)
        return DirectoryWorkload(
            self.form, self.seed, sessions, self.steps, below=self.below, is_layered=self.is_layered
        )

    def disk_options(self) -> dict[str, Any]:
        """See `Workload`."""
        return {"exchanges": self.exchanges, "is_fixed": self._is_fixed}

    def _is_fixed(self, path: Path) -> bool:
        """Whether a directory was there before; of one that is being deleted, the manifest goes first."""
        if not self.is_layered or path.name not in {f"step_{step}" for step in self.steps} or not path.is_dir():
            return False
        if not (path / "manifest.json").exists():
            return True
        return bool(json.loads((path / "training_info.json").read_text())["version"] == 0)

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
        player = DirectoryPlayer(self, root / self.below, disk, log, is_patient=is_patient)
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
            if path.name not in (".lock", ".asyncckpt.json")
            and (not path.name.startswith("step_") or not path.name[5:].isdigit())
        ]
        return Looked(found, problem or (f"left behind: {strange}" if strange else None))

    async def _survey(
        self, root: Path, listed: list[int], known: Known, *, saves: bool
    ) -> tuple[dict[int, int], str | None]:
        found: dict[int, int] = {}
        problem = None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            disk = ShimDisk(**self.disk_options())
            async with asyncckpt.CheckpointManager(root, disk=disk, format=self.form) as manager:
                if manager.steps() != listed:
                    problem = f"readers saw the steps {listed} before recovery, and {manager.steps()} after it"
                for step in manager.steps():
                    digest = _digest(step, manager._session.use().catalog.get(step).path)
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
    "overwrite-layered": {"sessions": ((("save", (3,)), ("save", (3,))),), "is_layered": True},
    "prune-layered": {"sessions": ((("save", (4,)), ("flush", ())),), "keep_latest": 2, "is_layered": True},
    "delete-layered": {"sessions": ((("delete", (2,)), ("save", (2,))),), "is_layered": True},
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
        is_layered=chance.random() < 0.2,
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

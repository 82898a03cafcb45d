"""What `soak.py` does at random: state machines, each with a model beside it, driven by hypothesis or for long.

1. The loop runs only while an operation does: between two, what was queued waits or goes on in threads.
2. Draws depend on nothing that happens, so that the same choices can be played again.
3. Where the outcome is open, as of a cancelled save, the place is looked at at once, and may hold what was there or
   what was to come.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import shutil
import threading
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import hypothesis.configuration
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import asyncckpt

from . import directories
from .contents import content, version_of
from .history import Event, History

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

_STEP = st.integers(1, 8)
TURNS = st.integers(0, 12)
"""How many turns the loop takes until a cancellation."""


class Usage(NamedTuple):
    """What a process has."""

    descriptors: int
    threads: int
    nbytes: int
    """Of memory."""


@dataclass(slots=True)
class Used:
    """What came of many runs, or of a long one."""

    operations: int = 0
    usages: list[Usage] = field(default_factory=list)
    """After each run, or now and then in a long one."""


def machine_of(form: str) -> type[Machine]:
    """Return what uses a kind of place."""
    from .soak_files import FileMachine  # it needs this module

    return ManagerMachine if form in directories.FORMS else FileMachine


def use_at_random(form: str, seed: int, scratch: Path, *, runs: int, steps: int) -> Used:
    """Run a form's machine.

    Raises:
        Exception: What went wrong; its notes have the operations, as few as hypothesis could find.
    """
    hypothesis.configuration.set_hypothesis_home_dir(scratch / "hypothesis")
    kind = machine_of(form)
    used = Used()
    machine: Any = type(kind.__name__, (kind,), {"form": form, "seed": seed, "folder": scratch, "used": used})
    run_state_machine_as_test(
        hypothesis.seed(seed)(machine),
        settings=settings(
            max_examples=runs,
            stateful_step_count=steps,
            phases=(Phase.generate, Phase.shrink),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return used


def use_for_long(  # noqa: PLR0913
    form: str, seed: int, scratch: Path, *, rounds: int, samples: int, reopens: bool
) -> Used:
    """Use one place in this process, so many rounds of an operation or a few, and see now and then what that takes.

    Raises:
        Exception: What went wrong.
    """
    used = Used()
    kind: Any = machine_of(form)
    machine: Machine = type(kind.__name__, (kind,), {"form": form, "seed": seed, "folder": scratch, "used": used})()
    chance = random.Random(f"{form} {seed}")  # noqa: S311 - seeded on purpose
    machine.begin_long()
    for number in range(1, rounds + 1):
        machine.act_at_random(chance, reopens=reopens)
        if number % (rounds // samples) == 0:
            machine.do(machine.settle())
            used.usages.append(usage())
    machine.teardown()
    return used


class Machine(RuleBasedStateMachine):
    """A place in use.

    Attributes:
        form: Of the place.
        seed: Decides what is saved.
        folder: Where.
        used: What is added to.
    """

    form: ClassVar[str]
    seed: ClassVar[int]
    folder: ClassVar[Path]
    used: ClassVar[Used]

    def __init__(self) -> None:
        super().__init__()
        self.root = self.folder / "root"
        self.root.mkdir()
        self._runner = asyncio.Runner()

    def do(self, operation: Coroutine[Any, Any, None]) -> None:
        """Do something on the loop."""
        self.used.operations += 1
        self._runner.run(operation)

    @abstractmethod
    async def open(self) -> None:
        """Open the place."""

    @abstractmethod
    async def close(self) -> None:
        """Close it, if it is open."""

    def begin_long(self) -> None:
        """Begin what is used for long."""
        self.do(self.open())

    @abstractmethod
    def act_at_random(self, chance: random.Random, *, reopens: bool) -> None:
        """Do something, and maybe close the place and open it again."""

    @abstractmethod
    async def settle(self) -> None:
        """Wait until nothing is queued."""

    def teardown(self) -> None:
        """Close all, and see what is left."""
        try:
            self._runner.run(self.close())
        finally:
            self._runner.close()
            shutil.rmtree(self.root)
        self.used.usages.append(usage())


def usage() -> Usage:
    """Return what this process has, when it has given back what it can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number
    return Usage(descriptors, threading.active_count(), pages * os.sysconf("SC_PAGE_SIZE"))


async def cancel_after(turns: int, awaitable: Awaitable[Any]) -> bool:
    """Await something for some turns of the loop and cancel it; return whether it had ended well by then."""
    task = asyncio.ensure_future(awaitable)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    if task.cancelled():
        return False
    task.result()
    return True


# --- a manager --------------------------------------------------------------------------------------------------------


class ManagerMachine(Machine):
    """A directory of checkpoints; its model is the history that the other rigs judge by."""

    def __init__(self) -> None:
        super().__init__()
        self.model = History()
        self.versions: dict[int, int] = {}
        self.queued: list[tuple[int, int]] = []
        self.retention: dict[str, Any] = {}
        self.manager: asyncckpt.CheckpointManager | None = None

    @initialize(latest=st.none() | st.integers(1, 4), every=st.none() | st.just(3))
    def begin(self, latest: int | None, every: int | None) -> None:
        """Choose a retention, and open."""
        if latest is not None:
            self.retention = {"keep_latest_k": latest, "keep_every": every}
            self.model.take(Event("keep", latest, every or 0))
        self.do(self.open())

    def begin_long(self) -> None:
        """See `Machine`."""
        self.begin(4, 3)

    def act_at_random(self, chance: random.Random, *, reopens: bool) -> None:
        """See `Machine`: half of it is saves that are waited for."""
        step = chance.randint(1, 8)
        if reopens and chance.random() < 0.02:
            self.reopen()
        elif chance.random() < 0.5:
            self.save(step)
        else:
            turns = chance.randint(0, 12)
            chance.choice(
                (
                    lambda: self.queue([step, chance.randint(1, 8)]),
                    lambda: self.cancel_save(step, turns),
                    lambda: self.delete(step),
                    lambda: self.load(step, None),
                    lambda: self.load(step, turns),
                    self.look,
                    self.refresh,
                )
            )()

    @property
    def opened(self) -> asyncckpt.CheckpointManager:
        """The manager."""
        assert self.manager is not None
        return self.manager

    async def open(self) -> None:
        """See `Machine`."""
        self.manager = asyncckpt.CheckpointManager(self.root / "checkpoints", format=self.form, **self.retention)
        await self.manager.__aenter__()

    async def close(self) -> None:
        """See `Machine`: what was queued is saved."""
        if self.manager is not None:
            manager, self.manager = self.manager, None
            await manager.__aexit__(None, None, None)
            self._acknowledge()

    def _acknowledge(self) -> None:
        for step, version in self.queued:
            self.model.take(Event("ack", step, version))
        self.queued.clear()

    async def _save(self, step: int) -> tuple[asyncckpt.SaveHandle, int]:
        version = self.versions[step] = self.versions.get(step, -1) + 1
        self.model.take(Event("begin", step, version))
        state = content(self.seed, step, version)
        handle = await self.opened.save(step, state, training_info={"version": version}, overwrite=True)
        for array in state["arrays"]:
            array.fill(0xAA)
        return handle, version

    async def settle(self) -> None:
        """See `Machine`."""
        await self.opened.flush()
        self._acknowledge()

    async def _look(self) -> None:
        """Wait for all, load all, and compare: what is there is what was saved, of all that retention keeps."""
        await self.settle()
        found = {step: await version_of(self.opened, step, self.seed) for step in self.opened.steps()}
        wrong = self.model.judge(found)
        assert wrong is None, wrong
        for step, version in found.items():
            if version in self.model.begun.get(step, ()):  # a cancelled one that was saved
                self.model.take(Event("ack", step, version))

    @rule(step=_STEP)
    def save(self, step: int) -> None:
        """Save, and wait."""

        async def act() -> None:
            handle, version = await self._save(step)
            await handle
            self.queued.append((step, version))
            self._acknowledge()  # in their order: those queued before it are there as well

        self.do(act())

    @rule(steps=st.lists(_STEP, min_size=1, max_size=3))
    def queue(self, steps: list[int]) -> None:
        """Save without waiting."""

        async def act() -> None:
            for step in steps:
                _, version = await self._save(step)
                self.queued.append((step, version))

        self.do(act())

    @rule(step=_STEP, turns=TURNS)
    def cancel_save(self, step: int, turns: int) -> None:
        """Cancel who saves and waits: it is saved or not."""

        async def save() -> None:
            handle, _ = await self._save(step)
            await handle

        async def act() -> None:
            await self.settle()
            await cancel_after(turns, save())
            await self._look()

        self.do(act())

    def _is_kept(self, step: int) -> bool:
        return step in self.model.acknowledged and step not in self.model.may_be_gone

    @rule(step=_STEP)
    def delete(self, step: int) -> None:
        """Delete."""

        async def act() -> None:
            await self.settle()
            is_kept = self._is_kept(step)
            self.model.take(Event("delete", step))
            try:
                await self.opened.delete(step)
            except asyncckpt.CheckpointNotFoundError:
                assert not is_kept, f"step {step} cannot be deleted"
            self.model.take(Event("deleted", step))

        self.do(act())

    @rule(step=_STEP, turns=st.none() | TURNS)
    def load(self, step: int, turns: int | None) -> None:
        """Load, or verify; or cancel who does."""

        async def act() -> None:
            await self.settle()
            loading = self.opened.load(step, lazy=step % 2 == 0) if turns is None else self.opened.verify(step)
            try:
                if turns is None:
                    await loading
                else:
                    await cancel_after(turns, loading)
            except asyncckpt.CheckpointNotFoundError:
                assert not self._is_kept(step), f"step {step} is not found"

        self.do(act())

    @rule()
    def look(self) -> None:
        """Load all there is, and compare."""
        self.do(self._look())

    @rule()
    def refresh(self) -> None:
        """List anew: the same."""

        async def act() -> None:
            await self.settle()
            before = self.opened.steps()
            await self.opened.refresh()
            assert self.opened.steps() == before

        self.do(act())

    @rule()
    def reopen(self) -> None:
        """Close, with saves queued, and open another."""

        async def act() -> None:
            await self.close()
            await self.open()
            await self._look()

        self.do(act())

"""What `soak.py` does at random: state machines of hypothesis, each with a model beside it.

1. The loop runs only while an operation does: between two, what was queued waits or goes on in threads.
2. Draws depend on nothing that happens, so that the same choices can be played again.
3. Where the outcome is open, as of a cancelled save, the place is looked at at once, and may hold what was there or
   what was to come.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import hypothesis.configuration
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import asyncckpt

from . import directories
from .directories import content, version_of
from .files import KeyedWorkload, name_of, value_of
from .history import Event, History

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

_STEP = st.integers(1, 8)
_KEY = st.integers(0, 5)
_TURNS = st.integers(0, 12)
"""How many turns the loop takes until a cancellation."""


@dataclass(slots=True)
class Used:
    """What came of many runs."""

    operations: int = 0
    usages: list[tuple[int, int]] = field(default_factory=list)
    """Open descriptors and bytes of memory, after each run."""


def use_at_random(form: str, seed: int, scratch: Path, *, runs: int, steps: int) -> Used:
    """Run a form's machine.

    Raises:
        Exception: What went wrong; its notes have the operations, as few as hypothesis could find.
    """
    hypothesis.configuration.set_hypothesis_home_dir(scratch / "hypothesis")
    kind = ManagerMachine if form in directories.FORMS else FileMachine
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

    def teardown(self) -> None:
        """Close all, and see what is left."""
        try:
            self._runner.run(self.close())
        finally:
            self._runner.close()
            shutil.rmtree(self.root)
        gc.collect()
        self.used.usages.append(usage())


def usage() -> tuple[int, int]:
    """Return how many descriptors are open, and how many bytes of memory are in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE")  # noqa: PTH208 - only their number


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

    async def _settle(self) -> None:
        await self.opened.flush()
        self._acknowledge()

    async def _look(self) -> None:
        """Wait for all, load all, and compare: what is there is what was saved, of all that retention keeps."""
        await self._settle()
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

    @rule(step=_STEP, turns=_TURNS)
    def cancel_save(self, step: int, turns: int) -> None:
        """Cancel who saves and waits: it is saved or not."""

        async def save() -> None:
            handle, _ = await self._save(step)
            await handle

        async def act() -> None:
            await self._settle()
            await cancel_after(turns, save())
            await self._look()

        self.do(act())

    def _is_kept(self, step: int) -> bool:
        return step in self.model.acknowledged and step not in self.model.may_be_gone

    @rule(step=_STEP)
    def delete(self, step: int) -> None:
        """Delete."""

        async def act() -> None:
            await self._settle()
            is_kept = self._is_kept(step)
            self.model.take(Event("delete", step))
            try:
                await self.opened.delete(step)
            except asyncckpt.CheckpointNotFoundError:
                assert not is_kept, f"step {step} cannot be deleted"
            self.model.take(Event("deleted", step))

        self.do(act())

    @rule(step=_STEP, turns=st.none() | _TURNS)
    def load(self, step: int, turns: int | None) -> None:
        """Load, or verify; or cancel who does."""

        async def act() -> None:
            await self._settle()
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
            await self._settle()
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


# --- a file of many keys ----------------------------------------------------------------------------------------------


class FileMachine(Machine):
    """A file in use by its asynchronous view, or in blocking mode; its model is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.workload = KeyedWorkload(self.form, self.seed, ())
        self.model: dict[str, int] = {}
        self.number = 0
        self.file: asyncckpt.Checkpointer | None = None
        self.view: Any = None

    @initialize()
    def begin(self) -> None:
        """Open."""
        self.do(self.open())

    async def open(self) -> None:
        """See `Machine`."""
        self.file = asyncckpt.Checkpointer.from_file(self.workload.path(self.root))
        self.view = await self.file.__aenter__()

    async def close(self) -> None:
        """See `Machine`."""
        if self.file is not None:
            file, self.file = self.file, None
            await file.__aexit__(None, None, None)

    def _next(self, key: int) -> tuple[str, int, Any]:
        self.number += 1
        return name_of(key), self.number, value_of(self.seed, key, self.number, is_large=False)

    async def _load(self, name: str) -> int:
        return self.workload.number_in(name, await self.view[name])

    async def _look(self) -> None:
        found = [(name, await self._load(name)) for name in self.view]
        assert found == [*self.model.items()]

    @rule(key=_KEY, is_awaited=st.booleans())
    def set(self, key: int, is_awaited: bool) -> None:
        """Set, on the spot or awaited; the value changes as soon as it may."""

        async def act() -> None:
            name, number, value = self._next(key)
            if is_awaited:
                await self.view.save_parameter(name, value)
            else:
                self.view[name] = value
            (value["array"] if isinstance(value, dict) else value).fill(0xAA)
            self.model[name] = number

        self.do(act())

    @rule(key=_KEY)
    def unset(self, key: int) -> None:
        """Delete."""

        async def act() -> None:
            name = name_of(key)
            was_there = self.model.pop(name, None) is not None
            try:
                del self.view[name]
            except asyncckpt.CheckpointKeyError:
                assert not was_there
            else:
                assert was_there

        self.do(act())

    @rule(key=_KEY)
    def load(self, key: int) -> None:
        """Load."""

        async def act() -> None:
            name = name_of(key)
            try:
                found = await self._load(name)
            except asyncckpt.CheckpointKeyError:
                assert name not in self.model
            else:
                assert found == self.model[name]

        self.do(act())

    @rule(key=_KEY, turns=_TURNS)
    def cancel_save(self, key: int, turns: int) -> None:
        """Cancel who saves: it is set or not."""

        async def act() -> None:
            name, number, value = self._next(key)
            is_done = await cancel_after(turns, self.view.save_parameter(name, value))
            if name not in self.view:
                assert name not in self.model
                assert not is_done
                return
            found = await self._load(name)
            assert found == number or (found == self.model.get(name) and not is_done)
            self.model[name] = found

        self.do(act())

    @rule(key=_KEY, turns=_TURNS)
    def cancel_load(self, key: int, turns: int) -> None:
        """Cancel who loads."""
        self.do(self._cancel(turns, lambda: self.view.get(name_of(key))))

    @rule(turns=_TURNS)
    def cancel_flush(self, turns: int) -> None:
        """Cancel who flushes."""
        self.do(self._cancel(turns, self.view.flush))

    async def _cancel(self, turns: int, call: Callable[[], Awaitable[Any]]) -> None:
        await cancel_after(turns, call())
        assert list(self.view) == list(self.model)

    @rule()
    def flush(self) -> None:
        """Flush; a reader beside finds what was flushed."""

        async def act() -> None:
            await self.view.flush()
            assert await asyncio.to_thread(self._read) == self.model

        self.do(act())

    def _read(self) -> dict[str, int]:
        with asyncckpt.Checkpointer.from_file(self.workload.path(self.root)) as chk:
            return {name: self.workload.number_of(chk, name) for name in chk}

    @rule()
    def look(self) -> None:
        """Load all there is, and compare."""
        self.do(self._look())

    @rule(key=st.none() | _KEY)
    def reopen(self, key: int | None) -> None:
        """Close, and open again; in between, maybe, set a key in blocking mode."""

        async def act() -> None:
            await self.close()
            if key is not None:
                name, number, value = self._next(key)
                await asyncio.to_thread(self._set_blocking, name, value)
                self.model[name] = number
            await self.open()
            await self._look()

        self.do(act())

    def _set_blocking(self, name: str, value: Any) -> None:
        with asyncckpt.Checkpointer.from_file(self.workload.path(self.root)) as chk:
            chk[name] = value

"""What is cancelled: places in use, whose actions may be disturbed at any await, and which are judged afterwards."""

from __future__ import annotations

import asyncio
import shutil
import warnings
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import asyncckpt

from .checks import check_now
from .contents import content, version_of
from .directories import DirectoryWorkload
from .files import FORMS as FILE_FORMS
from .files import KeyedWorkload
from .history import Event, History
from .values import key_of, name_of, value_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from asyncckpt.disk.ops import DiskOps

_STEPS = (1, 2)
_GRACE = 60.0
_STAGED_NBYTES = 100_000  # less than a large value


class Play(ABC):
    """A place, and what is done with it. An action is a method of its name, which takes what `opened` gives.

    Attributes:
        disturbances: Which actions are disturbed, and how.
    """

    disturbances: ClassVar[dict[str, tuple[str, ...]]]

    def __init__(self, root: Path, form: str, seed: int) -> None:
        self.root = root
        self.form = form
        self.seed = seed

    @abstractmethod
    async def fill(self) -> None:
        """Make what is there before."""

    @abstractmethod
    def opened(self) -> AbstractAsyncContextManager[Any]:
        """Open the place."""

    @abstractmethod
    async def go_on(self, place: Any) -> str | None:
        """Use it after an action was cancelled; return what is wrong."""

    async def leave(self, place: Any) -> Awaitable[Any] | None:
        """Do what is to be done last, when SIGTERM has come."""
        del place
        return None

    @abstractmethod
    async def abandon(self, use: Callable[[Any], Awaitable[None]], kept: list[Any]) -> None:
        """Open the place and use it, in a task that the loop's end cancels.

        Args:
            use: What is done.
            kept: What must live until the loop has ended.
        """

    @abstractmethod
    def report(self) -> Any:
        """Return what happened, for `judge` in another process."""

    @abstractmethod
    def judge(self, report: Any) -> str | None:
        """Look at what is there; return what is wrong."""


def make_play(root: Path, form: str, seed: int) -> Play:
    """Make the play of a form."""
    return (FilePlay if form in FILE_FORMS else ManagerPlay)(root, form, seed)


# --- a manager --------------------------------------------------------------------------------------------------------

_MANAGER_ACTIONS = ("save", "overwrite", "load", "flush", "delete", "finalize", "close")


class ManagerPlay(Play):
    """A manager."""

    disturbances: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys(
        ("cancel", "teardown", "SIGINT", "SIGTERM", "pending"), _MANAGER_ACTIONS
    )

    def __init__(self, root: Path, form: str, seed: int) -> None:
        super().__init__(root, form, seed)
        self._events: list[Event] = []
        self.disk: DiskOps | None = None

    def opened(self) -> asyncckpt.CheckpointManager:
        """See `Play`."""
        return asyncckpt.CheckpointManager(self.root, disk=self.disk, format=self.form, grace=_GRACE)

    async def abandon(self, use: Callable[[Any], Awaitable[None]], kept: list[Any]) -> None:
        """See `Play`: it is never closed."""
        manager = self.opened()
        kept.append(manager)  # or its own finalizer would warn
        await use(await manager.__aenter__())

    async def fill(self) -> None:
        """See `Play`."""
        async with self.opened() as manager:
            for step in _STEPS:
                await (await self.keep(manager, step))

    async def go_on(self, place: asyncckpt.CheckpointManager) -> str | None:
        """See `Play`."""
        await (await self.keep(place, 9))
        self._events.append(Event("ack", 9, 0))
        await place.flush()
        if place.statistics().staged_nbytes or place.statistics().queue_depth:
            return f"still staged: {place.statistics()}"
        return None

    async def leave(self, place: asyncckpt.CheckpointManager) -> Awaitable[Any] | None:
        """See `Play`."""
        return await self.keep(place, 9)

    def report(self) -> list[Event]:
        """See `Play`: what `save` has returned for is written even if nobody waits for it, because it was captured."""
        told = [event._replace(kind="ack") if event.kind == "queued" else event for event in self._events]
        return sorted(told, key=lambda event: (event.step, event.version, event.kind == "ack"))

    def judge(self, report: list[Event]) -> str | None:
        """See `Play`. Step 6 may be one that was filled by hand."""
        history = History.of([*(Event(kind, step, 0) for step in _STEPS for kind in ("begin", "ack")), *report])
        history.begun.setdefault(6, set()).add(0)
        strange = [path.name for path in self.root.iterdir() if path.name.startswith(("tmp_", "trash_", "old_"))]
        by_hand = self.root / "step_6" / "other"
        if by_hand.exists():
            if by_hand.read_bytes() != b"6":
                return "step 6 is not what was finalized"
            shutil.rmtree(by_hand.parent)
        loss = check_now(DirectoryWorkload(self.form, self.seed, ()), self.root, history)
        return f"left behind: {strange}" if strange else loss

    async def keep(self, manager: asyncckpt.CheckpointManager, step: int, version: int = 0) -> asyncckpt.SaveHandle:
        """Save; what `save` has returned for will be there, unless it says otherwise."""
        self._events.append(Event("begin", step, version))
        state = content(self.seed, step, version)
        handle = await manager.save(step, state, training_info={"version": version}, overwrite=True)
        self._events.append(Event("queued", step, version))
        return handle

    async def save(self, manager: asyncckpt.CheckpointManager) -> None:
        """Save and wait."""
        await (await self.keep(manager, 5))
        self._events.append(Event("ack", 5, 0))

    async def overwrite(self, manager: asyncckpt.CheckpointManager) -> None:
        """Overwrite what is in flight, and wait."""
        await self.keep(manager, 2, 1)
        await (await self.keep(manager, 2, 2))
        self._events.append(Event("ack", 2, 2))

    async def load(self, manager: asyncckpt.CheckpointManager) -> None:
        """Load."""
        assert await version_of(manager, 1, self.seed) == 0

    async def flush(self, manager: asyncckpt.CheckpointManager) -> None:
        """Save and flush."""
        await self.keep(manager, 5)
        await manager.flush()
        self._events.append(Event("ack", 5, 0))

    async def delete(self, manager: asyncckpt.CheckpointManager) -> None:
        """Delete."""
        self._events.append(Event("delete", 1))
        await manager.delete(1)
        self._events.append(Event("deleted", 1))

    async def finalize(self, manager: asyncckpt.CheckpointManager) -> None:
        """Commit a directory filled by hand."""
        async with manager.checkpoint(6, {"version": 0}) as path:
            (path / "other").write_bytes(b"6")

    async def close(self, manager: asyncckpt.CheckpointManager) -> None:
        """Save and close."""
        await self.keep(manager, 5)
        await self.keep(manager, 6)
        await manager.aclose()
        self._events.append(Event("ack", 5, 0))
        self._events.append(Event("ack", 6, 0))


# --- a keyed file ----------------------------------------------------------------------------------------------

_FILE_ACTIONS = ("save", "replace", "load", "take", "delete", "flush", "evaluate", "close")
_SMALL, _GONE, _NEW, _LARGE, _COMPUTED = range(5)  # keys
_LAST = 6


class FilePlay(Play):
    """The asynchronous view of a `Checkpointer`: whatever disturbs it, leaving it makes durable what it has taken."""

    disturbances: ClassVar[dict[str, tuple[str, ...]]] = {
        "cancel": (*_FILE_ACTIONS, "evaluate_before", "evaluate_after"),
        "teardown": _FILE_ACTIONS,
        "SIGINT": _FILE_ACTIONS,
        "SIGTERM": _FILE_ACTIONS,
        "pending": _FILE_ACTIONS,
    }

    def __init__(self, root: Path, form: str, seed: int) -> None:
        super().__init__(root, form, seed)
        self._workload = KeyedWorkload(form, seed, ())
        self._sure = {_SMALL: 1, _GONE: 2, _LARGE: 3}
        self._maybe: dict[int, int | None] = {}
        self._other: asyncio.Task[Any] | None = None
        self._file = asyncckpt.Checkpointer.from_file(self._workload.path(root), max_staged_nbytes=_STAGED_NBYTES)

    async def fill(self) -> None:
        """See `Play`."""
        self.root.mkdir()
        async with self._file as view:
            for key, number in self._sure.items():
                await view.save_parameter(name_of(key), self._value(key, number))

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Any]:
        """See `Play`. It may be closed before its end."""
        view = await self._file.__aenter__()
        try:
            yield view
        except BaseException as error:
            if self._file.is_open:
                await self._file.__aexit__(type(error), error, error.__traceback__)
            raise
        if self._file.is_open:
            await self._file.__aexit__(None, None, None)

    async def abandon(self, use: Callable[[Any], Awaitable[None]], kept: list[Any]) -> None:
        """See `Play`: the block is left when the loop, which is ending, cancels the task."""
        del kept
        async with self.opened() as view:
            await use(view)

    async def leave(self, place: Any) -> Awaitable[Any] | None:
        """See `Play`."""
        await self._set(place, _LAST, 60)
        flushing: Awaitable[Any] = place.flush()
        return flushing

    async def go_on(self, place: Any) -> str | None:
        """See `Play`."""
        if self._other is not None and self._is_wrong(_COMPUTED, await self._other):
            return "who asked for the same value has got another"
        self._settle(_COMPUTED if self._other is not None else None)
        found = {}
        for name in place:
            found[key_of(name)] = self._workload.number_in(name, await place[name])
        if (wrong := self._compare(found)) is not None:
            return wrong
        self._sure, self._maybe = found, {}
        await self._set(place, _LAST, 60)
        await place.flush()
        return None

    def report(self) -> tuple[dict[int, int], dict[int, int | None]]:
        """See `Play`."""
        return self._sure, self._maybe

    def judge(self, report: tuple[dict[int, int], dict[int, int | None]]) -> str | None:
        """See `Play`."""
        self._sure, self._maybe = report
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = self._workload._read(self._file.checkpoint_file, {})
        strange = [path.name for path in self.root.iterdir() if path != self._file.checkpoint_file]
        return f"left behind: {strange}" if strange else self._compare(found)

    def _compare(self, found: dict[int, int]) -> str | None:
        """Say what is wrong with what was found: each key is as it surely was, or as it may have become."""
        for key in found.keys() | self._sure.keys():
            if found.get(key) not in (self._sure.get(key), self._maybe.get(key, self._sure.get(key))):
                return f"the file has {found}, and was given {self._sure}, and maybe {self._maybe}"
        return None

    def _value(self, key: int, number: int) -> Any:
        return value_of(self.seed, key, number, is_large=False)

    def _is_wrong(self, key: int, value: Any) -> bool:
        return self._workload.number_in(name_of(key), value) != self._maybe.get(key, self._sure.get(key))

    def _settle(self, key: int | None) -> None:
        """Note that what may have become of a key is so."""
        if key in self._maybe:
            number = self._maybe.pop(key)
            if number is None:
                self._sure.pop(key, None)
            else:
                self._sure[key] = number

    async def _set(self, view: Any, key: int, number: int) -> None:
        self._maybe[key] = number
        value = self._value(key, number)
        await view.save_parameter(name_of(key), value)
        (value["array"] if isinstance(value, dict) else value).fill(0xAA)
        self._settle(key)

    async def save(self, view: Any) -> None:
        """Save a new key, and one that may be large."""
        await self._set(view, _NEW, 10)
        await self._set(view, _LARGE, 11)

    async def replace(self, view: Any) -> None:
        """Replace what has just been set."""
        await self._set(view, _SMALL, 10)
        await self._set(view, _SMALL, 11)
        await view.flush()

    async def load(self, view: Any) -> None:
        """Load."""
        for key in (_SMALL, _LARGE):
            assert not self._is_wrong(key, await view[name_of(key)])

    async def take(self, view: Any) -> None:
        """Load and delete."""
        self._maybe[_GONE] = None
        await view.pop(name_of(_GONE))
        self._settle(_GONE)

    async def delete(self, view: Any) -> None:
        """Delete."""
        self._maybe[_GONE] = None
        await view.delete_parameter(name_of(_GONE))
        self._settle(_GONE)

    async def flush(self, view: Any) -> None:
        """Set and flush."""
        await self._set(view, _LARGE, 10)
        await view.flush()

    async def close(self, view: Any) -> None:
        """Set and close."""
        await self._set(view, _NEW, 10)
        await self._set(view, _LARGE, 11)
        await self._file.__aexit__(None, None, None)

    async def _compute(self) -> Any:
        await asyncio.sleep(0)
        return self._value(_COMPUTED, 20)

    async def evaluate(self, view: Any) -> None:
        """Compute a value that is not there."""
        self._maybe[_COMPUTED] = 20
        assert not self._is_wrong(_COMPUTED, await view.cached_eval(name_of(_COMPUTED), self._compute))
        self._settle(_COMPUTED)

    async def evaluate_before(self, view: Any) -> None:
        """Compute a value for which another waits."""
        self._other = asyncio.ensure_future(view.cached_eval(name_of(_COMPUTED), self._compute))
        await self.evaluate(view)  # which comes first: the other task has not begun

    async def evaluate_after(self, view: Any) -> None:
        """Wait for a value that another computes."""
        self._other = asyncio.ensure_future(view.cached_eval(name_of(_COMPUTED), self._compute))
        self._maybe[_COMPUTED] = 20
        await asyncio.sleep(0)
        await self.evaluate(view)

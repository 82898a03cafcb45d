"""The mechanism of a cut: who runs, who wants to hold it, and who waits for its release.

1. A member runs or is at rest. Nobody scans the members: the number of those that run is kept, and a cut is held as
   soon as it is wanted and that number is zero.
2. A member that is at rest runs again only while no cut is wanted, with two exceptions: a cancellation that arrives
   while a cut is wanted, but not held yet, and the end of a coroutine that is thrown away.
3. Between two cuts every member runs that waited for the release of the first: the second is wanted only when all of
   them have gone on.
4. A cancellation that arrives while a cut is held is raised after its release, so that no line of the program's runs
   meanwhile.
5. A member that is let run first counts as running, and only then does another cut become wanted.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from asyncckpt.cut.places import place_of
from asyncckpt.errors import CutBusyError, CutTimeoutError, CutUsageError, TornStateError
from asyncckpt.runtime.cancellation import shielded

if TYPE_CHECKING:
    from collections.abc import Callable

if sys.version_info >= (3, 12):
    task_on = asyncio.current_task
else:  # asyncio's own function is written in Python here, and takes three times as long
    from asyncio.tasks import _current_tasks  # type: ignore[attr-defined] # it is private

    task_on: Callable[[asyncio.AbstractEventLoop], asyncio.Task[Any] | None] = _current_tasks.get
"""Returns the task that runs on a loop."""


def current_task() -> asyncio.Task[Any] | None:
    """Return the task that runs.

    Raises:
        CutUsageError: No loop of asyncio runs here.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        message = "no event loop of asyncio runs here: participants of a cut are its tasks, and not those of trio"
        raise CutUsageError(message) from None
    return task_on(loop)


_taking_part: WeakKeyDictionary[asyncio.Task[Any], ref[Member]] = WeakKeyDictionary()
"""The member of each task that takes part in a cut, whichever. The cut keeps both."""


class Member:
    """A task that takes part in a cut.

    Attributes:
        name: Its name, for messages.
        task: The task, from joining to leaving.
        has_joined: Whether it takes part, or did.
        is_running: Whether it runs; else it is at rest.
        resting: In which call it is at rest, if it is.
    """

    __slots__ = ("__weakref__", "has_joined", "is_running", "name", "resting", "task")

    def __init__(self, name: str) -> None:
        self.name = name
        self.task: asyncio.Task[Any] | None = None
        self.has_joined = False
        self.is_running = False
        self.resting = ""


class _Request:
    """A call that wants to hold the cut, or holds it."""

    __slots__ = ("future", "member", "task")

    def __init__(self, task: asyncio.Task[Any], member: Member | None) -> None:
        self.task = task
        self.member = member
        self.future: asyncio.Future[None] = task.get_loop().create_future()

    @property
    def name(self) -> str:
        return self.task.get_name() if self.member is None else self.member.name


class CutCore:
    """Counts who runs, and lets one call after the other hold the cut. Used on one loop's thread only.

    Attributes:
        is_wanted: Whether a cut is wanted or held, so that members park as they come.
        is_held: Whether it is held.
    """

    def __init__(self) -> None:
        self.is_wanted = False
        self.is_held = False
        self._running = 0
        self.members: dict[asyncio.Task[Any], Member] = {}
        self._torn: dict[str, str] = {}
        self._active: _Request | None = None  # what wants the cut, or holds it
        self._line: deque[_Request] = deque()  # what wants it next
        self._parked: dict[asyncio.Future[None], None] = {}  # set at the release, in this order
        self._owed: set[asyncio.Future[None]] = set()  # set, but whoever waited has not gone on yet

    # --- members ------------------------------------------------------------------------------------------------------

    def member_here(self) -> Member | None:
        """Return the member whose task runs now, or None."""
        try:
            return self.members.get(current_task())  # type: ignore[arg-type] # None is no key
        except CutUsageError:  # no loop runs here
            return None

    @property
    def is_empty(self) -> bool:
        """Whether no task takes part."""
        return not self.members

    async def join(self, member: Member) -> None:
        """Let a task take part, once no cut is wanted.

        Raises:
            CutUsageError: The task takes part already, or holds the cut, or this is another loop than that of the
                other members.
        """
        task = current_task()
        assert task is not None  # noqa: S101 - this is a coroutine of one
        if member.has_joined:
            message = f"the block of {member.name!r} was entered before: make another participant"
            raise CutUsageError(message)
        if (other := find_member(task)) is not None:
            message = f"the task of {other.name!r} takes part already: nested participants are not possible"
            raise CutUsageError(message)
        self._check_loop(task)
        self._check_not_holding(task, "join")
        waiter = None
        try:
            if self.is_wanted:
                waiter = self._park(task)
                await waiter
            member.task, member.has_joined = task, True
            self.members[task] = member
            _taking_part[task] = ref(member)
            task.add_done_callback(self._forget)
        except BaseException:
            self._gone_on(waiter)
            raise
        self.let_run(member, waiter)

    def leave(self, member: Member, tear: str | None) -> None:
        """End a member's part; `tear` says how it died, if it did otherwise than at rest."""
        task = member.task
        if task is None or self.members.get(task) is not member:
            return
        task.remove_done_callback(self._forget)
        del self.members[task]
        _taking_part.pop(task, None)
        if tear is not None:
            self._torn[member.name] = tear
            for request in [*filter(None, (self._active,)), *self._line]:
                self._fail(request, self._torn_error())
        self.rest(member, "")
        member.task = None

    def rest(self, member: Member, resting: str) -> None:
        """Put a member at rest, if it is not."""
        member.resting = resting
        if member.is_running:
            member.is_running = False
            self._running -= 1
            if not self._running and self.is_wanted:
                self._grant()

    async def resume(self, member: Member, error: BaseException | None = None) -> None:
        """Let a member run again, as soon as it may.

        Args:
            member: The member.
            error: What is to be raised in it. A cancellation waits only while a cut is held.

        Raises:
            asyncio.CancelledError: Another cancellation has arrived.
        """
        if member.is_running:
            return
        waiter = None
        task = member.task
        assert task is not None  # noqa: S101 - a member has joined
        try:
            if isinstance(error, asyncio.CancelledError):
                if self.is_held:
                    waiter = await self._outlast(task)
            elif self.is_wanted:
                waiter = self._park(task)
                try:
                    await waiter
                except asyncio.CancelledError:
                    if self.is_held:
                        self._gone_on(waiter)
                        waiter = await self._outlast(task)
                    raise
        finally:
            self.let_run(member, waiter)

    def let_run(self, member: Member, waiter: asyncio.Future[None] | None = None) -> None:
        """Let a member run now; `waiter` is what it waited for, if it did."""
        if not member.is_running:
            member.is_running = True
            self._running += 1
        self._gone_on(waiter)

    def check_may_rest(self, member: Member, what: str) -> None:
        """Check that the task of a member runs now, and does not hold the cut.

        Raises:
            CutUsageError: Another task runs, or the task holds the cut.
        """
        self.check_here(member, what)
        self._check_not_holding(member.task, what)

    def check_here(self, member: Member, what: str) -> None:
        """Check that the task of a member runs now.

        Raises:
            CutUsageError: Another task runs, or the member has left.
        """
        task = current_task()
        if task is not member.task or self.members.get(task) is not member:  # type: ignore[arg-type] # None is no key
            name = "no task" if task is None else task.get_name()
            message = f"{what} of {member.name!r} was called by {name}: only the task that has joined may do that"
            raise CutUsageError(message)

    def _check_not_holding(self, task: asyncio.Task[Any] | None, what: str) -> None:
        if self._active is not None and self.is_held and self._active.task is task:
            message = f"{what} was called while {self._active.name!r} holds the cut: it would wait for itself"
            raise CutUsageError(message)

    def _check_loop(self, task: asyncio.Task[Any]) -> None:
        other = next(iter(self.members), task)
        if other.get_loop() is not task.get_loop():
            raise CutUsageError("the participants of a cut must be tasks of one event loop")

    def _forget(self, task: asyncio.Task[Any]) -> None:
        """A task has ended without leaving: its `async with` block was entered by hand."""
        member = self.members[task]
        self.leave(member, "it ended without leaving its block")

    # --- waiting for the release --------------------------------------------------------------------------------------

    def _park(self, task: asyncio.Task[Any]) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = task.get_loop().create_future()
        self._parked[waiter] = None
        return waiter

    async def _outlast(self, task: asyncio.Task[Any]) -> asyncio.Future[None]:
        """Wait for the release, whatever is cancelled; return what was waited for."""
        with shielded():
            while True:
                waiter = self._park(task)
                try:
                    await waiter
                except asyncio.CancelledError:
                    if self.is_held:
                        self._gone_on(waiter)
                        continue
                except BaseException:
                    self._gone_on(waiter)
                    raise
                return waiter

    def _gone_on(self, waiter: asyncio.Future[None] | None) -> None:
        if waiter is None:
            return
        self._parked.pop(waiter, None)
        if waiter in self._owed:
            self._owed.remove(waiter)
            self._advance()

    # --- holding ------------------------------------------------------------------------------------------------------

    async def begin(self, seconds: float | None) -> None:
        """Wait until all members are at rest, and hold the cut until `release`.

        Raises:
            CutTimeoutError: They were not within so many seconds.
            TornStateError: A member has died otherwise than at rest.
            CutUsageError: This task holds the cut already.
        """
        request, member = self._request(), self.member_here()
        if member is not None:
            self.rest(member, "hold")
        self._line.append(request)
        self._advance()
        timer = None
        if seconds is not None and not request.future.done():
            timer = request.task.get_loop().call_later(seconds, self._expire, request, seconds)
        try:
            await request.future
        except BaseException as error:
            self._withdraw(request)
            if member is not None:
                if isinstance(error, Exception | asyncio.CancelledError):
                    await self.resume(member, error)
                else:
                    self.let_run(member)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def begin_now(self) -> None:
        """Hold the cut, if all other members are at rest.

        Raises:
            CutBusyError: They are not.
            TornStateError: A member has died otherwise than at rest.
            CutUsageError: This task holds the cut already.
        """
        request = self._request()
        member = request.member
        busy = [each for each in self.members.values() if each.is_running and each is not member]
        if busy:
            raise CutBusyError(f"not all participants are at rest: {_listed(busy)}")
        if self._active is not None or self._line or self._owed:
            raise CutBusyError("another call holds the cut, or wants it, or has just released it")
        if member is not None:
            self.rest(member, "hold")
        self._active = request
        self.is_wanted = True
        self._grant()

    def release(self) -> None:
        """Let all members go on; then another call may want the cut."""
        request, self._active = self._active, None
        self.is_wanted = self.is_held = False
        if request is not None:
            request.task.remove_done_callback(self._release_for)
        if request is not None and request.member is not None:
            self.let_run(request.member)
        parked, self._parked = self._parked, {}
        for waiter in parked:
            self._owed.add(waiter)
            if not waiter.done():  # or its task was cancelled, and has not gone on yet
                waiter.set_result(None)
        self._advance()

    def _request(self) -> _Request:
        task = current_task()
        if task is None:
            raise CutUsageError("a cut is held by a task")
        self._check_loop(task)
        self._check_not_holding(task, "hold")
        if self._torn:
            raise self._torn_error()
        return _Request(task, self.members.get(task))

    def _advance(self) -> None:
        """Let the next call want the cut, if all who waited for a release have gone on."""
        if self._active is None and self._line and not self._owed:
            self._active = self._line.popleft()
            self.is_wanted = True
            if not self._running:
                self._grant()

    def _grant(self) -> None:
        if self._active is not None and not self._active.future.done():
            self.is_held = True
            self._active.future.set_result(None)
            self._active.task.add_done_callback(self._release_for)

    def _release_for(self, task: asyncio.Task[Any]) -> None:
        """Release what a task held that has ended without doing so: its block was entered by hand."""
        if self._active is not None and self._active.task is task:
            self.release()

    def _withdraw(self, request: _Request) -> None:
        if request is self._active:
            self.release()
        elif request in self._line:
            self._line.remove(request)

    def _fail(self, request: _Request, error: Exception) -> None:
        if not request.future.done():
            request.future.set_exception(error)
            self._withdraw(request)

    def _expire(self, request: _Request, seconds: float) -> None:
        members = self.members.values()
        late = [member for member in members if member.is_running]
        if self.is_held and self._active is not None:
            holder = self._active
            message = f"another call held the cut: {holder.name!r} at {place_of(holder.task)}"
            late = [holder.member] if holder.member is not None else []
        else:
            message = f"not all participants came to rest: {_listed(late)}"
        resting = [member for member in members if not member.is_running and member is not request.member]
        if resting:
            message += f". At rest: {_listed(resting)}"
        error = CutTimeoutError(
            f"within {seconds:g} s, {message}",
            late={member.name: _place(member) for member in late},
            resting={member.name: _place(member) for member in resting},
        )
        self._fail(request, error)

    # --- deaths -------------------------------------------------------------------------------------------------------

    def _torn_error(self) -> TornStateError:
        told = "; ".join(f"{name!r}: {how}" for name, how in self._torn.items())
        message = (
            f"a participant died otherwise than at rest, so that its state may be half changed: {told}. If the state is"
            " sound, call forgive(name)"
        )
        return TornStateError(message, torn=dict(self._torn))


def find_member(task: asyncio.Task[Any] | None) -> Member | None:
    """Return the member of any cut whose task this is, or None."""
    found = None if task is None else _taking_part.get(task)
    return None if found is None else found()


_MAX_LISTED = 16


def _place(member: Member) -> str:
    place = "an unknown line" if member.task is None else place_of(member.task)
    return place if member.is_running else f"{place} ({member.resting})"


def _listed(members: list[Any]) -> str:
    text = ", ".join(f"{member.name!r} at {_place(member)}" for member in members[:_MAX_LISTED])
    return text + (f" and {len(members) - _MAX_LISTED} more" if len(members) > _MAX_LISTED else "")

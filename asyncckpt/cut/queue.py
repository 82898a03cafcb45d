"""`CutQueue`: a queue between participants of a cut.

1. An item is the queue's from the call of `put` until `get` returns. While a task waits in `put`, its item stands in
   the list of waiting puts, and while one waits in `get`, even when there is an item for it, the item stands in the
   queue.
2. Both calls wait at rest. So while a cut is held, no item is in a task's hands on its way in or out.
3. A get that is let go is promised one of the items, and a put that is let go one of the places: it takes it without
   looking again. If it is cancelled instead, the promise goes to the next one.
4. A get waits only if all items are promised, and a put only if all places are taken or promised.
"""

from __future__ import annotations

import asyncio
from asyncio import get_running_loop
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from asyncckpt.cut.core import current_task, find_member, task_on
from asyncckpt.cut.participant import Participant
from asyncckpt.errors import CutUsageError
from asyncckpt.state.reduction import Reduction
from asyncckpt.state.types import register_reduction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from asyncckpt.cut.core import CutCore

ItemT = TypeVar("ItemT")


class Handover(Protocol):
    """What is completed when a result of its is handed over to a queue."""

    async def begin_handover(self, me: Participant | None) -> None:
        """Wait until the participant may run, and count as completed."""

    def end_handover(self) -> None:
        """Be completed."""

    def undo_handover(self) -> None:
        """Count as not completed: the result was not handed over."""


class _Put(Generic[ItemT]):
    """A put that waits."""

    __slots__ = ("future", "item")

    def __init__(self, item: ItemT, future: asyncio.Future[None]) -> None:
        self.item = item
        self.future = future


class CutQueue(Generic[ItemT]):
    """A first-in, first-out queue whose items are in every cut exactly once: what `Cut.Queue` returns.

    It is used as an `asyncio.Queue` is, by participants of its cut, and can stand in the state that is saved. What is
    saved is its items, those of waiting puts included, and its `maxsize`. A loaded queue belongs to the cut of the
    first participant that uses it, one that was loaded with a template to that of the template.

    Only participants may use it, because an item in the hands of any other task is in no cut: `asyncio.wait_for` and
    other helpers that start a task raise `CutUsageError`, which is why `get` and `put` have a timeout of their own.
    While a cut has no participants, any code may call the methods as long as they need not wait.
    """

    def __init__(self, maxsize: int = 0, *, cut: CutCore | None = None) -> None:
        self._maxsize = maxsize
        self._cut = cut
        self._items: deque[ItemT] = deque()
        self._gets: deque[asyncio.Future[None]] = deque()  # that wait for an item
        self._puts: deque[_Put[ItemT]] = deque()  # that wait for a place, or were promised one
        self._promised_items = 0
        self._promised_places = 0

    def __repr__(self) -> str:
        """Show the number of items."""
        waiting = f", {len(self._puts)} waiting puts" if self._puts else ""
        return f"<CutQueue, {len(self._items)} items{waiting}, maxsize={self._maxsize}>"

    @property
    def maxsize(self) -> int:
        """How many items it holds before `put` waits; 0 for any number."""
        return self._maxsize

    def qsize(self) -> int:
        """Return the number of items, without those of waiting puts."""
        return len(self._items)

    def empty(self) -> bool:
        """Return whether there are no items."""
        return not self._items

    def full(self) -> bool:
        """Return whether there are `maxsize` items or more."""
        return 0 < self._maxsize <= len(self._items)

    def __len__(self) -> int:
        """Return the number of items, as `qsize`."""
        return len(self._items)

    def __bool__(self) -> bool:
        """Return True: an empty queue is a queue."""
        return True

    def __iter__(self) -> Iterator[ItemT]:
        """Iterate over what would be saved: the items, then those of waiting puts. Nothing is taken out."""
        return iter([*self._items, *[put.item for put in self._puts]])

    async def put(
        self,
        item: ItemT,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - see the class
        completes: Handover | None = None,
    ) -> None:
        """Put an item in; wait while the queue is full, or a cut is wanted.

        If this raises, the item is not in the queue.

        Args:
            item: The item. From now on it is the queue's, and is saved with it.
            timeout: How long to wait at most, in seconds.
            completes: The lease of a `CutWorkQueue` whose result the item is. It is completed in the same step; if this
                raises, it is not. From then on the participant counts as running.

        Raises:
            TimeoutError: There was no place by then.
            CutUsageError: The task does not take part in the cut, or holds it; or the lease cannot be completed.
        """
        cut = self._cut
        if cut is not None and completes is None:  # the usual case, which must be quick
            me: Any = cut.members.get(task_on(get_running_loop()))  # type: ignore[arg-type] # None is no key
            if me is not None and me.is_running and not cut.is_wanted:
                size = self._maxsize
                if size <= 0 or len(self._items) + self._promised_places < size:
                    self._items.append(item)
                    if self._gets:
                        self._promise_items()
                    return
        if completes is None:
            await self._put(item, timeout)
            return
        await completes.begin_handover(self.participant_here())
        try:
            await self._put(item, timeout)
        except BaseException:
            completes.undo_handover()
            raise
        completes.end_handover()

    async def get(self, *, timeout: float | None = None) -> ItemT:  # noqa: ASYNC109 - see the class
        """Take the oldest item out; wait while there is none, or a cut is wanted.

        If this raises, no item has been taken out.

        Args:
            timeout: How long to wait at most, in seconds.

        Raises:
            TimeoutError: There was no item by then.
            CutUsageError: The task does not take part in the cut, or holds it.
        """
        cut = self._cut
        if cut is not None:  # the usual case, which must be quick
            me: Any = cut.members.get(task_on(get_running_loop()))  # type: ignore[arg-type] # None is no key
            if me is not None and me.is_running and not cut.is_wanted and len(self._items) > self._promised_items:
                item = self._items.popleft()
                if self._puts:
                    self._promise_places()
                return item
        return await self._get(timeout)

    def put_nowait(self, item: ItemT) -> None:
        """Put an item in without waiting.

        Raises:
            asyncio.QueueFull: There is no place.
            CutUsageError: The task does not take part in the cut, or a cut is held.
        """
        self._check_nowait()
        if not self._has_place:
            raise asyncio.QueueFull
        self._items.append(item)
        self._promise_items()

    def get_nowait(self) -> ItemT:
        """Take the oldest item out without waiting.

        Raises:
            asyncio.QueueEmpty: There is none that is not another task's.
            CutUsageError: The task does not take part in the cut, or a cut is held.
        """
        self._check_nowait()
        if not self._has_item:
            raise asyncio.QueueEmpty
        item = self._items.popleft()
        self._promise_places()
        return item

    # --- for work queues ----------------------------------------------------------------------------------------------

    @property
    def cut(self) -> CutCore | None:
        """The cut it belongs to, unless it was loaded and not used yet."""
        return self._cut

    def participant_here(self) -> Participant | None:
        """Return the participant whose task runs, or None."""
        return self._member()

    def first(self) -> ItemT | None:
        """Return the oldest item, without those of waiting puts; None if there is none."""
        return self._items[0] if self._items else None

    def insert(self, item: ItemT, is_after: Callable[[ItemT], bool]) -> None:
        """Put an item back, behind those at the front that it comes after."""
        index = next((number for number, other in enumerate(self._items) if not is_after(other)), len(self._items))
        self._items.insert(index, item)
        self._promise_items()

    def replace(self, items: Iterable[ItemT]) -> None:
        """Replace all items.

        Raises:
            CutUsageError: A task waits in the queue.
        """
        if self._gets or self._puts:
            raise CutUsageError("a queue can be restored only while no task waits in it: restore it before they start")
        self._items = deque(items)

    # --- waiting ------------------------------------------------------------------------------------------------------

    @property
    def _has_item(self) -> bool:
        return len(self._items) > self._promised_items

    @property
    def _has_place(self) -> bool:
        return self._maxsize <= 0 or len(self._items) + self._promised_places < self._maxsize

    async def _put(self, item: ItemT, seconds: float | None) -> None:
        me = self._member()
        if me is None:
            self._check_foreign(must_wait=not self._has_place)
        elif not me.is_running or me.cut.is_wanted or not self._has_place:
            await self._wait_to_put(me, item, seconds)
        self._items.append(item)
        self._promise_items()

    async def _get(self, seconds: float | None) -> ItemT:
        me = self._member()
        if me is None:
            self._check_foreign(must_wait=not self._has_item)
        elif not me.is_running or me.cut.is_wanted or not self._has_item:
            await self._wait_to_get(me, seconds)
        item = self._items.popleft()
        self._promise_places()
        return item

    async def _wait_to_put(self, me: Participant, item: ItemT, seconds: float | None) -> None:
        """Wait for a place, and give the promise of it back."""
        put = _Put(item, asyncio.get_running_loop().create_future())
        me.cut.check_may_rest(me, "Queue.put")
        self._puts.append(put)
        self._promise_places()
        try:
            await _wait(me, "Queue.put", put.future, seconds)
        except BaseException:
            self._puts.remove(put)
            if _is_kept(put.future):
                self._promised_places -= 1
                self._promise_places()
            raise
        self._puts.remove(put)
        self._promised_places -= 1

    async def _wait_to_get(self, me: Participant, seconds: float | None) -> None:
        """Wait for an item, and give the promise of it back."""
        get: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        me.cut.check_may_rest(me, "Queue.get")
        self._gets.append(get)
        self._promise_items()
        try:
            await _wait(me, "Queue.get", get, seconds)
        except BaseException:
            if _is_kept(get):
                self._promised_items -= 1
                self._promise_items()
            elif get in self._gets:
                self._gets.remove(get)
            raise
        self._promised_items -= 1

    def _promise_items(self) -> None:
        """Let as many gets go as there are items that are not promised, the longest waiting first."""
        while self._gets and self._has_item:
            get = self._gets.popleft()
            if not get.done():
                self._promised_items += 1
                get.set_result(None)

    def _promise_places(self) -> None:
        """Let as many puts go as there are places that are not promised, the longest waiting first."""
        if self._puts:
            for put in self._puts:
                if not self._has_place:
                    break
                if not put.future.done():
                    self._promised_places += 1
                    put.future.set_result(None)

    # --- who may use it -----------------------------------------------------------------------------------------------

    def _member(self) -> Participant | None:
        """Return the participant whose task runs, or None."""
        cut = self._cut
        if cut is None:
            cut = self._adopt()
            if cut is None:
                return None
        return cut.member_here()  # type: ignore[return-value] # all members are participants

    def _adopt(self) -> CutCore | None:
        """Let a loaded queue belong to the cut of whoever uses it first."""
        try:
            member = find_member(current_task())
        except CutUsageError:  # no loop runs here
            return None
        if isinstance(member, Participant):
            self._cut = member.cut
        return self._cut

    def _check_nowait(self) -> None:
        me = self._member()
        if me is None:
            self._check_foreign(must_wait=False)
        elif me.cut.is_held:
            raise CutUsageError(f"a queue was used by {me.name!r}, which holds the cut")

    def _check_foreign(self, *, must_wait: bool) -> None:
        if must_wait or (self._cut is not None and not self._cut.is_empty):
            raise CutUsageError(
                "a queue of a cut was used by a task that takes no part in it. Use it directly in a participant's task:"
                " asyncio.wait_for, gather and create_task start a task of their own. For a time limit, give get or"
                " put a timeout"
            )
        if self._cut is not None and self._cut.is_held:
            raise CutUsageError("a queue was used while its cut is held")


def _is_kept(future: asyncio.Future[None]) -> bool:
    """Whether what it promised was given: it has not timed out, nor was it cancelled before."""
    return future.done() and not future.cancelled() and future.exception() is None


async def _wait(me: Participant, name: str, future: asyncio.Future[None], seconds: float | None) -> None:
    """Wait at rest for a promise."""
    if seconds is None or future.done():
        await me.rest_in(name, future)
        return
    timer = asyncio.get_running_loop().call_later(seconds, _expire, future)
    try:
        await me.rest_in(name, future)
    finally:
        timer.cancel()


def _expire(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())


# --- saving -----------------------------------------------------------------------------------------------------------


def _state(queue: CutQueue[Any]) -> object:
    return {"items": list(queue), "maxsize": queue.maxsize}


def _from_state(state: Any, cut: CutCore | None = None, maxsize: int | None = None) -> CutQueue[Any]:
    queue: CutQueue[Any] = CutQueue(state["maxsize"] if maxsize is None else maxsize, cut=cut)
    queue.replace(state["items"])
    return queue


def _like(template: CutQueue[Any], state: Any) -> CutQueue[Any]:
    return _from_state(state, template.cut, template.maxsize)


def _update(queue: CutQueue[Any], state: Any) -> None:
    queue.replace(state["items"])


register_reduction(
    Reduction("asyncckpt.CutQueue", CutQueue, _state, _from_state, update=_update, like=_like, is_opaque=True)
)

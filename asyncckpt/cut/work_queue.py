"""`CutWorkQueue`: work that takes longer than a cut can wait.

1. An item is not done from the call of `put` until its lease is completed, and is in every cut until then.
2. A lease is held at rest: what runs in its block touches nothing that is saved. All changes of the queue, and of what
   a result is handed over to, happen while the participant runs, that is, while no cut is held.
3. Completing a lease and handing its result over is one step. While the result waits for a place in another queue, it
   is that queue's, and the lease counts as completed; if it is withdrawn, the lease is open again.
4. The items that wait are in the order of their ordinals, also those that have come back.
"""

from __future__ import annotations

import inspect
import itertools
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from asyncckpt.cut.queue import CutQueue
from asyncckpt.errors import CutUsageError
from asyncckpt.state.reduction import Reduction
from asyncckpt.state.types import register_reduction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from asyncckpt.cut.core import CutCore
    from asyncckpt.cut.participant import Participant

ItemT = TypeVar("ItemT")


class FailedItem(NamedTuple):
    """An item of a `CutWorkQueue` that is given up."""

    ordinal: int
    """Its ordinal."""
    item: Any
    """The item."""
    error: str
    """What the last attempt raised."""


class _Entry(Generic[ItemT]):
    """An item that is not done."""

    __slots__ = ("failures", "item", "ordinal")

    def __init__(self, item: ItemT, ordinal: int = -1, failures: int = 0) -> None:
        self.item = item
        self.ordinal = ordinal
        self.failures = failures


class Lease(Generic[ItemT]):
    """One item to be worked on: what ``async with work.lease() as lease`` returns.

    It is completed once, in its block, by the participant that has entered it.
    """

    __slots__ = ("_entry", "_is_open", "_me", "_rests_again", "_seconds", "_work")

    def __init__(self, work: CutWorkQueue[ItemT], seconds: float | None) -> None:
        self._work = work
        self._seconds = seconds
        self._me: Participant | None = None
        self._entry: _Entry[ItemT] | None = None
        self._is_open = False
        self._rests_again = False

    @property
    def item(self) -> ItemT:
        """The item."""
        return self._entered().item

    @property
    def ordinal(self) -> int:
        """The item's ordinal: how many items were put in before it."""
        return self._entered().ordinal

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1 on. Only those are counted that ended by an error."""
        return self._entered().failures + 1

    async def __aenter__(self) -> Self:
        """Take the first item; wait at rest while there is none.

        Raises:
            TimeoutError: There was none in time.
            CutUsageError: The task does not take part in the cut, or holds it; or the block was entered before.
        """
        if self._entry is not None:
            raise CutUsageError("a lease is entered once: call lease() again")
        self._entry, self._me = await self._work._take(self._seconds)  # noqa: SLF001 - a part of it
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Return the item to the front, unless the lease was completed. Waits while a cut is held."""
        me = self._me
        assert me is not None  # noqa: S101 - it was entered
        try:
            await me.leave_rest(error)
        finally:
            if self._is_open:
                self._is_open = False
                self._work._give_back(self._entered(), error)  # noqa: SLF001 - a part of it

    # --- for the queues -----------------------------------------------------------------------------------------------

    async def begin_handover(self, me: Participant | None) -> None:
        """Wait until the participant may run, and count as completed.

        Raises:
            CutUsageError: The lease is another participant's, or is not open.
        """
        if me is None or me is not self._me or not self._is_open:
            state = "completed, or its block has ended" if me is self._me else "another participant's"
            raise CutUsageError(f"the lease cannot be completed: it is {state}")
        was_running = me.is_running
        await me.run_again()
        self._rests_again = not was_running
        self._is_open = False
        self._work._hand_over(self._entered())  # noqa: SLF001 - a part of it

    def end_handover(self) -> None:
        """Be completed."""
        self._work._settle(self._entered())  # noqa: SLF001 - a part of it

    def undo_handover(self) -> None:
        """Be open, and at rest, again: the result was not handed over."""
        self.reopen()
        if self._rests_again and self._me is not None:
            self._me.cut.rest(self._me, "lease")

    def reopen(self) -> None:
        """Be open again."""
        self._is_open = True
        self._work._reopen(self._entered())  # noqa: SLF001 - a part of it

    def _entered(self) -> _Entry[ItemT]:
        if self._entry is None:
            raise CutUsageError("a lease has an item only in its block: `async with work.lease() as lease:`")
        return self._entry


class CutWorkQueue(Generic[ItemT]):
    """A queue of work that takes longer than a cut can wait: what `Cut.WorkQueue` returns.

    A participant works on an item in the block of a lease, in which it counts as at rest, however long it takes::

        async with work.lease() as lease:
            result = await roll_out(lease.item)  # touches nothing that is saved
            await queue.put(result, completes=lease)

    Until the lease is completed, a save holds the item as not done. So after a restart the work is done again, and
    within the program each item is completed exactly once; what the work does outside the program may happen more than
    once. If the block ends without completing the lease, the item goes back to the front. In the block, other calls of
    the participant and of queues make the task count as running again, so that a cut waits for the end of the block.

    What is saved is the items that are not done, with their ordinals, and the failed ones. As with `CutQueue`, only
    participants may use it, and a loaded one belongs to the cut of whoever uses it first, or of the template.
    """

    def __init__(self, maxsize: int = 0, *, max_attempts: int | None = None, cut: CutCore | None = None) -> None:
        if max_attempts is not None and max_attempts < 1:
            message = f"max_attempts={max_attempts}: expected 1 or more, or None"
            raise ValueError(message)
        self._waiting: CutQueue[_Entry[ItemT]] = CutQueue(maxsize, cut=cut)
        self._leased: dict[int, _Entry[ItemT]] = {}
        self._handed_over: set[int] = set()  # whose results wait for a place, and may be withdrawn yet
        self._failed: list[FailedItem] = []
        self._next_ordinal = 0
        self._max_attempts = max_attempts

    def __repr__(self) -> str:
        """Show the numbers of items."""
        return f"<CutWorkQueue, {self.qsize()} items, {len(self._leased)} leased, {len(self._failed)} failed>"

    @property
    def maxsize(self) -> int:
        """How many items wait to be leased before `put` waits; 0 for any number."""
        return self._waiting.maxsize

    @property
    def max_attempts(self) -> int | None:
        """After how many attempts that ended by an error an item is given up; None for never."""
        return self._max_attempts

    @property
    def failed(self) -> tuple[FailedItem, ...]:
        """The items that were given up."""
        return tuple(self._failed)

    @property
    def next_ordinal(self) -> int:
        """The ordinal that the next item will have: how many have been put in."""
        return self._next_ordinal

    @property
    def low_water_mark(self) -> int:
        """The lowest ordinal that is not done: all items with lower ones are completed, or given up. It never falls."""
        first = self._waiting.first()
        return min(
            [*([] if first is None else [first.ordinal]), *self._leased, *self._handed_over],
            default=self._next_ordinal,
        )

    @property
    def leased(self) -> int:
        """The number of items that are being worked on."""
        return len(self._leased)

    def qsize(self) -> int:
        """Return the number of items that wait to be leased."""
        return self._waiting.qsize()

    def empty(self) -> bool:
        """Return whether no item waits to be leased."""
        return self._waiting.empty()

    def full(self) -> bool:
        """Return whether `maxsize` items or more wait to be leased."""
        return self._waiting.full()

    def __iter__(self) -> Iterator[ItemT]:
        """Iterate over the items that are not done, in the order of their ordinals; then over those of waiting puts."""
        return iter([entry.item for entry in self._entries()])

    async def put(self, item: ItemT, *, timeout: float | None = None) -> int:  # noqa: ASYNC109 - as CutQueue.put
        """Put an item in; wait while the queue is full, or a cut is wanted. If this raises, it is not in the queue.

        Args:
            item: The item. From now on it is the queue's, and is saved with it.
            timeout: How long to wait at most, in seconds.

        Returns:
            The item's ordinal: the first has 0.

        Raises:
            TimeoutError: There was no place by then.
            CutUsageError: The task does not take part in the cut, or holds it.
        """
        await self._waiting.put(entry := _Entry(item), timeout=timeout)
        return self._number(entry)

    def put_nowait(self, item: ItemT) -> int:
        """Put an item in without waiting, and return its ordinal.

        Raises:
            asyncio.QueueFull: There is no place.
            CutUsageError: The task does not take part in the cut, or a cut is held.
        """
        self._waiting.put_nowait(entry := _Entry(item))
        return self._number(entry)

    def lease(self, *, timeout: float | None = None) -> Lease[ItemT]:
        """Return a block, for ``async with``, in which the participant works on the first item.

        Entering it waits while there is none, or a cut is wanted.

        Args:
            timeout: How long to wait for an item at most, in seconds. Then entering raises TimeoutError.
        """
        return Lease(self, timeout)

    async def complete(self, lease: Lease[ItemT], *, into: Callable[[], object] | None = None) -> None:
        """Complete a lease, and hand its result over, in one step. Waits while a cut is wanted or held.

        From then on the participant counts as running. To hand the result over to a queue of the cut, call
        ``await queue.put(result, completes=lease)`` instead.

        Args:
            lease: The lease, in its block.
            into: Called when the participant may run; it puts the result where it belongs, such as
                ``lambda: buffer.append(result)``. If it raises, the lease is not completed.

        Raises:
            CutUsageError: The lease is another participant's, was completed, or its block has ended.
            TypeError: `into` is a coroutine function.
        """
        if inspect.iscoroutinefunction(into):
            raise TypeError("into must be a plain function: no other task may run while it hands the result over")
        await lease.begin_handover(self._waiting.participant_here())
        if into is not None:
            try:
                into()
            except BaseException:
                lease.reopen()  # and not at rest: the function may have changed something
                raise
        lease.end_handover()

    # --- for leases ---------------------------------------------------------------------------------------------------

    async def _take(self, seconds: float | None) -> tuple[_Entry[ItemT], Participant]:
        me = self._waiting.participant_here()
        if me is None:
            raise CutUsageError("a lease was asked for by a task that takes no part in the cut")
        entry = await self._waiting.get(timeout=seconds)
        self._leased[entry.ordinal] = entry
        me.cut.rest(me, "lease")
        return entry, me

    def _hand_over(self, entry: _Entry[ItemT]) -> None:
        del self._leased[entry.ordinal]
        self._handed_over.add(entry.ordinal)

    def _settle(self, entry: _Entry[ItemT]) -> None:
        self._handed_over.remove(entry.ordinal)

    def _reopen(self, entry: _Entry[ItemT]) -> None:
        self._handed_over.remove(entry.ordinal)
        self._leased[entry.ordinal] = entry

    def _give_back(self, entry: _Entry[ItemT], error: BaseException | None) -> None:
        del self._leased[entry.ordinal]
        if isinstance(error, Exception):
            entry.failures += 1
            if self._max_attempts is not None and entry.failures >= self._max_attempts:
                self._failed.append(FailedItem(entry.ordinal, entry.item, f"{type(error).__name__}: {error}"))
                return
        self._return(entry)

    def _return(self, entry: _Entry[ItemT]) -> None:
        self._waiting.insert(entry, lambda other: other.ordinal < entry.ordinal)

    def _number(self, entry: _Entry[ItemT]) -> int:
        """Give an item that was just put in its ordinal: nothing has run since."""
        entry.ordinal = self._next_ordinal
        self._next_ordinal += 1
        return entry.ordinal

    # --- saving -------------------------------------------------------------------------------------------------------

    def _entries(self) -> list[_Entry[ItemT]]:
        entries = list(self._waiting)
        count = self.qsize()
        not_done = sorted([*entries[:count], *self._leased.values()], key=lambda entry: entry.ordinal)
        return [*not_done, *entries[count:]]

    def _state(self) -> object:
        entries = self._entries()
        following = itertools.count(self._next_ordinal)
        ordinals = [next(following) if entry.ordinal < 0 else entry.ordinal for entry in entries]
        return {
            "items": [entry.item for entry in entries],
            "ordinals": ordinals,
            "failures": [entry.failures for entry in entries],
            "failed": [tuple(each) for each in self._failed],
            "next_ordinal": next(following),
            "maxsize": self.maxsize,
            "max_attempts": self._max_attempts,
        }

    def _fill(self, state: Any) -> None:
        entries = zip(state["items"], state["ordinals"], state["failures"], strict=True)
        self._waiting.replace([_Entry(item, ordinal, failures) for item, ordinal, failures in entries])
        self._failed = [FailedItem(*each) for each in state["failed"]]
        self._next_ordinal = state["next_ordinal"]

    @classmethod
    def _from_state(cls, state: Any) -> CutWorkQueue[Any]:
        made: CutWorkQueue[Any] = cls(state["maxsize"], max_attempts=state["max_attempts"])
        made._fill(state)
        return made

    def _like(self, state: Any) -> CutWorkQueue[Any]:
        made: CutWorkQueue[Any] = CutWorkQueue(self.maxsize, max_attempts=self._max_attempts, cut=self._waiting.cut)
        made._fill(state)
        return made

    def _update(self, state: Any) -> None:
        if self._leased:
            raise CutUsageError("a queue can be restored only while nothing of it is leased: restore it before")
        self._fill(state)


register_reduction(
    Reduction(
        "asyncckpt.CutWorkQueue",
        CutWorkQueue,
        CutWorkQueue._state,  # noqa: SLF001 - this is a part of it
        CutWorkQueue._from_state,  # noqa: SLF001 - this is a part of it
        update=CutWorkQueue._update,  # noqa: SLF001 - this is a part of it
        like=CutWorkQueue._like,  # noqa: SLF001 - this is a part of it
        is_opaque=True,
    )
)

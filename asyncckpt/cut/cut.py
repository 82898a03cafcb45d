"""`Cut`: one moment at which a whole program is at rest."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from asyncckpt.cut.core import CutCore, Member
from asyncckpt.cut.participant import Participant
from asyncckpt.cut.queue import CutQueue
from asyncckpt.cut.work_queue import CutWorkQueue
from asyncckpt.errors import CheckpointKeyError

if TYPE_CHECKING:
    from types import TracebackType


class Cut(CutCore):
    """A moment at which every task that takes part is at rest, so that what is saved then fits together.

    Each task that changes what is saved takes part, and says where it may be stopped::

        cut = asyncckpt.Cut()
        queue = cut.Queue(maxsize=64)

        async def actor(source):
            async with cut.participant("actor") as me:
                while True:
                    await me.safe_point()
                    prompt = await me.at_rest(source.get())
                    await queue.put(rollout(prompt))

    ``async with cut.hold():`` waits until all of them are at rest, and keeps them there to the end of the block. Cuts
    are held one after the other, in the order of the calls; between two, every participant that waited goes on.

    A cut belongs to the tasks of one event loop. It may be made before the loop runs.

    Attributes:
        is_wanted: Whether a cut is wanted or held. A loop that is run very often may test this before it awaits
            `Participant.safe_point`, because that is faster.
    """

    def __repr__(self) -> str:
        """Show how many participants run, and how many are at rest."""
        state = "held" if self.is_held else "wanted" if self.is_wanted else "not wanted"
        return f"<Cut, {state}, {self._running} running, {len(self.members) - self._running} at rest>"

    def participant(self, name: str | None = None) -> Participant:
        """Return a block, for ``async with``, in which the current task takes part.

        Entering it waits while a cut is wanted. If the block ends by an exception, it matters where that was raised: at
        rest, that is, by a call of the participant, of a queue of the cut, or of `hold`, all is well. Otherwise the
        state may be half changed, and is `torn`.

        Args:
            name: What messages call it; the task's name by default.
        """
        return Participant(self, name)

    def hold(self, timeout: float | None = 30.0) -> Hold:
        """Return a block, for ``async with``, in which all participants are at rest.

        The task that holds the cut may itself be a participant: it counts as at rest while it waits, and may not call
        the methods of the cut and its queues in the block.

        Args:
            timeout: How long to wait until all participants are at rest, in seconds; None to wait for ever.

        Raises:
            CutTimeoutError: They were not by then; the error names who is late. All go on.
            TornStateError: A participant died otherwise than at rest.
            CutUsageError: This task holds the cut already.
        """
        if timeout is not None and not timeout >= 0:
            message = f"timeout={timeout}: expected a number of seconds, or None"
            raise ValueError(message)
        return Hold(self, timeout)

    def hold_nowait(self) -> HoldNow:
        """Return a block, for ``with``, in which all participants are at rest, if all others are already.

        Raises:
            CutBusyError: Some are not, or another call holds or wants the cut.
            TornStateError: A participant died otherwise than at rest.
            CutUsageError: This task holds the cut already.
        """
        return HoldNow(self)

    @property
    def torn(self) -> dict[str, str]:
        """The participants that died otherwise than at rest: how, by name. While there are any, no cut can be held."""
        return dict(self._torn)

    def forgive(self, name: str) -> None:
        """Declare the state sound again after the death of a participant.

        Args:
            name: Its name.

        Raises:
            CheckpointKeyError: No participant of that name is in `torn`.
        """
        if self._torn.pop(name, None) is None:
            message = f"no participant {name!r} has torn the state: {list(self._torn) or 'none has'}"
            raise CheckpointKeyError(message, key=name, known=list(self._torn))

    def resting(self, what: str) -> Resting:
        """Return a block in which the current task is at rest, if it takes part, until it has held the cut.

        This is for the library itself, whose lines in the block touch nothing that is saved.
        """
        return Resting(self, what)

    def Queue(self, maxsize: int = 0) -> CutQueue[Any]:  # noqa: N802 - it stands in the place of a class
        """Return a queue whose items are in every cut exactly once.

        Args:
            maxsize: How many items it holds before `put` waits; 0 for any number.
        """
        return CutQueue(maxsize, cut=self)

    def WorkQueue(self, maxsize: int = 0, *, max_attempts: int | None = None) -> CutWorkQueue[Any]:  # noqa: N802 - as Queue
        """Return a queue of work that takes longer than a cut can wait: its items are leased.

        Args:
            maxsize: How many items wait to be leased before `put` waits; 0 for any number.
            max_attempts: After how many attempts that ended by an error an item is given up, and listed in `failed`;
                None for never.

        Raises:
            ValueError: `max_attempts` is less than 1.
        """
        return CutWorkQueue(maxsize, max_attempts=max_attempts, cut=self)


class Resting:
    """What `Cut.resting` returns."""

    __slots__ = ("_cut", "_member", "_what")

    def __init__(self, cut: Cut, what: str) -> None:
        self._cut = cut
        self._what = what
        self._member: Member | None = None

    async def __aenter__(self) -> None:
        """Be at rest."""
        self._member = member = self._cut.member_here()
        if isinstance(member, Participant):
            self._cut.check_may_rest(member, self._what)
            member.begin_rest(self._what)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait while a cut is wanted, unless the task has held it and runs already."""
        if isinstance(self._member, Participant):
            await self._member.leave_rest(error)


class Hold:
    """What `Cut.hold` returns."""

    __slots__ = ("_cut", "_timeout")

    def __init__(self, cut: Cut, timeout: float | None) -> None:
        self._cut = cut
        self._timeout = timeout

    async def __aenter__(self) -> None:
        """Wait until all participants are at rest."""
        try:
            await self._cut.begin(self._timeout)
        except (Exception, asyncio.CancelledError) as error:
            _mark(self._cut, error)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let all participants go on."""
        self._cut.release()
        _mark(self._cut, error)


class HoldNow:
    """What `Cut.hold_nowait` returns."""

    __slots__ = ("_cut",)

    def __init__(self, cut: Cut) -> None:
        self._cut = cut

    def __enter__(self) -> None:
        """Hold the cut, or raise."""
        self._cut.begin_now()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let all participants go on."""
        self._cut.release()
        _mark(self._cut, error)


def _mark(cut: Cut, error: BaseException | None) -> None:
    """Note that what leaves the block was raised at rest."""
    member = cut.member_here()
    if error is not None and isinstance(member, Participant):
        member.mark(error)

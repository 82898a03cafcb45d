"""Random schedules of a program whose tasks take part in a cut, on a loop whose clock is virtual.

1. A schedule is decided by its seed alone: there are no threads, and no real time passes.
2. What must hold: at each cut, every item is in exactly one place, and nothing moves while the cut is held; no line of
   a participant's runs meanwhile; whoever waited for a release has run before the next cut; the state counts as torn if
   and only if a participant died while it ran; nobody waits for ever; at the end each item was consumed once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import selectors
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio

import asyncckpt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

_ITEMS = (4, 40)
_LONG = 2_000.0
"""Virtual seconds after which a program that has not ended is stuck."""


_NEEDED = ("producer", "consumer", "finisher", "worker")


class Stuck(Exception):  # noqa: N818 - it is a finding
    """Nothing can happen any more."""


class Died(Exception):  # noqa: N818 - it is an event
    """A participant dies."""


class _Clock(selectors.SelectSelector):
    """A selector that lets virtual time pass instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        """Advance the clock."""
        if timeout is None:
            raise Stuck("nothing is ready, and no timer runs")
        self.now += max(timeout, 0.0)
        if self.now > _LONG:
            raise Stuck("the program does not end")
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop on which only virtual time passes."""

    def __init__(self) -> None:
        self.clock = _Clock()
        super().__init__(self.clock)

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self.clock.now


def run_virtually(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on a loop of its own, as `asyncio.run` does, in no time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class World:
    """A program: producers, consumers, idlers and savers.

    Attributes:
        problems: What went wrong.
        counts: What happened how often.
    """

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()
        self.cut = asyncckpt.Cut()
        self.first: asyncckpt.CutQueue[int] = self.cut.Queue(chance.choice((0, 1, 2, 5)))
        self.second: asyncckpt.CutQueue[int] = self.cut.Queue(chance.choice((0, 1, 3)))
        self.work: asyncckpt.CutWorkQueue[int] = self.cut.WorkQueue(
            chance.choice((0, 1, 3)), max_attempts=chance.choice((None, 1, 3))
        )
        self.ordinals: dict[int, int] = {}
        self.mark = 0
        self.total = chance.randint(*_ITEMS)
        self.cursor = 0
        self.returned: list[int] = []
        self.consumed: list[int] = []
        self.holder: asyncio.Task[Any] | None = None
        self.runs: Counter[asyncckpt.Participant] = Counter()
        self.waited: dict[asyncckpt.Participant, int] = {}  # at the last release, and how often each had run
        self.taking_part: set[asyncckpt.Participant] = set()
        self.alive: dict[asyncio.Task[Any], str] = {}
        self.victim: asyncio.Task[Any] | None = None
        self.is_over = False
        self.trouble = chance.choice((0.0, 0.05, 0.2))

    # --- what must hold -----------------------------------------------------------------------------------------------

    def line(self) -> None:
        """A line of a participant's runs."""
        if self.cut.is_held and self.holder is not asyncio.current_task():
            self.problems.append("a line of a participant's ran while a cut was held")

    def places(self) -> list[list[int]]:
        """Return where the items are: what a checkpoint would hold."""
        return [*map(list, (self.first, self.second, self.work, self.returned, self.consumed)), self.given_up]

    @property
    def given_up(self) -> list[int]:
        """The items that were given up after several attempts."""
        return [each.item for each in self.work.failed]

    def check_work(self) -> None:
        """Check the order of what is not done, and what is below the low-water mark."""
        work, ordinals = self.work, [self.ordinals[each] for each in self.work if each in self.ordinals]
        in_it = ordinals[: work.qsize() + work.leased]
        if in_it != sorted(in_it):
            self.problems.append(f"the work is not in the order of its ordinals: {in_it}")
        if work.low_water_mark > min(in_it, default=work.next_ordinal) or work.low_water_mark < self.mark:
            self.problems.append(f"the low-water mark is {work.low_water_mark}, after {self.mark}, of {in_it}")
        self.mark = work.low_water_mark

    def check(self, before: list[list[int]] | None = None) -> list[list[int]]:
        """Check a cut, and that nothing has moved since it began."""
        places = self.places()
        for queue in (self.first, self.second, self.work._waiting):
            if 0 < queue.maxsize < len(queue) and queue is not self.work._waiting:
                self.problems.append(f"{queue} is more than full")
            if queue._has_item and not all(each.done() for each in queue._gets):
                self.problems.append(f"a get waits at {queue}")
            if queue._has_place and not all(each.future.done() for each in queue._puts):
                self.problems.append(f"a put waits at {queue}")
        self.check_work()
        if self.cut.torn:
            self.problems.append(f"a cut is held though {self.cut.torn}")
        found = sorted(itertools.chain(*places))
        if found != list(range(self.cursor)):
            self.problems.append(f"a cut is inconsistent: {places}, of {self.cursor} items")
        if before is not None and before != places:
            self.problems.append(f"items moved while a cut was held: {before}, {places}")
        return places

    def check_all_have_run(self) -> None:
        """Check that whoever waited for the last release has run since."""
        for me, runs in self.waited.items():
            if me in self.taking_part and self.runs[me] == runs:
                self.problems.append(f"{me.name} did not run between two cuts")
        self.waited = {me: self.runs[me] for me in self.taking_part if me.resting == "safe_point" and not me.is_running}

    # --- what tasks do ------------------------------------------------------------------------------------------------

    def is_likely(self, share: float) -> bool:
        """Toss a coin."""
        return self.chance.random() < share

    def when(self) -> float:
        """Return some seconds, of few lengths, so that often much happens at once."""
        return self.chance.choice((0.0, 0.5, 1.0, 1.5, 2.5))

    async def nap(self) -> None:
        """Let other tasks run, for some steps or some time."""
        if self.is_likely(0.7):
            for _ in range(self.chance.randint(0, 3)):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(self.when())

    async def guarded(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Await what a call returns, perhaps with a limit of time; None if that was reached."""
        kind = self.chance.random()
        limit = self.when()
        result = None
        if kind < 0.6:
            result = await call()
        elif kind < 0.8:
            with anyio.move_on_after(limit):  # cancels again and again
                result = await call()
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit):  # cancels once
                    result = await call()
        return result

    async def take_part(self, name: str, play: Callable[[Actor], Awaitable[Any]]) -> None:
        """Take part, until the play ends or this is cancelled."""
        actor = None
        try:
            async with self.cut.participant(name) as me:
                self.line()
                actor = Actor(self, me)
                self.taking_part.add(me)
                await play(actor)
        except (asyncio.CancelledError, Died):
            if actor is not None and (name in self.cut.torn) != (not actor.rests):
                self.problems.append(
                    f"torn: {self.cut.torn}, but {name} died {'at rest' if actor.rests else 'running'}"
                )
            self.counts["died"] += 1
        finally:
            if actor is not None:
                self.taking_part.discard(actor.me)

    async def produce(self, actor: Actor) -> None:
        """Put items into the first queue."""
        while self.cursor < self.total or self.returned:
            await actor.pause()
            item = self.take()
            if item is None:
                await actor.rest(lambda: actor.me.at_rest(asyncio.sleep(1.0)))
                continue
            await self.hand_over(actor, item, self.work if self.is_likely(0.3) else self.first)

    async def consume(self, actor: Actor) -> None:
        """Get items from the first queue; consume them, or put them into the second."""
        await self.move_on(actor, self.first, self.second)

    async def finish(self, actor: Actor) -> None:
        """Get items from the second queue, and consume them."""
        await self.move_on(actor, self.second, None)

    async def move_on(
        self, actor: Actor, source: asyncckpt.CutQueue[int], target: asyncckpt.CutQueue[int] | None
    ) -> None:
        """Get items, and put them into another queue, or consume them."""
        while not self.is_over:
            await actor.pause()
            item = await actor.get(source)
            if item is None:
                continue
            if target is not None and self.is_likely(0.5):
                await self.hand_over(actor, item, target)
                continue
            try:
                if self.is_likely(0.5):
                    await actor.work()
                self.consumed.append(item)
            except BaseException:
                self.returned.append(item)
                raise

    async def idle(self, actor: Actor) -> None:
        """Only run and rest."""
        while not self.is_over:
            await actor.pause()
            await actor.rest(actor.me.safe_point)
            await actor.work()

    def take(self) -> int | None:
        """Take an item that was returned, or a new one."""
        if self.returned:
            return self.returned.pop()
        if self.cursor == self.total:
            return None
        self.cursor += 1
        return self.cursor - 1

    async def labour(self, actor: Actor) -> None:
        """Work on items that are leased."""
        while not self.is_over:
            await actor.pause()
            with contextlib.suppress(TimeoutError):
                await self.guarded(lambda: self.work_once(actor))
            actor.has_run()

    async def work_once(self, actor: Actor) -> None:
        """Lease an item; complete it, give it back, or fail."""
        self.line()
        actor.rests = True
        timeout = self.chance.choice((None, self.when()))
        with contextlib.suppress(Died):
            async with self.work.lease(timeout=timeout) as lease:
                item = lease.item
                await self.nap()
                kind = self.chance.random()
                if kind < 0.4:
                    await self.work.complete(lease, into=lambda: self.take_in(item))
                elif kind < 0.8:
                    await self.second.put(item, timeout=timeout, completes=lease)
                elif kind < 0.9:
                    raise Died
                else:
                    return
                actor.has_run()
                self.counts["leases completed"] += 1
                await self.nap()

    def take_in(self, item: int) -> None:
        """Consume the result of a lease."""
        self.line()
        self.consumed.append(item)

    async def hand_over(
        self, actor: Actor, item: int, queue: asyncckpt.CutQueue[int] | asyncckpt.CutWorkQueue[int]
    ) -> None:
        """Put an item into a queue; return it to the source if that fails."""
        timeout = self.chance.choice((None, None, self.when()))

        async def put() -> bool:
            self.ordinals.pop(item, None)
            ordinal = await queue.put(item, timeout=timeout)
            if ordinal is not None:
                self.ordinals[item] = ordinal
            return True

        try:
            if self.is_likely(0.3):
                await actor.work()
            if not await actor.rest(put):
                self.returned.append(item)
        except TimeoutError:
            self.line()
            self.returned.append(item)
            self.counts["put timed out"] += 1
        except BaseException:
            self.line()
            self.returned.append(item)
            raise

    async def save(self, me: asyncckpt.Participant | None) -> None:
        """Hold the cut, some times."""
        while not self.is_over:
            waiting = asyncio.sleep(self.chance.choice((0.0, 0.1, 0.5, 1.0)))
            await (waiting if me is None else me.at_rest(waiting))
            if self.is_likely(0.2):
                self.save_now()
                continue
            limit = self.chance.choice((None, 0.5, 5.0, 50.0))
            try:
                await self.guarded(lambda: self.hold(limit))  # noqa: B023 - awaited at once
            except asyncckpt.CutTimeoutError as error:
                self.counts["timed out"] += 1
                if not error.late and "held the cut" not in str(error):
                    self.problems.append(f"nobody is late: {error}")
            except asyncckpt.TornStateError as error:
                self.counts["torn"] += 1
                self.forgive(error)
            except Died:
                pass

    async def hold(self, limit: float | None) -> None:
        """Hold the cut, look, and look again."""
        async with self.cut.hold(limit):
            self.holder = asyncio.current_task()
            try:
                self.counts["cuts"] += 1
                self.check_all_have_run()
                places = self.check()
                for _ in range(self.chance.choice((0, 1, 2, 5))):
                    await self.nap()
                    if self.is_likely(self.trouble):
                        self.cancel_one()
                self.check(places)
                if self.is_likely(0.1):
                    raise Died
            finally:
                self.holder = None

    def save_now(self) -> None:
        """Hold the cut if that is possible without waiting."""
        try:
            with self.cut.hold_nowait():
                self.check()
                self.counts["cuts at once"] += 1
        except asyncckpt.CutBusyError:
            self.counts["busy"] += 1
        except asyncckpt.TornStateError as error:
            self.forgive(error)

    def forgive(self, error: asyncckpt.TornStateError) -> None:
        """Go on after deaths."""
        for name in error.torn:
            if name in self.cut.torn:
                self.cut.forgive(name)

    # --- the program --------------------------------------------------------------------------------------------------

    async def main(self) -> None:
        """Start tasks, cancel some, start others, until each item is consumed."""
        number = 0
        kinds = {
            "producer": self.produce,
            "consumer": self.consume,
            "finisher": self.finish,
            "worker": self.labour,
            "idler": self.idle,
            "saver": None,
        }
        alive = self.alive

        def start(kind: str) -> None:
            nonlocal number
            number += 1
            name = f"{kind} {number}"
            if kind != "saver":
                main = self.take_part(name, kinds[kind])
            elif self.is_likely(0.5):
                main = self.save(None)
            else:
                main = self.take_part(name, self.save_as)
            alive[asyncio.ensure_future(main)] = kind

        for kind, most in (
            ("producer", 3),
            ("consumer", 3),
            ("finisher", 2),
            ("worker", 2),
            ("idler", 2),
            ("saver", 2),
        ):
            for _ in range(self.chance.randint(kind in _NEEDED, most)):
                start(kind)
        while len(self.consumed) + len(self.given_up) < self.total:
            await asyncio.sleep(self.when())
            for task in [task for task in alive if task.done()]:
                del alive[task]
                if not task.cancelled():
                    task.result()
            for kind in _NEEDED:
                if kind not in alive.values():
                    start(kind)
            if self.is_likely(self.trouble):
                self.cancel_one()
            if self.is_likely(self.trouble):
                start(self.chance.choice(list(kinds)))
            if self.is_likely(0.1):
                self.trouble /= 2  # so that each program ends
        self.is_over = True
        for task in alive:
            task.cancel()
        await asyncio.gather(*alive, return_exceptions=True)
        self.check_end()

    def cancel_one(self) -> None:
        """Cancel a task, or the one that was cancelled last."""
        if self.victim is None or self.victim.done() or self.is_likely(0.5):
            self.victim = self.chance.choice(list(self.alive))
        self.victim.cancel()
        self.counts["cancelled"] += 1

    async def save_as(self, actor: Actor) -> None:
        """Save as a participant, which is at rest in all of its calls."""
        actor.rests = True
        await self.save(actor.me)

    def check_end(self) -> None:
        """Check that nothing is left."""
        if sorted(self.consumed + self.given_up) != list(range(self.total)):
            self.problems.append(f"at the end, {self.consumed} were consumed, {self.given_up} given up")
        if self.work.low_water_mark != self.work.next_ordinal:
            self.problems.append(f"at the end, the low-water mark is {self.work.low_water_mark}")
        self.counts["given up"] += len(self.given_up)
        for name in list(self.cut.torn):
            self.cut.forgive(name)
        text = repr(self.cut)
        if text != "<Cut, not wanted, 0 running, 0 at rest>":
            self.problems.append(f"at the end, the cut is {text}")
        with self.cut.hold_nowait():
            self.check()


class Actor:
    """A participant, and whether it would die at rest."""

    def __init__(self, world: World, me: asyncckpt.Participant) -> None:
        self.world = world
        self.me = me
        self.rests = False

    async def rest(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Make a call in which this is at rest."""
        self.world.line()
        self.rests = True
        result = await self.world.guarded(call)
        self.has_run()
        return result

    def has_run(self) -> None:
        """A line runs."""
        self.world.line()
        self.world.runs[self.me] += 1
        self.rests = False

    async def work(self) -> None:
        """Run for some time, or die."""
        self.has_run()
        if self.world.is_likely(self.world.trouble / 5):
            raise Died
        await self.world.nap()
        self.has_run()

    async def pause(self) -> None:
        """Rest for some time, or not."""
        world = self.world
        kind = world.chance.random()
        if kind < 0.4:
            await self.rest(self.me.safe_point)
        elif kind < 0.6:
            await self.rest(lambda: self.me.at_rest(world.nap()))
        elif kind < 0.8:
            await self.work()

    async def get(self, queue: asyncckpt.CutQueue[int]) -> int | None:
        """Get an item, or None in the end."""
        timeout = self.world.chance.choice((None, self.world.chance.uniform(0.0, 3.0)))
        nests = self.world.is_likely(0.2)

        def call() -> Awaitable[int]:
            waiting = queue.get(timeout=timeout)
            return self.me.at_rest(waiting) if nests else waiting

        try:
            return await self.rest(call)
        except TimeoutError:
            self.has_run()
            self.world.counts["get timed out"] += 1
            return None


def play(seed: int) -> tuple[list[str], Counter[str]]:
    """Play a schedule; return what went wrong, and what happened how often."""
    world = World(random.Random(seed))  # noqa: S311 - seeded on purpose
    try:
        run_virtually(world.main())
    except Stuck as error:
        world.problems.append(f"stuck: {error}")
    except Exception as error:  # noqa: BLE001 - it is the finding
        world.problems.append(f"it raised {error!r}")
    return [f"schedule {seed}: {problem}" for problem in world.problems[:3]], world.counts

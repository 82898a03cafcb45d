"""A program that trains on each sample once, in order, wherever it is killed: actors, queues, a buffer and a learner.

1. A feeder moves a cursor through a data set and puts samples into a queue of work. Actors lease them, and hand their
   results to a queue. A learner orders the results by their ordinals in a buffer, and trains on them, in two steps.
2. Each run resumes from the latest checkpoint, checks it, and is killed after a number of events: a step of a task, or
   a change of the disk.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

import asyncckpt

from .disks import Change, ShimDisk
from .processes import die

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

_EVERY = 5
"""How many samples are trained on between two saves."""


@asyncckpt.register_type(name="tests.Trained")
@dataclass
class Trained:
    """The part of the state that is not in a queue."""

    cursor: int = 0
    samples: list[int] = field(default_factory=list)
    weights: Any = field(default_factory=lambda: np.zeros(4))
    buffer: dict[int, float] = field(default_factory=dict)


class Training:
    """A run of the program.

    Args:
        root: The directory of the checkpoints.
        target: How many samples to train on in all.
        seed: Decides how the tasks alternate.
        kill_after: After how many events the process kills itself; 0 for never.
    """

    def __init__(self, root: Path, target: int, seed: int, kill_after: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - seeded on purpose
        self.target = target
        self.left = kill_after
        self.manager = asyncckpt.CheckpointManager(root, disk=ShimDisk(self.on_change), keep_latest_k=2)
        self.cut = asyncckpt.Cut()
        self.work = self.cut.WorkQueue(4)
        self.results = self.cut.Queue(2)
        self.main = Trained()
        self.is_due = asyncio.Event()
        self.step = 0

    def event(self) -> None:
        """Count an event; it may be the last one."""
        self.left -= 1
        if self.left == 0:
            die()

    def on_change(self, _: Change) -> None:
        """The disk changes, in a thread."""
        self.event()

    async def pause(self) -> None:
        """Let other tasks run, for a few steps."""
        for _ in range(self.chance.randint(0, 3)):
            self.event()
            await asyncio.sleep(0)

    # --- the tasks ----------------------------------------------------------------------------------------------------

    async def feed(self, me: asyncckpt.Participant) -> None:
        """Move the cursor, and put samples into the queue of work."""
        while self.main.cursor < self.target:
            await me.safe_point()
            sample, self.main.cursor = self.main.cursor, self.main.cursor + 1
            await self.pause()  # with a sample in its hands
            await self.work.put(sample)

    async def act(self, _: asyncckpt.Participant) -> None:
        """Turn samples into results."""
        while True:
            async with self.work.lease() as lease:
                await self.pause()
                if self.chance.random() < 0.1:
                    continue  # it goes back
                await self.results.put((lease.ordinal, result_of(lease.item)), completes=lease)

    async def learn(self, me: asyncckpt.Participant) -> None:
        """Train on the results, in their order."""
        main = self.main
        while len(main.samples) < self.target:
            ordinal, value = await self.results.get()
            main.buffer[ordinal] = value
            while (sample := len(main.samples)) in main.buffer:
                main.weights += main.buffer.pop(sample)
                await self.pause()  # half of it is done
                main.samples.append(sample)
                if len(main.samples) % _EVERY == 0:
                    self.is_due.set()
            await me.safe_point()

    async def save(self) -> None:
        """Save whenever it is due."""
        while True:
            await self.is_due.wait()
            self.is_due.clear()
            await self.save_once()

    async def save_once(self) -> None:
        """Save one moment."""
        self.step += 1
        await (await self.manager.save(self.step, self.state, cut=self.cut))

    def state(self) -> dict[str, Any]:
        """Put the state together."""
        return {"work": self.work, "results": self.results, "main": self.main}

    # --- the program --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Resume, and train until the target is reached."""
        async with self.manager:
            if self.manager.steps():
                loaded = await self.manager.load("latest")
                self.step = loaded.step
                self.work, self.results, self.main = (loaded.state[name] for name in ("work", "results", "main"))
            self.check()
            learning = self.start("learner", self.learn)
            others = [
                self.start("feeder", self.feed),
                *[self.start(f"actor {number}", self.act) for number in range(3)],
                asyncio.create_task(self.save()),
            ]
            await learning
            await self.save_once()
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    def start(self, name: str, play: Callable[[asyncckpt.Participant], Awaitable[None]]) -> asyncio.Task[None]:
        """Start a participant."""

        async def take_part() -> None:
            async with self.cut.participant(name) as me:
                await play(me)

        return asyncio.create_task(take_part())

    def check(self) -> None:
        """Check a state that was loaded.

        Raises:
            AssertionError: A sample is in no place, or in two, or was trained on out of order.
        """
        main = self.main
        trained = len(main.samples)
        places = [list(self.work), [ordinal for ordinal, _ in self.results], sorted(main.buffer), main.samples]
        assert sorted(itertools.chain(*places)) == list(range(main.cursor)), (
            f"{places[:3]}, {trained} trained, of {main.cursor}"
        )
        assert main.samples == list(range(trained)), main.samples[-20:]
        assert main.weights.tolist() == [float(sum(map(result_of, range(trained))))] * 4, (main.weights, trained)
        assert self.work.next_ordinal == main.cursor


def result_of(sample: int) -> float:
    """Return the result for a sample."""
    return float(sample * 3 + 1)


def train(root: Path, target: int, seed: int, kill_after: int) -> list[int]:
    """Run the program in this process, which it may kill; return the samples in the order of the training."""

    async def main() -> list[int]:
        training = Training(root, target, seed, kill_after)
        await training.run()
        training.check()
        return training.main.samples

    return asyncio.run(main())

"""Threads that help a job with its items: who is woken, who works, and what a failure does."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from asyncckpt.runtime.context import JobContext
from asyncckpt.runtime.pacing import StopFlag, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class CountingExecutor(ThreadPoolExecutor):
    """Counts what it is asked to run."""

    submitted = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Count, and run."""
        self.submitted += 1
        return super().submit(fn, *args, **kwargs)


@pytest.fixture
def executor() -> Iterator[CountingExecutor]:
    """Give four threads, and end them."""
    with CountingExecutor(4) as executor:
        yield executor


@pytest.mark.parametrize(
    ("items", "threads", "woken"),
    [
        ([], None, 0),
        ([1], None, 0),
        ([1, 2], None, 1),
        (range(100), None, 3),
        (range(100), 2, 1),
        (range(100), 1, 0),
        (iter([1]), None, 0),
        ((each for each in (1, 2)), None, 3),  # of unknown number
    ],
)
def test_as_many_help_as_there_is_work_for(
    executor: CountingExecutor, items: Any, threads: int | None, woken: int
) -> None:
    """A job of one item wakes no other thread, and `threads` bounds how many work."""
    JobContext(executor, helpers=3).run(lambda _: None, items, threads=threads)
    assert executor.submitted == woken


def test_each_item_is_worked_on_once_by_several_threads(executor: CountingExecutor) -> None:
    """Three threads meet inside their items, so all three work; every item is done once."""
    meeting = threading.Barrier(3, timeout=30)
    done = list[int]()

    def work(item: int) -> None:
        if item < 3:
            meeting.wait()
        done.append(item)

    JobContext(executor, helpers=2).run(work, range(50))
    assert sorted(done) == list(range(50))


def test_a_busy_executor_slows_down_and_never_blocks() -> None:
    """A job whose helpers never begin does all by itself, and takes them back."""
    held, release = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(lambda: (held.set(), release.wait(30)))
        assert held.wait(30)
        done = list[int]()
        JobContext(executor, helpers=1).run(done.append, range(10))
        release.set()
    assert done == list(range(10))


def test_a_busy_executor_keeps_nothing_of_the_work() -> None:
    """A helper that was withdrawn lies in its queue still, and what it would have worked with is gone."""
    held, release = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(lambda: (held.set(), release.wait(30)))
        assert held.wait(30)
        memory = np.zeros(10)
        reference = weakref.ref(memory)
        JobContext(executor, helpers=1).run(memory.item, range(10))
        del memory
        assert reference() is None
        release.set()


def test_a_job_whose_executor_has_ended_works_alone() -> None:
    """While the manager closes, jobs that still run get no help."""
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    done = list[int]()
    JobContext(executor, helpers=1).run(done.append, range(10))
    assert done == list(range(10))


def test_the_first_failure_ends_the_work(executor: CountingExecutor) -> None:
    """It is raised when all threads have ended, and no item is claimed after it."""
    done = list[int]()

    def work(item: int) -> None:
        if item == 1:
            raise ValueError("item 1")
        done.append(item)

    with pytest.raises(ValueError, match="item 1"):
        JobContext(executor, helpers=0).run(work, range(10))
    assert done == [0]


def test_a_failure_keeps_nothing_alive(executor: CountingExecutor) -> None:
    """When the error is gone, so is what the failed job had in its hands: no collection is needed."""
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            fail_with_memory(JobContext(executor, helpers=1))
        assert memories.pop()() is None
    finally:
        gc.enable()


memories = list[Any]()


def fail_with_memory(context: JobContext) -> None:
    """Fail in a job, with an array in a local variable."""
    memory = np.zeros(10)
    memories.append(weakref.ref(memory))

    def work(_: int) -> None:
        raise ValueError("no")

    context.run(work, [1, 2])


def test_a_stopped_job_claims_no_more(executor: CountingExecutor) -> None:
    """The flag is looked at before every item."""
    stop, done = StopFlag(), list[int]()

    def work(item: int) -> None:
        done.append(item)
        stop.set()

    with pytest.raises(Stopped):
        JobContext(executor, helpers=0, stop=stop).run(work, range(10))
    assert done == [0]

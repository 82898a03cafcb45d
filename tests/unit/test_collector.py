"""Collections beside jobs: none of the oldest generation, the young ones as ever, and nothing lost to them."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from asyncckpt.runtime import collector
from asyncckpt.runtime.collector import YoungReferences, young_collections_only

if TYPE_CHECKING:
    from collections.abc import Iterator


def _many() -> int:
    """How many objects bring about a collection of the oldest generation: some, and a quarter of the old ones."""
    return 200_000 + 3 * len(gc.get_objects()) // 10


class _Node:
    other: _Node


def _cycle() -> weakref.ref[_Node]:
    first, second = _Node(), _Node()
    first.other, second.other = second, first
    return weakref.ref(first)


def _full_collections() -> int:
    return int(gc.get_stats()[2]["collections"])


@pytest.fixture(autouse=True)
def _settings(thawed: None) -> Iterator[None]:  # noqa: ARG001
    """The same in each version of Python; and they are what they were in the end."""
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    gc.collect()
    yield
    assert gc.get_threshold() == (700, 10, 10)
    assert gc.isenabled()
    gc.set_threshold(*before)


def test_without_a_job_many_objects_bring_about_a_full_collection() -> None:
    """So that the next tests can fail."""
    before = _full_collections()
    made = [[] for _ in range(_many())]  # type: ignore[var-annotated]
    assert made
    assert _full_collections() > before


def test_a_job_brings_about_no_full_collection() -> None:
    """Neither while it makes very many objects that last, nor right afterwards."""
    before = _full_collections()
    with young_collections_only():
        made = [[] for _ in range(_many())]  # type: ignore[var-annotated]
        assert _full_collections() == before
    more = [[] for _ in range(10_000)]  # type: ignore[var-annotated]
    assert made
    assert more
    assert _full_collections() == before


def test_garbage_goes_meanwhile() -> None:
    """The program's cycles do not wait for the end of a job."""
    with young_collections_only():
        garbage = _cycle()
        kept = [[] for _ in range(20_000)]  # type: ignore[var-annotated]
        assert kept
        assert garbage() is None


def test_garbage_is_young_still_when_a_job_has_ended() -> None:
    """What died while it was young goes with the next young collection."""
    with young_collections_only():
        made = [[] for _ in range(_many())]  # type: ignore[var-annotated]
        garbage = _cycle()
    gc.collect(1)
    assert made
    assert garbage() is None


def test_full_collections_come_in_time() -> None:
    """Jobs that follow each other put them off, and do not keep them away: old garbage goes."""
    garbage = _old_cycle()
    made = []
    for _ in range(300):
        with young_collections_only():
            made.append([[] for _ in range(20_000)])
        made.append([[] for _ in range(500)])
    assert garbage() is None


def test_what_the_program_makes_meanwhile_counts() -> None:
    """However long a job takes: what others make brings the next full collection nearer, what it makes does not."""
    garbage = _old_cycle()
    made = []
    begun, ended = threading.Event(), threading.Event()

    def job() -> None:
        with young_collections_only():
            made.append([[] for _ in range(_many())])
            begun.set()
            ended.wait()

    before = gc.get_count()[2]
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(job)
        begun.wait()
        made.append([[] for _ in range(5 * 8000)])
        ended.set()
        done.result()
        assert 4 <= gc.get_count()[2] - before <= 8
        assert garbage() is not None
        made.append([[] for _ in range(12 * 8000)])
        assert garbage() is None


def _old_cycle() -> weakref.ref[_Node]:
    """Make a cycle that is garbage and old."""
    kept = _Node()
    kept.other = kept
    gc.collect(1)
    gc.collect(1)
    return weakref.ref(kept)


def test_jobs_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one job begins before another ends for ever, the oldest generation is collected now and then."""
    monkeypatch.setattr(collector, "_MAX_POSTPONED", 15)
    before = _full_collections()
    with young_collections_only():
        made = [[] for _ in range(_many())]  # type: ignore[var-annotated]
        assert made
        assert _full_collections() > before


def test_a_fork_in_the_midst_of_a_job() -> None:
    """A child, in which the job does not run, has the program's settings, and may have jobs of its own."""
    threshold, callbacks = gc.get_threshold(), list(gc.callbacks)
    begun, ended = threading.Event(), threading.Event()

    def job() -> None:
        with young_collections_only(), collector._lock:
            begun.set()
            ended.wait()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(job)
        begun.wait()
        child = os.fork()
        if child == 0:
            is_restored = gc.get_threshold() == threshold and gc.callbacks == callbacks
            with young_collections_only():
                is_postponed = gc.get_threshold() != threshold
            os._exit(0 if is_restored and is_postponed and gc.get_threshold() == threshold else 1)
        ended.set()
    assert os.waitpid(child, 0)[1] == 0


def test_a_fork_within_a_job() -> None:
    """A child of the job's own thread is within the job, too, and leaves it."""
    threshold = gc.get_threshold()
    with young_collections_only():
        child = os.fork()
        if child == 0:
            postponed = gc.get_threshold()
    if child == 0:
        os._exit(0 if postponed != threshold and gc.get_threshold() == threshold else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_settings_made_meanwhile_hold() -> None:
    """A program that sets its own thresholds while a job runs keeps them."""
    threshold = gc.get_threshold()
    with young_collections_only(), young_collections_only():
        gc.set_threshold(1000, 5, 5)
    assert gc.get_threshold() == (1000, 5, 5)
    gc.set_threshold(*threshold)


def test_a_disabled_collector_stays_disabled() -> None:
    """A program that has switched it off wants no collection."""
    gc.disable()
    stats = [each["collections"] for each in gc.get_stats()]
    try:
        with young_collections_only():
            made = [[] for _ in range(_many())]  # type: ignore[var-annotated]
            young = YoungReferences()
            young.add(1 << 20)
        assert made
        assert not gc.isenabled()
        assert [each["collections"] for each in gc.get_stats()] == stats
    finally:
        gc.enable()


def test_a_large_count_is_left() -> None:
    """Where the program has put off the oldest generation itself, setting its count again would take for ever."""
    threshold = gc.get_threshold()
    gc.set_threshold(700, 10, 1_000_000)
    try:
        for _ in range(1000):
            gc.collect(1)
        before = gc.get_stats()[1]["collections"]
        with young_collections_only():
            made = [[] for _ in range(_many())]  # type: ignore[var-annotated]
        assert made
        assert gc.get_count()[2] > 1000
        assert gc.get_stats()[1]["collections"] - before < 200 + len(made) // 8000
    finally:
        gc.set_threshold(*threshold)
        gc.collect()


def test_a_finalizer_may_wait_for_another_thread_s_job() -> None:
    """A collection at the end of a job calls anything, and holds nothing that others wait for."""
    lock = threading.Lock()
    locked, waiting, is_done = threading.Event(), threading.Event(), threading.Event()

    class Waiting(_Node):
        def __del__(self) -> None:
            waiting.set()
            with lock:
                pass

    def other() -> None:
        with lock:
            locked.set()
            waiting.wait()
            with young_collections_only():
                pass
            is_done.set()

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    locked.wait()

    def job() -> None:
        with young_collections_only():
            made = [[] for _ in range(_many())]  # type: ignore[var-annotated]
            node = Waiting()
            node.other = node
            del node
            assert made

    working = threading.Thread(target=job, daemon=True)
    working.start()
    assert is_done.wait(60)
    thread.join()
    working.join()


def test_what_the_program_has_frozen_stays_frozen() -> None:
    """The count of collections is not set right at the price of thawing the program's own objects."""
    frozen: list[Any] = []
    assert gc.is_tracked(frozen)
    gc.freeze()
    try:
        with young_collections_only():
            made = [[] for _ in range(_many())]  # type: ignore[var-annotated]
        assert made
        assert not _is_there(frozen)
    finally:
        gc.unfreeze()
    assert _is_there(frozen)


def test_young_references() -> None:
    """Once many references are reported, the reported containers become old, with everything made before them."""
    young = YoungReferences()
    few: list[Any] = []
    young.add(1000)
    assert not _is_old(few)
    many: list[Any] = []
    young.add(1 << 20)
    assert _is_old(few)
    assert _is_old(many)


def _is_old(thing: object) -> bool:
    return _is_there(thing, generation=2)


def _is_there(thing: object, generation: int | None = None) -> bool:
    return any(each is thing for each in gc.get_objects(generation))

"""Work over thousands of small things goes in chunks, and between two of them the loop can have the GIL."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.pacers import CountingPacer, StopLater
from helpers.support import assert_same, load_fully, save_to

from asyncckpt.disk import read_blocks
from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES
from asyncckpt.disk.ops import DiskOps
from asyncckpt.formats import msgpack
from asyncckpt.runtime import pacing
from asyncckpt.runtime.buffers import BufferPool
from asyncckpt.runtime.context import JobContext
from asyncckpt.runtime.pacing import BATCH_OBJECTS, Pacer, Stopped
from asyncckpt.saving import load_job
from asyncckpt.state import index as ix
from asyncckpt.state.capture import StagedSnapshot, staged_nbytes
from asyncckpt.state.decode import Decoder
from asyncckpt.state.encode import flatten
from asyncckpt.storage.local.store import LocalStore
from asyncckpt.storage.reader import CheckpointFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


COUNT = 3000


STATES: dict[str, Callable[[], Any]] = {
    "one dict of arrays": lambda: {f"w{i}": np.full(8, i) for i in range(COUNT)},
    "one list of strings": lambda: [f"w{i}" for i in range(COUNT)],
    "many small dicts": lambda: [{"a": i, "b": None} for i in range(COUNT)],
    "keys that are tuples": lambda: {(i, "k"): i for i in range(COUNT)},
    "arrays in containers of their own": lambda: {f"w{i}": [np.full(8, i)] for i in range(COUNT)},
}


@pytest.mark.parametrize("name", STATES)
def test_no_stretch_of_flattening_or_building_is_long(name: str) -> None:
    """At most `BATCH_OBJECTS` nodes, and what encodes them, lie between two pauses, whatever holds the nodes."""
    state = STATES[name]()
    pacer = CountingPacer()
    flat = flatten(state, pacer=pacer)
    nodes = sum(1 for _ in ix.read_nodes(flat.chunks, Pacer()))
    assert pacer.count >= nodes // BATCH_OBJECTS

    pacer = CountingPacer()
    built = Decoder(flat.index(), pacer).decode(dict(enumerate(flat.sources)))
    assert pacer.count >= nodes // BATCH_OBJECTS
    assert_same(built, state)


def test_no_stretch_of_planning_is_long() -> None:
    """A plan of thousands of arrays, and the index that it holds, are made and read in chunks too."""
    flat = flatten(STATES["one dict of arrays"](), pacer=Pacer())
    pacer = CountingPacer()
    staged_nbytes(flat, pacer)
    assert pacer.count >= COUNT // BATCH_OBJECTS
    plan = msgpack.plan(flat.index(), pacer)
    data = b"".join(chunk.source for chunk in plan.entries if isinstance(chunk.source, bytes))
    pacer = CountingPacer()
    ix.decode_index(memoryview(data)[plan.index_offset :][: plan.index_nbytes], file_nbytes=plan.nbytes, pacer=pacer)
    assert pacer.count >= 3 * (COUNT // BATCH_OBJECTS)  # the arrays' rows, the segments, and what they add up to


def test_small_arrays_are_copied_in_pieces_by_one_thread() -> None:
    """Each run of small arrays is a chunk, and no helper is woken, which would only compete for the GIL."""
    executor = _NoExecutor()
    flat = flatten(STATES["one dict of arrays"](), pacer=Pacer())
    runs = -(-COUNT // BATCH_OBJECTS)
    StagedSnapshot(flat, BufferPool()).capture(JobContext(executor, helpers=3, stop=StopLater(runs + 1)))
    with pytest.raises(Stopped):
        StagedSnapshot(flat, BufferPool()).capture(JobContext(executor, helpers=3, stop=StopLater(runs - 1)))


class _NoExecutor(ThreadPoolExecutor):
    """Starts nothing, and is not to be asked."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Fail."""
        raise AssertionError(fn, args, kwargs)


@pytest.mark.parametrize(
    ("items", "threads", "helpers"), [(0, None, 0), (1, None, 0), (2, None, 1), (9, None, 3), (9, 2, 1)]
)
def test_nobody_is_woken_for_nothing(items: int, threads: int | None, helpers: int) -> None:
    """A job asks for no more help than there are items left over, and than it may."""
    asked = []

    class Executor(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            asked.append(fn)
            return super().submit(fn, *args, **kwargs)

    with Executor(4) as executor:
        JobContext(executor, helpers=3).run(lambda _: None, range(items), threads=threads)
    assert len(asked) == helpers


def test_a_pause_is_a_real_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sleep of no time gives the GIL away and has it back before another thread has woken."""
    slept: list[float] = []
    monkeypatch.setattr(pacing, "CHUNK_SECONDS", 0.0)
    monkeypatch.setattr(pacing.time, "sleep", slept.append)
    Pacer().pause()
    Pacer(yields=False).pause()
    assert len(slept) == 1
    assert slept[0] > 0


# --- small arrays, read in runs ---------------------------------------------------------------------------------------


def _small_arrays() -> dict[str, Any]:
    """Small arrays over several digest blocks, some of them cut by one, with what is no run of them in between."""
    rng = np.random.default_rng(0)
    state: dict[str, Any] = {f"w{i:04d}": rng.integers(0, 1 << 40, 1 + i % 500) for i in range(2500)}
    padded = np.zeros(3, np.dtype([("a", "i1"), ("b", "f8")], align=True))
    padded["b"] = [1, 2, 3]
    more = {
        "empty": np.zeros((0, 3)),
        "no bytes": np.zeros(2, "U0"),
        "scalar": np.array(np.float32(3)),
        "big-endian": np.arange(5, dtype=">i4"),
        "records": padded,
        "large": rng.random(200_000),
        "page": rng.random(512),
    }
    return {**dict(list(state.items())[:1000]), **more, **dict(list(state.items())[1000:])}


@pytest.mark.parametrize("form", ["msgpack", "hdf5"])
def test_small_arrays_come_back(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is an array of its own, whole, selected or filled in place: none keeps the memory of its neighbours."""
    monkeypatch.setattr(read_blocks, "CHUNK_NBYTES", DIGEST_BLOCK_NBYTES)  # every block that cuts an array ends a chunk
    state = _small_arrays()
    save_to(tmp_path, 1, state, form=form)
    loaded = load_fully(tmp_path, 1).checkpoint.state
    assert_same(loaded, state)
    assert all(array.base is None and array.flags.writeable for array in loaded.values() if array.nbytes < 4096)

    chosen = {name: state[name] for name in state if name.endswith("7")}
    assert_same(load_fully(tmp_path, 1, select="*7").checkpoint.state, chosen)

    places = {name: np.zeros_like(array) for name, array in state.items()}
    arrays = dict(places)
    load_fully(tmp_path, 1, template=places, in_place=True)
    assert_same(places, state)
    assert all(places[name] is array for name, array in arrays.items())


def test_small_arrays_are_few_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the reader grows with the runs of small arrays, not with the arrays."""
    asked: list[int] = []
    plain = CheckpointFile.read

    def counting(file: CheckpointFile, targets: Any, *context: Any, **options: Any) -> None:
        asked.append(len(targets))
        assert all(this.offset + this.nbytes <= next_.offset for this, next_ in pairwise(targets))
        plain(file, targets, *context, **options)

    state = {f"w{i}": np.full(128 if i != COUNT // 2 else 20_000, i) for i in range(COUNT)}
    save_to(tmp_path, 1, state)
    monkeypatch.setattr(CheckpointFile, "read", counting)
    assert_same(load_fully(tmp_path, 1).checkpoint.state, state)
    blocks = -(-COUNT * 1024 // DIGEST_BLOCK_NBYTES) + 1
    assert asked[-1] <= COUNT // BATCH_OBJECTS + 3 * blocks


def test_the_pacer_of_a_load_is_asked_between_runs(tmp_path: Path) -> None:
    """A load can be stopped between any two runs of small arrays."""
    save_to(tmp_path, 1, {f"w{i}": np.full(8, i) for i in range(COUNT)})
    looks = StopLater(1 << 30)
    load_job.load_checkpoint(LocalStore(tmp_path, DiskOps()), 1, load_job.LoadRequest(), JobContext(stop=looks))
    runs = -(-COUNT // BATCH_OBJECTS)
    # Rows and nodes are each decoded and then read; names are hashed, and are nodes too.
    steps = ("rows", "rows", "sums", "segments", "memory", "targets", "contents", "hashes", *("nodes",) * 4)
    assert (1 << 30) - looks.left >= len(steps) * runs

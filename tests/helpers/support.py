"""What several test modules need: bit-exact comparison, saving and loading without a manager."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import gc
import importlib.util
import os
import pathlib
import random
import resource
import struct
import subprocess
import sys
import threading
import types
from collections import Counter, OrderedDict, deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from asyncckpt import register_type
from asyncckpt.disk.ops import DiskOps
from asyncckpt.runtime.context import JobContext
from asyncckpt.runtime.memory import PAGE_NBYTES, SMALL_BOUNDARY
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.saving import commit
from asyncckpt.saving.load_job import Loaded, LoadRequest, load_checkpoint, verify_checkpoint
from asyncckpt.state.capture import Capture
from asyncckpt.state.encode import flatten
from asyncckpt.storage.local.store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from asyncckpt.disk.plan import Span

FORMATS = ("msgpack", "hdf5")


@register_type(name="tests.Color")
class Color(enum.Enum):
    """A registered Enum whose values are of several types."""

    RED = "red"
    TWO = 2
    PAIR = (1, 2.5)


@register_type(name="tests.Level")
class Level(enum.IntEnum):
    """A registered Enum that is a number, too."""

    LOW = 1
    HIGH = 2


@register_type(name="tests.Point")
class Point(NamedTuple):
    """A registered namedtuple."""

    x: Any
    y: Any


@register_type(name="tests.Params")
@dataclasses.dataclass(eq=False)
class Params:
    """A registered dataclass that can be updated."""

    weights: Any
    count: Any = 0


@register_type(name="tests.Fixed")
@dataclasses.dataclass(frozen=True, slots=True)
class Fixed:
    """A registered dataclass that cannot, and may be a key."""

    name: Any
    size: Any = None


@register_type(name="tests.Noted")
@dataclasses.dataclass(eq=False)
class Noted:
    """A registered dataclass that has attributes."""

    item: Any
    attributes: dataclasses.InitVar[dict[str, Any]]

    def __post_init__(self, attributes: dict[str, Any]) -> None:
        """Hold them."""
        vars(self).update(attributes)


@register_type(name="tests.Mark")
class Mark(enum.Enum):
    """A registered Enum whose values are not found again."""

    NAN = float("nan")
    LIST = [1]  # noqa: RUF012 - a value that could change


def need(*packages: str) -> None:
    """Skip where a package is missing. None is imported here: some change the environment, and some are large."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def own_threads() -> list[str]:
    """Return the names of the library's threads: those of all managers and keyed files that are open."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("asyncckpt")]


def descriptors_below(root: Path) -> list[str]:
    """Return what this process has open at or below a directory, what has been unlinked there included."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - a listing of the kernel's
        try:
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - a socket is no path
        except FileNotFoundError:  # that of the listing itself, or another thread's
            continue
        if f"{target}/".startswith((f"{root}/", f"{root} (deleted)/")):
            found.append(target)
    return sorted(found)


@contextmanager
def no_free_descriptors() -> Iterator[None]:
    """Let this process open no more files within the block."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def held_by(*roots: object) -> list[object]:
    """Return the objects of a collector's that hang on some, by containers and by objects of the library's alone.

    So nothing counts that other threads, the loop or a test's runner have made, and nothing that was frozen before.
    """
    young = {id(each) for each in gc.get_objects()}
    seen: dict[int, object] = {}
    left = list(roots)
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, type | types.ModuleType):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, types.FunctionType):
            left += [cell.cell_contents for cell in thing.__closure__ or ()]
        elif isinstance(thing, _CONTAINERS) or type(thing).__module__.partition(".")[0] == "asyncckpt":
            left += gc.get_referents(thing)
    return [thing for number, thing in seen.items() if number in young]


_CONTAINERS = (dict, list, tuple, set, frozenset, deque, types.MethodType)


def peak_nbytes(script: str, *arguments: object) -> int:
    """Run a script that ends in a line `peak = lambda: ...`, and return what memory that took at most, in bytes.

    In a process of its own, where nobody else takes any.
    """
    measuring = "import tracemalloc\npeak\ntracemalloc.start()\npeak()\nprint(tracemalloc.get_traced_memory()[1])\n"
    command = [sys.executable, "-c", f"{script}\n{measuring}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def save_to(  # noqa: PLR0913 - each is an independent wish
    root: Path,
    step: int,
    state: object,
    *,
    form: str = "msgpack",
    frozen: bool = False,
    ops: DiskOps | None = None,
    info: bytes = b"{}\n",
    **options: Any,
) -> Path:
    """Save a state with the very functions that the manager's jobs use, in this thread; return the directory."""
    flat = flatten(state, pacer=Pacer())
    capture = Capture.live(flat, is_frozen=True) if frozen else Capture.staged(flat, None, JobContext(yields=False))
    request = commit.WriteRequest(
        step=step,
        capture=capture,
        documents={"training_info.json": info},
        format_name=form,
        **options,
    )
    written = commit.write_checkpoint(LocalStore(root, ops or DiskOps()), request, JobContext())
    assert isinstance(written, commit.Written)
    return written.record.path


def load_fully(root: Path, step: int, **request: Any) -> Loaded:
    """Load a checkpoint in this thread."""
    return load_checkpoint(LocalStore(root, DiskOps()), step, LoadRequest(**request), JobContext())


def load_from(root: Path, step: int, **request: Any) -> Any:
    """Load a checkpoint's state in this thread; `request` holds the fields of a LoadRequest."""
    return load_fully(root, step, **request).checkpoint.state


def verify(root: Path, step: int) -> None:
    """Verify a checkpoint in this thread."""
    verify_checkpoint(LocalStore(root, DiskOps()), step, JobContext())


def round_trip(root: Path, state: object, form: str = "msgpack", **request: Any) -> Any:
    """Save a state, verify it and load it."""
    step = len(list(root.glob("step_*")))
    save_to(root, step, state, form=form)
    verify(root, step)
    return load_from(root, step, **request)


def span_bytes(arrays: list[bytes], span: Span, nbytes: int) -> bytes:
    """Return what a span of a plan stands for: part of an array, or small arrays in a row."""
    end = span.start + nbytes
    if end <= len(arrays[span.array]):
        return arrays[span.array][span.start : end]
    content, array = b"", span.array
    while len(content) < end:
        assert len(arrays[array]) < PAGE_NBYTES, "only small arrays are moved together"
        content += arrays[array]
        content += bytes(-len(content) % SMALL_BOUNDARY)
        array += 1
    return content[span.start : end]


def assert_same(found: object, expected: object) -> None:
    """Assert that two values are equal to the bit, types and order of dicts included."""
    assert canonical(found) == canonical(expected)


def canonical(value: Any) -> object:  # noqa: C901, PLR0911, PLR0912 - one for each kind
    """Describe a value, so that two descriptions are equal if and only if the values are the same to the bit."""
    kind = type(value)
    if kind is float:
        return kind, struct.pack("<d", value)
    if kind is complex:
        return kind, struct.pack("<dd", value.real, value.imag)
    if kind in (list, tuple, Point):
        return kind, tuple(map(canonical, value))
    if kind is deque:
        return kind, value.maxlen, tuple(map(canonical, value))
    if kind in (dict, OrderedDict):
        items = tuple((canonical(key), canonical(item)) for key, item in value.items())
        return (kind, items, canonical(vars(value))) if kind is OrderedDict else (kind, items)
    if kind is Noted:
        return kind, canonical(dict(sorted(vars(value).items())))
    if kind in (set, frozenset):
        return kind, frozenset(Counter(map(canonical, value)).items())
    if isinstance(value, np.ndarray):
        return np.ndarray, *_array(value)
    if kind is np.str_:
        return kind, str.__str__(value)
    if kind is np.bytes_:
        return kind, bytes(value)
    if isinstance(value, np.generic):
        if value.dtype.char in "gG":  # padded, too
            return value.dtype.type, repr(value)
        data = np.zeros((), value.dtype)
        data[()] = value  # leaves padding out, which a scalar has no say in
        return value.dtype.type, *_array(data)
    if isinstance(value, dt.datetime | dt.time):
        return kind, value.isoformat(), value.fold, repr(value.tzinfo)
    if isinstance(value, Params | Fixed):
        return kind, tuple(canonical(getattr(value, each.name)) for each in dataclasses.fields(value))
    if isinstance(value, np.random.Generator):
        return kind, canonical(value.bit_generator)
    if isinstance(value, np.random.BitGenerator):
        return kind, canonical(value.state), canonical(getattr(value, "seed_seq", None))
    if kind is np.random.SeedSequence:
        return kind, canonical(value.state)
    if kind is np.random.RandomState:
        return kind, canonical(value.get_state(legacy=False))
    if kind is random.Random:
        return kind, value.getstate()
    plain = (type(None), bool, int, str, bytes, bytearray, dt.date, dt.timedelta)
    assert kind in plain or isinstance(value, enum.Enum | pathlib.PurePath), f"{kind} is not compared"
    return kind, repr(value) if kind is bytearray else value


def _array(value: np.ndarray) -> tuple[object, ...]:
    dtype = value.dtype
    if dtype.kind == "T":
        return str(dtype), value.shape, tuple(value.ravel().tolist())
    raw = np.asarray(value)
    if dtype.itemsize:  # padding, too, comes back
        raw = raw.view(np.dtype((np.void, dtype.itemsize)))
    return describe_dtype(dtype), value.shape, raw.tobytes()


def describe_dtype(dtype: np.dtype[Any]) -> object:
    """Describe a dtype with all that numpy's own equality leaves out: titles, alignment, the type of its scalars."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return "subarray", describe_dtype(base), shape
    if dtype.names is None:
        return dtype.str, dtype.name
    fields = tuple((name, describe_dtype(dtype.fields[name][0]), *dtype.fields[name][1:]) for name in dtype.names)
    return fields, dtype.itemsize, dtype.isalignedstruct, dtype.type

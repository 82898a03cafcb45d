"""Rig 6: hostile files. Whatever a file holds, reading it ends soon, in little memory, well or with a CheckpointError.

1. The cases stand in `hostile_cases.py`. Each is read in a process of its own by everything that reads: a listing, load
   in all its ways, verify.
2. A case is lost if the process dies, takes more than `SECONDS` of CPU time (a busy machine is no hang) or longer than
   `WALL_SECONDS`, takes more memory than its files' size allows
   (`memory_bound`), raises anything but a CheckpointError, opens a file outside of the directory, or loads HDF5.
3. Of what loads, every value is touched: an object that crashes when it is used was not loaded well.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import pickle
import resource
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

import asyncckpt

from .forged_checkpoints import CANARY, GOOD, SECRET, STEP
from .forged_files import FileCase
from .hostile_cases import FAMILIES
from .hostile_files import FILE_FAMILIES
from .rig import Result, Rig
from .workload import same

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .forged_checkpoints import Case

SECONDS: Final = 20
WALL_SECONDS: Final = 120
_ADDRESSES: Final = 3 << 30  # of thread stacks and arenas, mostly never touched
_PART: Final = 16
_ALL: Final = {**FAMILIES, **FILE_FAMILIES}
_KEYS_READ: Final = 50
_MESSAGE_MAX: Final = 5000
_ALLOWED: Final = (
    "/usr/",
    *("/proc/self/status", "/proc/self/clear_refs", "/proc/self/fd/"),
    "/etc/localtime",
    "/dev/null",
    sys.prefix,
    sys.base_prefix,
    *filter(None, sys.path),
)


def memory_bound(nbytes: int, *, is_refused: bool) -> int:
    """Return how much memory reading files of this size may take at its peak, in bytes.

    What loads is a state, and takes what such a state takes: 3 bytes of index may be an empty set of 216. What is
    refused has no such excuse: the worst is JSON, whose three bytes may be a dict of 88 until it is looked at.
    """
    return (64 << 20) + (48 if is_refused else 256) * nbytes


class HostileRig(Rig):
    """All families."""

    name: ClassVar[str] = "hostile"
    tries: ClassVar[str] = (
        "files made to harm their readers, with digests that match: bombs, claims, overlaps, cycles, traversal,"
        " hash collisions, states that make objects crash"
    )
    cases: ClassVar[str] = "hostile checkpoints and files"
    quick: ClassVar[int] = 300
    goal: ClassVar[int] = 2560  # all there are
    seconds: ClassVar[float] = WALL_SECONDS + SECONDS * _PART

    def units(self, seed: int) -> Iterator[str]:
        """Give parts of the families; the seed does not matter."""
        del seed
        counts = {name: sum(1 for _ in family()) for name, family in _ALL.items()}
        for begin in range(0, max(counts.values()), _PART):
            yield from (f"{name}/{begin}" for name, count in counts.items() if begin < count)

    def run(self, unit: str, scratch: Path) -> Result:
        """Read each case of a part."""
        family, _, begin = unit.partition("/")
        result = Result()
        for case in itertools.islice(_ALL[family](), int(begin), int(begin) + _PART):
            result.tried += 1
            result.count(family)
            for problem in try_case(case, scratch / "case"):
                result.losses.append(f"{case.name}: {problem}")
        return result


def try_named(names: Iterable[tuple[str, str]], folder: Path) -> dict[str, list[str]]:
    """Try cases by family and name; return what went wrong, by name, where something did."""
    gc.freeze()  # as the driver does: what was imported is no garbage
    wanted = set(names)
    found: dict[str, list[str]] = {}
    for family in {family for family, _ in wanted}:
        names_left = {name for each, name in wanted if each == family}
        cases = _ALL[family]()
        while names_left and (case := next(cases, None)) is not None:  # to make all of a family takes long
            if case.name in names_left:
                names_left.discard(case.name)
                wanted.discard((family, case.name))
                if problems := try_case(case, folder / "case"):
                    found[case.name] = problems
    return found | {name: ["there is no such case"] for _, name in wanted}


def try_case(case: Case | FileCase, folder: Path) -> list[str]:
    """Build a case, and read it in a process of its own; return what went wrong."""
    folder.mkdir()
    try:
        (folder / CANARY).write_bytes(SECRET)
        root = folder / "checkpoints"
        root.mkdir()
        case.build(root / (f"woof{case.extension}" if isinstance(case, FileCase) else f"step_{STEP}"))
        return _read_in_child(case, root)
    finally:
        shutil.rmtree(folder)


def _read_in_child(case: Case | FileCase, root: Path) -> list[str]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        try:
            problems = _Reader(case, root).run()
        except BaseException as error:  # noqa: BLE001 - it is reported
            problems = [f"reading it raised {error!r:.200}"]
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(problems, pipe)
        os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + WALL_SECONDS
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reading)
            return [f"it hung: no end after {WALL_SECONDS} s"]
        time.sleep(0.002)
    if os.waitstatus_to_exitcode(ended[1]) == -signal.SIGXCPU:
        os.close(reading)
        return [f"it hung: no end after {SECONDS} s of CPU time"]
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    if not data:
        return ["the process died"]
    found: list[str] = pickle.loads(data)  # noqa: S301 - our own child's
    return found


class _Reader:
    """The process that reads."""

    def __init__(self, case: Case | FileCase, root: Path) -> None:
        self._case = case
        self._root = root
        self._problems: list[str] = []
        self._opened: list[str] = []
        self._is_refused = True

    def run(self) -> list[str]:
        """Read, and say what went wrong."""
        warnings.simplefilter("ignore")
        nbytes = sum(path.stat().st_size for path in self._root.rglob("*") if path.is_file() and not path.is_symlink())
        if not isinstance(self._case, FileCase):
            for name in [name for name in sys.modules if name.partition(".")[0] == "h5py"]:
                del sys.modules[name]  # those who made the case needed it
        before = _status("VmRSS")
        resource.setrlimit(
            resource.RLIMIT_AS, (_status("VmSize") + _ADDRESSES + memory_bound(nbytes, is_refused=False),) * 2
        )
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        sys.addaudithook(self._watch)
        self._follow_links()
        if isinstance(self._case, FileCase):
            self._read_file(self._root / f"woof{self._case.extension}")
        else:
            asyncio.run(self._read())
            if "h5py" in sys.modules:
                self._problems.append("loaded h5py")
        grown = _status("VmHWM") - before
        if grown > memory_bound(nbytes, is_refused=self._is_refused):
            self._problems.append(f"{nbytes} bytes became {grown >> 20} MiB")
        self._problems += [f"opened {path}" for path in dict.fromkeys(self._opened)]
        return self._problems

    def _watch(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in ("open", "os.listdir", "os.scandir", "os.mkfifo", "os.remove", "subprocess.Popen", "os.system"):
            return
        if event in ("subprocess.Popen", "os.system", "os.remove"):
            self._opened.append(f"{event} {args!r:.100}")
            return
        path = args[0]
        if isinstance(path, int) or path is None:
            return
        text = os.fsdecode(path)
        if ".." in text.split("/") or (text.startswith("/") and not self._may_open(text)):
            self._opened.append(text)

    def _follow_links(self) -> None:
        """See where each descriptor leads: an audit event has the name that was asked for, links and all."""
        really_open = os.open

        def watched(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            fd = really_open(path, flags, mode, dir_fd=dir_fd)
            place = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - what open returns is no Path either
            if not self._may_open(place):
                self._opened.append(place)
            return fd

        os.open = watched

    def _may_open(self, path: str) -> bool:
        root = str(self._root)
        return path == root or path.startswith((f"{root}/", *_ALLOWED))

    def _read_file(self, path: Path) -> None:
        """Read all keys; only of the first, where there are very many."""
        if path.suffix == ".h5":
            _forbid_libhdf5(self._problems)
        is_equal, found, keys = self._case.is_equal, {}, list[str]()
        try:
            with asyncckpt.Checkpointer.from_file(path) as chk:
                keys += chk
                gc.freeze()  # there may be very many
                for key in keys[:_KEYS_READ]:
                    gc.collect()
                    try:
                        found[key] = chk[key]
                        touch(found[key])
                        self._is_refused = False
                        if not is_equal:
                            found.clear()
                    except asyncckpt.CheckpointError as error:
                        self._check_message(f"reading {key[:20]!r}", error)
        except asyncckpt.CheckpointError as error:
            self._check_message("opening", error)
        except BaseException as error:  # noqa: BLE001 - any other is a loss
            self._problems.append(f"it raised {error!r:.200}")
        if is_equal and not same(found, GOOD):
            self._problems.append("it is not equal")

    def _check_message(self, way: str, error: Exception) -> None:
        if len(str(error)) > _MESSAGE_MAX:
            self._problems.append(f"{way} raised an error of {len(str(error))} characters")

    async def _read(self) -> None:
        async with asyncckpt.CheckpointManager(self._root, metric_name="loss", read_only=True) as manager:
            ways: dict[str, Any] = {
                "list": lambda: _value(manager.steps(), manager.best_step()),
                "load": lambda: manager.load(STEP),
                "load lazily": lambda: manager.load(STEP, lazy=True),
                "load a part": lambda: manager.load(STEP, select=["**/a", "word", "0"]),
                "load like": lambda: manager.load(STEP, like={"a": [1, 2], "b": np.zeros(3)}),
                "load numbers": lambda: manager.load(STEP, like=[0] * 5),
                "verify": lambda: manager.verify(STEP),
                "load the latest": lambda: manager.load("latest"),
            }
            for way, call in ways.items():
                found = None
                gc.collect()
                try:
                    found = await call()
                    touch(getattr(found, "state", None))
                    self._is_refused = self._is_refused and way in ("list", "verify")
                    if self._case.is_equal and way in ("load", "load lazily") and not same(_plain(found.state), GOOD):
                        self._problems.append(f"{way}: it is not equal")
                except asyncckpt.CheckpointError as error:
                    if self._case.is_equal and way in ("load", "load lazily", "verify"):
                        self._problems.append(f"{way} raised {error!r:.200}")
                    self._check_message(way, error)
                except BaseException as error:  # noqa: BLE001 - any other is a loss
                    self._problems.append(f"{way} raised {error!r:.200}")


def _forbid_libhdf5(problems: list[str]) -> None:
    """Note it if libhdf5 opens a file."""
    import h5py

    def opened(name: object, *_: object, **__: object) -> None:
        problems.append(f"libhdf5 opens {name!r:.100}")
        raise OSError(name)

    h5py.h5f.open = opened


async def _value(*values: object) -> object:
    return values


def _plain(state: Any) -> Any:
    return {key: np.array(value) if isinstance(value, np.ndarray) else value for key, value in state.items()}


def touch(state: Any) -> None:
    """Use every value of a state in a way that reads it; without recursion."""
    todo, seen = [state], 0
    while todo and seen < 100_000:
        value = todo.pop()
        seen += 1
        if isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            todo += value
        elif isinstance(value, np.ndarray):
            value.tobytes()
        elif isinstance(value, np.random.Generator):
            value.random(3)
        elif isinstance(value, np.random.BitGenerator):
            value.random_raw(3)
        elif isinstance(value, np.random.RandomState):
            value.normal(size=3)
        elif isinstance(value, str | bytes | bytearray):
            len(value)


def _status(field: str) -> int:
    """Return a size in /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)

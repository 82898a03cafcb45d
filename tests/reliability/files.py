"""Workloads of a file of many keys: a `Checkpointer` that sets and deletes keys, and flushes.

1. A key is a small int, spelt by `_NAMES`; each value says its own number, so that what is found tells what it is.
2. With an even seed the asynchronous view is played, with an odd one the blocking mode, in a thread.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import random
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

import asyncckpt

from .history import Event, KeyedHistory
from .workload import LARGE_EVERY, Action, Healing, Known, Looked, Workload, same

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from .changes import Made
    from .disks import ShimDisk

    AsyncCheckpointer = Any

EXTENSIONS = {"keyed-hdf5": ".h5", "keyed-msgpack": ".msgpack", "keyed-npz": ".npz", "keyed-json": ".json"}
FORMS = tuple(EXTENSIONS)
_NAMES = ("a", "b/c", "é %", "d.npy", "e" * 300, "f")
_NEXT_KEY = len(_NAMES)  # set after a crash
_NEXT_NUMBER = 1_000_000
_LARGE = 3  # this key's value is large where a workload is about that
_LARGE_NBYTES = 600_000
_ENDS = ("open", "rename", "unlink")
"""What tells what became of a sibling: another is begun, it gets the name, or it goes."""
_SETTLING = ("truncate", "fsync")

_KINDS: dict[str, dict[str, Any]] = {
    "first": {
        "sessions": ((("set", (0, 1)), ("flush", ()), ("set", (1, 2)), ("flush", ())),),
        "keys": (),
        "below": "a/b/c",
    },
    "update": {"sessions": ((("set", (0, 3)), ("unset", (1,)), ("flush", ()), ("set", (1,)), ("unset", (2,))),)},
    "reopen": {"sessions": ((("set", (0, 4)),), (("unset", (4,)), ("set", (0, 1, 2))))},
    "recover": {"sessions": ((("set", (0, 3)),),), "leaves": True},
    "compact": {
        "sessions": (
            tuple(each for _ in range(5) for each in (("set", (_LARGE, 0)), ("flush", ()))),
            (("unset", (_LARGE,)), ("flush", ()), ("set", (1,))),
        ),
        "is_large": True,
    },
}
KINDS = tuple(_KINDS)


@dataclass(frozen=True, slots=True)
class KeyedWorkload(Workload):
    """What is done with one file."""

    is_changed_in_place = True
    form: str
    seed: int
    sessions: tuple[tuple[Action, ...], ...]
    keys: tuple[int, ...] = (0, 1, 2)
    """What is there before."""
    leaves: bool = False
    """Whether a killed writer has left what it was making, and its lock."""
    below: str = "."
    is_large: bool = False
    exchanges: bool = True

    def history(self, events: Iterable[Event] = ()) -> KeyedHistory:
        """See `Workload`."""
        history = self.history_of({key: number for number, key in enumerate(self.keys)})
        for event in events:
            history.take(event)
        return history

    def history_of(self, found: Mapping[int, int]) -> KeyedHistory:
        """See `Workload`."""
        return KeyedHistory(dict(found), [dict(found)])

    def next_start(self) -> KeyedWorkload:
        """See `Workload`."""
        return replace(self, sessions=(_NEXT_ACTIONS,), leaves=False)

    def path(self, root: Path) -> Path:
        """Return the file's name."""
        return root / f"woof{EXTENSIONS[self.form]}"

    async def fill(self, root: Path) -> None:
        """See `Workload`."""
        root.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._fill, self.path(root))

    def _fill(self, path: Path) -> None:
        if self.keys:
            with asyncckpt.Checkpointer.from_file(path) as chk:
                for number, key in enumerate(self.keys):
                    chk[name_of(key)] = value_of(self.seed, key, number, is_large=self.is_large)
        if self.leaves:
            data = path.read_bytes()
            path.with_name(f".{path.name}.tmp").write_bytes(data[: len(data) // 2])
            path.with_name(f".{path.name}.lock").touch()
            if self.form == "keyed-msgpack":
                with path.open("ab") as file:
                    file.write(data[: len(data) // 3])  # records without a commit

    async def play(
        self,
        root: Path,
        disk: ShimDisk,
        log: Callable[[Event], object],
        *,
        is_patient: bool = False,
        healing: Healing | None = None,
    ) -> list[Exception]:
        """See `Workload`."""
        player = KeyedPlayer(self, self.path(root / self.below), disk, log, is_patient=is_patient)
        for session in self.sessions:
            if self.seed % 2:
                await asyncio.to_thread(player.play, session, healing)
            else:
                await player.play_async(session, healing)
        return player.errors

    def is_tidying(self, changes: Sequence[Made], at: int) -> bool:
        """See `Workload`: what is done to a sibling that is given up, and a last sync for the sake of other tools.

        Writing a file anew may fail as long as the old one takes what is new: then the sibling never gets its name.
        Before the lock goes, an HDF5 file is cut off and what others see of the last commit is synced, if the disk
        lets us.
        """
        failed, following = changes[at], changes[at + 1 :]
        name = self.path(failed.path.parent).name
        if failed.path.name == f".{name}.tmp":
            ends = (each.name for each in following if each.path == failed.path and each.name in _ENDS)
            return next(ends, "unlink") != "rename"
        is_last = any(each.name == "unlink" and each.path.suffix == ".lock" for each in following[:1])
        return self.form == "keyed-hdf5" and failed.path.name == name and failed.name in _SETTLING and is_last

    def look(self, root: Path, known: Known, *, saves: bool = True) -> Looked:
        """See `Workload`."""
        path = self.path(root)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = self._read(path, known)
            if saves:
                self._save(path)
                if self._read(path, known) != found | {_NEXT_KEY: _NEXT_NUMBER}:
                    return Looked(found, "the next flush does not load")
                strange = [each.name for each in path.parent.iterdir() if each != path]
                if strange:
                    return Looked(found, f"left behind: {strange}")
        return Looked(found, None)

    def _read(self, path: Path, known: Known) -> dict[int, int]:
        """Read everything."""
        digest = hashlib.blake2b(path.read_bytes()).digest() if path.exists() else b""
        if digest not in known:
            with asyncckpt.Checkpointer.from_file(path) as chk:
                known[digest] = {key_of(name): self.number_of(chk, name) for name in chk}
        found: dict[int, int] = known[digest]
        return found

    def _save(self, path: Path) -> None:
        with asyncckpt.Checkpointer.from_file(path) as chk:
            chk[name_of(_NEXT_KEY)] = value_of(self.seed, _NEXT_KEY, _NEXT_NUMBER, is_large=False)

    def number_of(self, chk: Any, name: str) -> int:
        """Load a key and compare every bit with what was set; return its number, or -1."""
        try:
            return self.number_in(name, chk[name])
        except (asyncckpt.CheckpointError, OSError):
            return -1

    def number_in(self, name: str, value: Any) -> int:
        """Compare every bit of a value with what was set; return its number, or -1."""
        try:
            number = int(value["number"] if isinstance(value, dict) else value[0])
        except (KeyError, IndexError, TypeError, ValueError):
            return -1
        return number if same(value, _expected(self.seed, key_of(name), number, is_large=self.is_large)) else -1


def make_workload(name: str) -> KeyedWorkload:
    """Make the workload of a name."""
    form, kind, seed = name.split("/")
    if kind != "random":
        return KeyedWorkload(form=form, seed=int(seed), **_KINDS[kind])
    chance = random.Random(name)  # noqa: S311 - seeded on purpose
    keys = tuple(sorted(chance.sample(range(len(_NAMES)), chance.randint(0, 3))))
    return KeyedWorkload(
        form=form,
        seed=int(seed),
        sessions=tuple(_random_session(chance) for _ in range(chance.randint(1, 3))),
        keys=keys,
        leaves=bool(keys) and chance.random() < 0.3,
        below=chance.choice((".", ".", "runs/a")) if not keys else ".",
        is_large=chance.random() < 0.1,
    )


def _random_session(chance: random.Random) -> tuple[Action, ...]:
    actions: list[Action] = []
    for _ in range(chance.randint(1, 5)):
        kind = chance.choice(("set", "set", "unset", "flush"))
        keys = chance.sample(range(len(_NAMES)), chance.randint(1, 3)) if kind != "flush" else ()
        actions.append((kind, tuple(keys)))
    return tuple(actions)


# --- contents ---------------------------------------------------------------------------------------------------------


def name_of(key: int) -> str:
    """Return the name of a key."""
    return _NAMES[key] if key < _NEXT_KEY else "after"


def key_of(name: str) -> int:
    """Return the key of a name."""
    return _NAMES.index(name) if name in _NAMES else _NEXT_KEY


def value_of(seed: int, key: int, number: int, *, is_large: bool) -> Any:
    """Make a value that no other key or number has: an array, or a tree of small things and an array."""
    chance = np.random.default_rng([seed, key, number])
    size = int(chance.choice([0, 1, 63, 64, 511, 512, 513, 4095, 4096, 4097, 9000]))
    if key == _LARGE and (is_large or (seed and seed % LARGE_EVERY == 0)):
        size = _LARGE_NBYTES + 100_000 * (number % 3)
    if chance.random() < 0.5:
        return np.concatenate([[number], chance.integers(0, 1 << 62, size // 8)]).astype(np.int64)
    return {
        "number": number,
        "array": chance.integers(0, 256, size, np.uint8),
        "words": [f"{each:x}" for each in chance.integers(0, 1 << 60, int(chance.integers(0, 20)))],
        "matrix": chance.standard_normal((3, int(chance.integers(1, 20)))),
    }


_expected = functools.lru_cache(64)(value_of)


# --- playing ----------------------------------------------------------------------------------------------------------


class KeyedPlayer:
    """Plays sessions.

    Attributes:
        current: The number of each key, as the program has set them.
    """

    def __init__(
        self,
        workload: KeyedWorkload,
        path: Path,
        disk: ShimDisk,
        log: Callable[[Event], object],
        *,
        is_patient: bool,
    ) -> None:
        self.workload = workload
        self.path = path
        self.disk = disk
        self.log = log
        self.is_patient = is_patient
        self.errors: list[Exception] = []
        self.current: dict[int, int] = {}
        self._number = 100

    def _fail(self, error: Exception) -> None:
        if not self.is_patient:
            raise error
        self.errors.append(error)

    def _begin(self, found: Mapping[int, int]) -> None:
        """Begin a session with what is there."""
        self.current = dict(found)
        self.log(Event("clear", 0))
        for key, number in found.items():
            self.log(Event("set", key, number))

    def _value(self, key: int) -> tuple[int, Any]:
        self._number += 1
        return self._number, value_of(self.workload.seed, key, self._number, is_large=self.workload.is_large)

    def _did(self, kind: str, key: int, number: int = 0) -> None:
        if kind == "set":
            self.current[key] = number
        else:
            self.current.pop(key, None)
        self.log(Event(kind, key, number))

    # --- blocking -----------------------------------------------------------------------------------------------------

    def play(self, session: tuple[Action, ...], healing: Healing | None) -> None:
        """Play a session in blocking mode."""
        try:
            with asyncckpt.Checkpointer.from_file(self.path, disk=self.disk) as chk:
                self._begin({key_of(name): self.workload.number_of(chk, name) for name in chk})
                for kind, keys in session:
                    try:
                        self._act(chk, kind, keys)
                    except (OSError, asyncckpt.CheckpointError) as error:
                        self._fail(error)
                if healing is not None and healing.is_due(self.errors):
                    self._look_and_save(chk, healing)
                self.log(Event("begin", 0))
            self.log(Event("ack", 0))
        except (OSError, asyncckpt.CheckpointError) as error:
            self._fail(error)

    def _act(self, chk: asyncckpt.Checkpointer, kind: str, keys: tuple[int, ...]) -> None:
        for key in keys:
            if kind == "set":
                number, value = self._value(key)
                chk[name_of(key)] = value
                self._did("set", key, number)
            elif key in self.current:
                del chk[name_of(key)]
                self._did("unset", key)
        if kind == "flush":
            self.log(Event("begin", 0))
            chk.flush()
            self.log(Event("ack", 0))

    def _look_and_save(self, chk: asyncckpt.Checkpointer, healing: Healing) -> None:
        healing.heal()
        found = {key_of(name): self.workload.number_of(chk, name) for name in chk}
        healing.problem = self._judge(found)
        try:
            for kind, keys in _NEXT_ACTIONS:
                self._act(chk, kind, keys)
        except Exception as error:  # noqa: BLE001 - it is the loss
            healing.problem = healing.problem or _failed(error)

    def _judge(self, found: dict[int, int]) -> str | None:
        return None if found == self.current else f"what is open has {found}, and was given {self.current}"

    # --- asynchronous -------------------------------------------------------------------------------------------------

    async def play_async(self, session: tuple[Action, ...], healing: Healing | None) -> None:
        """Play a session with the asynchronous view. What it has captured is kept, if the disk fails, for the next."""
        try:
            async with asyncckpt.Checkpointer.from_file(self.path, disk=self.disk) as chk:
                self._begin(await self._found(chk))
                for kind, keys in session:
                    try:
                        await self._act_async(chk, kind, keys)
                    except (OSError, asyncckpt.CheckpointError) as error:
                        self._fail(error)
                if healing is not None and healing.is_due(self.errors):
                    await self._look_and_save_async(chk, healing)
                self.log(Event("begin", 0))
            self.log(Event("ack", 0))
        except (OSError, asyncckpt.CheckpointError, ExceptionGroup) as error:
            self._fail(error)

    async def _found(self, chk: AsyncCheckpointer) -> dict[int, int]:
        found = {}
        for name in list(chk):
            try:
                found[key_of(name)] = self.workload.number_in(name, await chk[name])
            except (asyncckpt.CheckpointError, OSError):
                found[key_of(name)] = -1
        return found

    async def _act_async(self, chk: AsyncCheckpointer, kind: str, keys: tuple[int, ...]) -> None:
        for key in keys:
            if kind == "set":
                number, value = self._value(key)
                await chk.save_parameter(name_of(key), value)
                (value["array"] if isinstance(value, dict) else value).fill(0xAA)
                self._did("set", key, number)
            elif key in self.current:
                del chk[name_of(key)]
                self._did("unset", key)
        if kind == "flush":
            self.log(Event("begin", 0))
            await chk.flush()
            self.log(Event("ack", 0))

    async def _look_and_save_async(self, chk: AsyncCheckpointer, healing: Healing) -> None:
        healing.heal()
        healing.problem = self._judge(await self._found(chk))
        try:
            for kind, keys in _NEXT_ACTIONS:
                await self._act_async(chk, kind, keys)
        except Exception as error:  # noqa: BLE001 - it is the loss
            healing.problem = healing.problem or _failed(error)


_NEXT_ACTIONS: tuple[Action, ...] = (("set", (_NEXT_KEY - 1, 0)), ("flush", ()))


def _failed(error: Exception) -> str:
    return f"the next flush of what is open, on the healed disk, failed: {error!r}"

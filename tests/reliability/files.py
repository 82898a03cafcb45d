"""Workloads of a keyed file: a `Checkpointer` that sets and deletes keys, and flushes.

With an even seed the asynchronous view is played, with an odd one the blocking mode, in a thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import asyncckpt

from .file_player import NEXT_ACTIONS, KeyedPlayer
from .history import Event, KeyedHistory
from .values import LARGE, NAMES, NEXT_KEY, NEXT_NUMBER, expected_value, key_of, name_of, value_of
from .workload import Action, Healing, Known, Looked, Workload, same

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from .changes import Made
    from .disks import ShimDisk

    AsyncCheckpointer = Any

EXTENSIONS = {"keyed-hdf5": ".h5", "keyed-msgpack": ".msgpack", "keyed-npz": ".npz", "keyed-json": ".json"}
FORMS = tuple(EXTENSIONS)
_ENDS = ("open", "rename", "unlink")
"""What tells what became of a temporary file: another is begun, it gets the name, or it goes."""
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
    "create": {"sessions": ((("set", (0, 1)),), (("set", (1, 2)), ("flush", ()), ("unset", (0,)))), "keys": ()},
    "compact": {
        "sessions": (
            tuple(each for _ in range(5) for each in (("set", (LARGE, 0)), ("flush", ()))),
            (("unset", (LARGE,)), ("flush", ()), ("set", (1,))),
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
    first_number: int = 100
    """Behind which values are numbered: those of each program are told apart."""

    def disk_options(self) -> dict[str, Any]:
        """See `Workload`."""
        return {}

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
        return replace(self, sessions=(NEXT_ACTIONS,), leaves=False, first_number=self.first_number + 100)

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
        """See `Workload`: what is done to a temporary file that is given up, and a last sync for other tools.

        Writing a file anew may fail as long as the old one takes what is new: then the temporary file never gets
        its name. Before the lock goes, an HDF5 file is cut off and what others see of the last commit is synced, if
        the disk lets us.
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
                if self._read(path, known) != found | {NEXT_KEY: NEXT_NUMBER}:
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
            chk[name_of(NEXT_KEY)] = value_of(self.seed, NEXT_KEY, NEXT_NUMBER, is_large=False)

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
        return number if same(value, expected_value(self.seed, key_of(name), number, is_large=self.is_large)) else -1


def make_workload(name: str) -> KeyedWorkload:
    """Make the workload of a name."""
    form, kind, seed = name.split("/")
    if kind != "random":
        return KeyedWorkload(form=form, seed=int(seed), **_KINDS[kind])
    chance = random.Random(name)  # noqa: S311 - seeded on purpose
    keys = tuple(sorted(chance.sample(range(len(NAMES)), chance.randint(0, 3))))
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
        keys = chance.sample(range(len(NAMES)), chance.randint(1, 3)) if kind != "flush" else ()
        actions.append((kind, tuple(keys)))
    return tuple(actions)

"""Rig 5: damage. Every bit flipped, every length cut, files missing, swapped, replaced; and what a load makes of it.

A damaged checkpoint must be *detected*, or be *harmless*: what is loaded equals what was saved. The rest is silently
wrong. Whatever is damaged, every damage but to a file that has none of the state's bytes is found by `verify`, and
"latest" falls back to the checkpoint before.

Peers go through the same (`peers.py`), each loaded as its documentation says; what they call an error is their matter.
"""

from __future__ import annotations

import asyncio
import functools
import random
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

import asyncckpt
from asyncckpt.disk.manifest import decode_manifest

from .corrupt_files import OursFile
from .damage import BEFORE, DAMAGED, DETECTED, EQUAL, Subject, cut_files, files_of, flip_bits, make_state, replace_files
from .directories import FORMS
from .files import EXTENSIONS
from .replaced_files import damage_directory, go_on, outside
from .rig import Result, Rig
from .workload import same

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
PARTS: Final = 32  # units that the bits of a checkpoint are shared out to


class Ours(Subject):
    """A reader, beside nobody."""

    def __init__(self, form: str) -> None:
        self._form = form
        self._runner = asyncio.Runner()
        self._manager: asyncckpt.CheckpointManager | None = None
        self._states: dict[int, dict[str, Any]] = {}

    def make(self, root: Path, size: str) -> Path:
        """Save steps 1 and 2."""

        async def save() -> None:
            async with asyncckpt.CheckpointManager(root, format=self._form) as manager:
                for step in (BEFORE, DAMAGED):
                    self._states[step] = make_state(size, step)
                    await manager.save(step, self._states[step], training_info={"step": step}, run_config={"lr": step})

        self._runner.run(save())
        return root / f"step_{DAMAGED}"

    def look(self, root: Path) -> str:
        """Load, and verify if that finds nothing."""
        return self._runner.run(self._look(root))

    async def _look(self, root: Path) -> str:
        if self._manager is None:
            self._manager = asyncckpt.CheckpointManager(root, read_only=True)
            await self._manager.__aenter__()
        try:
            loaded = await self._manager.load(DAMAGED)
        except (asyncckpt.CorruptCheckpointError, asyncckpt.CheckpointNotFoundError):
            return DETECTED
        except Exception as error:  # noqa: BLE001 - any other is a loss
            return f"load raised {error!r}"
        if not self._is(loaded, DAMAGED):
            return "load is silently wrong"
        try:
            await self._manager.verify(DAMAGED)
        except asyncckpt.CorruptCheckpointError:
            return EQUAL
        except Exception as error:  # noqa: BLE001 - as above
            return f"verify raised {error!r}"
        return "verify found nothing"

    def look_again(self, root: Path) -> str | None:
        """Ask for the latest."""
        return self._runner.run(self._latest(root))

    async def _latest(self, root: Path) -> str | None:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                async with asyncckpt.CheckpointManager(root, read_only=True) as manager:
                    loaded = await manager.load("latest")
            except Exception as error:  # noqa: BLE001 - as above
                return f"load('latest') raised {error!r}"
        if not self._is(loaded, loaded.step):
            return "load('latest') is silently wrong"
        is_listed = (root / f"step_{DAMAGED}").is_dir() and not (root / f"step_{DAMAGED}").is_symlink()
        if loaded.step == BEFORE and is_listed and not told:
            return "load('latest') fell back and told nobody"
        return None

    def damage_files(self, root: Path, path: Path) -> Iterator[str]:
        """See `Subject`."""
        return damage_directory(root, path, path.with_name(f"step_{BEFORE}"))

    def go_on(self, root: Path) -> str | None:
        """See `Subject`: what links lead to stays."""
        before = outside(root.parent)
        wrong = asyncio.run(go_on(root, DAMAGED))
        if wrong is None and outside(root.parent) != before:
            return "saving afterwards changed what lies outside of the directory"
        return wrong

    def _is(self, loaded: Any, step: int) -> bool:
        return loaded.step == step and same(loaded.state, self._states[step]) and loaded.training_info == {"step": step}

    def close(self) -> None:
        """Close the manager and the loop."""
        if self._manager is not None:
            self._runner.run(self._manager.__aexit__(None, None, None))
        self._runner.close()


def make_subject(form: str) -> Subject:
    """Make what is ours and has a form."""
    return Ours(form) if form in FORMS else OursFile(form)


_PLACES: Final = (
    ("smallest", "msgpack"),
    ("16 KiB", "msgpack"),
    *(("smallest", form) for form in (*FORMS, *EXTENSIONS) if form != "msgpack"),
    *(("16 KiB", form) for form in (*FORMS, *EXTENSIONS) if form != "msgpack"),
)
"""What is damaged, at every place, in this order."""
_QUICK_PLACES: Final = 1
_GOAL_PLACES: Final = 1 + len((*FORMS, *EXTENSIONS))  # all of the smallest, and 16 KiB


def count_cases(places: Iterable[tuple[str, str]]) -> int:
    """Count the cases of places: each bit and each length of what is saved now, and all that is done to files."""
    count = 0
    for size, form in places:
        with tempfile.TemporaryDirectory() as folder:
            root, subject = Path(folder) / "checkpoints", make_subject(form)
            try:
                path = subject.make(root, size)
                count += sum(9 * file.stat().st_size for file in files_of(path))
                count += sum(1 for _ in subject.damage_files(root, path))
            finally:
                subject.close()
    return count


class CorruptRig(Rig):
    """Ours."""

    name: ClassVar[str] = "corrupt"
    tries: ClassVar[str] = (
        "every bit of every file flipped, each file cut at every byte, files missing, swapped, or replaced by others,"
        " by a directory, a symbolic link, a FIFO; pages zeroed, moved, doubled; of keyed files, every bit and"
        " every length, where a JSON file, which has no digests, may be another, and a damaged last commit is the flush"
        " before"
    )
    cases: ClassVar[str] = "damaged checkpoints"

    @functools.cached_property
    def quick(self) -> int:  # type: ignore[override] # a count that follows the format
        """All of the smallest, as msgpack."""
        return count_cases(_PLACES[:_QUICK_PLACES])

    @functools.cached_property
    def goal(self) -> int:  # type: ignore[override] # as above
        """All of the smallest and of 16 KiB; and 1 % more, because what was tried of an older format counts, too."""
        return count_cases(_PLACES[:_GOAL_PLACES]) * 101 // 100

    def units(self, seed: int) -> Iterator[str]:
        """Give all bits and lengths of one place after the other, then random damage."""
        for size, form in _PLACES:
            yield f"{size}/{form}/files"
            for part in range(PARTS):
                yield f"{size}/{form}/bits/{part}"
                yield f"{size}/{form}/cuts/{part}"
        for form in FORMS:
            yield f"random/{form}/{seed}"

    def run(self, unit: str, scratch: Path) -> Result:
        """Run a unit."""
        first, form, *rest = unit.split("/")
        result, root = Result(), scratch / "checkpoints"
        if first == "random":
            asyncio.run(_random_damage(result, root, form, unit))
            return result
        subject = make_subject(form)
        try:
            path = subject.make(root, first)
            if rest[0] == "files":
                replace_files(result, subject, root, path)
            elif rest[0] == "bits":
                flip_bits(result, subject, root, path, range(int(rest[1]), 1 << 62, PARTS))
            else:
                cut_files(result, subject, root, path, range(int(rest[1]), 1 << 62, PARTS))
        finally:
            subject.close()
        return result


# --- random damage, of ours -------------------------------------------------------------------------------------------

_RANDOM_CASES: Final = 60


async def _random_damage(result: Result, root: Path, form: str, name: str) -> None:
    """Damage runs of bytes of a checkpoint with many digest blocks; load it whole, in part, and verify it."""
    chance = random.Random(name)  # noqa: S311 - seeded on purpose
    numbers = np.random.default_rng(chance.getrandbits(64))
    states = {
        step: {f"a{i}": numbers.standard_normal(chance.choice((10, 1000, 140_000))) for i in range(4)}
        for step in (BEFORE, DAMAGED)
    }
    async with asyncckpt.CheckpointManager(root, format=form) as manager:
        for step, state in states.items():
            await manager.save(step, state)
    path = root / f"step_{DAMAGED}"
    manifest = decode_manifest((path / "manifest.json").read_bytes(), DAMAGED)
    async with asyncckpt.CheckpointManager(root, read_only=True) as manager:
        for _ in range(_RANDOM_CASES):
            file = path / chance.choice([*manifest.files, "manifest.json", "state.msgpack", "state.msgpack"])
            if not file.exists():
                file = path / "state.h5"
            before = file.read_bytes()
            says, after = _damage(before, chance)
            if after == before:
                continue
            file.write_bytes(after)
            result.tried += 1
            for what, select in (("load", None), ("load of a part", f"a{chance.randrange(4)}"), ("verify", None)):
                try:
                    if what == "verify":
                        await manager.verify(DAMAGED)
                        result.losses.append(f"{file.name}, {says}: verify found nothing")
                        continue
                    loaded = await manager.load(DAMAGED, select=select)
                except asyncckpt.CorruptCheckpointError:
                    result.count(f"{what}: {DETECTED}")
                    continue
                except Exception as error:  # noqa: BLE001 - whatever it is, it is a loss
                    result.losses.append(f"{file.name}, {says}: {what} raised {error!r}")
                    continue
                wanted = {key: value for key, value in states[DAMAGED].items() if select in (None, key)}
                result.count(f"{what}: {EQUAL}")
                if not same(loaded.state, wanted):
                    result.losses.append(f"{file.name}, {says}: {what} is silently wrong")
            file.write_bytes(before)


def _damage(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Do to bytes what disks, cables and programs do."""
    unit = chance.choice((1, 16, 512, 4096, 1 << 20))
    begin = chance.randrange(max(len(data) // unit, 1)) * unit
    end = min(begin + unit * chance.choice((1, 1, 2, 5)), len(data))
    other = chance.randrange(max(len(data) // unit, 1)) * unit
    run = data[begin:end]
    kind = chance.choice(("zeroed", "ones", "random", "copied", "swapped", "shifted", "lost", "doubled", "short"))
    new = {
        "zeroed": bytes(len(run)),
        "ones": b"\xff" * len(run),
        "random": chance.randbytes(len(run)),
        "copied": data[other : other + len(run)],
        "shifted": run[1:] + run[:1],
        "lost": b"",
        "doubled": run + run,
        "swapped": run[::-1],
        "short": run[: len(run) // 2],
    }[kind]
    return f"bytes {begin} to {end} {kind}", data[:begin] + new + data[end:]

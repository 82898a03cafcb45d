"""Damage of whole files: what people and programs do to those of a checkpoint, and saving beside what is left."""

from __future__ import annotations

import itertools
import os
import shutil
import warnings
from typing import TYPE_CHECKING, Any, Final

import asyncckpt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def fresh(root: Path) -> Iterator[Path]:
    """Keep a directory, and make it again as it was as often as is asked for; give where it is kept."""
    kept = root.parent / "kept"
    shutil.copytree(root, kept, symlinks=True)
    while True:
        shutil.rmtree(root)
        shutil.copytree(kept, root)
        yield kept


def damage_directory(root: Path, path: Path, before: Path) -> Iterator[str]:
    """Do to each file, and to the whole checkpoint, each damage in turn; say which.

    Args:
        root: The directory of checkpoints.
        path: The damaged one.
        before: The checkpoint before it.
    """
    names = sorted(file.name for file in path.iterdir())
    whole = [("the checkpoint", path, how) for how in (*REPLACEMENTS, "of the step before", "of another step")]
    single = [(name, path / name, how) for name in names for how in (*REPLACEMENTS, "of the step before")]
    swaps = [(f"{one} and {two}", path / one, two) for one, two in itertools.combinations(names, 2)]
    extras = [(name, path / name, f"with {count} bytes more") for name in names for count in (1, 4096)]
    for (says, place, how), kept in zip([*whole, *single, *swaps, *extras], fresh(root), strict=False):
        if how in REPLACEMENTS:
            REPLACEMENTS[how](place)
        elif how.startswith("of"):
            _remove(place)
            other = kept / before.name / place.relative_to(path)
            (shutil.copytree if other.is_dir() else shutil.copy)(other, place)
        elif how.startswith("with"):
            with place.open("ab") as file:
                file.write(bytes(int(how.split()[1])))
        else:
            place.rename(place.with_name("aside"))
            place.with_name(how).rename(place)
            place.with_name("aside").rename(place.with_name(how))
        yield f"{says} {how}"


async def go_on(root: Path, damaged: int) -> str | None:
    """Save into a directory with a damaged checkpoint: the next step, and in the place of the damaged one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            async with asyncckpt.CheckpointManager(root) as manager:
                for step in (damaged + 1, damaged):
                    place = root / f"step_{step}"
                    if os.path.lexists(place) and (place.is_symlink() or not place.is_dir()):
                        if (wrong := await _try_in_place_of(manager, place, step)) is not None:
                            return wrong
                        continue
                    await (await manager.save(step, {"next": step}, overwrite=True))
                    if (await manager.load(step)).state != {"next": step}:
                        return f"step {step}, saved afterwards, is silently wrong"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a loss
        return f"saving afterwards raised {error!r}"
    return None


async def _try_in_place_of(manager: asyncckpt.CheckpointManager, place: Path, step: int) -> str | None:
    """Save a step whose name something else has: whoever put it there must take it away, and is told so."""
    there = _identity(place)
    try:
        await (await manager.save(step, {"next": step}, overwrite=True))
    except asyncckpt.SaveFailedError as error:
        if not isinstance(error.__cause__, NotADirectoryError):
            return f"saving in the place of what is no directory raised {error!r}"
    else:
        return "a save in the place of what is no directory was acknowledged"
    if _identity(place) != there:
        return "what is no directory was changed by a save in its place"
    return None


def _identity(place: Path) -> tuple[int, int, int]:
    status = place.lstat()
    return status.st_ino, status.st_mode, status.st_ctime_ns


def outside(folder: Path) -> dict[Path, bytes]:
    """Return what links may lead to."""
    places = [file for place in folder.glob("elsewhere-*") for file in (place, *place.rglob("*"))]
    return {file: file.read_bytes() for file in places if file.is_file()}


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink()


def _link(place: Path) -> None:
    """Put a link there, to the very same contents elsewhere."""
    root = next(each for each in place.parents if not each.name.startswith("step_"))
    elsewhere = root.with_name(f"elsewhere-{place.name}")
    if elsewhere.exists():
        _remove(elsewhere)
    place.rename(elsewhere)
    place.symlink_to(elsewhere)


def _replacement(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(place: Path) -> None:
        _remove(place)
        make(place)

    return replace


REPLACEMENTS: Final[dict[str, Callable[[Path], Any]]] = {
    "missing": _remove,
    "replaced by a link to the same": _link,
    "replaced by a link to nothing": _replacement(lambda place: place.symlink_to("nothing")),
    "replaced by a link to itself": _replacement(lambda place: place.symlink_to(place.name)),
    "replaced by a link to /dev/zero": _replacement(lambda place: place.symlink_to("/dev/zero")),
    "replaced by an empty file": _replacement(lambda place: place.touch()),
    "replaced by a directory": _replacement(lambda place: place.mkdir()),
    "replaced by a FIFO": _replacement(os.mkfifo),
}

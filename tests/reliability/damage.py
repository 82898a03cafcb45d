"""Damage of files, of any saver: bits flipped, lengths cut, files replaced; and what a load makes of it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .rig import Result


EQUAL: Final = "equal"
DETECTED: Final = "detected"
BEFORE, DAMAGED = 1, 2  # the steps: one that stays whole, and the one that is damaged
_FALLBACK_EVERY: Final = 8  # how many flips or lengths there are to one look at "latest", which takes longer

SIZES: Final = {"smallest": 1, "16 KiB": 1200}
"""How many numbers a state has."""


def make_state(size: str, step: int) -> dict[str, Any]:
    """Make a state, the bytes of whose arrays cannot be guessed."""
    chance = np.random.default_rng([SIZES[size], step])
    return {"numbers": chance.standard_normal(SIZES[size]), "step": step}


class Subject(ABC):
    """A saver whose files are damaged."""

    harmless: ClassVar[tuple[str, ...]] = (EQUAL, DETECTED)
    """What `look` says where nothing is lost."""

    @abstractmethod
    def make(self, root: Path, size: str) -> Path:
        """Save two checkpoints; return the directory or file of the damaged one."""

    @abstractmethod
    def look(self, root: Path) -> str:
        """Load the damaged one: `EQUAL`, `DETECTED`, or what is wrong."""

    def look_again(self, root: Path) -> str | None:
        """Look at what else was promised; return what is wrong."""
        del root
        return None

    def damage_files(self, root: Path, path: Path) -> Iterator[str]:
        """Do to each file, and to the whole checkpoint, what people and programs do to them: say what was done."""
        del root, path
        return iter(())

    def go_on(self, root: Path) -> str | None:
        """Save beside the damage; return what is wrong."""
        del root
        return None

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """End."""


# --- bits and lengths, of any subject ---------------------------------------------------------------------------------


def files_of(path: Path) -> list[Path]:
    """Return all files of a checkpoint, in order."""
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def flip_bits(result: Result, subject: Subject, root: Path, path: Path, chosen: range | list[int]) -> None:
    """Flip bits, one at a time, of those that all files together have."""
    for file, number in _places(files_of(path), chosen, 8):
        position, bit = divmod(number, 8)
        with _patched(file, position, lambda byte, bit=bit: bytes([byte[0] ^ 1 << bit])):
            is_chosen = bit == position // 4 % _FALLBACK_EVERY  # of each byte one, of each part as many
            _judge(result, subject, root, f"bit {bit} of byte {position} of {file.name}", looks_again=is_chosen)


def cut_files(result: Result, subject: Subject, root: Path, path: Path, chosen: range | list[int]) -> None:
    """Cut files, one at a time, to each length below their own."""
    for file, length in _places(files_of(path), chosen, 1):
        data = file.read_bytes()
        os.truncate(file, length)
        is_chosen = length % _FALLBACK_EVERY == 0
        _judge(result, subject, root, f"{file.name} cut to {length} of {len(data)} bytes", looks_again=is_chosen)
        with file.open("r+b") as writing:
            writing.write(data)


def _places(files: list[Path], chosen: range | list[int], each: int) -> Iterator[tuple[Path, int]]:
    """Number the bits or bytes of all files; give the chosen ones."""
    numbers = iter(chosen)
    number = next(numbers, None)
    begin = 0
    for file in files:
        end = begin + file.stat().st_size * each
        while number is not None and number < end:
            yield file, number - begin
            number = next(numbers, None)
        begin = end


@contextmanager
def _patched(file: Path, position: int, patch: Callable[[bytes], bytes]) -> Iterator[None]:
    fd = os.open(file, os.O_RDWR)
    try:
        byte = os.pread(fd, 1, position)
        os.pwrite(fd, patch(byte), position)
        try:
            yield
        finally:
            os.pwrite(fd, byte, position)
    finally:
        os.close(fd)


def _judge(result: Result, subject: Subject, root: Path, says: str, *, looks_again: bool) -> None:
    result.tried += 1
    found = subject.look(root)
    result.count(found if found in subject.harmless else "lost")
    if found not in subject.harmless:
        result.losses.append(f"{says}: {found}")
    if looks_again:
        result.count("looked at again")
        if (wrong := subject.look_again(root)) is not None:
            result.losses.append(f"{says}: {wrong}")


# --- whole files ------------------------------------------------------------------------------------------------------


def replace_files(result: Result, subject: Subject, root: Path, path: Path) -> None:
    """Try what is done to files, and save beside each."""
    for says in subject.damage_files(root, path):
        _judge(result, subject, root, says, looks_again=True)
        if (wrong := subject.go_on(root)) is not None:
            result.losses.append(f"{says}: {wrong}")

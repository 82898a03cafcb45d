"""What a workload is: something that a program does with its checkpoints, made from a name.

The rigs kill it, fail it and cut its power. It begins with a place that has something in it (or what a killed writer
left there), and plays sessions: in each, the place is opened, acted on, and closed. Everything that it does and that is
acknowledged goes to a log, from which a history tells what must be found.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from .changes import Made
    from .disks import ShimDisk
    from .history import Event

LARGE_EVERY = 50
Action = tuple[str, tuple[int, ...]]
Known = dict[bytes, Any]
"""What has been loaded and compared, by a digest of its bytes: what is the same to the bit need not be again."""


class Looked(NamedTuple):
    """What a program finds that starts after a crash."""

    found: dict[int, int]
    """The version, or the number, of each thing that is listed; -1 where it does not load bit for bit."""
    problem: str | None
    """What else is wrong, if something is."""


class Expectation(Protocol):
    """What a program may expect for what it knows."""

    def take(self, event: Event) -> None:
        """Go on."""

    def judge(self, found: Mapping[int, int]) -> str | None:
        """Say what is wrong with what was found, if something is."""


@dataclass(slots=True)
class Healing:
    """What a player does about a disk that has failed, at the end of each session: heal it, look at all, and save."""

    is_due: Callable[[list[Exception]], bool]
    """Whether the disk has failed, given the errors so far."""
    heal: Callable[[], object]
    judge: Callable[[Mapping[int, int]], str | None]
    """Says what is wrong with what is found, if something is."""
    problem: str | None = None
    """What is wrong, if something is."""


class Workload(ABC):
    """What is done."""

    form: str
    seed: int
    below: str
    """Directories that must be made."""
    is_changed_in_place: ClassVar[bool]
    """Whether files that are there are written to; else a save sees nothing of what is there but names."""

    @abstractmethod
    def history(self, events: Iterable[Event] = ()) -> Expectation:
        """Tell what must be found after what there was before the workload, and these events."""

    @abstractmethod
    def history_of(self, found: Mapping[int, int]) -> Expectation:
        """Tell what must be found when a program has found this."""

    @abstractmethod
    def disk_options(self) -> dict[str, Any]:
        """Return which names the disk moves, as options of `ShimDisk`."""

    @abstractmethod
    async def fill(self, root: Path) -> None:
        """Make what the workload begins with."""

    @abstractmethod
    async def play(
        self,
        root: Path,
        disk: ShimDisk,
        log: Callable[[Event], object],
        *,
        is_patient: bool = False,
        healing: Healing | None = None,
    ) -> list[Exception]:
        """Play it.

        Args:
            root: Where; `fill` has been there.
            disk: What changes the disk.
            log: Called with each `Event` when it happens.
            is_patient: Whether to go on with the next action when one fails.
            healing: What to do at the end of each session.

        Returns:
            The errors of actions that failed, if patient.
        """

    @abstractmethod
    def next_start(self) -> Workload:
        """Return what the next program does there: it recovers, and saves."""

    def is_tidying(self, changes: Sequence[Made], at: int) -> bool:  # noqa: ARG002
        """Whether nobody need be told that a change failed: no promise rests on it.

        That what was acknowledged nevertheless is durable, is for the caller to see.

        Args:
            changes: All, those after the failed one as well.
            at: Which failed.
        """
        return False

    @abstractmethod
    def look(self, root: Path, known: Known, *, saves: bool = True) -> Looked:
        """Do as a program does that starts after a crash: recover, list, load everything, and save.

        Args:
            root: Where: what `play` had, and `below`.
            known: What need not be loaded again; added to.
            saves: Whether to save as well.
        """


def same(found: Any, expected: Any) -> bool:
    """Whether two states are equal to the bit."""
    if type(found) is not type(expected):
        return False
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()
    return bool(found == expected)

"""What a rig is.

1. A rig's work comes in units. A unit is named by a short string, and the name alone decides what it does: running it
   again tries the same cases again, in any process, on any day.
2. A unit takes seconds, so that work can stop between units and go on later.
3. Cases are counted by distinct case: a unit counts none twice, and two units of a rig have no case in common.
4. What went wrong is a loss, and its text says how to see it again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OURS = "asyncckpt"
RIG_FAILED = "the rig itself failed"
"""How the loss begins of a unit that raised, and so tells nothing of the library."""
HUNG = "it hung"
SAID_NOTHING = "the process ended"


@dataclass(slots=True)
class Result:
    """What a unit has tried.

    Attributes:
        enough: After so many losses a unit may end: what is broken is broken.
    """

    enough: ClassVar[int] = 20

    tried: int = 0
    """How many distinct cases."""
    losses: list[str] = field(default_factory=list)
    """What was lost or went wrong: one text for each case."""
    counts: dict[str, int] = field(default_factory=dict)
    """What else the report tells, summed over units: how many cases were of which kind, or ended in which way."""

    @property
    def has_enough(self) -> bool:
        """Whether enough was lost for the unit to end."""
        return len(self.losses) >= self.enough

    def count(self, kind: str, number: int = 1) -> None:
        """Count cases of a kind."""
        self.counts[kind] = self.counts.get(kind, 0) + number


class Rig(ABC):
    """One way of trying to break a promise."""

    name: ClassVar[str]
    """Short, for the command line and the ledger."""
    tries: ClassVar[str]
    """What it tries, for the report: one sentence."""
    cases: ClassVar[str]
    """What it counts, in the plural."""
    quick: ClassVar[int]
    """How many cases `make rigs` asks for."""
    goal: ClassVar[int]
    """How many cases `make torture` asks for, over all its runs."""
    seconds: ClassVar[float] = 300.0
    """A unit that takes longer hangs, which is a loss."""
    load: ClassVar[float] = 1.0
    """How many cores a unit keeps busy."""
    subject: str = OURS
    """Whose promise is tried: ours, or a peer's."""
    promise: str = ""
    """What a peer promises, for the report."""
    is_of_sources: ClassVar[bool] = False
    """Whether a unit tells of the sources as they are, and nothing of any others."""
    must_lose: bool = False
    """Whether it is a mistake that the rig must see: to lose nothing is a failure of the rig."""

    def missing(self) -> str | None:
        """Return what this machine lacks to run it, or None."""
        return None

    @abstractmethod
    def units(self, seed: int) -> Iterator[str]:
        """Give the units of a seed. The driver goes through the seeds from one on, until it has enough.

        Units that do not depend on the seed have the same names for every seed, and are run once.
        """

    def quick_units(self, seed: int) -> Iterator[str]:
        """Give the units for `make rigs`, whose ledger is its own: they may have cases in common with the others."""
        return self.units(seed)

    @abstractmethod
    def run(self, unit: str, scratch: Path) -> Result:
        """Run a unit, in a process of its own, with an empty directory in memory that nobody else uses."""

"""The sizes of a run: full size, or a quick one in under two minutes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.states import GIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The sizes of a run."""

    name: str
    rounds: int
    """Processes a system gets in each workload, unless the workload says less."""
    saves: int
    """Measured saves in each process, after the first one."""
    loads: int
    array_nbytes: int
    array_count: int
    huge_nbytes: int | None
    """Bytes of the one array that is larger than 4 GiB; None leaves it out."""
    busy_limit: float
    """Seconds after which a save during which the loop is busy is abandoned."""
    many_count: int
    small_saves: int
    int_count: int
    step_nbytes: int
    step_seconds: float
    gpt_layers: int
    budget_nbytes: int
    budget_state_nbytes: int
    catalog_count: int
    import_count: int
    settle: float
    """Seconds of rest before a measurement, once the disk is idle; see `machine.claim_memory`."""
    timeout: float
    """Seconds that one process may take."""

    @property
    def array_size(self) -> str:
        """`array_nbytes`, for people."""
        return size(self.array_nbytes)

    @property
    def step_size(self) -> str:
        """`step_nbytes`, for people."""
        return size(self.step_nbytes)

    @property
    def budget_size(self) -> str:
        """`budget_nbytes`, for people."""
        return size(self.budget_nbytes)

    @property
    def budget_state_size(self) -> str:
        """`budget_state_nbytes`, for people."""
        return size(self.budget_state_nbytes)


def size(nbytes: int) -> str:
    """Write a number of bytes in the largest unit that fits."""
    return f"{nbytes // GIB} GiB" if nbytes % GIB == 0 else f"{nbytes // MIB} MiB"


FULL: Final = Scale(
    name="full",
    rounds=3,
    saves=2,
    loads=1,
    array_nbytes=GIB,
    array_count=64,
    huge_nbytes=4 * GIB + 1,
    busy_limit=15.0,
    many_count=10_000,
    small_saves=50,
    int_count=10_000_000,
    step_nbytes=256 * MIB,
    step_seconds=3.0,
    gpt_layers=12,  # 124 M parameters, 1.5 GB with AdamW's moments
    budget_nbytes=256 * MIB,
    budget_state_nbytes=2 * GIB,
    catalog_count=10_000,
    import_count=10,
    settle=2.2,
    timeout=180.0,
)

QUICK: Final = Scale(
    name="quick",
    rounds=1,
    saves=2,
    loads=1,
    array_nbytes=64 * MIB,
    array_count=64,
    huge_nbytes=None,
    busy_limit=3.0,
    many_count=1_000,
    small_saves=15,
    int_count=1_000_000,
    step_nbytes=32 * MIB,
    step_seconds=1.0,
    gpt_layers=1,
    budget_nbytes=32 * MIB,
    budget_state_nbytes=256 * MIB,
    catalog_count=100,
    import_count=3,
    settle=0.0,
    timeout=60.0,
)

SCALES: Final = {scale.name: scale for scale in (FULL, QUICK)}

"""All rigs, in the order of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .faults import Faults
from .kill import Kill
from .power_cut import PowerCut
from .seeded import SeededBugs

if TYPE_CHECKING:
    from .rig import Rig

RIGS: tuple[Rig, ...] = (Kill(), Faults(), PowerCut(), SeededBugs())

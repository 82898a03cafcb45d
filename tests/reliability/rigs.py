"""All rigs, in the order of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .cancel import Cancel
from .chaos import Chaos
from .concurrency import Concurrency
from .corrupt import CorruptRig
from .cuts import Cuts, KilledTraining
from .faults import Faults
from .full_disk import FullDisk
from .fuzz import FuzzRig
from .hostile import HostileRig
from .kernel import KernelRig, SkipsDirectorySync, SkipsFileSync
from .kill import Kill
from .peers import PEER_RIGS
from .power_cut import PowerCut
from .seeded import SeededBugs
from .soak import Soak
from .syscalls import Record, SyscallFault, SyscallKill

if TYPE_CHECKING:
    from .rig import Rig

RIGS: tuple[Rig, ...] = (
    Kill(),
    SyscallKill(),
    Chaos(),
    Faults(),
    SyscallFault(),
    FullDisk(),
    PowerCut(),
    Record(),
    KernelRig(),
    KernelRig("a saver that syncs no file", SkipsFileSync),
    KernelRig("a saver that syncs no directory", SkipsDirectorySync),
    CorruptRig(),
    HostileRig(),
    FuzzRig(),
    Cancel(),
    Concurrency(),
    Cuts(),
    KilledTraining(),
    Soak(),
    SeededBugs(),
    *PEER_RIGS,
)

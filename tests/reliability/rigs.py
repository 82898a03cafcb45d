"""All rigs, in the order of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .rig import Rig

RIGS: tuple[Rig, ...] = ()

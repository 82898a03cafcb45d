"""Looks at a place as a program does that starts after a crash: through the public API, every bit of it."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

from .disks import ShimDisk

if TYPE_CHECKING:
    from pathlib import Path

    from .disks import Change
    from .workload import Expectation, Known, Workload


def check_now(
    workload: Workload, root: Path, history: Expectation, known: Known | None = None, *, saves: bool = True
) -> str | None:
    """Check what a crash has left, in this process; return what is wrong, if something is."""
    below = root / workload.below
    if not below.exists():
        return history.judge({})
    try:
        found, problem = workload.look(below, {} if known is None else known, saves=saves)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a loss
        return f"after the crash: {error!r}"
    return problem or history.judge(found)


def prepare(workload: Workload, scratch: Path) -> tuple[Path, list[Change]]:
    """Make what a workload begins with, and play it once, so that whatever it imports is there before it is forked.

    Returns:
        The directory that it begins with, and the changes that it makes when nothing is in its way.
    """
    source, once = scratch / "source", scratch / "once"
    asyncio.run(workload.fill(source))
    shutil.copytree(source, once)
    disk = ShimDisk(**workload.disk_options())
    asyncio.run(workload.play(once, disk, lambda _: None))
    workload.look(once / workload.below, {})
    shutil.rmtree(once)
    return source, disk.record

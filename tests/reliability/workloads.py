"""The names of all workloads, and what they stand for: `FORM/KIND/SEED`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import directories, files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .workload import Workload

NAMED = tuple((form, kind) for room in (directories, files) for form in room.FORMS for kind in room.KINDS)
"""Forms and kinds of the workloads that show one thing each: the seed decides their contents."""


def workload_names(seed: int, *, randoms: int) -> Iterator[str]:
    """Name every kind in every form, and so many random workloads of each room that no other seed has."""
    for form, kind in NAMED:
        yield f"{form}/{kind}/{seed}"
    for number in range(randoms):
        yield f"{directories.FORMS[number % 4 == 0]}/random/{seed * randoms + number}"
        yield f"{files.FORMS[number % len(files.FORMS)]}/random/{seed * randoms + number}"


def make_workload(name: str) -> Workload:
    """Make the workload of a name, whose kind is one of its room's, or `random`."""
    room = files if name.partition("/")[0] in files.FORMS else directories
    return room.make_workload(name)

"""The names of all workloads, and what they stand for: `FORM/KIND/SEED`."""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING

from . import directories, files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .workload import Workload


def _named() -> Iterator[tuple[str, str]]:
    """Give each form with each kind once: the forms by turns, and beside each other they have different kinds."""
    rows = []
    for room in (directories, files):
        for shift, form in enumerate(room.FORMS):
            kinds = deque((form, kind) for kind in room.KINDS)
            kinds.rotate(-shift * max(1, len(kinds) // len(room.FORMS)))
            rows.append(kinds)
    for turn in itertools.zip_longest(*rows):
        yield from (each for each in turn if each is not None)


NAMED = tuple(_named())
"""Forms and kinds of the workloads that show one thing each: the seed decides their contents."""


def workload_names(seed: int, *, randoms: int) -> Iterator[str]:
    """Name every kind in every form, and so many random workloads of each room that no other seed has.

    The first few are of all forms, for whoever tries no more.
    """
    for form, kind in NAMED:
        yield f"{form}/{kind}/{seed}"
    for number in range(randoms):
        yield f"{directories.FORMS[number % 4 == 0]}/random/{seed * randoms + number}"
        yield f"{files.FORMS[number % len(files.FORMS)]}/random/{seed * randoms + number}"


def split_unit(unit: str) -> tuple[str, str]:
    """Return the workload of a unit, and which share of its cases the unit is, if it is not all of them."""
    words = unit.split("/")
    return "/".join(words[:3]), "/".join(words[3:])


def make_workload(name: str) -> Workload:
    """Make the workload of a name, whose kind is one of its room's, or `random`."""
    room = files if name.partition("/")[0] in files.FORMS else directories
    return room.make_workload(name)

"""The asynchronous and the blocking classes have the same public names, but for those that a table here explains."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field

import pytest

import asyncckpt
from asyncckpt import blocking


@dataclass(frozen=True)
class Pair:
    """A class with `await`, the one without, and the names that only one of them has, each with the reason."""

    asynchronous: type
    blocking: type
    only_asynchronous: dict[str, str] = field(default_factory=dict)
    only_blocking: dict[str, str] = field(default_factory=dict)


PAIRS = {
    "CheckpointManager": Pair(
        asyncckpt.CheckpointManager,
        blocking.CheckpointManager,
        only_asynchronous={"every": "calls the program's function between two awaits, and a script has none"},
        only_blocking={"close": "the usual name; `aclose` is there, too, because the names are the same"},
    ),
    "SaveHandle": Pair(
        asyncckpt.SaveHandle,
        blocking.SaveHandle,
        only_asynchronous={"skipped": "makes the handle of a save that was not captured, for the library itself"},
        only_blocking={"wait": "`await handle`, with a timeout: for that, others have `asyncio.timeout`"},
    ),
    "PendingCheckpoint": Pair(
        asyncckpt.PendingCheckpoint,
        blocking.PendingCheckpoint,
        only_blocking={"without_await": "makes it of the other, for the library itself"},
    ),
    "Checkpointer": Pair(
        asyncckpt.AsyncCheckpointer,
        asyncckpt.Checkpointer,
        only_blocking=dict.fromkeys(
            ("allowed_keys", "omitted_keys", "build_canonical", "from_file", "extension_map", "default_extension"),
            "says which file it is, before it is entered in either way",
        )
        | dict.fromkeys(("open_checkpoint_file", "close_checkpoint_file", "stream"), "for kinds of files in scripts")
        | dict.fromkeys(("items", "values", "setdefault", "popitem", "clear"), "of a mapping, which is never awaited"),
    ),
}
EVERYWHERE = [pytest.param(pair, id=name) for name, pair in PAIRS.items()]
OWN_TEXTS = {"open", "aclose", "preempted"}
METHODS = sorted(
    {name for name in dir(asyncckpt.CheckpointManager) if not name.startswith("_")}
    - OWN_TEXTS
    - PAIRS["CheckpointManager"].only_asynchronous.keys()
)


def public(kind: type) -> set[str]:
    """Return the public names of a class."""
    return {name for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize("pair", EVERYWHERE)
def test_neither_surface_has_a_name_alone(pair: Pair) -> None:
    """A name that is new in one class must come to the other, or to the table."""
    asynchronous, without = public(pair.asynchronous), public(pair.blocking)
    assert asynchronous - without == pair.only_asynchronous.keys()
    assert without - asynchronous == pair.only_blocking.keys()
    assert all(pair.only_asynchronous.values())
    assert all(pair.only_blocking.values())


@pytest.mark.parametrize("name", [*METHODS, "__init__"])
def test_signatures_and_docstrings_are_those_of_the_asynchronous_manager(name: str) -> None:
    """What `help` shows: the same arguments, and the same text without the words of event loops."""
    theirs, ours = getattr(asyncckpt.CheckpointManager, name), getattr(blocking.CheckpointManager, name)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert not inspect.iscoroutinefunction(ours)
    assert not inspect.isasyncgenfunction(ours)
    if name != "__init__":
        assert ours.__doc__.split() != []
        assert ours.__doc__.partition("\n")[0].split()[:3] == theirs.__doc__.partition("\n")[0].split()[:3]
        assert ours.__module__ == "asyncckpt.blocking"


@pytest.mark.parametrize("name", [*METHODS, *sorted(OWN_TEXTS), "close"])
def test_docstrings_do_not_speak_of_event_loops(name: str) -> None:
    """A program without a loop is told nothing about one."""
    doc = getattr(blocking.CheckpointManager, name).__doc__
    assert re.search(r"await|async with|aclose|the loop\b|asyncio|CancelledError", doc) is None


def test_load_takes_what_a_manager_takes() -> None:
    """`asyncckpt.load` has the options of `CheckpointManager.load`, with the same defaults."""
    ours = inspect.signature(asyncckpt.load).parameters
    theirs = inspect.signature(asyncckpt.CheckpointManager.load).parameters
    options = {name: parameter for name, parameter in theirs.items() if name not in ("self", "step")}
    del options["discard_later"]  # it only reads
    assert {name: parameter for name, parameter in ours.items() if name not in ("path", "step")} == options

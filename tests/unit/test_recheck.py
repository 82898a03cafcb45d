"""The second look of `debug=True`: every change that makes a difference is found, with its path, and no other is."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.mutations import make_change, make_state, outline

from asyncckpt import StateChangedError, register_type
from asyncckpt.arrays.device import Moment
from asyncckpt.runtime.buffers import BufferPool
from asyncckpt.runtime.context import JobContext
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state.decode import Decoder
from asyncckpt.state.encode import flatten
from asyncckpt.state.encode_leaves import TooLargeError
from asyncckpt.state.inline import flatten_inline
from asyncckpt.state.recheck import copy_state, refer_to_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asyncckpt.state.capture import Capture

WAYS = ("inline", "staged", "streamed", "frozen")
MOMENTS = ("before the copy", "before the second look", "in the second look")


@register_type(name="tests.Trigger")
class Trigger:
    """A value of the state that does something when it is asked for its state for the second time."""

    def __init__(self, action: Callable[[], object] = lambda: None) -> None:
        self.calls = 0
        self._action = action

    def to_state(self) -> None:
        """Do it the second time."""
        self.calls += 1
        if self.calls == 2:
            self._action()

    @classmethod
    def from_state(cls, _: None) -> Trigger:
        """Make another."""
        return cls()


def decoded(capture: Capture, rng: random.Random) -> Any:
    """Return the state that was captured, whose arrays are read as by a writer: in ranges that end anywhere."""
    arrays = {}
    for number, meta in rng.sample(list(enumerate(capture.flat.arrays)), len(capture.flat.arrays)):
        data = np.empty(meta.nbytes, np.uint8)
        cuts = sorted({0, meta.nbytes, *(rng.randrange(meta.nbytes + 1) for _ in range(2))})
        for start, end in pairwise(cuts):
            read(capture, number, start, data[start:end])
        arrays[number] = data.view(meta.dtype).reshape(meta.shape) if meta.nbytes else np.empty(meta.shape, meta.dtype)
    return Decoder(capture.index, Pacer()).decode(arrays)["state"]


def read(capture: Capture, array: int, start: int, target: np.ndarray) -> None:
    """Read a range of bytes as a writer does."""
    views = capture.snapshot.view(array, start, len(target))
    if views is None:
        capture.snapshot.copy_to(target, array, start)
    else:
        np.concatenate(views, out=target)


def capture_with(rng: random.Random, way: str, moment: str, state: dict[Any, Any], apply: Callable[[], object]) -> Any:
    """Capture a state, which changes at a moment, and return what was captured of it.

    Raises:
        StateChangedError: The change was found.
    """
    first, last = Trigger(), Trigger()
    if moment != "before the copy":
        first, last = (Trigger(apply), last) if moment == "before the second look" else (first, Trigger(apply))
    whole = {"first": first, "state": state, "last": last}
    try:
        flat = flatten_inline(whole, keeps_sets=True)
    except TooLargeError:
        way = "staged" if way == "inline" else way
        last.calls = first.calls = 0
        flat = flatten(whole, pacer=Pacer(), keeps_sets=True)
    context = JobContext(yields=way != "inline")
    if moment == "before the copy":
        apply()
    if way in ("inline", "staged"):
        capture = copy_state(flat, whole, Moment(), BufferPool() if way == "staged" else None, context)
        captured = decoded(capture, rng)
    else:
        capture = refer_to_state(flat, whole, Moment(), context, is_frozen=way == "frozen")
        captured = decoded(capture, rng)
        capture.confirm(context)
    capture.give_back()
    return outline(captured)


def place_of(path: str, outlines: Sequence[dict[str, object]]) -> str:
    """Return the path of the leaf that has a path, which may be one in the plain state of an object."""
    path = path.removeprefix("state").removeprefix("/")
    while not any(path in each for each in outlines):
        path = path.rpartition("/")[0]
    return path


@pytest.mark.parametrize(
    ("seed", "changes"), [(5, 1000), *(pytest.param(seed, 2000, marks=pytest.mark.rigs) for seed in range(5))]
)
def test_random_changes(seed: int, changes: int) -> None:
    """10,000 in the rigs. What is captured without an error is the state before the change, or the one after it."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    found = same = 0
    state: dict[Any, Any] = {}
    outlines: list[dict[str, object]] = []  # before and after each change
    for number in range(changes):
        if number % 10 == 0 or not state:
            state = make_state(rng)
            outlines = [outline(state)]
        change = make_change(rng, state)
        way, moment = rng.choice(WAYS), rng.choice(MOMENTS)
        case = f"number {number}: {change.name} at {change.path!r}, {moment}, {way}"
        captured = error = None
        try:
            captured = capture_with(rng, way, moment, state, change.apply)
        except StateChangedError as raised:
            error = raised
        outlines = [outlines[-1], outline(state)]
        before, after = outlines
        if error is not None:
            place = place_of(error.path, outlines)
            assert before.get(place) != after.get(place), f"{case}: {error}"
            assert "asyncckpt.Cut" in str(error)
            found += 1
        else:
            assert captured in (outlines if moment == "in the second look" else [after]), f"{case}: not found"
            same += 1
    assert found > changes // 4
    assert same > changes // 20


@pytest.mark.skipif(np.finfo(np.longdouble).nmant != 63, reason="the long double of this machine has no padding")
@pytest.mark.parametrize("scalar", [np.longdouble(1) / 3, np.clongdouble(1 + 2j) / 3])
def test_scalars_of_long_double_are_encoded_without_what_was_in_memory(scalar: Any) -> None:
    """The padding of each number is zero, so that two walks over a scalar are equal."""
    chunk = flatten(scalar, pacer=Pacer()).chunks[0]
    for part in (scalar,) if scalar.dtype.char == "g" else (scalar.real, scalar.imag):
        number = np.array([part]).view(np.uint8)[:10].tobytes()
        assert number + bytes(6) in chunk

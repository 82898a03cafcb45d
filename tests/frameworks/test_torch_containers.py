"""Tensors within containers and objects of every kind, beside numpy arrays and numbers."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from helpers.support import FORMATS, Params, Point, load_from, save_to
from helpers.tensors import IGNORED, assert_equal, torch

from asyncckpt import StateMismatchError, UnsupportedLeafError, register_type

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = IGNORED


@register_type(name="tests.torch.Replay")
class Replay:
    """An object of a program's own, with methods that tell its state."""

    def __init__(self, tensor: Any, ring: Any) -> None:
        self.tensor = tensor
        self.ring = ring

    def to_state(self) -> Any:
        """Return the state."""
        return {"tensor": self.tensor, "ring": list(self.ring)}

    @classmethod
    def from_state(cls, state: Any) -> Replay:
        """Make one."""
        return cls(state["tensor"], deque(state["ring"], 3))

    def update_state(self, state: Any) -> None:
        """Take a state."""
        self.tensor.copy_(state["tensor"])
        self.ring = deque(state["ring"], 3)


class Moments(NamedTuple):
    """A namedtuple without registration."""

    mean: Any
    rest: Any


@dataclasses.dataclass
class Rollout:
    """A dataclass without registration."""

    tokens: Any
    inner: Any = None


def make_state(seed: int) -> dict[str, Any]:
    """Make a state."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> Any:
        return torch.randn(shape or (1,), generator=generator).reshape(shape)

    shared = tensor(4)
    return {
        "registered": [Point(tensor(2), shared), Params(tensor(3), shared), Replay(tensor(2), [tensor(1), 2])],
        "namedtuple": Moments(tensor(2), {"x": tensor(2), 3: tensor()}),
        "dataclass": Rollout(tensor(5), Rollout(np.full(2, float(seed)))),
        "deque": deque([tensor(2), np.full(3, float(seed)), shared], maxlen=9),
        "ordered": OrderedDict(a=(tensor(1), "x", seed), b=[shared]),
        "strings": np.array([str(seed), "b"], np.dtypes.StringDType()),
        "packed": torch.nn.utils.rnn.pack_sequence([tensor(3), tensor(2)]),
        "scalar": np.float32(seed),
    }


def plain(value: Any) -> Any:
    """Return a state as lists, dicts and tensors."""
    if isinstance(value, Replay):
        return plain([value.tensor, value.ring])
    if dataclasses.is_dataclass(value):
        return plain([getattr(value, each.name) for each in dataclasses.fields(value)])
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list | deque):
        return [plain(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


@pytest.mark.parametrize("form", FORMATS)
def test_they_come_back_with_what_holds_them(tmp_path: Path, form: str) -> None:
    """Plain, like a template, and in place; a tensor that occurs in several of them is one."""
    state = make_state(1)
    save_to(tmp_path, 1, state, form=form)
    found = load_from(tmp_path, 1)
    assert [type(each) for each in found["registered"]] == [Point, Params, Replay]
    assert (type(found["namedtuple"]), type(found["dataclass"])) == (tuple, dict)  # they are not registered
    like = load_from(tmp_path, 1, template=make_state(2))
    own = make_state(3)
    load_from(tmp_path, 1, template=own, in_place=True)
    for each in (like, own):
        assert_equal(plain(each), plain(state))
        assert [type(value) for value in each.values()] == [type(value) for value in state.values()]
        assert type(each["dataclass"].inner) is Rollout
    for each in (found, like):
        assert each["registered"][0].y is each["registered"][1].count is each["ordered"]["b"][0]
    assert found["deque"][2] is found["registered"][0].y


def test_the_tensors_within_objects_are_filled(tmp_path: Path) -> None:
    """Those of dataclasses, namedtuples, tuples and dicts are the same objects after a restore."""
    save_to(tmp_path, 1, make_state(1))
    own = make_state(3)
    held = [
        *(own["registered"][0].x, own["registered"][1].weights, own["namedtuple"].mean, own["namedtuple"].rest["x"]),
        *(own["dataclass"].tokens, own["dataclass"].inner.tokens, own["ordered"]["a"][0], own["ordered"]["b"][0]),
        own["registered"][2].tensor,
    ]
    load_from(tmp_path, 1, template=own, in_place=True)
    now = [
        *(own["registered"][0].x, own["registered"][1].weights, own["namedtuple"].mean, own["namedtuple"].rest["x"]),
        *(own["dataclass"].tokens, own["dataclass"].inner.tokens, own["ordered"]["a"][0], own["ordered"]["b"][0]),
        own["registered"][2].tensor,
    ]
    assert [id(each) for each in now] == [id(each) for each in held]


def test_what_does_not_fit_within_an_object_is_named(tmp_path: Path) -> None:
    """By its path."""
    save_to(tmp_path, 1, {"d": Rollout(torch.zeros(5), Moments(torch.zeros(2), 1))})
    template = {"d": Rollout(torch.zeros(5), Moments(torch.zeros(3), 1))}
    for in_place in (False, True):
        with pytest.raises(StateMismatchError, match=r"^step 1: d/inner/0: shape differs"):
            load_from(tmp_path, 1, template=template, in_place=in_place)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (defaultdict(list, a=[torch.ones(1)]), "defaultdict would come back as a plain dict"),
        (np.array([torch.ones(()), None], object), "an array of Python objects"),
        (torch.ones(2, 2).max(0), "would come back as a plain tuple"),
        ([torch.ones(1).untyped_storage()], "UntypedStorage cannot be saved"),
    ],
)
def test_what_holds_tensors_and_cannot_be_saved_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    """As without them."""
    with pytest.raises(UnsupportedLeafError, match=message):
        save_to(tmp_path, 1, {"a": value})

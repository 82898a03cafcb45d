"""How tensors are captured: what a save makes of their memory, and what it leaves it as."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.gates import hold
from helpers.support import FORMATS, load_from, save_to
from helpers.tensors import DTYPES, IGNORED, assert_equal, random_tensor, torch
from hypothesis import given
from hypothesis import strategies as st

from asyncckpt import CheckpointManager, SaveFailedError, StateChangedError, UnsupportedLeafError, register_type
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = IGNORED
MIB = 1 << 20


def strided(dtype: str) -> list[Any]:
    """Make tensors of a dtype whose elements do not lie one after the other."""
    base = random_tensor(dtype, 6, 8)
    return [base.t(), base[1:, ::3], base[:, 3], base[2, 5], base[:1].expand(4, 8), base[:0], base[:, :, None].mT]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_from_any_layout(tmp_path: Path, dtype: str, form: str) -> None:
    """With or without dimensions or elements, in one run or scattered over its memory."""
    state = {"plain": random_tensor(dtype, 3, 5), "scalar": random_tensor(dtype), "strided": strided(dtype)}
    for step, frozen in enumerate((False, True)):
        save_to(tmp_path, step, state, form=form, frozen=frozen)
        assert_equal(load_from(tmp_path, step), state)


LAYOUTS = st.tuples(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 5), max_size=4),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.booleans()), min_size=4, max_size=4),
    st.randoms(use_true_random=False),
)


def laid_out(dtype: str, shape: list[int], cuts: list[tuple[int, int, bool]], random: Any) -> Any:
    """Make a tensor that shows a part of its memory: with an offset, steps, repeated and exchanged dimensions."""
    numel = math.prod(
        1 if repeats else skip + step * size for size, (skip, step, repeats) in zip(shape, cuts, strict=False)
    )
    tensor = random_tensor(dtype, max(numel, 1) + 3, seed=random.randrange(1 << 30))[3:]
    sizes, strides, offset, stride = [], [], tensor.storage_offset(), 1
    for size, (skip, step, repeats) in zip(shape, cuts, strict=False):
        sizes.append(size)
        strides.append(0 if repeats else stride * step)
        offset += 0 if repeats or not size else skip * stride
        stride *= 1 if repeats else max(skip + step * size, 1)
    made = tensor.as_strided(sizes, strides, offset if math.prod(sizes) else 0)
    order = list(range(len(sizes)))
    random.shuffle(order)
    return made.permute(order)


@given(st.lists(LAYOUTS, min_size=1, max_size=4), st.sampled_from(FORMATS))
def test_random_layouts_come_back(tmp_path_factory: pytest.TempPathFactory, layouts: list[Any], form: str) -> None:
    """Copied at once, while the file is written, or not at all."""
    root = tmp_path_factory.mktemp("layouts")
    state = [laid_out(*layout) for layout in layouts]
    for step, frozen in enumerate((False, True)):
        save_to(root, step, state, form=form, frozen=frozen)
        assert_equal(load_from(root, step), state)


@pytest.mark.parametrize("way", ["staged", "frozen", "streamed"])
@pytest.mark.parametrize("form", FORMATS)
async def test_layouts_come_back_from_a_manager(tmp_path: Path, form: str, way: str) -> None:
    """In every way to capture a state, with tensors larger than a block."""
    state = {name: strided(name) for name in DTYPES}
    state["large"] = [torch.randn(700, 801), torch.randn(700, 801).t(), random_tensor("bfloat16", 500, 701)[:, ::2]]
    budget = 1 if way == "streamed" else 1 << 30
    async with CheckpointManager(tmp_path, format=form, max_staged_nbytes=budget) as manager:
        await (await manager.save(1, state, frozen=way == "frozen"))
        assert_equal((await manager.load(1)).state, state)


async def test_a_storage_can_be_resized_afterwards(tmp_path: Path) -> None:
    """A save, a load and a restore leave it so: `tensor.numpy()` would not."""
    state = {name: random_tensor(name, 4, 6) for name in DTYPES} | {"view": torch.randn(200, 200).t()}
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, state))
        await (await manager.save(2, state, frozen=True))
        await manager.load(1, like=state)
        await manager.restore(1, into=state)
    assert all(tensor.untyped_storage().resizable() for tensor in state.values())


async def test_lazily_negated_and_conjugated_tensors_are_saved_as_they_look(tmp_path: Path) -> None:
    """Such a tensor shares address, offset, shape and strides with another one, and is not the same."""
    x = torch.randn(5, dtype=torch.complex64)
    state = {"x": x, "conj": x.conj(), "again": x.conj(), "neg": x.conj().imag, "imag": x.imag, "half": None}
    state["half"] = x.to(torch.complex32).conj()
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, state))
        found = (await manager.load(1)).state
    assert_equal(found, state)
    assert found["conj"] is found["again"]
    assert len({id(each) for each in found.values()}) == len(state) - 1


async def test_tied_tensors_are_stored_once_and_come_back_shared(tmp_path: Path) -> None:
    """`state_dict()` makes other objects at each call."""
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(300, 64), "head": torch.nn.Linear(64, 300, bias=False)})
    model["head"].weight = model["embed"].weight
    state = {"model": model.state_dict(), "ema": model.state_dict()}
    async with CheckpointManager(tmp_path) as manager:
        handle = await manager.save(1, state)
        await handle
        found = (await manager.load(1)).state
        size = (tmp_path / "step_1" / "state.msgpack").stat().st_size
    weights = [found[name][key] for name in ("model", "ema") for key in ("embed.weight", "head.weight")]
    assert len({id(weight) for weight in weights}) == 1
    assert size < 1.5 * model["head"].weight.nbytes
    model.load_state_dict(found["model"])
    assert model["head"].weight is model["embed"].weight


async def test_views_of_one_memory_are_tensors_of_their_own(tmp_path: Path) -> None:
    """If they differ in offset, shape, strides or dtype; and so are all that have no elements."""
    base = torch.arange(12.0)
    empty = torch.zeros(0)
    state = [base, base.view(3, 4), base.view(4, 3), base[:6], base[6:], base[::2], base.view(torch.int32)]
    state += [empty, torch.zeros(0), empty, base[:0]]
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, state))
        found = (await manager.load(1)).state
    assert_equal(found, state)
    assert found[7] is found[9]
    assert len({id(each) for each in found}) == len(state) - 1


async def test_tensors_that_only_exist_during_the_walk_are_told_apart(tmp_path: Path) -> None:
    """The memory of one must not be used again for the next while the state is walked over."""

    class Lazy:
        def __init__(self, number: int) -> None:
            self.number = number

        def to_state(self) -> Any:
            return torch.full((3,), float(self.number))

        @classmethod
        def from_state(cls, state: Any) -> Any:
            return state

    register_type(Lazy, name="tests.torch.Lazy")
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, [Lazy(number) for number in range(300)]))
        found = (await manager.load(1)).state
    assert [each.tolist() for each in found] == [[number] * 3 for number in range(300)]


async def test_inference_and_leaf_tensors_are_saved(tmp_path: Path) -> None:
    """Also in the middle of a program that records gradients, or none."""
    with torch.inference_mode():
        made = torch.arange(5.0)
    weight = torch.nn.Parameter(torch.randn(3))
    state = {"inference": made, "leaf": weight, "result": weight * 2, "buffer": torch.nn.Buffer(torch.ones(2))}
    async with CheckpointManager(tmp_path) as manager:
        with torch.inference_mode():
            handle = await manager.save(1, state)
        await handle
        found = (await manager.load(1)).state
    assert_equal(found, state)
    assert not any(each.requires_grad or each.is_inference() for each in found.values())


# --- memory that changes while it is captured -------------------------------------------------------------------------


def free(tensor: Any) -> None:
    """Free the memory."""
    tensor.untyped_storage().resize_(0)


def shrink(tensor: Any) -> None:
    """Keep half of the memory."""
    tensor.untyped_storage().resize_(tensor.nbytes // 2)


def grow(tensor: Any) -> None:
    """Move the contents to more memory."""
    tensor.untyped_storage().resize_(tensor.nbytes * 50)


def exchange(tensor: Any) -> None:
    """Give the tensor other memory."""
    tensor.data = torch.zeros(7)


CHANGES = [free, shrink, grow, exchange]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("shape", [(3,), (2000, 1000)])
async def test_a_frozen_save_never_reads_freed_memory(
    tmp_path: Path, change: Callable[[Any], None], shape: tuple[int, ...]
) -> None:
    """It fails and names the tensor, or saves the former contents."""
    disk = FaultyDisk()
    tensor = torch.randn(shape)
    expected = tensor.clone()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            handle = await manager.save(1, {"other": torch.ones(2), "a": [tensor]}, frozen=True)
            await gate.reached()
            change(tensor)
        if change is exchange:
            await handle
            assert_equal((await manager.load(1)).state["a"][0], expected)
            return
        with pytest.raises(SaveFailedError) as caught:
            await handle
        assert isinstance(caught.value.__cause__, StateChangedError)
        assert caught.value.__cause__.path == "a/0"
        assert "was freed, or made smaller" in str(caught.value)
        assert manager.steps() == []
        await (await manager.save(2, {"a": 1}))


@pytest.mark.parametrize("change", CHANGES)
async def test_a_streamed_save_never_reads_freed_memory(tmp_path: Path, change: Callable[[Any], None]) -> None:
    """The tensor changes after the first blocks have been written."""
    disk = FaultyDisk()
    tensor = torch.randn(2 * MIB)
    expected = tensor.clone()
    state = {"first": torch.randn(MIB), "a": {"w": tensor}}
    async with CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=2 * MIB) as manager:
        with hold(disk, "write", "state") as gate:
            saving = asyncio.ensure_future(manager.save(1, state))
            await gate.reached()
            change(tensor)
        if change is exchange:
            await (await saving)
            assert_equal((await manager.load(1)).state["a"]["w"], expected)
            return
        with pytest.raises(SaveFailedError) as caught:
            await saving
        assert isinstance(caught.value.__cause__, StateChangedError)
        assert caught.value.__cause__.path == "a/w"
        assert manager.steps() == []


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (free, UnsupportedLeafError, "whose storage was freed"),
        (shrink, StateChangedError, "made smaller than the tensor"),
    ],
)
async def test_a_tensor_without_its_memory_is_refused(
    tmp_path: Path, change: Callable[[Any], None], kind: type[Exception], message: str
) -> None:
    """As those are whose storage was freed before the save, as sharded training does."""
    tensor = torch.randn(10)
    change(tensor)
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(kind, match=rf"^step 1: a/w: .* {message}"):
            await manager.save(1, {"a": {"w": tensor}})
        assert list(tmp_path.glob("*step*")) == []


async def test_a_copy_is_not_changed_by_what_comes_after_the_save(tmp_path: Path) -> None:
    """A program goes on training while its tensors are written."""
    disk = FaultyDisk()
    state = {"large": torch.randn(300, 300), "view": torch.randn(300, 300).t(), "bits": torch.randn(9).to(torch.cfloat)}
    state["conj"] = state["bits"].conj()
    expected = {key: value.clone() for key, value in state.items()}
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            handle = await manager.save(1, state)
            await gate.reached()
            for tensor in state.values():
                tensor.fill_(7)
            for tensor in state.values():
                free(tensor)
        await handle
        assert_equal((await manager.load(1)).state, expected)


def test_numpy_sees_what_is_saved(tmp_path: Path) -> None:
    """A file does not tell whether it was saved from tensors, except by the nodes."""
    tensor = torch.arange(24.0).reshape(4, 6).t()
    save_to(tmp_path, 1, tensor)
    assert np.array_equal(load_from(tmp_path, 1, arrays="numpy"), tensor.numpy())


@pytest.mark.parametrize("change", ["add_", "data"])
async def test_debug_finds_a_tensor_that_changes(tmp_path: Path, change: str) -> None:
    """In place, or with another memory: `save` raises with the path."""
    weight = torch.nn.Parameter(torch.zeros(1000))

    def alter() -> None:
        with torch.no_grad():
            if change == "add_":
                weight.add_(1)
            else:
                weight.data = torch.ones(1000)

    @register_type(name=f"tests.debug.tensor.{change}")
    class Second:
        calls = 0

        def to_state(self) -> None:
            self.calls += 1
            if self.calls == 2:
                alter()

        @classmethod
        def from_state(cls, _: None) -> Second:
            return cls()

    async with CheckpointManager(tmp_path, debug=True) as manager:
        with pytest.raises(StateChangedError) as caught:
            await manager.save(1, {"a": Second(), "weight": weight})
    assert caught.value.path == "weight"

"""Tensors that are loaded like a template's, filled in place, mapped, or asked for as numpy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.support import FORMATS, load_from, save_to
from helpers.tensors import IGNORED, assert_equal, torch

from asyncckpt import CheckpointManager, ConfigError, CorruptCheckpointError, StateMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [IGNORED, pytest.mark.parametrize("form", FORMATS)]
LARGE = 3000
"""A number of elements that take more than a page."""


def restore(root: Path, state: Any) -> Any:
    """Fill a state with checkpoint 1."""
    return load_from(root, 1, template=state, in_place=True)


# --- like a template --------------------------------------------------------------------------------------------------


def test_the_kind_is_that_of_the_template(tmp_path: Path, form: str) -> None:
    """A Parameter, a Buffer, a leaf that requires gradients, or a plain tensor; of whichever it was saved from."""
    made: dict[str, Any] = {
        "trained": torch.nn.Parameter(torch.randn(3)),
        "fixed": torch.nn.Parameter(torch.randn(3), requires_grad=False),
        "buffer": torch.nn.Buffer(torch.randn(3)),
        "passing": torch.nn.Buffer(torch.randn(3), persistent=False),
        "leaf": torch.randn(3, requires_grad=True),
        "plain": torch.randn(3),
    }
    made["result"] = made["leaf"] * 2
    save_to(tmp_path, 1, made, form=form)
    for each in load_from(tmp_path, 1).values():
        assert (type(each), each.requires_grad, vars(each)) == (torch.Tensor, False, {})
    found = load_from(tmp_path, 1, template=made)
    assert_equal(found, made)
    for key, each in found.items():
        template = made[key]
        assert type(each) is type(template)
        assert isinstance(each, torch.nn.Buffer) == isinstance(template, torch.nn.Buffer)
        assert vars(each) == vars(template)
        assert each.requires_grad == (template.requires_grad and key != "result")
        assert each.is_leaf
        assert each is not template


def test_a_template_may_be_on_the_meta_device(tmp_path: Path, form: str) -> None:
    """It has a dtype, a shape and a kind; the tensors are made on the CPU, and become those of the module."""

    def build() -> Any:
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))

    model = build()
    save_to(tmp_path, 1, {"model": model.state_dict(), "pair": torch.ones(2).to(torch.complex32)}, form=form)
    with torch.device("meta"):
        empty, pair = build(), torch.empty(2, dtype=torch.complex32)
    found = load_from(tmp_path, 1, template={"model": empty.state_dict(), "pair": pair})
    assert_equal(found["model"], model.state_dict())
    empty.load_state_dict(found["model"], assign=True)
    assert_equal(empty.state_dict(), model.state_dict())
    assert type(empty[0].weight) is torch.nn.Parameter
    parameters = load_from(tmp_path, 1, template={"model": {"0.bias": empty[0].bias.to("meta")}}, select="model/0.bias")
    assert parameters["model"]["0.bias"].device.type == "cpu"
    with pytest.raises(StateMismatchError, match=r"model/0\.weight: shape differs: .*\(3, 4\), .*\(4, 3\)"):
        load_from(tmp_path, 1, template={"model": {"0.weight": torch.empty(3, 4, device="meta")}}, select="model/0.w*")


@pytest.mark.parametrize("in_place", [False, True])
def test_the_framework_is_that_of_the_template(tmp_path: Path, form: str, in_place: bool) -> None:
    """Numpy arrays become tensors, and tensors numpy arrays; small and large, and of ml_dtypes' dtypes."""
    tensors = {str(n): torch.randn(n).to(dtype) for n in (3, LARGE) for dtype in (torch.float32,)}
    tensors["bfloat16"] = torch.randn(5).bfloat16()
    save_to(tmp_path, 1, tensors, form=form)
    arrays = load_from(tmp_path, 1, arrays="numpy")
    save_to(tmp_path, 2, arrays, form=form)
    for step, template in ((1, {key: np.zeros_like(each) for key, each in arrays.items()}), (2, tensors)):
        own = {key: torch.zeros_like(each) for key, each in tensors.items()} if step == 2 else template
        found = load_from(tmp_path, step, template=own, in_place=in_place)
        assert all(type(found[key]) is type(own[key]) for key in own)
        assert all((found[key] is own[key]) == in_place for key in own)
        for key, each in found.items():
            expected = (tensors if step == 2 else arrays)[key]
            assert each.dtype == expected.dtype
            assert (each == expected).all()


@pytest.mark.parametrize("in_place", [False, True])
def test_big_endian_arrays_become_tensors(tmp_path: Path, form: str, in_place: bool) -> None:
    """Tensors have none: the bytes are swapped, also where one array fills several targets."""
    state = {
        "small": np.arange(5, dtype=">f4"),
        "large": np.arange(LARGE, dtype=">f8"),
        "strided": np.arange(6, dtype=">i2").reshape(2, 3).T,
        "scalar": np.array(2 + 1j, ">c16"),
        "unsigned": np.array(3, ">u8"),
        "conj": np.arange(3, dtype=">c8"),
    }
    save_to(tmp_path, 1, state | {"again": state["large"], "as it was": state["large"]}, form=form)
    template: dict[str, Any] = {
        "small": torch.zeros(5),
        "large": torch.zeros(LARGE, dtype=torch.float64),
        "strided": torch.zeros(2, 3, dtype=torch.int16).t(),
        "scalar": torch.zeros((), dtype=torch.complex128),
        "unsigned": torch.zeros((), dtype=torch.uint64),
        "conj": torch.zeros(3, dtype=torch.complex64).conj(),
        "again": torch.zeros(2 * LARGE, dtype=torch.float64)[::2],
        "as it was": np.zeros(LARGE, ">f8"),
    }
    found = load_from(tmp_path, 1, template=template, in_place=in_place)
    for key, each in found.items():
        expected = state.get(key, state["large"])
        assert type(each) is type(template[key])
        plain = each if isinstance(each, np.ndarray) else each.resolve_conj().numpy()
        assert np.array_equal(plain, expected), key
    assert found["as it was"].dtype == ">f8"


MISFITS: dict[str, tuple[Any, str]] = {
    "shape": (torch.zeros(2, 3).bfloat16(), r"shape differs: the template has \(2, 3\), the checkpoint has \(3, 2\)"),
    "dtype": (torch.zeros(3, 2).half(), "dtype differs: the template has float16, the checkpoint has bfloat16"),
    "numpy": (np.zeros((3, 2), "f4"), "dtype differs: the template has float32, the checkpoint has bfloat16"),
    "number": (1.0, r"type differs: the template has float, the checkpoint has an array of bfloat16 \(3, 2\)"),
    "None": (None, "type differs: the template has NoneType, the checkpoint has an array"),
    "list": ([1.0], "type differs: the template has list, the checkpoint has an array"),
    "complex32": (lambda: torch.zeros(3, dtype=torch.complex32), "dtype differs: the template has complex32"),
}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", MISFITS)
def test_what_differs_is_named_with_its_path(tmp_path: Path, form: str, name: str, in_place: bool) -> None:
    """Before anything is filled."""
    save_to(tmp_path, 1, {"first": torch.ones(2), "m": {"w": torch.ones(3, 2).bfloat16()}}, form=form)
    template, message = MISFITS[name]
    template = template() if callable(template) else template
    first = torch.zeros(2)
    with pytest.raises(StateMismatchError, match=rf"^step 1: m/w: {message}") as caught:
        load_from(tmp_path, 1, template={"first": first, "m": {"w": template}}, in_place=in_place)
    assert caught.value.path == "m/w"
    assert first.tolist() == [0, 0]


@pytest.mark.parametrize("value", [2.0, np.float32(2), [1.0, 2.0], None])
def test_a_tensor_is_no_template_of_numbers(tmp_path: Path, form: str, value: object) -> None:
    """Which would come back as something else."""
    save_to(tmp_path, 1, {"a": value}, form=form)
    with pytest.raises(StateMismatchError, match=r"^step 1: a: type differs: the template has Tensor, [^;]*$"):
        load_from(tmp_path, 1, template={"a": torch.ones(())})


# --- in place ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numel", [3, LARGE])
def test_the_memory_of_the_tensors_is_filled(tmp_path: Path, form: str, numel: int) -> None:
    """The very tensors, so that whatever shares their memory sees it; autograd knows of the change."""
    state = {"w": torch.randn(numel), "t": torch.randn(3, numel).t(), "c": torch.randn(numel, dtype=torch.cfloat)}
    save_to(tmp_path, 1, state, form=form)
    weight = torch.nn.Parameter(torch.zeros(numel))
    strided, conj = torch.zeros(numel, 6)[:, ::2], torch.zeros(numel, dtype=torch.cfloat).conj()
    loss = (weight * weight).sum()
    own = {"w": weight, "t": strided, "c": conj}
    before = [(each.data_ptr(), each._version) for each in own.values()]
    assert restore(tmp_path, own) is own
    assert all(each is other for each, other in zip(own.values(), (weight, strided, conj), strict=True))
    assert_equal(own, state)
    assert [(each.data_ptr(), each._version - 1) for each in own.values()] == before
    assert (weight.requires_grad, weight.is_leaf) == (True, True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    restore(tmp_path, {"w": weight.detach(), "t": strided, "c": conj})  # as state_dict() makes them
    assert weight._version == before[0][1] + 2
    (weight * weight).sum().backward()
    assert torch.equal(weight.grad, 2 * state["w"])


def inference() -> Any:
    """Make a tensor that may not change."""
    with torch.inference_mode():
        return torch.zeros(3, dtype=torch.cfloat)


def freed() -> Any:
    """Make a tensor whose memory was freed, as sharded training does."""
    tensor = torch.zeros(3, dtype=torch.cfloat)
    tensor.untyped_storage().resize_(0)
    return tensor


UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "inference": (inference, "writability differs: the template has an inference tensor"),
    "expanded": (lambda: torch.zeros(1, dtype=torch.cfloat).expand(3), "sharing differs: .*elements that share memory"),
    "expanded conjugate": (
        lambda: torch.zeros(1, dtype=torch.cfloat).expand(3).conj(),
        "sharing differs: .*elements that share memory",
    ),
    "overlapping itself": (
        lambda: torch.zeros(5, dtype=torch.cfloat).as_strided((3,), (0,)),
        "sharing differs: .*elements that share memory",
    ),
    "freed": (freed, "storage was freed"),
    "meta": (
        lambda: torch.zeros(3, dtype=torch.cfloat, device="meta"),
        r"writability differs: .* meta device, which has no memory: module\.to_empty\(\) makes some",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_targets_are_refused_before_any_is_filled(tmp_path: Path, form: str, name: str) -> None:
    """Wherever they stand in the state."""
    save_to(tmp_path, 1, {"a": torch.ones(LARGE), "b": torch.ones(3, dtype=torch.cfloat), "c": np.ones(9)}, form=form)
    make, message = UNFIT[name]
    own = {"a": torch.zeros(LARGE), "b": make(), "c": np.zeros(9)}
    with pytest.raises(StateMismatchError, match=f"^step 1: b: .*{message}"):
        restore(tmp_path, own)
    assert not own["a"].any()
    assert not own["c"].any()
    assert own["a"]._version == 0


OVERLAPS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "partial": lambda base: (base[:3], base[2:5]),
    "the same elements": lambda base: (base[:3], base[:3]),
    "steps": lambda base: (base[:3], base[2::2][:3]),
    "conjugate": lambda base: (base[:3], base[2:5].conj()),
    "two conjugates": lambda base: (base[:3].conj(), base[:3].conj()),
    "a numpy array of the memory": lambda base: (base[:3], base.numpy()[:3]),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_targets_that_share_memory_are_refused(tmp_path: Path, form: str, name: str) -> None:
    """If they would get different contents: the one that is filled last would win."""
    save_to(tmp_path, 1, {"a": torch.ones(3, dtype=torch.cfloat), "b": torch.zeros(3, dtype=torch.cfloat)}, form=form)
    base = torch.full((8,), 7, dtype=torch.cfloat)
    one, other = OVERLAPS[name](base)
    with pytest.raises(StateMismatchError, match=r"^step 1: b: sharing differs: .*memory that a has, too"):
        restore(tmp_path, {"a": one, "b": other})
    assert base.tolist() == [7] * 8
    restore(tmp_path, {"a": base[:3], "b": base[3:6]})
    assert base.tolist() == [1, 1, 1, 0, 0, 0, 7, 7]


def test_tied_targets_are_filled_once(tmp_path: Path, form: str) -> None:
    """And targets that are not tied any more get the same contents."""
    weight = torch.randn(LARGE)
    save_to(tmp_path, 1, {"a": weight, "b": weight}, form=form)
    for own in (torch.zeros(LARGE),) * 2, (torch.zeros(LARGE), torch.zeros(LARGE)), (torch.zeros(2 * LARGE)[::2],) * 2:
        restore(tmp_path, {"a": own[0], "b": own[1].detach()})
        assert torch.equal(own[0], weight)
        assert torch.equal(own[1], weight)


@pytest.mark.parametrize("view", ["conj", "imag"])
def test_a_view_of_a_parameter_is_filled(tmp_path: Path, form: str, view: str) -> None:
    """Also a lazy one, whose memory holds other bits; outside of `torch.no_grad`, no program could."""
    weight = torch.nn.Parameter(torch.full((3,), 7j))
    target = weight.conj() if view == "conj" else weight.conj().imag
    save_to(tmp_path, 1, [torch.arange(3.0).to(target.dtype)], form=form)
    version = weight._version
    load_from(tmp_path, 1, template=[target], in_place=True)
    assert weight.tolist() == ([0, 1, 2] if view == "conj" else [0j, -1j, -2j])
    assert weight._version > version


@pytest.mark.parametrize("numel", [3, 1 << 20])
def test_damage_names_the_tensors_that_were_overwritten(tmp_path: Path, form: str, numel: int) -> None:
    """Those that a restore had begun to fill when it found it."""
    path = save_to(tmp_path, 1, {"a": torch.full((numel,), 3.0), "b": torch.ones(2)}, form=form)
    file = next(path.glob("state.*"))
    data = bytearray(file.read_bytes())
    data[data.rindex(np.full(3, 3, "f4").tobytes())] ^= 1
    file.write_bytes(data)
    own = {"a": torch.zeros(numel), "b": torch.zeros(2)}
    with pytest.raises(CorruptCheckpointError) as caught:
        restore(tmp_path, own)
    changed = {key for key, each in own.items() if each.any()}
    assert changed <= set(caught.value.overwritten)


# --- parts, mapped memory, numpy --------------------------------------------------------------------------------------


def mapped_at(address: int) -> str:
    """Return the line of the kernel's about the memory at an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(each, 16) for each in line.partition(" ")[0].split("-"))
        if begin <= address < end:
            return line
    raise AssertionError(address)


async def test_a_lazy_tensor_can_be_written_to(tmp_path: Path, form: str) -> None:
    """Its memory is private, and outlives the manager; the file stays as it is."""
    state = {"large": torch.randn(LARGE), "small": torch.randn(3).bfloat16(), "numpy": np.ones(LARGE)}
    async with CheckpointManager(tmp_path, format=form) as manager:
        await (await manager.save(1, state))
        found = (await manager.load(1, lazy=True)).state
        like = (await manager.load(1, lazy=True, like=state)).state
        part = (await manager.load(1, lazy=True, select=["large"])).state
        other = (await manager.load(1, lazy=True, arrays="numpy")).state
    assert part.keys() == {"large"}
    for each in (found, like):
        assert "state." in mapped_at(each["large"].data_ptr())  # nothing was copied
        assert_equal({key: each[key] for key in ("large", "small")}, {key: state[key] for key in ("large", "small")})
        each["large"].add_(1)
        each["small"].zero_()
        assert torch.equal(each["large"], state["large"] + 1)
    assert torch.equal(part["large"], state["large"])
    assert type(other["large"]) is np.ndarray
    assert not found["numpy"].flags.writeable
    async with CheckpointManager(tmp_path) as manager:
        await manager.verify(1)


async def test_numpy_arrays_in_every_way(tmp_path: Path, form: str) -> None:
    """Plain, lazily, in part; a template's tensor is made all the same."""
    state = {"large": torch.randn(LARGE), "b": {"half": torch.randn(3).bfloat16()}, "empty": torch.zeros(0, 3)}
    state["tied"] = state["large"]
    async with CheckpointManager(tmp_path, format=form) as manager:
        await (await manager.save(1, state))
        for lazy in (False, True):
            found = (await manager.load(1, arrays="numpy", lazy=lazy)).state
            assert {type(each) for each in (found["large"], found["b"]["half"], found["empty"])} == {np.ndarray}
            assert found["tied"] is found["large"]
            assert (found["b"]["half"].dtype.name, found["empty"].shape) == ("bfloat16", (0, 3))
            part = (await manager.load(1, arrays="numpy", lazy=lazy, select="b/*")).state
            assert type(part["b"]["half"]) is np.ndarray
            template = {
                "large": state["large"],
                "tied": np.zeros(LARGE, "f4"),
                "b": found["b"],
                "empty": state["empty"],
            }
            like = (await manager.load(1, arrays="numpy", lazy=lazy, like=template)).state
            assert [type(like[key]) for key in ("large", "tied", "empty")] == [torch.Tensor, np.ndarray, torch.Tensor]
            assert type(like["b"]["half"]) is np.ndarray
            assert torch.equal(like["large"], state["large"])
        for wrong in ("bogus", "torch", None, 1):
            with pytest.raises(ConfigError, match="arrays must be one of 'saved', 'numpy'"):
                await manager.load(1, arrays=wrong)  # type: ignore[call-overload]


async def test_a_part_of_the_tensors(tmp_path: Path, form: str) -> None:
    """Those of paths and of patterns."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    async with CheckpointManager(tmp_path, format=form) as manager:
        await (await manager.save(1, {"model": model.state_dict(), "step": torch.tensor(7)}))
        found = (await manager.load(1, select=["model/*.weight", "step"])).state
        assert list(found["model"]) == ["0.weight", "1.weight"]
        assert found["step"] == 7
        template = {"model": {"0.weight": torch.nn.Parameter(torch.zeros(4, 3))}}
        like = (await manager.load(1, select="model/0.weight", like=template)).state
        assert type(like["model"]["0.weight"]) is torch.nn.Parameter
        assert torch.equal(like["model"]["0.weight"], model[0].weight)

"""Odd tensors, and programs in odd modes: what comes back is what was there."""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.support import load_from, save_to
from helpers.tensors import IGNORED, assert_equal, random_tensor, torch
from torch.autograd import forward_ad

from asyncckpt import CheckpointManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

pytestmark = IGNORED


# --- tensors ----------------------------------------------------------------------------------------------------------


def complexes() -> Any:
    """Make complex numbers."""
    return random_tensor("complex64", 5, 7)


def another_dtype() -> list[Any]:
    """Make views of one storage as several dtypes, at offsets."""
    base = torch.randn(64)
    doubles = torch.empty(0, dtype=torch.float64).set_(base.untyped_storage(), 2, (3,), (2,))
    return [
        base.view(torch.uint8)[3:11],
        base.view(torch.bfloat16)[1::3],
        doubles,
        base.view(torch.int32).view(8, 8).t(),
    ]


def misaligned() -> list[Any]:
    """Make tensors at an odd address."""
    tensor = torch.frombuffer(bytearray(range(41)), dtype=torch.float32, offset=1, count=10)
    return [tensor, tensor[::2], tensor.view(2, 5).t()]


def of_read_only_memory() -> Any:
    """Make a tensor of a numpy array that may not change."""
    array = np.arange(5000.0)
    array.flags.writeable = False
    return [torch.from_numpy(array), torch.from_numpy(array)[::3]]


def from_a_mapped_file(tmp_path: Path) -> Any:
    """Map tensors from files, by numpy, by torch, and of a file of torch's own."""
    np.save(tmp_path / "x.npy", np.arange(5000.0))
    torch.save({"a": torch.randn(3000), "p": torch.nn.Parameter(torch.ones(3))}, tmp_path / "x.pt")
    shared = torch.from_file(str(tmp_path / "x.bin"), shared=True, size=3000, dtype=torch.float32)
    loaded = torch.load(tmp_path / "x.pt", mmap=True)
    return [torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="r")), shared.fill_(2), loaded["a"], loaded["p"]]


def graph() -> list[Any]:
    """Make leaves and results of a computation that records gradients."""
    leaf = torch.randn(3, requires_grad=True)
    leaf.register_hook(lambda grad: grad)
    other = torch.ones(3, dtype=torch.cfloat, requires_grad=True)
    return [leaf, leaf * 2, other.conj() * 2, other.conj(), leaf[1:], torch.nn.Parameter(torch.ones(2)).view(2, 1)]


TENSORS: dict[str, Callable[[], Any]] = {
    "scalars": lambda: [
        torch.tensor(5),
        torch.tensor(1).bool(),
        random_tensor("float8_e4m3fn"),
        random_tensor("complex32"),
    ],
    "empty": lambda: [torch.empty_strided((0, 3), (100, 7)), torch.zeros(0).expand(5, 0), torch.zeros(3, 0, 2).mT],
    "large strides": lambda: [
        torch.arange(10**6)[:: 3 * 10**5],
        torch.arange(10**6).as_strided((2, 2), (999_997, 1)),
        torch.ones(1).as_strided((1, 1), (2**62, 2**61)),
        torch.ones(5).as_strided((1, 5), (2**62, 1)),
        torch.ones(9).as_strided((1, 4), (2**62, 2)),
        torch.empty_strided((0, 3), (2**62, 1)),
    ],
    "another dtype": another_dtype,
    "misaligned": misaligned,
    "views of conjugates": lambda: [
        complexes().conj().t()[1:, ::2],
        complexes()[1:].conj().imag[::2],
        complexes().mH,
        complexes().conj().conj(),
        complexes().to(torch.complex32).conj()[2],
        complexes().conj().imag.t(),
    ],
    "channels last": lambda: [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(2, 3, 4, 5, 2).to(memory_format=torch.channels_last_3d),
    ],
    "expanded": lambda: [torch.arange(3.0).expand(1000, 3), torch.ones(()).expand(2000, 2000)[:100]],
    "recording gradients": graph,
    "shared memory": lambda: [torch.ones(3000).share_memory_(), torch.ones(3000).share_memory_()[::2]],
    "read-only memory": of_read_only_memory,
    "copy on write": lambda: [base := torch.randn(3000), torch._lazy_clone(base), torch._lazy_clone(base)[::2]],
}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable", "ignore:The given buffer is not writable")
@pytest.mark.parametrize("way", ["staged", "frozen", "streamed"])
@pytest.mark.parametrize("name", [*TENSORS, "mapped files"])
async def test_odd_tensors_come_back(tmp_path: Path, name: str, way: str) -> None:
    """In every way to capture a state and to load it."""
    (tmp_path / "x").mkdir()
    state = TENSORS[name]() if name in TENSORS else from_a_mapped_file(tmp_path / "x")
    async with CheckpointManager(tmp_path / "y", max_staged_nbytes=1 if way == "streamed" else 1 << 30) as manager:
        await (await manager.save(1, state, frozen=way == "frozen"))
        assert_equal((await manager.load(1)).state, state)
        assert_equal((await manager.load(1, lazy=True)).state, state)
        assert_equal((await manager.load(1, like=state)).state, state)
        own = [torch.zeros_like(each).detach() for each in state]
        await manager.restore(1, into=own)
        assert_equal(own, state)


def test_a_copy_on_write_is_written_to_alone(tmp_path: Path) -> None:
    """A restore into one of the tensors that share the memory until then."""
    save_to(tmp_path, 1, [torch.ones(3)])
    base = torch.zeros(3)
    clone = torch._lazy_clone(base)
    load_from(tmp_path, 1, template=[clone], in_place=True)
    assert (base.tolist(), clone.tolist()) == ([0] * 3, [1] * 3)


async def test_loaded_tensors_are_tensors_like_any(tmp_path: Path) -> None:
    """They own their memory alone, and can be trained, shared, pickled and resized within it."""
    state = {f"w{number}": torch.full((number,), float(number)) for number in (1, 3, 3000)}
    state["bool"] = torch.tensor([True, False])
    async with CheckpointManager(tmp_path / "a") as manager:
        await (await manager.save(1, state))
        found = (await manager.load(1)).state
    for key, each in found.items():
        assert each.untyped_storage().nbytes() == each.nbytes
        assert each.data_ptr() % 16 == 0, key
        assert (each.is_leaf, each.is_contiguous(), each._version) == (True, True, 0)
    torch.save(found, tmp_path / "x.pt")
    assert_equal(torch.load(tmp_path / "x.pt"), state)
    weight = torch.nn.Parameter(found["w3000"])
    (weight * 2).sum().backward()
    torch.optim.SGD([weight], lr=0.5).step()
    assert torch.equal(found["w3000"], state["w3000"] - 1)
    assert found["w3"].share_memory_().is_shared()
    assert found["w3"].tolist() == [3] * 3
    assert found["w1"].resize_(1).tolist() == [1]


def test_attributes_of_tensors_are_not_saved(tmp_path: Path) -> None:
    """Programs that mark their parameters are not refused, and mark those that they make again."""
    weight = torch.nn.Parameter(torch.ones(3))
    weight.tensor_model_parallel = True
    save_to(tmp_path, 1, [weight])
    assert not hasattr(load_from(tmp_path, 1)[0], "tensor_model_parallel")
    own = torch.nn.Parameter(torch.zeros(3))
    own.tensor_model_parallel = True
    (found,) = load_from(tmp_path, 1, template=[own], in_place=True)
    assert found is own
    assert found.tensor_model_parallel


# --- modes ------------------------------------------------------------------------------------------------------------


@contextmanager
def default_device(device: str) -> Iterator[None]:
    """Make tensors on a device unless told otherwise, on this thread."""
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype() -> Iterator[None]:
    """Make tensors of another dtype unless told otherwise."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    """Fill new memory, and refuse what is not deterministic."""
    torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=False)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "none": nullcontext,
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "meta": lambda: torch.device("meta"),
    "default device": lambda: default_device("meta"),
    "default dtype": default_dtype,
    "deterministic": deterministic,
    "forward gradients": forward_ad.dual_level,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "saved tensors": torch.autograd.graph.save_on_cpu,
}


def make_state() -> dict[str, Any]:
    """Make a state with tensors that are read and made in every way."""
    return {
        "small": torch.arange(3.0),
        "large": torch.randn(3000),
        "conj": complexes().conj(),
        "half": torch.ones(2).bfloat16(),
        "pairs": torch.ones(2).to(torch.complex32),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "others": [torch.Generator("cpu").manual_seed(3), torch.Size([2]), torch.float16, torch.device("cpu")],
    }


def round_trip(root: Path, mode: str, state: Any, own: Any) -> Any:
    """Save and load a state while a mode is on, in this thread."""
    with MODES[mode]():
        save_to(root, 1, state)
        found = load_from(root, 1)
        like = load_from(root, 1, template=state)
        load_from(root, 1, template=own, in_place=True)
    return found, like


@pytest.mark.parametrize("mode", MODES)
def test_modes_do_not_change_what_comes_back(tmp_path: Path, mode: str) -> None:
    """Whatever is on where the tensors are read and made."""
    state, own = make_state(), make_state()
    weight, version = own["parameter"], own["parameter"]._version
    found, like = round_trip(tmp_path, mode, state, own)
    for each in (found, like, own):
        assert_equal(each, state)
    assert weight._version > version
    assert like["parameter"].requires_grad


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_a_thread_stay_there(tmp_path: Path, mode: str) -> None:
    """Another thread's do not matter, and it can save and load itself."""
    state, own = make_state(), make_state()
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(round_trip(tmp_path, mode, state, own)))
    thread.start()
    thread.join()
    for each in (*results, own):
        assert_equal(each, state)
    assert len(results) == 2


@pytest.mark.parametrize("mode", MODES)
async def test_a_manager_works_in_a_mode(tmp_path: Path, mode: str) -> None:
    """It reads small states on the loop's thread, and large ones in others."""
    state, own = make_state(), make_state()
    state["many"] = [torch.full((3,), float(number)) for number in range(600)]
    own["many"] = [torch.zeros(3) for _ in range(600)]
    async with CheckpointManager(tmp_path) as manager:
        with MODES[mode]():
            await (await manager.save(1, {"a": state["large"], "c": state["conj"]}))
            await (await manager.save(2, state))
            small = (await manager.load(1)).state
            found = (await manager.load(2)).state
            await manager.restore(2, into=own)
    assert_equal(small, {"a": state["large"], "c": state["conj"]})
    assert_equal(found, state)
    assert_equal(own, state)


def test_a_tangent_is_not_saved(tmp_path: Path) -> None:
    """As gradients are not: the value is."""
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(3), torch.full((3,), 2.0))
        save_to(tmp_path, 1, [dual])
        (found,) = load_from(tmp_path, 1)
        assert forward_ad.unpack_dual(found).tangent is None
    assert found.tolist() == [1] * 3

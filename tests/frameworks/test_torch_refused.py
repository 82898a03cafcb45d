"""What cannot be saved as a tensor is refused before anything is written, with its path and the way out."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.support import load_from, save_to
from helpers.tensors import IGNORED, torch

from asyncckpt import CheckpointManager, StateMismatchError, UnsupportedLeafError

pytestmark = IGNORED
HELPERS = Path(__file__).parents[1]


class Sub(torch.Tensor):
    """A subclass that torch does not know."""


class Schedule:
    """Data that can be called."""

    def __call__(self, step: int) -> float:
        """Return a rate."""
        return 0.5**step


class Shown:
    """An array of another library, which speaks DLPack."""

    def __init__(self) -> None:
        self._array = np.ones(2)

    def __dlpack__(self, **options: Any) -> object:
        """Hand the memory over."""
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Say that it is the host's."""
        return self._array.__dlpack_device__()


class OnADevice:
    """An array of another library in a device's memory, as numba's are."""

    __cuda_array_interface__ = {"version": 3}  # noqa: RUF012 - the protocol's


def fake() -> Any:
    """Make a tensor without contents, as tracers do."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return torch.empty(3)


def masked() -> Any:
    """Make a masked tensor."""
    from torch.masked import masked_tensor

    return masked_tensor(torch.ones(2), torch.tensor([True, False]))


def scheduler() -> Any:
    """Make a scheduler."""
    return torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD([torch.zeros(1)]), Schedule())


TENSORS: dict[str, tuple[Any, str]] = {
    "coo": (lambda: torch.eye(3).to_sparse(), r"sparse_coo .*to_dense\(\), or its indices and values"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), r"sparse_csr .*to_dense\(\)"),
    "blocks": (lambda: torch.eye(4).to_sparse_bsr((2, 2)), r"sparse_bsr .*to_dense\(\)"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), r"nested .*to_padded_tensor\(\)"),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        r"NestedTensor .*values\(\) and offsets\(\)",
    ),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), r"int_repr\(\)"),
    "meta": (lambda: torch.empty(2, device="meta"), r"meta device has no contents.*to_empty\(\)"),
    "meta parameter": (lambda: torch.nn.Parameter(torch.empty(2, device="meta")), "meta device has no contents"),
    "fake": (fake, "FakeTensor .*save the real tensor"),
    "masked": (masked, r"MaskedTensor .*get_data\(\) and get_mask\(\)"),
    "uninitialized": (torch.nn.parameter.UninitializedParameter, r"no shape yet: call the lazy module once"),
    "uninitialized buffer": (torch.nn.parameter.UninitializedBuffer, r"no shape yet: call the lazy module once"),
    "lazy module": (lambda: torch.nn.LazyLinear(3).state_dict(), r"no shape yet: call the lazy module once"),
    "functional": (lambda: torch._to_functional_tensor(torch.ones(3)), "outside of the transformation"),
    "zeros without memory": (lambda: torch._efficientzerotensor(3), "without memory of its own"),
    "mkldnn": (lambda: torch.ones(2, 2).to_mkldnn(), r"to_dense\(\)"),
    "subclass": (lambda: torch.ones(2).as_subclass(Sub), r"Sub, a subclass .*as_subclass.*register_type"),
    "parameter of a subclass": (lambda: torch.nn.Parameter(torch.ones(2).as_subclass(Sub)), "Sub, a subclass"),
    "bits": (lambda: torch.zeros(2, dtype=torch.uint8).view(torch.bits8), "bits8 .*view it as another dtype"),
}
OTHERS: dict[str, tuple[Any, str]] = {
    "module": (lambda: torch.nn.Linear(2, 2), r"Linear cannot be saved: save its state_dict\(\)"),
    "optimizer": (lambda: torch.optim.SGD([torch.zeros(1)]), r"SGD cannot be saved: save its state_dict\(\)"),
    "scheduler": (scheduler, r"LambdaLR cannot be saved: save its state_dict\(\)"),
    "scaler": (lambda: torch.amp.GradScaler("cpu"), r"GradScaler cannot be saved: save its state_dict\(\)"),
    "schedule object": (Schedule, "Schedule cannot be saved: register the type"),
    "bound method": (lambda: Schedule().__call__, r"method Schedule\.__call__ cannot be saved.*save what it is made"),
    "function": (lambda: fake, "function fake cannot be saved, .*save what it is made from"),
    "lambda": (lambda: lambda step: step, r"function .*<lambda> cannot be saved, .*save what it is made from"),
    "partial": (lambda: functools.partial(fake), "the partial cannot be saved, .*save what it is made from"),
    "class": (lambda: torch.Tensor, "the class Tensor cannot be saved"),
    "python module": (lambda: np, "the module numpy cannot be saved"),
    "cuda": (OnADevice, r"arrays of type .*OnADevice cannot be saved: convert them, .* or their own method"),
    "dlpack": (Shown, r"arrays of type .*Shown cannot be saved: convert them, with numpy\.from_dlpack"),
}


@pytest.mark.parametrize("name", [*TENSORS, *OTHERS])
async def test_the_error_names_the_path_and_the_way_out(tmp_path: Path, name: str) -> None:
    """Nothing is written, and the next save works."""
    make, message = (TENSORS | OTHERS)[name]
    value = make()
    path = "a/x/weight" if name == "lazy module" else "a/x"
    async with CheckpointManager(tmp_path) as manager:
        for save in (manager.save, manager.save_nowait):
            with pytest.raises(UnsupportedLeafError, match=rf"^step 1: {path}: .*{message}") as caught:
                _ = await save(1, {"w": torch.ones(2), "a": {"x": value}})
            assert caught.value.path == path
            assert "is code" not in str(caught.value)
        assert manager.steps() == []
        await (await manager.save(1, {"a": 1}))
    assert sorted(each.name for each in tmp_path.iterdir() if not each.name.startswith(".")) == ["step_1"]


def test_an_object_that_speaks_dlpack_is_saved_as_the_advice_says(tmp_path: Path) -> None:
    """It becomes an array of numpy's."""
    save_to(tmp_path, 1, np.from_dlpack(Shown()))  # type: ignore[arg-type] # numpy wants more methods than it needs
    assert load_from(tmp_path, 1).tolist() == [1, 1]


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp", "functionalize"])
def test_tensors_within_a_transformation_are_refused(tmp_path: Path, transform: str) -> None:
    """They have no memory of their own."""
    messages = []

    def inner(tensor: Any) -> Any:
        with pytest.raises(UnsupportedLeafError, match=r"^a/x: .*outside of the transformation") as caught:
            save_to(tmp_path, 1, {"a": {"x": tensor}})
        messages.append(str(caught.value))
        return tensor.sum()

    if transform == "jvp":
        torch.func.jvp(inner, (torch.ones(3),), (torch.ones(3),))
    else:
        getattr(torch.func, transform)(inner)(torch.ones(2, 3) if transform == "vmap" else torch.ones(3))
    assert len(messages) == 1


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", [name for name in TENSORS if not name.startswith("meta")])
def test_templates_of_such_tensors_are_refused_likewise(tmp_path: Path, name: str, in_place: bool) -> None:
    """A load says the same of them, and fills nothing."""
    make, message = TENSORS[name]
    value = make()["weight"] if name == "lazy module" else make()
    save_to(tmp_path, 1, {"first": torch.ones(2), "x": torch.ones(2)})
    first = torch.zeros(2)
    with pytest.raises(StateMismatchError, match=rf"^step 1: x: .*{message}"):
        load_from(tmp_path, 1, template={"first": first, "x": value}, in_place=in_place)
    assert first.tolist() == [0, 0]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("make", [lambda: torch.nn.Linear(2, 2), lambda: torch.optim.SGD([torch.zeros(1)])])
def test_a_module_is_no_template(tmp_path: Path, make: Any, in_place: bool) -> None:
    """Its `state_dict()` is."""
    save_to(tmp_path, 1, {"a": make().state_dict()})
    with pytest.raises(StateMismatchError, match=r"^step 1: a: type differs: .*save its state_dict\(\)"):
        load_from(tmp_path, 1, template={"a": make()}, in_place=in_place)


@pytest.mark.parametrize("make", [lambda: {torch.ones(1): 1}, lambda: {(1, torch.ones(1)): 1}, lambda: {torch.ones(1)}])
def test_a_tensor_is_no_key(tmp_path: Path, make: Any) -> None:
    """Nor an element of a set: it is hashed by its identity, which does not come back."""
    with pytest.raises(UnsupportedLeafError, match=r"an array of type torch\.Tensor cannot be a key or an element"):
        save_to(tmp_path, 1, {"a": make()})


DISTRIBUTED = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from torch.distributed.tensor import DTensor, Shard, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from helpers.support import load_from, save_to

for size in (1, 4):
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    tensor = DTensor.from_local(torch.ones(4), init_device_mesh("cpu", (size,)), [Shard(0)])
    root = Path(sys.argv[1])
    save_to(root, size, {"a": torch.ones(4 * size)})
    for each in (tensor, torch.nn.Parameter(tensor)):
        for action in (
            lambda: save_to(root, 9, {"a": each}),
            lambda: load_from(root, size, template={"a": each}),
            lambda: load_from(root, size, template={"a": each}, in_place=True),
        ):
            try:
                action()
            except Exception as error:
                print(type(error).__name__, error)
    dist.destroy_process_group()
assert not (root / "step_9").exists()
"""


def test_distributed_tensors_are_refused(tmp_path: Path) -> None:
    """On a mesh of any size: a program must not depend on there being one process only."""
    command = [sys.executable, "-W", "ignore", "-c", DISTRIBUTED, str(tmp_path)]
    result = subprocess.run(  # noqa: S603 - the command is this test's own
        command, env={"PYTHONPATH": f"{HELPERS}:{HELPERS.parent}"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines] == [
        *("UnsupportedLeafError", "StateMismatchError", "StateMismatchError") * 4
    ]
    assert all(re.search(r"DTensor .*full_tensor\(\)", line) for line in lines)

"""Arrays of another library than numpy: one module that registers an adapter is all they need."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.support import assert_same, load_from, save_to

from asyncckpt import StateMismatchError, UnsupportedLeafError, frameworks
from asyncckpt.arrays import adapters
from asyncckpt.arrays.adapters import ArrayKind, ArrayLeaf, ArrayType, UnfitTargetError
from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.runtime.buffers import BufferPool
from asyncckpt.runtime.context import JobContext
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state.capture import Capture
from asyncckpt.state.encode import flatten

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]


class Tensor:
    """An array of a library that numpy does not know: int32 numbers in a storage that several tensors may share."""

    def __init__(self, storage: bytearray, shape: tuple[int, ...], *, is_final: bool = False) -> None:
        """Look at a storage."""
        self.storage = storage
        self.sizes = shape
        self.is_final = is_final

    @classmethod
    def of(cls, array: NDArray[Any], **options: Any) -> Tensor:
        """Copy an array."""
        return cls(bytearray(array.astype("<i4").tobytes()), array.shape, **options)


class Source:
    """The bytes of a tensor, which must be copied, as those on a device."""

    def __init__(self, storage: bytearray) -> None:
        """Keep the storage alive."""
        self._storage = storage
        self.nbytes = len(storage)

    def view(self, start: int, nbytes: int) -> Bytes | None:  # noqa: ARG002
        """There is no memory to show."""
        return None

    def copy_to(self, target: Bytes, start: int) -> None:
        """Copy from the storage."""
        target[:] = np.frombuffer(self._storage[start : start + len(target)], np.uint8)

    def buffer(self) -> bytes:
        """Copy all of it."""
        return bytes(self._storage)


class Filling:
    """A tensor while it is filled."""

    def __init__(self, tensor: Tensor) -> None:
        """Fill it."""
        self._tensor = tensor
        self.array = None

    def memory(self) -> Bytes | None:
        """There is no memory to show."""
        return None

    def store(self, start: int, data: Bytes) -> None:
        """Put bytes into the storage."""
        self._tensor.storage[start : start + len(data)] = data.tobytes()

    def finish(self) -> Tensor:
        """Note that it is complete."""
        FINISHED.append(self._tensor)
        return self._tensor


class Adapter:
    """What there is to know of them."""

    def leaf(self, tensor: Tensor) -> ArrayLeaf:
        """Describe a tensor."""
        if not tensor.storage:
            raise UnsupportedLeafError("a tensor without a storage", path="")
        identity = ("tensor", id(tensor.storage), tensor.sizes)
        meta = ArrayMeta(np.dtype("<i4"), tensor.sizes)
        return ArrayLeaf(identity, meta, Source(tensor.storage), is_stable=tensor.is_final)

    def wanted(self, tensor: Tensor) -> ArrayType:
        """Describe one in a template."""
        leaf = self.leaf(tensor)
        return ArrayType(leaf.meta.dtype, leaf.meta.shape)

    def target(self, tensor: Tensor, dtype: np.dtype[Any]) -> Filling:
        """Fill one."""
        assert dtype == "<i4"
        if tensor.is_final:
            raise UnfitTargetError("writability", "a final tensor", "contents to be filled in")
        return Filling(tensor)

    def like(self, tensor: Tensor, data: NDArray[Any], kind: ArrayKind | None) -> NDArray[Any]:
        """Leave it a numpy array."""
        assert kind is None
        assert tensor.sizes == data.shape
        return data


FINISHED: list[Tensor] = []


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the adapter of these tensors for each test."""
    monkeypatch.setitem(adapters._ADAPTERS, Tensor, Adapter())
    FINISHED.clear()


NUMBERS = np.arange(70_000, dtype="<i4").reshape(700, 100)
SMALL = np.arange(12, dtype="<i4").reshape(3, 4)


@pytest.mark.parametrize("frozen", [False, True])
def test_their_contents_come_back_as_numpy_arrays(tmp_path: Path, frozen: bool) -> None:
    """Large ones, small ones in a row with numpy's, and those that cannot change are captured like any array."""
    state = {
        "large": Tensor.of(NUMBERS),
        "rest": [Tensor.of(SMALL, is_final=True), SMALL + 1, Tensor.of(SMALL), SMALL + 2],
        "final": Tensor.of(NUMBERS, is_final=True),
    }
    save_to(tmp_path, 1, state, frozen=frozen)
    found = load_from(tmp_path, 1)
    assert_same(found, {"large": NUMBERS, "rest": [SMALL, SMALL + 1, SMALL, SMALL + 2], "final": NUMBERS})


def test_one_memory_is_saved_once() -> None:
    """Objects that look at the same storage are one array, and the storage is not reused while the walk goes on."""
    storage = bytearray(SMALL.tobytes())
    flat = flatten([Tensor(storage, (3, 4)), Tensor(storage, (3, 4)), Tensor(storage, (12,))], pacer=Pacer())
    assert [meta.shape for meta in flat.arrays] == [(3, 4), (12,)]


@pytest.mark.parametrize("pooled", [False, True])
def test_a_capture_is_a_copy(pooled: bool) -> None:
    """What the program does to the memory after the capture does not matter."""
    tensor = Tensor.of(NUMBERS)
    pool = BufferPool() if pooled else None
    capture = Capture.staged(flatten(tensor, pacer=Pacer()), pool, JobContext())
    tensor.storage[:] = bytes(len(tensor.storage))
    views = capture.snapshot.view(0, 0, NUMBERS.nbytes)
    assert views is not None
    assert b"".join(view.tobytes() for view in views) == NUMBERS.tobytes()
    capture.release()


def test_what_cannot_change_is_not_copied() -> None:
    """An array that its library never changes takes no buffer."""
    tensor = Tensor.of(NUMBERS, is_final=True)
    capture = Capture.staged(flatten(tensor, pacer=Pacer()), None, JobContext())
    assert capture.nbytes < 4096
    target = np.empty(8, np.uint8)
    capture.snapshot.copy_to(target, 0, 4)
    assert target.tobytes() == NUMBERS.tobytes()[4:12]


def test_an_error_of_the_adapter_names_the_path() -> None:
    """The adapter does not know where a tensor is."""
    with pytest.raises(UnsupportedLeafError, match=r"^a/1: a tensor without a storage"):
        flatten({"a": [0, Tensor(bytearray(), ())]}, pacer=Pacer())


def test_they_are_filled_in_place(tmp_path: Path) -> None:
    """Whether they are alone, in the template twice, or beside a numpy array that shares their contents."""
    shared = SMALL + 5
    save_to(tmp_path, 1, {"a": NUMBERS, "b": SMALL, "both": [shared, shared]})
    template = {
        "a": Tensor.of(NUMBERS * 0),
        "b": Tensor.of(SMALL * 0),
        "both": [Tensor.of(SMALL * 0), Tensor.of(SMALL * 0)],
    }
    assert load_from(tmp_path, 1, template=template, in_place=True) is template
    tensors = [template["a"], template["b"], *template["both"]]
    assert [bytes(each.storage) for each in tensors] == [each.tobytes() for each in (NUMBERS, SMALL, shared, shared)]
    assert tensors == FINISHED
    mixed: Any = {"a": np.zeros_like(NUMBERS), "b": np.zeros_like(SMALL), "both": [Tensor.of(SMALL * 0), SMALL * 0]}
    load_from(tmp_path, 1, template=mixed, in_place=True)
    assert bytes(mixed["both"][0].storage) == shared.tobytes()
    assert_same(mixed["both"][1], shared)


@pytest.mark.parametrize(
    ("tensor", "field"),
    [
        (lambda: Tensor.of(SMALL[:2]), "shape"),
        (lambda: Tensor.of(SMALL, is_final=True), "writability"),
        (lambda: Tensor(bytearray(), ()), "type"),
    ],
)
def test_a_template_that_does_not_fit_is_refused_before_anything_is_read(
    tmp_path: Path, tensor: Callable[[], Tensor], field: str
) -> None:
    """What the adapter says of it is checked like a numpy array."""
    save_to(tmp_path, 1, {"w": SMALL})
    with pytest.raises(StateMismatchError) as caught:
        load_from(tmp_path, 1, template={"w": tensor()}, in_place=True)
    assert (caught.value.path, caught.value.field) == ("w", field)


def test_a_type_without_an_adapter_is_refused() -> None:
    """Nothing is guessed from what an object looks like; nor does a subclass take its base's adapter."""
    for kind in (type("Array", (), {"dtype": np.dtype("f4"), "shape": ()}), type("Sub", (Tensor,), {})):
        with pytest.raises(UnsupportedLeafError):
            flatten(kind.__new__(kind), pacer=Pacer())


def test_a_frameworks_module_is_imported_when_its_first_array_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table names the packages that have its types."""
    (tmp_path / "fakelib.py").write_text(
        "import fakearrays\n"
        "from asyncckpt.arrays.adapters import ArrayLeaf, register_adapter\n"
        "from asyncckpt.arrays.meta import ArrayMeta\n"
        "class Adapter:\n"
        "    def leaf(self, array):\n"
        "        return ArrayLeaf(id(array), ArrayMeta(array.data.dtype, array.data.shape), array.data)\n"
        "register_adapter(fakearrays.Array, Adapter())\n"
    )
    (tmp_path / "fakearrays.py").write_text("class Array:\n    def __init__(self, data):\n        self.data = data\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(frameworks, "__path__", [*frameworks.__path__, str(tmp_path)])
    monkeypatch.setitem(adapters._MODULES, "fakearrays", "fakelib")
    monkeypatch.setitem(sys.modules, "fakelib", ModuleType("fakelib"))  # the program has imported it
    flatten([SMALL], pacer=Pacer())
    assert "asyncckpt.frameworks.fakelib" not in sys.modules
    library: Any = __import__("fakearrays")
    flat = flatten(library.Array(SMALL), pacer=Pacer())
    assert flat.sources[0] is SMALL
    for name in ("fakearrays", "asyncckpt.frameworks.fakelib"):
        monkeypatch.delitem(sys.modules, name)

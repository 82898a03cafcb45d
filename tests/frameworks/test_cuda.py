"""Tensors on CUDA devices: on a fake CUDA that copies late and out of order, and on the real one where there is one."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.gates import Gate, hold
from helpers.tensors import DTYPES, IGNORED, assert_equal, bits, random_tensor, torch
from helpers.tensors_on_cuda import DEVICES, FakeCuda, FakeStream, OnCuda, install

from asyncckpt import (
    Checkpointer,
    CheckpointManager,
    LeafError,
    MsgpackCheckpointer,
    SaveFailedError,
    StateChangedError,
    StateMismatchError,
    UnsupportedLeafError,
    register_type,
)
from asyncckpt.arrays.device import Moment
from asyncckpt.frameworks.torch import cuda as cuda_module
from asyncckpt.frameworks.torch.cuda import CudaDevice, CudaSource
from asyncckpt.runtime.buffers import BufferPool
from asyncckpt.runtime.memory import aligned_buffer
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = IGNORED
MIB = 1 << 20
ORDERS: tuple[str | int, ...] = ("program", "copies", 1, 2, 3)
WAYS = ("staged", "frozen", "streamed")


@pytest.fixture(params=ORDERS)
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Return a CUDA that works in some order."""
    return install(monkeypatch, request.param)


def on_cuda(value: Any, device: int = 0) -> Any:
    """Put all tensors of a state on a device."""
    if isinstance(value, dict):
        return {key: on_cuda(each, device) for key, each in value.items()}
    if isinstance(value, list):
        return [on_cuda(each, device) for each in value]
    return OnCuda(value, device) if isinstance(value, torch.Tensor) else value


def tensors() -> dict[str, Any]:
    """Make tensors of every kind: large and small, scattered, to be conjugated and negated, of all dtypes."""
    large = torch.randn(700, 801)
    made = {
        "large": [large, large.t(), random_tensor("bfloat16", 500, 701)[:, ::2], torch.randn(5 * MIB)],
        "small": [torch.full((number % 7,), float(number)) for number in range(600)],
        "scalar": torch.tensor(2.5),
        "conj": torch.randn(300, 9, dtype=torch.cfloat).t().conj(),
        "neg": torch.randn(3000, dtype=torch.cfloat).conj().imag,
        "half": torch.randn(7, dtype=torch.cfloat).to(torch.complex32).conj(),
        "weight": torch.nn.Parameter(torch.randn(3, 5)),
    }
    for name in DTYPES:
        made[name] = [random_tensor(name, 70, 90), random_tensor(name, 70, 90).t()[1:, ::3], random_tensor(name)]
    return made


@pytest.mark.parametrize("form", ["msgpack", "hdf5"])
@pytest.mark.parametrize("way", WAYS)
async def test_tensors_of_every_kind_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, form: str
) -> None:
    """In every way to capture a state; those of one device at once, if they are small."""
    cuda = install(monkeypatch)
    state = tensors()
    budget = 2 * MIB if way == "streamed" else 1 << 30
    async with CheckpointManager(tmp_path, format=form, max_staged_nbytes=budget) as manager:
        await (await manager.save(1, {"a": on_cuda(state), "n": 1}, frozen=way == "frozen"))
        assert_equal((await manager.load(1)).state, {"a": state, "n": 1})
    assert not cuda.is_copying()
    assert cuda.copies < 250  # of more than 600 tensors


@pytest.mark.parametrize("way", WAYS)
async def test_a_save_has_what_the_program_had_computed_when_it_called(
    tmp_path: Path, cuda: FakeCuda, way: str
) -> None:
    """On the current stream of its thread, whichever that is, and however late the device computes it."""
    large, small, other = torch.zeros(3 * MIB), torch.zeros(5), torch.zeros(20, 30)
    state = {"large": OnCuda(large), "small": OnCuda(small), "other": OnCuda(other, 2)}
    streams = [FakeStream(cuda, 0), FakeStream(cuda, 2)]
    for stream, tensor in zip((*streams, streams[0]), (large, other, small), strict=True):
        stream.run(partial(tensor.fill_, 7))
    budget = MIB if way == "streamed" else 1 << 30
    async with CheckpointManager(tmp_path, max_staged_nbytes=budget) as manager:
        with streams[0].entered(), streams[1].entered():
            handle = await manager.save(1, state, frozen=way == "frozen")
        if way == "frozen":
            await handle
        for tensor in (large, small, other):  # which the program may change now
            streams[0].run(partial(tensor.fill_, 8))
            streams[1].run(partial(tensor.fill_, 8))
        cuda.advance()
        await handle
        found = (await manager.load(1)).state
    assert all((tensor == 7).all() for tensor in found.values())


@pytest.mark.parametrize("kind", ["manager", "keyed"])
async def test_the_moment_is_noted_before_anything_is_awaited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """On the thread of the program, so work that other tasks give the device afterwards delays no copy."""
    cuda = install(monkeypatch, "copies")
    tensor = torch.zeros(MIB)
    waited: list[Any] = []
    wait = FakeStream.wait
    monkeypatch.setattr(FakeStream, "wait", lambda self, event: (waited.append(event), wait(self, event)))
    later = threading.Event()
    async with CheckpointManager(tmp_path) as manager, Checkpointer.from_file(tmp_path / "a.h5") as view:
        save = manager.save(1, {"a": OnCuda(tensor)}) if kind == "manager" else view.save_parameter("a", OnCuda(tensor))
        saving = asyncio.ensure_future(save)
        await asyncio.sleep(0)  # now it has been called
        cuda.defaults[0].run(later.set)
        await saving
        assert not later.is_set()
    assert {event.thread for event in waited} == {threading.current_thread()}


@pytest.mark.parametrize("kind", ["manager", "keyed"])
async def test_an_array_that_an_object_makes_is_waited_for(tmp_path: Path, cuda: FakeCuda, kind: str) -> None:
    """Its state may be computed on the device during the walk, which another thread does in the program's stream."""

    class Scaled:
        def __init__(self, tensor: Any) -> None:
            self.tensor = tensor

        def to_state(self) -> Any:
            made = torch.zeros_like(self.tensor)
            cuda.current(1).run(lambda: made.copy_(self.tensor * 2))
            return OnCuda(made, 1)

        @classmethod
        def from_state(cls, state: Any) -> Any:
            return state

    register_type(Scaled, name=f"tests.cuda.Scaled_{kind}_{cuda.order}")
    tensor = torch.zeros(2000)
    stream = FakeStream(cuda, 1)
    stream.run(lambda: tensor.fill_(3))
    state = [OnCuda(torch.ones(2), 1), Scaled(tensor)]
    async with CheckpointManager(tmp_path) as manager, Checkpointer.from_file(tmp_path / "a.h5") as view:
        with stream.entered():
            if kind == "manager":
                await (await manager.save(1, state))
                found = (await manager.load(1)).state
            else:
                await view.save_parameter("a", state)
                found = await view.load_parameter("a")
    assert (found[1] == 6).all()


@pytest.mark.parametrize("dtype", ["int16", "complex64", "uint8"])
def test_any_range_of_bytes_is_copied(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """Also one that begins or ends within an element, of tensors that are scattered over their memory."""
    cuda = install(monkeypatch)
    base = random_tensor(dtype, 5, 6)
    for tensor in (base, base.t(), base[1:, ::2], base[0, 1], base.conj()):
        source = CudaSource(tensor, cuda.devices[0], [])
        expected = bits(tensor)
        for start in range(len(expected)):
            for end in range(start, min(start + 30, len(expected))):
                target = np.empty(end - start, np.uint8)
                source.copy_to(target, start)
                assert target.tobytes() == expected[start:end]


class CheckedPool(BufferPool):
    """A pool that no device copies to any more when its buffers come back."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self.cuda = cuda
        self.given = 0

    def give(self, buffers: list[Any]) -> None:
        """Spoil the buffers."""
        assert not self.cuda.is_copying()
        self.given += len(buffers)
        for buffer in buffers:
            buffer.fill(255)
        super().give(buffers)


async def test_buffers_are_registered_once_and_unregistered_before_they_are_unmapped(
    tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay registered from one save to the next."""
    pool = CheckedPool(cuda)
    monkeypatch.setattr("asyncckpt.saving.session.BufferPool", lambda: pool)
    state = {"a": OnCuda(torch.randn(6 * MIB)), "b": OnCuda(torch.randn(50, 60), 1), "small": OnCuda(torch.randn(3))}
    async with CheckpointManager(tmp_path) as manager:
        for step in range(3):
            await (await manager.save(step, state))
            assert 25 * MIB <= sum(cuda.registered.values()) <= 50 * MIB  # buffers may be warmed for the next save
            assert_equal((await manager.load(step)).state["a"], state["a"].tensor)
    assert pool.given
    assert cuda.registered == {}
    assert set(cuda.held) == {each.tensor.untyped_storage().data_ptr() for each in state.values()}


async def test_memory_that_cannot_be_registered_is_copied_to_all_the_same(tmp_path: Path, cuda: FakeCuda) -> None:
    """The driver has another way."""
    cuda.can_register = False
    tensor = torch.randn(MIB)
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, [OnCuda(tensor)]))
        assert_equal((await manager.load(1)).state, [tensor])


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("shape", [(3,), (3 * MIB,)])
async def test_a_device_that_fails_fails_the_save(
    tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], late: bool
) -> None:
    """The error names the path; the buffers are free again, the step, too, and nothing was written."""
    pool = CheckedPool(cuda)
    monkeypatch.setattr("asyncckpt.saving.session.BufferPool", lambda: pool)
    state = {"other": 1, "a": {"w": OnCuda(torch.randn(shape), 1)}}
    async with CheckpointManager(tmp_path) as manager:
        cuda.failure, cuda.fails_late = "CUDA error: out of memory", late
        with pytest.raises(
            LeafError, match=r"^step 1: a/w: copying it from cuda:1 failed: CUDA error: out of"
        ) as caught:
            await manager.save(1, state)
        assert caught.value.path == "a/w"
        assert pool._taken_nbytes == 0
        assert manager.statistics().staged_nbytes == 0
        assert [each.name for each in tmp_path.iterdir() if "step" in each.name] == []
        handle = await manager.save(2, state, frozen=True)
        with pytest.raises(SaveFailedError, match="a/w: copying it from cuda:1 failed"):
            await handle
        cuda.failure = None
        await (await manager.save(1, state))
        assert_equal((await manager.load(1)).state["a"]["w"], state["a"]["w"].tensor)


async def test_a_lost_device_concerns_only_states_with_tensors_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may still save what is in memory, or on other devices."""
    cuda = install(monkeypatch)

    def lost() -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for name in ("is_capturing", "record", "entered"):
        monkeypatch.setattr(cuda.defaults[1], name, lost)
    state = [torch.ones(3), OnCuda(torch.randn(2))]
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, state))
        assert_equal((await manager.load(1)).state, [each if each is state[0] else each.tensor for each in state])
        with pytest.raises(UnsupportedLeafError, match=r"^step 2: a: .* on cuda:1 cannot .* any more: .*illegal"):
            await manager.save(2, {"a": OnCuda(torch.ones(2), 1)})


async def test_prewarm_registers_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the first save need not."""
    cuda = install(monkeypatch)
    state = [OnCuda(torch.randn(6 * MIB)), OnCuda(torch.randn(50, 60), 1)]
    async with CheckpointManager(tmp_path) as manager:
        await manager.prewarm([each.tensor for each in state])
        assert cuda.registered == {}
        await manager.prewarm(state)
        registered = dict(cuda.registered)
        assert sum(registered.values()) == 25 * MIB
        await (await manager.save(1, state))
        assert cuda.registered == registered


async def test_other_devices_are_read_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch moves bytes from any device, in a thread that may wait."""
    cuda = install(monkeypatch)
    state = tensors()
    elsewhere = on_cuda(state)
    for each in (each for value in elsewhere.values() for each in (value if isinstance(value, list) else [value])):
        each.device = torch.device("xpu", 0)
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(ValueError, match="has an array on xpu:0, at large/0"):
            manager.save_nowait(1, elsewhere)
        await (await manager.save(1, elsewhere))
        assert_equal((await manager.load(1)).state, state)
    assert cuda.copies == 0


@pytest.mark.parametrize("way", ["frozen", "streamed"])
async def test_a_storage_that_is_freed_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """As sharded training frees those of its parameters."""
    install(monkeypatch)
    disk = FaultyDisk()
    tensor = torch.randn(3 * MIB)
    state = {"first": torch.randn(2 * MIB), "a": {"w": OnCuda(tensor)}}
    budget = 2 * MIB if way == "streamed" else 1 << 30
    async with CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=budget) as manager:
        with hold(disk) as gate:
            saving = asyncio.ensure_future(manager.save(1, state, frozen=way == "frozen"))
            await gate.reached()
            tensor.untyped_storage().resize_(0)
        with pytest.raises(SaveFailedError, match="was freed, or made smaller") as caught:
            await (await saving)
        assert isinstance(caught.value.__cause__, StateChangedError)
        assert caught.value.__cause__.path == "a/w"


async def test_a_cancellation_waits_for_copies_under_way(tmp_path: Path, cuda: FakeCuda) -> None:
    """Only then may the program use, or free, the tensors."""
    gate = Gate()
    cuda.defaults[0].run(gate)
    async with CheckpointManager(tmp_path) as manager:
        saving = asyncio.ensure_future(manager.save(1, [OnCuda(torch.randn(5 * MIB)), OnCuda(torch.randn(MIB))]))
        await gate.reached()
        saving.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
            assert not saving.done()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert not cuda.is_copying()
        assert manager.steps() == []
        assert manager.statistics().staged_nbytes == 0


async def test_tied_tensors_on_devices_come_back_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same memory on one device is one array; equal addresses on two devices are two."""
    cuda = install(monkeypatch)
    tensor = torch.randn(200, 300)
    state = [OnCuda(tensor), OnCuda(tensor.detach()), OnCuda(tensor.view(-1)), OnCuda(tensor, 1)]
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, state))
        found = (await manager.load(1)).state
    assert_equal(found, [each.tensor for each in state])
    assert found[0] is found[1]
    assert len({id(each) for each in found}) == 3
    assert cuda.devices[0] is not cuda.devices[1]


async def test_a_save_during_a_graph_capture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is put into the stream, and nothing written; states without tensors there are saved as ever."""
    cuda = install(monkeypatch)
    state = {"a": {"w": OnCuda(torch.randn(3), 1)}}
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(0, state))
        cuda.defaults[1].captures = True
        with pytest.raises(UnsupportedLeafError, match=r"^step 1: a/w: an array on cuda:1 cannot .* captures a graph"):
            await manager.save(1, state)
        with pytest.raises(StateMismatchError, match=r"a/w: .* captures a graph"):
            await manager.restore(0, into=state)
        await (await manager.save(2, [OnCuda(torch.ones(2)), torch.ones(3)]))
        assert manager.steps() == [0, 2]
        chk = MsgpackCheckpointer(tmp_path / "a.msgpack")
        async with chk as view:
            with pytest.raises(UnsupportedLeafError, match="captures a graph"):
                await view.save_parameter("a", state)
        cuda.defaults[1].captures = False


async def test_what_cannot_wait_refuses_tensors_on_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small they are."""
    install(monkeypatch)
    state = {"a": {"w": OnCuda(torch.ones(1), 2)}}
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(ValueError, match=r"^step 1: the state has an array on cuda:2, at a/w: use await save"):
            manager.save_nowait(1, state)
        assert manager.steps() == []
    assert list(tmp_path.glob("step*")) == []


async def test_a_state_on_devices_counts_for_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one in memory does."""
    install(monkeypatch)
    disk = FaultyDisk()
    state = [OnCuda(torch.randn(MIB), device) for device in range(DEVICES)]
    state.append(OnCuda(torch.randn(100, 1000, dtype=torch.cfloat).conj()))
    async with CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=20 * MIB, overflow="skip") as manager:
        with hold(disk) as gate:
            handle = await manager.save(1, state)
            await gate.reached()
            assert 12.7 * MIB < manager.statistics().staged_nbytes < 13 * MIB
            assert (await manager.save(2, state)).state == "skipped"
        await handle


async def test_restore_fills_tensors_on_devices_in_the_programs_streams(tmp_path: Path, cuda: FakeCuda) -> None:
    """So it comes behind what the program has told the device before, and what it tells it next comes behind that."""
    filled: list[Any] = []

    class Watched(torch.Tensor):
        def copy_(self, other: Any, non_blocking: bool = False) -> Any:  # noqa: FBT002 - PyTorch's own
            filled.append(cuda.current(1))
            assert not non_blocking
            return self.as_subclass(torch.Tensor).copy_(other)

    tensor = torch.randn(3, 4)
    target = OnCuda(torch.zeros(3, 4).as_subclass(Watched), 1)
    stream = FakeStream(cuda, 1)
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, [tensor]))
        with stream.entered():
            found = (await manager.restore(1, into=[target])).state
    assert found == [target]
    assert filled == [stream]
    assert torch.equal(target.tensor.as_subclass(torch.Tensor), tensor)


@pytest.mark.parametrize("kind", ["json", "msgpack", "h5", "npz"])
async def test_keyed_files_hold_tensors_on_devices(tmp_path: Path, cuda: FakeCuda, kind: str) -> None:
    """In both modes; the synchronous one copies on the thread that calls, in its stream."""
    small, large = torch.zeros(4), torch.zeros(MIB)
    stream = FakeStream(cuda, 0)
    for tensor in (small, large):
        stream.run(partial(tensor.fill_, 5))
    name = tmp_path / f"a.{kind}"
    async with Checkpointer.from_file(name) as view:
        with stream.entered():
            await view.save_parameter("a", [OnCuda(small), OnCuda(large)])
    stream.run(partial(small.fill_, 6))

    def write() -> None:
        with stream.entered(), Checkpointer.from_file(name) as chk:
            chk["b"] = OnCuda(small)
            stream.run(partial(small.fill_, 7))
            assert [each.unique().tolist() for each in chk["a"]] == [[5], [5]]
            assert chk["b"].unique().tolist() == [6]

    await asyncio.to_thread(write)


class Recorded:
    """A stand-in for `torch.cuda`, whose calls are listed; each must be one that PyTorch has."""

    def __init__(self, can_register: bool = True) -> None:  # noqa: FBT002 - a test's own
        self.calls: list[str] = []
        self.can_register = can_register

    def __getattr__(self, name: str) -> Any:
        """Return a function that is listed when it is called."""
        assert hasattr(torch.cuda, name)
        return partial(self._call, name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(" ".join(map(str, (name, *args, *kwargs))))
        if name in ("device", "stream"):
            return self._entered(name, *args)
        results = {"is_current_stream_capturing": False, "is_initialized": True, "device_count": 2}
        if name == "cudart":
            code = 0 if self.can_register else 1
            return SimpleNamespace(cudaHostRegister=lambda *_: code, cudaHostUnregister=lambda *_: 0)
        return results.get(name, SimpleNamespace(device=3, **dict.fromkeys(_STREAM, self._ignore)))

    def _ignore(self, *_: object) -> None:
        """Do nothing."""

    @contextmanager
    def _entered(self, name: str, _: object) -> Iterator[None]:
        yield
        self.calls.append(f"leave {name}")


_STREAM = ("record_event", "wait_event", "synchronize")


@pytest.mark.parametrize("can_register", [True, False])
def test_the_calls_of_torch_make_no_context_on_another_device(
    monkeypatch: pytest.MonkeyPatch, can_register: bool
) -> None:
    """The device is entered before a stream, and left after it; memory is registered with the device entered."""
    api = Recorded(can_register)
    monkeypatch.setattr(cuda_module, "_CUDA", api)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(cuda_module.torch, "zeros", lambda *_, **__: api.calls.append("zeros"))
    device = CudaDevice(cuda_module._TorchRuntime(), 3)
    tensor = torch.arange(5000)
    target = aligned_buffer(tensor.nbytes)
    CudaSource(tensor, device, Moment([device]).ready(device)).copy_to(target, 0)
    assert target.tobytes() == tensor.numpy().tobytes()
    del target
    assert all(hasattr(torch.cuda.Stream, name) or hasattr(torch.cuda.Event, name) for name in _STREAM)
    look = ["device 3", "stream", "is_current_stream_capturing", "leave stream", "leave device"]
    register = ["device 3", "cudart", *([] if can_register else ["zeros"]), "leave device"]
    copy = ["device 3", "stream", "leave stream", "leave device"]
    unregister = ["device 3", "cudart", "leave device"] if can_register else []
    calls = ["stream" if call.startswith("stream") else call for call in api.calls]
    calls = [call for call in calls if call not in ("current_stream 3", "Stream 3", "Event blocking")]
    assert calls == [*look, *register, *copy, *unregister]


# --- where there is a device ------------------------------------------------------------------------------------------

on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def moved(value: Any) -> Any:
    """Return a state with all tensors on the GPU, laid out as before."""
    if isinstance(value, dict):
        return {key: moved(each) for key, each in value.items()}
    if isinstance(value, list):
        return [moved(each) for each in value]
    if not isinstance(value, torch.Tensor) or isinstance(value, torch.nn.Parameter) or value.is_neg():
        return value.cuda() if isinstance(value, torch.Tensor) else value
    if value.is_conj():
        return moved(value.conj()).conj()
    raw = value.untyped_storage().cuda()
    made = torch.empty(0, dtype=value.dtype, device="cuda")
    return made.set_(raw, value.storage_offset(), value.shape, value.stride())


class TestOnTheDevice:
    """What the fake stands in for, with PyTorch's own CUDA."""

    pytestmark = on_a_gpu

    @pytest.mark.parametrize("way", WAYS)
    async def test_tensors_of_every_kind_come_back(self, tmp_path: Path, way: str) -> None:
        """In every way to capture a state."""
        state = tensors()
        budget = 2 * MIB if way == "streamed" else 1 << 30
        async with CheckpointManager(tmp_path, max_staged_nbytes=budget) as manager:
            for step in range(2):
                await (await manager.save(step, moved(state), frozen=way == "frozen"))
                assert_equal((await manager.load(step)).state, state)

    async def test_a_save_has_what_was_computed_when_it_was_called(self, tmp_path: Path) -> None:
        """In a stream of the program's that is far behind, and is given more work after the save."""
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            state = {"large": torch.zeros(8 * MIB, device="cuda"), "small": torch.zeros(9, device="cuda")}
        stream.synchronize()
        async with CheckpointManager(tmp_path) as manager:
            for step in range(1, 4):
                with torch.cuda.stream(stream):
                    torch.cuda._sleep(100_000_000)
                    for tensor in state.values():
                        tensor.fill_(step)
                    handle = await manager.save(step, state)
                    for tensor in state.values():
                        tensor.fill_(-1)
                await handle
                assert all((tensor == step).all() for tensor in (await manager.load(step)).state.values())

    async def test_templates_bring_tensors_back_to_the_device(self, tmp_path: Path) -> None:
        """New ones, and the same ones filled, behind what the program's stream was given before."""
        state = {"a": torch.randn(1000, 30, device="cuda"), "b": torch.randn(5, 6, device="cuda").t()}
        expected = {key: tensor.clone() for key, tensor in state.items()}
        stream = torch.cuda.Stream()
        async with CheckpointManager(tmp_path) as manager:
            await (await manager.save(1, state))
            found = (await manager.load(1, like=state)).state
            with torch.cuda.stream(stream):
                torch.cuda._sleep(100_000_000)
                for tensor in state.values():
                    tensor.fill_(0)
                await manager.restore(1, into=state)
            for key, tensor in expected.items():
                assert found[key].device == tensor.device
                assert torch.equal(found[key], tensor)
                assert torch.equal(state[key], tensor)

    async def test_a_save_during_a_graph_capture_is_refused(self, tmp_path: Path) -> None:
        """The graph is captured all the same."""
        tensor = torch.ones(100, device="cuda")
        async with CheckpointManager(tmp_path) as manager:
            await (await manager.save(1, [tensor]))
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                tensor.add_(1)
                with pytest.raises(UnsupportedLeafError, match="captures a graph"):
                    await manager.save(2, [tensor])
            graph.replay()
            await (await manager.save(3, [tensor]))
            assert ((await manager.load(3)).state[0] == 2).all()

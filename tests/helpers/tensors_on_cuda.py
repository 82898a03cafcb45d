"""A CUDA that does everything as late, and in as odd an order, as the real one may; its tensors are in plain memory.

Nothing that is put into a stream is done before somebody waits for it. Then the streams go on in any order that their
own sequences and their events allow. `FakeCuda` stands in for the runtime below `asyncckpt.frameworks.torch.cuda`, all
of which is real, as is what PyTorch does with the tensors.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import asyncckpt.frameworks.torch as framework
from asyncckpt.arrays.adapters import register_adapter
from asyncckpt.frameworks.torch.cuda import CudaDevice
from asyncckpt.runtime.memory import PAGE_NBYTES, libc
from helpers.tensors import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

DEVICES = 3


class FakeCuda:
    """The runtime of some devices; `order` is who goes on first: "program", "copies", or a seed."""

    def __init__(self, order: str | int = 0) -> None:
        self.order = order
        self.random = random.Random(order)  # noqa: S311 - a test's own order
        self.lock = threading.RLock()
        self.local = threading.local()
        self.streams: list[FakeStream] = []
        self.defaults = [FakeStream(self, number) for number in range(DEVICES)]
        self.devices = [CudaDevice(self, number) for number in range(DEVICES)]
        self.registered: dict[int, int] = {}
        self.can_register = True
        self.failure: str | None = None
        """What copies fail with."""
        self.fails_late = False
        """Whether that is noticed only when somebody waits for them."""
        self.copies = 0
        self.held: list[Any] = []

    def current(self, device: int) -> FakeStream:
        """See `Runtime`."""
        return getattr(self.local, "streams", {}).get(device, self.defaults[device])

    def new_stream(self, device: int) -> FakeStream:
        """See `Runtime`."""
        return FakeStream(self, device, copies=True)

    def register(self, device: int, address: int, nbytes: int) -> bool:
        """See `Runtime`."""
        assert 0 <= device < DEVICES
        assert address not in self.registered
        if self.can_register:
            self.registered[address] = nbytes
        return self.can_register

    def unregister(self, device: int, address: int) -> None:
        """See `Runtime`."""
        assert 0 <= device < DEVICES
        assert libc().mincore(address, PAGE_NBYTES, ctypes.create_string_buffer(1)) == 0, "it is not mapped any more"
        del self.registered[address]

    def is_copying(self) -> bool:
        """Whether a copy has not been done yet."""
        return any(what == "work" for each in self.streams if each.copies for what, _ in each.queue)

    def advance(self, event: FakeEvent | None = None) -> None:
        """Go on until an event, or until everything is done."""
        with self.lock:
            while event is None or not event.is_done:
                able = [each for each in self.streams if each.queue and each.can_go_on()]
                if event is None and not able:
                    return
                assert able, "the event can never come"
                if self.order in ("program", "copies"):
                    wants_copies = self.order == "copies"
                    able = [each for each in able if each.copies == wants_copies] or able
                self.random.choice(able).go_on()


class FakeStream:
    """A stream, whose work waits until somebody waits for it."""

    def __init__(self, cuda: FakeCuda, device: int, *, copies: bool = False) -> None:
        self.cuda = cuda
        self.device = device
        self.copies = copies
        self.queue: deque[tuple[str, Any]] = deque()
        self.captures = False
        cuda.streams.append(self)

    def is_capturing(self) -> bool:
        """See `Stream`."""
        return self.captures

    def record(self) -> FakeEvent:
        """See `Stream`."""
        event = FakeEvent(self.cuda, threading.current_thread())
        self._put("record", event)
        return event

    @contextmanager
    def entered(self) -> Iterator[None]:
        """See `Stream`."""
        before = getattr(self.cuda.local, "streams", {})
        self.cuda.local.streams = {**before, self.device: self}
        try:
            yield
        finally:
            self.cuda.local.streams = before

    def wait(self, event: FakeEvent) -> None:
        """See `CopyStream`."""
        self._put("wait", event)

    def hold(self, tensor: Any) -> None:
        """See `CopyStream`."""
        self.cuda.held.append(tensor.untyped_storage().data_ptr())

    def run(self, work: Callable[[], object]) -> None:
        """See `CopyStream`; of a program's stream, let it do something."""
        self._put("work", work)
        if self.copies and self.cuda.failure is not None and not self.cuda.fails_late:
            raise RuntimeError(self.cuda.failure)

    def _put(self, what: str, argument: Any) -> None:
        assert not self.captures, f"{what} during a capture"
        with self.cuda.lock:
            self.queue.append((what, argument))

    def can_go_on(self) -> bool:
        """Whether the first thing in it can be done now."""
        what, argument = self.queue[0]
        return what != "wait" or argument.is_done

    def go_on(self) -> None:
        """Do the first thing in it."""
        what, argument = self.queue.popleft()
        if what == "record":
            argument.is_done = True
        elif what == "work":
            self.cuda.copies += self.copies
            argument()


class FakeEvent:
    """An event."""

    def __init__(self, cuda: FakeCuda, thread: threading.Thread) -> None:
        self.cuda = cuda
        self.thread = thread
        self.is_done = False

    def synchronize(self) -> None:
        """See `Event`."""
        self.cuda.advance(self)
        if self.cuda.failure is not None and self.cuda.fails_late:
            raise RuntimeError(self.cuda.failure)


class OnCuda:
    """A tensor that says it is on a device, and otherwise is one on the CPU."""

    def __init__(self, tensor: Any, device: int = 0) -> None:
        self.tensor = tensor
        self.device = torch.device("cuda", device)
        self.is_cpu = False

    def __getattr__(self, name: str) -> Any:
        """Do as the tensor."""
        return getattr(self.tensor, name)


register_adapter(OnCuda, framework._TensorAdapter())


def install(monkeypatch: pytest.MonkeyPatch, order: str | int = 0) -> FakeCuda:
    """Let a program use devices that are not there."""
    cuda = FakeCuda(order)
    monkeypatch.setattr(framework, "devices", lambda: cuda.devices)
    monkeypatch.setattr(framework, "cuda_device", cuda.devices.__getitem__)
    return cuda

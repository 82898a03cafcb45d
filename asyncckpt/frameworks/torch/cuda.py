"""CUDA: copies of tensors on devices, beside the program's own work there.

1. The copies of a device go into a stream of ours. It waits for the events of `Moment.ready`, so it copies what the
   program had computed when it called.
2. They go directly into the buffers of the pool, which are registered with the driver when they are first used so, and
   stay it until they are unmapped. What cannot be registered is copied to all the same, by the driver's own detour.
3. A call that copies ends when the device has, also if something fails: so buffers and tensors are not used again
   before. (If waiting itself fails, the device has lost its context, and with it all work.)
4. The allocator is told that our stream uses a tensor. So if the program frees its storage meanwhile, the memory is not
   used again before the copy has ended.
"""

from __future__ import annotations

import contextlib
import threading
from functools import cache, cached_property, partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import torch

from asyncckpt.arrays.device import DeviceSource, Event, Stream
from asyncckpt.arrays.source import SourceError
from asyncckpt.errors import brief
from asyncckpt.frameworks.torch.parts import PartSource
from asyncckpt.runtime.memory import mapping_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]


class CopyStream(Stream, Protocol):
    """A stream that copies."""

    def wait(self, event: Event) -> None:
        """Let everything that is put into it from now on wait for an event."""

    def hold(self, tensor: torch.Tensor) -> None:
        """Keep the tensor's memory from being used again before what is in the stream now has been done."""

    def run(self, work: Callable[[], object]) -> None:
        """Put into it what a function tells the device."""


class Runtime(Protocol):
    """What is used of CUDA. The first argument is the number of a device."""

    def current(self, device: int) -> Stream:
        """Return the current stream of the calling thread."""

    def new_stream(self, device: int) -> CopyStream:
        """Return a stream for copies."""

    def register(self, device: int, address: int, nbytes: int) -> bool:
        """Lock memory of the host, so that the device can copy to it directly; return whether that is possible."""

    def unregister(self, device: int, address: int) -> None:
        """Unlock memory that was registered."""


class CudaDevice:
    """A device, and the engine that copies from it; see `Device`. Used in several threads at once."""

    _registering = threading.Lock()

    def __init__(self, runtime: Runtime, number: int) -> None:
        self._runtime = runtime
        self._number = number
        self.name = f"cuda:{number}"

    @cached_property
    def _stream(self) -> CopyStream:
        return self._runtime.new_stream(self._number)

    def current(self) -> Stream:
        """See `Device`."""
        return self._runtime.current(self._number)

    def fetch(self, sources: Sequence[CudaSource]) -> list[Bytes]:
        """See `Device`."""
        ends = list(accumulate((source.nbytes for source in sources), initial=0))
        data = np.empty(ends[-1], np.uint8)
        self.copy(sources, data, lambda: torch.cat([source.part(0, source.nbytes) for source in sources]))
        return [data[start:end] for start, end in pairwise(ends)]

    def copy(self, sources: Sequence[CudaSource], target: Bytes, make: Callable[[], torch.Tensor]) -> None:
        """Copy bytes that a function makes of sources, on the device, to memory of the host.

        Raises:
            SourceChangedError: The memory of a source was freed.
            SourceError: The device failed.
        """
        for source in sources:
            source.check()
        self.prepare(target)
        host = torch.from_numpy(target)
        stream = self._stream
        try:
            try:
                for event in {id(event): event for source in sources for event in source.ready}.values():
                    stream.wait(event)
                for source in sources:
                    stream.hold(source.tensor)
                stream.run(lambda: host.copy_(make(), non_blocking=True))
            finally:
                stream.record().synchronize()
        except RuntimeError as error:
            more = f" (and {len(sources) - 1} more)" if len(sources) > 1 else ""
            raise SourceError(f"copying it{more} from {self.name} failed: {brief(error)}", sources[0]) from error

    def prepare(self, memory: Bytes) -> None:
        """Register the mapping that memory lies in, once; see `Device`."""
        mapping = mapping_of(memory)
        if mapping is None or mapping.before_unmap is not None:
            return
        with self._registering:
            if mapping.before_unmap is None:
                can = self._runtime.register(self._number, mapping.address, mapping.nbytes)
                mapping.before_unmap = partial(self._runtime.unregister, self._number) if can else _nothing


def _nothing(_: int) -> None:
    """Do nothing with memory that could not be registered."""


class CudaSource(PartSource, DeviceSource):
    """A tensor on a device."""

    def __init__(self, tensor: torch.Tensor, device: CudaDevice, ready: Iterable[Event]) -> None:
        super().__init__(tensor)
        self.device: CudaDevice = device
        self.ready = tuple(ready)

    def copy_to(self, target: Bytes, start: int) -> None:
        """See `ForeignSource`; returns when the device has copied."""
        self.device.copy([self], target, lambda: self.part(start, len(target)))


# --- PyTorch's CUDA ---------------------------------------------------------------------------------------------------

_CUDA: Final[Any] = torch.cuda  # most of which has no types
_PORTABLE: Final = 1  # cudaHostRegisterPortable: for all devices


class _TorchStream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def is_capturing(self) -> bool:
        with self.entered():
            return bool(_CUDA.is_current_stream_capturing())

    def record(self) -> Event:
        event: Event = _CUDA.Event(blocking=True)  # whose `synchronize` sleeps instead of using a core
        self._stream.record_event(event)
        return event

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        # The device first, because leaving a stream sets the device that was current, which may make a context there.
        with _CUDA.device(self._stream.device), _CUDA.stream(self._stream):
            yield

    def wait(self, event: Any) -> None:
        self._stream.wait_event(event)

    def hold(self, tensor: torch.Tensor) -> None:
        tensor.record_stream(self._stream)

    def run(self, work: Callable[[], object]) -> None:
        with self.entered(), torch.no_grad():
            work()


class _TorchRuntime:
    def current(self, device: int) -> Stream:
        return _TorchStream(_CUDA.current_stream(device))

    def new_stream(self, device: int) -> CopyStream:
        return _TorchStream(_CUDA.Stream(device))

    # Either call makes a context on the current device, which must be one that the program uses.

    def register(self, device: int, address: int, nbytes: int) -> bool:
        with _CUDA.device(device):
            if int(_CUDA.cudart().cudaHostRegister(address, nbytes, _PORTABLE)) == 0:
                return True
            with contextlib.suppress(RuntimeError):  # the next launch of this thread reports the failure once more
                torch.zeros(1, device=f"cuda:{device}")
        return False

    def unregister(self, device: int, address: int) -> None:
        with contextlib.suppress(Exception), _CUDA.device(device):  # a forked child, or an exiting process
            _CUDA.cudart().cudaHostUnregister(address)


_RUNTIME: Final = _TorchRuntime()


@cache
def cuda_device(number: int) -> CudaDevice:
    """Return a device by its number."""
    return CudaDevice(_RUNTIME, number)


def devices() -> list[CudaDevice]:
    """Return the devices that the program uses; to ask makes a context on none of them."""
    if not _CUDA.is_initialized():
        return []
    has_context = vars(torch)["_C"]._cuda_hasPrimaryContext  # noqa: SLF001 - there is no public way to ask
    return [cuda_device(number) for number in range(_CUDA.device_count()) if has_context(number)]

"""Arrays in the memory of devices, which do their work some time after they were told to.

1. What a thread tells a device goes into the current stream of that thread, in which the device works in order. So a
   call of the program notes its streams, and how far they have got, on its own thread before it awaits (`Moment`).
2. A copy from a device waits for what it was told up to then, and for nothing that comes later. It has ended when the
   call that makes it returns or raises.
3. No loop's thread waits for a device: arrays there are described, and copied, in other threads.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from asyncckpt.errors import UnsupportedLeafError, brief

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    from numpy.typing import NDArray

    from asyncckpt.arrays.source import ArraySource


class Event(Protocol):
    """A point in a stream."""

    def synchronize(self) -> None:
        """Wait until the device has come to it."""


class Stream(Protocol):
    """What a device is to do, in order."""

    def is_capturing(self) -> bool:
        """Whether it is being recorded in a graph, so that nothing else may be put into it."""

    def record(self) -> Event:
        """Return an event behind everything that is in it."""

    def entered(self) -> AbstractContextManager[object]:
        """Make it the current stream of the calling thread, within a block."""


class Device(Protocol):
    """A device, from which arrays are copied."""

    name: str

    def current(self) -> Stream:
        """Return the current stream of the calling thread."""

    def prepare(self, memory: NDArray[np.uint8]) -> None:
        """Make memory of the host ready for copies."""

    def fetch(self, sources: Sequence[Any]) -> list[NDArray[np.uint8]]:
        """Return the bytes of small sources on this device, copied at once."""


class DeviceSource:
    """A source (see `ForeignSource`) on a device; `copy_to` waits until it has copied."""

    device: Device


class Moment:
    """The streams of a program when it called, and how far they had got. Made on its thread."""

    def __init__(self, devices: Iterable[Device] = ()) -> None:
        """Note the current streams of devices; of others, those of the thread that comes to an array there."""
        self._streams: dict[Device, Stream] = {}
        self._ready: dict[Device, Event | str] = {}
        for device in devices:
            stream, self._ready[device] = _noted(device)
            if stream is not None:
                self._streams[device] = stream

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Let the calling thread tell the devices in the program's streams, within a block."""
        with ExitStack() as stack:
            for stream in self._streams.values():
                stack.enter_context(stream.entered())
            yield

    def ready(self, device: Device, *, is_new: bool = False) -> list[Event]:
        """Return what a copy from a device waits for; for an array that the calling thread has made, that, too.

        Raises:
            UnsupportedLeafError: A graph is being captured, or the device is lost.
        """
        found = [self._ready[device]] if device in self._ready else []
        if is_new or not found:
            found.append(_noted(device)[1])
        events = []
        for event in found:
            if isinstance(event, str):
                raise UnsupportedLeafError(f"an array on {device.name} cannot be copied {event}", path="")
            events.append(event)
        return events


def _noted(device: Device) -> tuple[Stream | None, Event | str]:
    """Return the current stream of a device, and an event behind everything in it, or why there can be none."""
    try:
        stream = device.current()
        if stream.is_capturing():
            return stream, "while the current stream there captures a graph: do it before or after that"
        return stream, stream.record()
    except RuntimeError as error:  # the device is lost, which concerns only who has arrays there
        return None, f"any more: {brief(error)}"


def devices_of(sources: Iterable[ArraySource]) -> set[Device]:
    """Return the devices on which there are sources."""
    return {source.device for source in sources if isinstance(source, DeviceSource)}


def fetched(sources: Sequence[ArraySource]) -> list[ArraySource]:
    """Return small sources, those on devices as copies; all that are on one device are copied at once."""
    found = list(sources)
    numbers: dict[Device, list[int]] = {}
    for number, source in enumerate(sources):
        if isinstance(source, DeviceSource):
            numbers.setdefault(source.device, []).append(number)
    for device, own in numbers.items():
        for number, data in zip(own, device.fetch([sources[each] for each in own]), strict=True):
            found[number] = data
    return found

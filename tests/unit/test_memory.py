"""Memory that direct I/O can take."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from asyncckpt.runtime.memory import PAGE_NBYTES, aligned_array, aligned_buffer, libc, populate

MIB = 1 << 20


def resident(memory: np.ndarray) -> list[bool]:
    """Say of each page of page-aligned memory whether the system has given it one."""
    found = (ctypes.c_ubyte * -(-memory.nbytes // PAGE_NBYTES))()
    assert libc().mincore(memory.ctypes.data, memory.nbytes, found) == 0
    return [bool(each & 1) for each in found]


@pytest.mark.parametrize("nbytes", [0, 1, PAGE_NBYTES - 1, PAGE_NBYTES, 3 * MIB + 5])
def test_memory_begins_on_a_page(nbytes: int) -> None:
    """Buffers and arrays of any size are zeros that begin on a page."""
    for memory in (aligned_buffer(nbytes), aligned_array((nbytes,), np.dtype(np.int8))):
        assert memory.nbytes == nbytes
        assert memory.ctypes.data % PAGE_NBYTES == 0
        assert not memory.any()


@pytest.mark.parametrize("nbytes", [2**62, 2**63, 2**64 + 5])
def test_more_memory_than_there_is(nbytes: int) -> None:
    """It is refused, and not cut off to what an address holds."""
    with pytest.raises((OSError, OverflowError)):
        aligned_buffer(nbytes)


def mapped_nbytes(begin: int, nbytes: int) -> int:
    """Count how many bytes of a range of addresses are mapped."""
    count = 0
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        low, high = (int(each, 16) for each in line.split(maxsplit=1)[0].split("-"))
        count += max(0, min(high, begin + nbytes) - max(low, begin))
    return count


def test_memory_goes_back_with_the_last_array_that_shows_it() -> None:
    """A view keeps it, whatever becomes of the array that it was made from."""
    array = aligned_array((64 * MIB,), np.dtype(np.int64))
    begin, nbytes = array.ctypes.data, array.nbytes
    view = array[5:7]
    view[:] = 3, 4
    del array
    assert mapped_nbytes(begin, nbytes) == nbytes
    assert view.tolist() == [3, 4]
    del view
    assert mapped_nbytes(begin, nbytes) < nbytes


def test_no_call_for_memory_holds_the_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    """To find addresses, and to take memory back, the system may have to wait for other threads."""
    monkeypatch.delattr(mmap, "mmap")  # which holds it
    assert not isinstance(libc(), ctypes.PyDLL)  # whose functions hold it
    aligned_buffer(MIB)[:] = 1


def test_populated_memory_is_there_and_unchanged() -> None:
    """All pages of a range are found, odd edges included; what the memory held it holds."""
    memory = aligned_buffer(9 * MIB)
    memory[5 * MIB : 5 * MIB + 3] = 1, 2, 3
    assert not all(resident(memory))
    populate(memory[MIB + 7 : 8 * MIB + 7])
    assert all(resident(memory[MIB : 8 * MIB + PAGE_NBYTES]))
    assert memory[5 * MIB : 5 * MIB + 3].tolist() == [1, 2, 3]
    assert memory.sum() == 6


def test_populating_what_cannot_be_written_changes_nothing() -> None:
    """It is a hint: memory that cannot be written to stays as it is."""
    memory = np.frombuffer(mmap.mmap(-1, MIB, prot=mmap.PROT_READ), np.uint8)
    populate(memory)
    assert not memory.any()


def test_a_forked_child_gets_buffers_of_zeros() -> None:
    """They are still there, so that nothing else comes to lie in their place, and hold nothing that is to be copied."""
    buffer = aligned_buffer(2 * MIB)
    buffer[:] = 7
    child = os.fork()
    if child == 0:
        os._exit(int(buffer.any()))
    assert os.waitpid(child, 0)[1] == 0
    assert (buffer == 7).all()

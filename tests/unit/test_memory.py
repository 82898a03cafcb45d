"""Memory that direct I/O can take."""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np
import pytest

from asyncckpt.memory import PAGE_NBYTES, aligned_array, aligned_buffer, libc, populate

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
    """It is a hint: memory that the system lets nobody write to stays as it is."""
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

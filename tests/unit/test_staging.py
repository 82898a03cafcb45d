"""The pool keeps the buffers that are used, and gives back those that are not."""

from __future__ import annotations

from asyncckpt.runtime.buffers import LARGE_NBYTES, SMALL_NBYTES, BufferPool


def test_what_lies_idle_between_two_trims_is_given_back() -> None:
    """A buffer is kept while it was used since the last trim, and goes with the next one otherwise."""
    pool = BufferPool()
    pool.give(pool.take(3 * LARGE_NBYTES + SMALL_NBYTES))
    pool.trim()
    assert pool.free_nbytes == 3 * LARGE_NBYTES + SMALL_NBYTES
    pool.give(pool.take(LARGE_NBYTES))
    pool.trim()
    assert pool.free_nbytes == LARGE_NBYTES
    pool.trim()
    assert pool.free_nbytes == 0


def test_a_trim_leaves_what_a_snapshot_holds() -> None:
    """Buffers in use are not the pool's to give back; they come to it later, and count as used."""
    pool = BufferPool()
    held = pool.take(LARGE_NBYTES)
    pool.trim()
    pool.trim()
    pool.give(held)
    pool.trim()
    assert pool.free_nbytes == LARGE_NBYTES
    pool.close()
    pool.trim()
    assert pool.free_nbytes == 0

"""Many objects that last are counted as old, so that the collector does not walk them at once."""

from __future__ import annotations

import gc

from asyncckpt.workers import age_objects, paused_gc


def test_aged_objects_are_the_oldest_generation_s() -> None:
    """No young collection walks them, and nothing stays frozen."""
    gc.collect()
    with paused_gc():
        made = [[] for _ in range(1000)]  # type: ignore[var-annotated]
        age_objects()
        old = {id(each) for each in gc.get_objects(generation=2)}
    assert all(id(each) in old for each in made)
    assert gc.get_freeze_count() == 0


def test_what_the_program_has_frozen_stays_frozen() -> None:
    """Objects are not aged at the price of thawing the program's own."""
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        age_objects()
        assert gc.get_freeze_count() == frozen > 0
    finally:
        gc.unfreeze()

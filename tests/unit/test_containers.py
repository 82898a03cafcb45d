"""Containers are made and filled in chunks, and are what one call would have made."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

import pytest
from helpers.pacers import CountingPacer

from asyncckpt.runtime.pacing import CHUNK_ELEMENTS, Pacer
from asyncckpt.state.containers import MAPPING_TYPES, SEQUENCES, SETS, Maker

SIZES = (0, 1, CHUNK_ELEMENTS, CHUNK_ELEMENTS + 1, 5 * CHUNK_ELEMENTS + 3)


def _items(type_: Any, count: int) -> list[Any]:
    return [(str(number), number) if type_ in MAPPING_TYPES else str(number) for number in range(count)]


@pytest.mark.parametrize("type_", [*SEQUENCES, *MAPPING_TYPES, *SETS])
@pytest.mark.parametrize("count", SIZES)
def test_what_is_made(type_: Any, count: int) -> None:
    """It is of its type, and has the items in their order."""
    made = Maker(Pacer()).make(type_, _items(type_, count))
    assert type(made) is type_
    assert made == type_(_items(type_, count))
    assert type_ in SETS or list(made) == list(type_(_items(type_, count)))


@pytest.mark.parametrize("type_", [*SEQUENCES, *MAPPING_TYPES, *SETS])
@pytest.mark.parametrize("count", SIZES)
def test_what_is_put_into_another(type_: Any, count: int) -> None:
    """It takes the place of what was there; the pairs of a mapping come beside what it has."""
    before = _items(type_, 3)
    target = type_(before)
    found = Maker(Pacer()).put_into(target, _items(type_, count))
    assert (found is target) == (type_ not in (tuple, frozenset))
    assert found == type_((before if type_ in MAPPING_TYPES else []) + _items(type_, count))


def test_the_length_of_a_deque() -> None:
    """It keeps its bound, however many items there are."""
    for count in SIZES:
        made = Maker(Pacer()).make(deque, _items(deque, count), 2)
        assert made == deque(_items(deque, count), 2)
        assert made.maxlen == 2


@pytest.mark.parametrize("type_", [deque, dict, OrderedDict, set])
def test_many_items_are_put_in_pieces(type_: Any) -> None:
    """And their list is dropped in chunks, too: neither is one long call."""
    pacer = CountingPacer()
    items = _items(type_, 10 * CHUNK_ELEMENTS)
    Maker(pacer).make(type_, items)
    assert pacer.count >= 19
    assert len(items) <= CHUNK_ELEMENTS
    pacer.count = 0
    Maker(pacer).put_into(type_(), _items(type_, 10 * CHUNK_ELEMENTS))
    assert pacer.count >= 19


def test_a_list_is_the_list_of_its_items() -> None:
    """It is not copied."""
    items = _items(list, 10)
    assert Maker(Pacer()).make(list, items) is items

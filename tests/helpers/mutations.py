"""Random states, and random changes of them whose path and effect are known."""

from __future__ import annotations

import struct
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from helpers.strategies import DTYPES, LAYOUTS, make_array
from helpers.support import Params, canonical

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

_LAYOUTS = [each for each in LAYOUTS if each != "unaligned"]  # as numpy writes single elements there only as objects
_DTYPES = [each for each in DTYPES if each.kind != "U"]  # bytes of others need not be text
_LARGE = (3, 5000, 1 << 17, (1 << 20) + 1, (5 << 19) + 3)


class Change(NamedTuple):
    """A change of a state."""

    name: str
    path: str
    apply: Callable[[], object]


def make_leaf(rng: random.Random) -> Any:
    """Make a leaf that is not a container."""
    makers: list[Callable[[], Any]] = [
        lambda: rng.choice([0, 1, -1, 2**63, 2**64, -(2**70), True, None]),
        lambda: rng.choice([0.0, -0.0, 1.0, float("inf"), float("nan"), rng.random()]),
        lambda: rng.choice(["", "a", "\ud800", "x" * rng.choice([70, 5000, 300_000])]),
        lambda: rng.choice([b"", b"a", bytes(rng.choice([70, 5000]))]),
        lambda: complex(rng.random(), -0.0),
        lambda: np.float32(rng.random()),
        lambda: make_array(rng.choice(DTYPES), (), "C", rng.randrange(1000))[()],
        lambda: bytearray(rng.randbytes(9)),
        lambda: np.random.default_rng(rng.randrange(1000)),
        lambda: np.array(["a", "bcd" * rng.randrange(9)], np.dtypes.StringDType()),
    ]
    return rng.choice(makers)()


def make_any_array(rng: random.Random) -> np.ndarray:
    """Make an array of any dtype and layout, sometimes a large one."""
    if rng.random() < 0.02:
        return np.full(rng.choice(_LARGE), rng.randrange(256), np.uint8)
    shape = tuple(rng.randrange(5) for _ in range(rng.randrange(4)))
    return make_array(rng.choice(_DTYPES), shape, rng.choice(_LAYOUTS), rng.randrange(1000))


def make_state(rng: random.Random, depth: int = 2) -> dict[Any, Any]:
    """Make a state of all kinds of containers."""
    state = {f"k{number}": _make_value(rng, depth) for number in range(rng.randrange(1, 6))}
    arrays = [value for _, _, value in places(state) if type(value) is np.ndarray and value.dtype.kind != "T"]
    if arrays and rng.random() < 0.3:
        state["tied"] = [rng.choice(arrays), rng.choice(arrays)]
    return state


def _make_value(rng: random.Random, depth: int) -> Any:
    if depth == 0 or rng.random() < 0.5:
        return make_any_array(rng) if rng.random() < 0.6 else make_leaf(rng)
    items = [_make_value(rng, depth - 1) for _ in range(rng.randrange(5))]
    makers: list[Callable[[], Any]] = [
        lambda: items,
        lambda: tuple(items),
        lambda: deque(items, rng.choice([None, 9])),
        lambda: {rng.choice([f"key {n}", n, (n, "x")]): each for n, each in enumerate(items)},
        lambda: OrderedDict((n, each) for n, each in enumerate(items)),
        lambda: {rng.choice([n, str(n), (n, float(n)), frozenset({n, str(n)})]) for n in range(rng.randrange(20))},
        lambda: Params(items, rng.random()),
        lambda: [rng.randrange(100) for _ in range(rng.choice([15, 16, 20, 20, 40, 600]))],
        lambda: [rng.random() for _ in range(rng.choice([16, 16, 16, 520]))],
    ]
    return rng.choice(makers)()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Yield the path, the container and the value of each place in a state."""
    if isinstance(value, dict):
        pairs: Any = value.items()
    elif isinstance(value, list | tuple | deque):
        pairs = enumerate(value)
    elif isinstance(value, Params):
        pairs = vars(value).items()
    else:
        return
    for key, child in pairs:
        yield (*path, key), value, child
        yield from places(child, (*path, key))


def outline(state: Any) -> dict[str, object]:
    """Describe what each leaf of a state is, and the keys or the length of each container, by path.

    Arrays that are one are described as such.
    """
    first: dict[int, str] = {}
    found: dict[str, object] = {}
    for path, _, value in [((), None, state), *places(state)]:
        spelled = _spell(path)
        own: object = type(value)
        if isinstance(value, dict):
            own = type(value), canonical(list(value))
        elif isinstance(value, list | tuple | deque):
            own = type(value), len(value), getattr(value, "maxlen", None)
        elif not isinstance(value, Params):
            own = canonical(value)
        if type(value) is np.ndarray and value.dtype.kind != "T":
            own = own, first.setdefault(id(value), spelled)
        found[spelled] = own
    return found


def make_change(rng: random.Random, state: dict[Any, Any]) -> Change:
    """Choose a change of a state."""
    found = [((), None, state), *places(state)]
    while True:
        path, container, value = rng.choice(found)
        changes = [*_changes_of(rng, path, value)]
        if isinstance(container, dict | list | deque | Params):
            changes += [_replacement(rng, path, container, value)] * 2
        if changes:
            return rng.choice(changes)


def _spell(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


def _replacement(rng: random.Random, path: tuple[Any, ...], container: Any, value: Any) -> Change:
    new = rng.choice([lambda: make_leaf(rng), lambda: make_any_array(rng), lambda: _similar(rng, value)])()

    def replace() -> None:
        if isinstance(container, Params):
            setattr(container, path[-1], new)
        else:
            container[path[-1]] = new

    return Change("replace", _spell(path), replace)


def _similar(rng: random.Random, value: Any) -> Any:  # noqa: PLR0911 - one for each type
    """Return a value that is equal to another, or almost."""
    if type(value) is np.ndarray and value.dtype.kind != "T":
        alike = [value.copy(), np.asfortranarray(value), value[...]]
        if value.ndim and value.flags.c_contiguous:
            alike.append(value.reshape(-1))
        return rng.choice(alike)
    if type(value) in (int, bool):
        return rng.choice([float(value) if abs(value) < 2**60 else value, value + 1, bool(value), int(value)])
    if type(value) is float:
        bits = struct.unpack("<Q", struct.pack("<d", value))[0]
        return rng.choice([value, -value, struct.unpack("<d", struct.pack("<Q", bits ^ 1))[0]])
    if type(value) is str:
        return rng.choice([value[:-1] + "b", value + "b", value.encode("utf-8", "surrogatepass")])
    if type(value) is list:
        return rng.choice([tuple(value), list(value), deque(value)])
    if type(value) is set:
        return rng.choice([frozenset(value), {*reversed(list(value))}])
    if type(value) is dict:
        return rng.choice([OrderedDict(value), dict(reversed(value.items())), dict(value)])
    return value


def _changes_of(rng: random.Random, path: tuple[Any, ...], value: Any) -> Iterator[Change]:  # noqa: C901
    """Yield changes of a value in place."""
    spelled = _spell(path)
    if type(value) is np.ndarray:
        if value.size and value.itemsize and value.flags.writeable and value.dtype.kind != "T":
            yield from [Change("byte", spelled, _byte_write(rng, value))] * 4
    elif isinstance(value, dict):
        key = rng.choice(list(value)) if value else None
        yield Change("new key", spelled, lambda: value.setdefault(rng.choice(["new", 7, (7, "y")]), rng.random()))
        if value:
            yield Change("less a key", spelled, lambda: value.pop(key))
            yield Change("other key", spelled, lambda: value.update({("other", 1): value.pop(key)}))
            yield Change("order", spelled, lambda: value.update({key: value.pop(key)}))
            yield Change("clear", spelled, value.clear)
    elif isinstance(value, list | deque):
        yield Change("append", spelled, lambda: value.append(rng.choice([1, 0.5, "x"])))
        if value:
            at = rng.randrange(len(value))
            element = rng.choice([value[at], 0, 1, 0.5, "x", 2**63, None])
            yield from [Change("element", _spell((*path, at)), lambda: value.__setitem__(at, element))] * 3
            yield Change("pop", spelled, value.pop)
            yield Change(
                "insert", spelled, lambda: value.insert(at, 1) if getattr(value, "maxlen", None) is None else None
            )
            yield Change("turn", spelled, value.reverse)
    elif isinstance(value, set):
        yield Change("add", spelled, lambda: value.add(rng.choice([1, "1", True, 1000, (1, 1.0)])))
        if value:
            gone = rng.choice(sorted(value, key=repr))
            yield Change("discard", spelled, lambda: value.discard(gone))
            yield Change("discard and add", spelled, lambda: (value.discard(gone), value.add(gone)))
            yield Change(
                "make anew", spelled, lambda: (kept := sorted(value, key=repr), value.clear(), value.update(kept))
            )
    elif isinstance(value, bytearray):
        yield Change("bytes", spelled, lambda: value.__setitem__(rng.randrange(len(value)), rng.randrange(256)))
        yield Change("longer", spelled, lambda: value.extend(b"x"))
    elif isinstance(value, np.random.Generator):
        yield Change("draw", spelled, value.random)


def _byte_write(rng: random.Random, array: np.ndarray) -> Callable[[], None]:
    position = rng.choice([0, array.size - 1, rng.randrange(array.size)])
    index = tuple(slice(int(at), int(at) + 1) for at in np.unravel_index(position, array.shape))
    byte = rng.choice([0, array.itemsize - 1, rng.randrange(array.itemsize)])
    new = rng.randrange(256)

    def write() -> None:
        array[(*index, ...)].reshape(-1).view(np.uint8)[byte] = new

    return write

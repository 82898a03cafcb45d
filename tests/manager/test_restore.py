"""`restore`: checks first, then fills what is there, and tells what it has overwritten when it must stop."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.support import (
    FORMATS,
    Color,
    Fixed,
    Params,
    Point,
    assert_same,
    canonical,
    load_from,
    peak_nbytes,
    save_to,
)

from asyncckpt import (
    CheckpointManager,
    CheckpointNotFoundError,
    CheckpointWarning,
    CorruptCheckpointError,
    StateMismatchError,
    register_type,
)
from asyncckpt.saving.catalog import LoadedCheckpoint

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
PADDED = np.dtype({"names": ["a", "c"], "formats": ["<f8", "<i2"], "offsets": [0, 21], "itemsize": 24})
both_formats = pytest.mark.parametrize("form", FORMATS)


def damage(path: Path, at: int) -> None:
    """Flip a bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def fresh(seed: int) -> dict[str, Any]:
    """Make a state of everything that can be updated."""
    rng = np.random.default_rng(seed)
    tied = rng.normal(size=(300, 400))
    return {
        "w": tied,
        "tied": [tied],
        "f": np.asfortranarray(rng.normal(size=(200, 300))),
        "strided": rng.normal(size=(100, 400))[::2, ::4],
        "reversed": rng.integers(0, 99, 5000)[::-1],
        "big-endian": rng.normal(size=3000).astype(">f4").reshape(50, 60).T,
        "structured": np.frombuffer(bytearray(rng.bytes(24 * 9001)), PADDED)[::3],
        "0-d": np.array(float(seed)),
        "empty": np.zeros((0, 3)),
        "dates": np.array([seed, seed + 1], "<M8[s]"),
        "step": seed,
        "name": f"run {seed}",
        "history": [float(seed)] * 50,
        "nested": {"list": [seed, {"deep": rng.normal(size=3)}], "tuple": (seed, rng.normal(size=4))},
        "replay": deque([seed, seed + 1], 7),
        "order": OrderedDict(b=seed, a=2),
        "seen": {seed, seed + 1},
        "rng": rng,
        "legacy": np.random.RandomState(seed),
        "params": Params(rng.normal(size=5), [seed]),
        "point": Point(rng.normal(size=6), seed),
        "fixed": Fixed("x", seed),
        "color": [Color.RED, Color.TWO][seed % 2],
        "words": np.array([f"word {seed}", "x"], np.dtypes.StringDType()),
    }


ARRAYS = ("w", "f", "strided", "reversed", "big-endian", "structured", "0-d", "empty", "dates", "words")
UPDATED = ("history", "nested", "replay", "order", "seen", "rng", "legacy", "params", "tied")


@both_formats
async def test_fills_what_is_there(tmp_path: Path, form: Any) -> None:
    """Arrays of every layout are filled where they are; what can be updated is the same object; the rest is new."""
    async with CheckpointManager(tmp_path, format=form) as manager:
        saved, state = fresh(1), fresh(2)
        expected = canonical(saved)
        await (await manager.save(5, saved, training_info={"loss": 0.5}))
        objects = {name: state[name] for name in (*ARRAYS, *UPDATED)}
        places = {name: state[name].ctypes.data for name in ARRAYS}
        weights, deep, in_tuple = (
            state["params"].weights,
            state["nested"]["list"][1]["deep"],
            state["nested"]["tuple"][1],
        )
        in_point, inner = state["point"].x, state["nested"]["list"][1]
        record = await manager.restore(5, into=state)
        assert isinstance(record, LoadedCheckpoint)
        assert (record.step, record.training_info) == (5, {"loss": 0.5})
        assert record.state is state
        assert canonical(state) == expected
        for name, value in objects.items():
            assert state[name] is value, name
        for name, place in places.items():
            assert state[name].ctypes.data == place
        assert state["f"].flags.f_contiguous
        assert state["params"].weights is weights
        assert state["nested"]["list"][1] is inner
        assert inner["deep"] is deep
        assert state["nested"]["tuple"][1] is in_tuple
        assert state["point"].x is in_point
        assert state["rng"].normal() == saved["rng"].normal()


_RESTORING = """
import asyncio, sys, asyncckpt, numpy, uvloop

new_loop = uvloop.new_event_loop if sys.argv[2] == "uvloop" else asyncio.new_event_loop
state = {"a": numpy.ones(40 << 20, "u1"), "b": numpy.ones((8 << 20, 5), "u1").T}

async def save():
    async with asyncckpt.CheckpointManager(sys.argv[1]) as manager:
        await (await manager.save(1, state))

async def restore():
    async with asyncckpt.CheckpointManager(sys.argv[1], read_only=True) as manager:
        await manager.restore(1, into=state)

def run(main):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())

run(save)
for array in state.values():
    array.fill(0)
peak = lambda: (run(restore), [array.min() for array in state.values()] == [1, 1] or sys.exit("not restored"))
"""


@pytest.mark.parametrize("loop", ["stock", "uvloop"])
def test_fills_without_allocating(tmp_path: Path, loop: str) -> None:
    """Restoring takes memory for scratch, not for the arrays."""
    assert peak_nbytes(_RESTORING, tmp_path, loop) < 48 * MIB, "four chunks of 8 MiB"


@pytest.mark.parametrize(
    ("change", "path", "field"),
    [
        (lambda s: s.update(w=np.zeros((300, 401))), "w", "shape"),
        (lambda s: s.update(dates=np.zeros(2, "<M8[ms]")), "dates", "dtype"),
        (lambda s: s.update(step=1.0), "step", "type"),
        (lambda s: s.pop("empty"), "", "keys"),
        (lambda s: s.update(more=1), "", "keys"),
        (lambda s: s["nested"]["list"].append(1), "nested/list", "length"),
        (lambda s: s["reversed"].setflags(write=False), "reversed", "writability"),
        (lambda s: s.update({"empty": np.broadcast_to(0.0, (0, 3))}), "empty", "writability"),
        (lambda s: s.update(rng=np.random.Generator(np.random.SFC64())), "rng", "type"),
        (lambda s: s.update(legacy=np.random.RandomState(np.random.PCG64())), "legacy", "type"),
        (lambda s: s["params"].__dict__.update(weights=np.zeros(5, int)), "params/weights", "dtype"),
        (lambda s: s.update(color=1), "color", "type"),
        (lambda s: s.update(words=np.array(["x"] * 3, np.dtypes.StringDType())), "words", "shape"),
        (lambda s: s.update(replay=deque(maxlen=1)), "replay", "length"),
        (lambda s: s.update(f=[[0.0]]), "f", "type"),
    ],
)  # fmt: skip
async def test_nothing_changes_when_something_does_not_fit(tmp_path: Path, change: Any, path: str, field: str) -> None:
    """Everything is checked before the first byte: after a mismatch the state is what it was, to the bit."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(5, fresh(1)))
        state = fresh(2)
        change(state)
        before = canonical(state)
        with pytest.raises(StateMismatchError) as caught:
            await manager.restore("latest", into=state)
        assert (caught.value.path, caught.value.field, caught.value.step) == (path, field, 5)
        assert canonical(state) == before
        assert manager.latest_step() == 5


async def test_tied_arrays(tmp_path: Path) -> None:
    """A saved array fills all its places, tied or not; one array cannot take the contents of two: nothing changes."""
    async with CheckpointManager(tmp_path) as manager:
        one, two = np.arange(3.0), np.arange(3.0) + 10
        await (await manager.save(1, {"a": one, "b": [one]}))
        await (await manager.save(2, {"a": one, "b": [two]}))
        target: dict[str, Any] = {"a": np.zeros(3), "b": [np.zeros((3, 2))[:, 0]]}
        await manager.restore(1, into=target)
        assert_same(target, {"a": one, "b": [one]})
        assert target["a"] is not target["b"][0]
        shared = np.zeros(3)
        with pytest.raises(StateMismatchError) as caught:
            await manager.restore(2, into={"a": shared, "b": [shared]})
        assert (caught.value.path, caught.value.field) == ("b/0", "sharing")
        assert "a" in str(caught.value.expected)
        assert shared.tolist() == [0, 0, 0]
        await manager.restore(1, into={"a": shared, "b": [shared]})
        assert_same(shared, one)


@both_formats
@pytest.mark.parametrize("which", ["latest", "best"])
async def test_corruption_found_midway_falls_back_and_refills_everything(tmp_path: Path, form: Any, which: Any) -> None:
    """What a damaged checkpoint has begun to fill is filled again by the fallback: no mixture remains."""
    async with CheckpointManager(tmp_path, format=form, metric_name="m") as manager:
        for step in (1, 2):
            state = {f"a{i}": np.full(5 * MIB, step, "u1") for i in range(6)}
            await (await manager.save(step, {**state, "step": step}, training_info={"m": step}))
        damage(next((tmp_path / "step_2").glob("state.*")), 29 * MIB)
        target: dict[str, Any] = {f"a{i}": np.zeros(5 * MIB, "u1") for i in range(6)} | {"step": 0}
        with pytest.warns(CheckpointWarning, match="step 2 to step 1"):
            record = await manager.restore(which, into=target)
        assert record.step == 1
        assert target["step"] == 1
        for i in range(6):
            assert (target[f"a{i}"] == 1).all()


@both_formats
@pytest.mark.parametrize("which", [2, "latest"])
async def test_without_fallback_the_error_says_what_was_overwritten(tmp_path: Path, form: Any, which: Any) -> None:
    """The error names exactly those arrays that may hold new bytes; the others hold their own."""
    async with CheckpointManager(tmp_path, format=form, fallback=False) as manager:
        for step in (1, 2):
            state: dict[str, Any] = {f"a{i}": np.full(9 * MIB, step, "u1") for i in range(8)}
            await (await manager.save(step, {"nested": state, "small": np.arange(3), "step": step}))
        damage(next((tmp_path / "step_2").glob("state.*")), 5 * MIB)
        arrays = {f"a{i}": np.zeros(9 * MIB, "u1") for i in range(8)}
        target = {"nested": arrays, "small": np.zeros(3, int), "step": 0}
        with pytest.raises(CorruptCheckpointError) as caught:
            await manager.restore(which, into=target)
        named = set(caught.value.overwritten)
        assert "nested/a0" in named
        assert target["step"] == 0, "leaves are replaced last"
        changed = {f"nested/{name}" for name, array in arrays.items() if array.any()}
        changed |= {"small"} if np.any(target["small"]) else set()
        assert changed <= named
        assert any("nested/a0" in note for note in caught.value.__notes__)
        assert manager.latest_step() == 1


@pytest.mark.filterwarnings("ignore:falling back")
async def test_a_fallback_that_does_not_fit_tells_what_was_overwritten(tmp_path: Path) -> None:
    """What the damaged checkpoint had begun to overwrite is named, whatever the one behind it fails of."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"other": 1}))
        await (await manager.save(2, {"w": np.arange(1_000_000)}))
        await (await manager.save(3, {"w": np.arange(1_000_000)}))
        for step in (2, 3):
            damage(tmp_path / f"step_{step}" / "state.msgpack", 5 * MIB)
        with pytest.raises(StateMismatchError) as caught:
            await manager.restore("latest", into={"w": np.zeros(1_000_000, int)})
        assert caught.value.step == 1
        assert caught.value.__notes__ == ["arrays overwritten by then: w"]


def test_only_what_was_begun_is_named(tmp_path: Path) -> None:
    """Arrays behind the damaged place, which have not been read, are not named, and keep their contents."""
    state = {f"a{i}": np.ones(8 * MIB, "u1") for i in range(5)}
    damage(save_to(tmp_path, 1, state) / "state.msgpack", 20 * MIB)
    target = {name: np.zeros(8 * MIB, "u1") for name in state}
    with pytest.raises(CorruptCheckpointError) as caught:
        load_from(tmp_path, 1, template=target, in_place=True)
    assert caught.value.overwritten == ("a0", "a1", "a2")
    assert not target["a3"].any()
    assert not target["a4"].any()


async def test_corruption_found_before_the_arrays_overwrites_nothing(tmp_path: Path) -> None:
    """A damaged manifest or index is found before anything is filled."""
    async with CheckpointManager(tmp_path) as manager:
        for step in (1, 2, 3):
            await (await manager.save(step, {"w": np.arange(100_000)}))
        damage(tmp_path / "step_2" / "manifest.json", 30)
        damage(tmp_path / "step_3" / "state.msgpack", 30)
        target = {"w": np.zeros(100_000, int)}
        for step in (2, 3):
            with pytest.raises(CorruptCheckpointError) as caught:
                await manager.restore(step, into=target)
            assert caught.value.overwritten == ()
            assert not target["w"].any()


async def test_roots_that_cannot_be_updated(tmp_path: Path) -> None:
    """Where the root itself is replaced, the record has the new one, with the old arrays in it."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, (np.arange(3), 5)))
        array = np.zeros(3, int)
        record = await manager.restore(1, into=(array, 0))
        assert record.state[0] is array
        assert_same(record.state, (np.arange(3), 5))
        await (await manager.save(2, np.arange(4)))
        whole = np.zeros(4, int)
        assert (await manager.restore(2, into=whole)).state is whole
        assert_same(whole, np.arange(4))


async def test_missing_checkpoints(tmp_path: Path) -> None:
    """There is no restoring what is not there, and nothing changes."""
    async with CheckpointManager(tmp_path) as manager:
        state = fresh(1)
        before = canonical(state)
        for which in (3, "latest", "best"):
            with pytest.raises(CheckpointNotFoundError):
                await manager.restore(which, into=state)  # type: ignore[arg-type]
        assert canonical(state) == before


# --- objects, and memory that is shared -------------------------------------------------------------------------------


@register_type(name="tests.restore.Replaced")
class Replaced:
    """An own type that can only be replaced."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def to_state(self) -> Any:
        """Return the state."""
        return {"data": self.data}

    @classmethod
    def from_state(cls, state: Any) -> Replaced:
        """Make one."""
        return cls(state["data"])


@register_type(name="tests.restore.Filled")
class Filled(Replaced):
    """One that can be filled."""

    def update_state(self, state: Any) -> None:
        """Put a state into it."""
        self.data = state["data"]


class FilledByFunction(Replaced):
    """One that a function fills."""


register_type(
    FilledByFunction,
    name="tests.restore.FilledByFunction",
    update=lambda value, state: setattr(value, "data", state["data"]),
)


@register_type(name="tests.restore.Word")
class Word(str):
    """An own type whose objects never change."""

    __slots__ = ()

    def to_state(self) -> Any:
        """Return the state."""
        return str(self)

    @classmethod
    def from_state(cls, state: Any) -> Word:
        """Make one."""
        return cls(state)


@both_formats
async def test_own_objects_are_filled_or_refused(tmp_path: Path, form: Any) -> None:
    """Who else holds an object sees what was restored; one that could only be replaced is refused first."""
    async with CheckpointManager(tmp_path, format=form) as manager:
        await (await manager.save(1, {"w": np.ones(3), "o": [Filled(1)], "f": FilledByFunction(np.ones(2))}))
        held = (Filled(0), FilledByFunction(0))
        await manager.restore(1, into={"w": np.zeros(3), "o": [held[0]], "f": held[1]})
        assert held[0].data == 1
        assert_same(held[1].data, np.ones(2))
        await (await manager.save(2, {"w": np.ones(3), "o": [Replaced(1)]}))
        state = {"w": np.zeros(3), "o": [Replaced(0)]}
        with pytest.raises(StateMismatchError, match="update_state") as caught:
            await manager.restore(2, into=state)
        assert (caught.value.path, caught.value.field, caught.value.step) == ("o/0", "update", 2)
        assert state["w"].tolist() == [0, 0, 0]
        loaded = await manager.load(2, like=state)
        assert loaded is not None
        assert loaded.state["o"][0].data == 1
        await (await manager.save(3, [Word("saved")]))
        words = [Word("own")]
        await manager.restore(3, into=words)
        assert words == ["saved"]
        assert type(words[0]) is Word


async def test_builtin_objects_are_filled(tmp_path: Path) -> None:
    """A bytearray and a SeedSequence are the same objects afterwards; another seed is refused."""
    async with CheckpointManager(tmp_path) as manager:
        seeds = np.random.SeedSequence(1)
        seeds.spawn(3)
        await (await manager.save(1, {"b": bytearray(b"saved"), "s": seeds}))
        state = {"b": bytearray(b"x"), "s": np.random.SeedSequence(1)}
        held = tuple(state.values())
        await manager.restore(1, into=state)
        assert tuple(map(id, state.values())) == tuple(map(id, held))
        assert_same(state, {"b": bytearray(b"saved"), "s": seeds})
        with pytest.raises(StateMismatchError) as caught:
            await manager.restore(1, into={"b": bytearray(), "s": np.random.SeedSequence(2)})
        assert (caught.value.path, caught.value.field) == ("s", "seed")


def overlapping() -> dict[str, Any]:
    """Make templates for two arrays of 6 numbers, in which a byte belongs to two elements."""
    base, strided = np.zeros(12), np.lib.stride_tricks.as_strided
    return {
        "windows": {"a": strided(base, (2, 3), (16, 8)), "b": np.zeros(6)},
        "repeated": {"a": strided(base, (2, 3), (0, 8)), "b": np.zeros(6)},
        "unaligned": {"a": strided(base, (2, 3), (24, 4)), "b": np.zeros(6)},
        "neighbours": {"a": base[:6].reshape(2, 3), "b": base[5:11]},
        "one in the other": {"a": base[:6].reshape(2, 3), "b": base[:6]},
        "bytes": {"a": base[:6].reshape(2, 3), "b": base.view("u1")[44:92].view("f8")},
    }


@both_formats
@pytest.mark.parametrize("name", overlapping())
async def test_memory_that_is_shared_is_refused(tmp_path: Path, form: Any, name: str) -> None:
    """Where a byte would be filled twice, nothing is."""
    async with CheckpointManager(tmp_path, format=form) as manager:
        await (await manager.save(1, {"a": np.ones((2, 3)), "b": np.full(6, 2.0)}))
        state = overlapping()[name]
        with pytest.raises(StateMismatchError, match="memory") as caught:
            await manager.restore(1, into=state)
        assert caught.value.field == "sharing"
        assert caught.value.path in ("a", "b")
        assert not state["a"].any()


async def test_memory_that_only_looks_shared_is_filled(tmp_path: Path) -> None:
    """Views of one array that lie between each other, and odd strides without an overlap, are filled."""
    base = np.zeros((8, 4))
    odd = np.lib.stride_tricks.as_strided(np.zeros(8), (2, 3), (24, 16))
    state = {
        "even": base[:, ::2],
        "odd": base[::-1, 1::2],
        "strange": odd,
        "diagonal": np.zeros((3, 4, 3)).diagonal(0, 0, 2),
    }
    saved = {name: np.random.default_rng(1).random(array.shape) for name, array in state.items()}
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, saved))
        state["diagonal"] = np.zeros((4, 3))
        await manager.restore(1, into=state)
        assert_same({name: np.ascontiguousarray(array) for name, array in state.items()}, saved)


@both_formats
@pytest.mark.parametrize("attribute", [False, True])
async def test_mappings_get_the_saved_order(tmp_path: Path, form: Any, attribute: bool) -> None:
    """The order of an OrderedDict is part of it, and a program goes through its dicts as the saved one did."""
    saved: Any = {"o": OrderedDict(b=1, a=np.ones(2), c=3), "d": {"y": 1, "x": [2], "z": 3}}
    state: Any = {"d": {"x": [0], "y": 0, "z": 0}, "o": OrderedDict(a=np.zeros(2), b=0, c=0)}
    if attribute:
        saved["o"].note = 1
    held = (state["o"], state["d"], state["o"]["a"])
    async with CheckpointManager(tmp_path, format=form) as manager:
        await (await manager.save(1, saved))
        await manager.restore(1, into=state)
        assert_same(state, saved)
        assert tuple(map(id, held)) == (id(state["o"]), id(state["d"]), id(state["o"]["a"]))
        assert vars(state["o"]) == vars(saved["o"])


STRINGS = np.array(["one", "two"], np.dtypes.StringDType())


def unfit_arrays() -> dict[str, tuple[Any, Any, str]]:
    """Make what was saved, what it cannot be filled into, and the field that differs."""
    read_only, strings = STRINGS.copy(), np.array(["", "", ""], np.dtypes.StringDType())
    read_only.flags.writeable = False
    return {
        "read-only strings": (STRINGS, read_only, "writability"),
        "strings of a template's own kind": (
            STRINGS,
            np.array(["", ""], np.dtypes.StringDType(na_object=None)),
            "dtype",
        ),
        "strings that overlap": ([STRINGS, STRINGS], [strings[:2], strings[1:]], "sharing"),
        "a masked array": (np.arange(2), np.ma.array([0, 0], mask=[False, True]), "type"),
        "records": (np.zeros(2, [("a", "i4")]), np.zeros(2, [("a", "i4")]).view(np.recarray), "type"),
    }


@both_formats
@pytest.mark.parametrize("name", unfit_arrays())
async def test_arrays_that_would_be_others_are_refused(tmp_path: Path, form: Any, name: str) -> None:
    """What is saved is a plain array: nothing is filled where it would become something else, or not fit."""
    saved, target, field = unfit_arrays()[name]
    async with CheckpointManager(tmp_path, format=form) as manager:
        await (await manager.save(1, [np.ones(2), saved]))
        state = [np.zeros(2), target]
        with pytest.raises(StateMismatchError) as caught:
            await manager.restore(1, into=state)
        assert (caught.value.path.partition("/")[0], caught.value.field) == ("1", field)
        assert not state[0].any()
        assert repr(state[1]) == repr(unfit_arrays()[name][1])


async def test_strings_are_filled(tmp_path: Path) -> None:
    """In two places, too, if it is one array."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, [STRINGS, STRINGS]))
        target = np.array(["", ""], np.dtypes.StringDType())
        await manager.restore(1, into=[target, target])
        assert_same(target, STRINGS)


async def test_a_mismatch_of_keys_says_which(tmp_path: Path) -> None:
    """What is missing and what is too much, what may be meant, and what to do."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"a": 1, "b": 2, "model": {"weights": 1, 5: 1, "same": 1}}))
        said = r"keys differ: .* the checkpoint lacks 'c' and also has 'b'; give the template the keys .*without like="
        with pytest.raises(StateMismatchError, match=said):
            await manager.load(1, like={"a": 0, "c": 0, "model": {"weights": 1, 5: 1, "same": 1}})
        state = {"a": 0, "b": 0, "model": {"Weight": 0, 6: 0, "same": 0}}
        said = (
            r"step 1: model: keys differ: .* the checkpoint lacks 'Weight', 6 and also has 'weights', 5"
            r" \(did you mean 'weights' for 'Weight'\?\); give the state the keys"
        )
        with pytest.raises(StateMismatchError, match=said):
            await manager.restore(1, into=state)
        assert state == {"a": 0, "b": 0, "model": {"Weight": 0, 6: 0, "same": 0}}

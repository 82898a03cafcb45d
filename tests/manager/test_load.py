"""`load` and `verify`: which checkpoint, which part of it, and what is never let through."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import shutil
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import pytest
import xxhash
from helpers.gates import Gate, hold, turns
from helpers.support import FORMATS, assert_same, canonical, descriptors_below, load_from, save_to, verify

from asyncckpt import (
    CheckpointManager,
    CheckpointNotFoundError,
    CheckpointWarning,
    CorruptCheckpointError,
    StateMismatchError,
    UnsupportedFormatError,
)
from asyncckpt.disk import read_blocks
from asyncckpt.disk.manifest import decode_manifest, digest_bytes
from asyncckpt.disk.ops import DiskOps
from asyncckpt.saving import load_job
from asyncckpt.state.decode import Decoder
from asyncckpt.storage.local.store import LocalStore
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from pathlib import Path

    from asyncckpt.storage.reader import CheckpointReader

MIB = 1 << 20
both_formats = pytest.mark.parametrize("form", FORMATS)


def damage(path: Path, at: int = 100) -> None:
    """Flip a bit of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def state_file(directory: Path) -> Path:
    """Return a checkpoint's state file."""
    return next(directory.glob("state.*"))


async def save_all(manager: CheckpointManager, losses: dict[int, float]) -> None:
    """Save some steps with their losses."""
    for step, loss in losses.items():
        await (await manager.save(step, {"step": step, "w": np.full(10, step)}, training_info={"loss": loss}))


# --- which checkpoint -------------------------------------------------------------------------------------------------


@both_formats
async def test_loads_by_step_latest_and_best(tmp_path: Path, form: Any) -> None:
    """A step is a step, "latest" the newest and "best" the one with the best metric; the record says all of it."""
    async with CheckpointManager(tmp_path / "d", format=form, metric_name="loss", higher_is_better=False) as manager:
        await save_all(manager, {1: 0.5, 2: 0.1, 10: 0.3})
        for which, step in ((1, 1), (np.int64(2), 2), ("latest", 10), ("best", 2)):
            loaded = await manager.load(which)  # type: ignore[arg-type]
            assert loaded is not None
            assert loaded.step == step
            assert type(loaded.step) is int
            assert_same(loaded.state, {"step": step, "w": np.full(10, step)})
            assert loaded.path == tmp_path / "d" / f"step_{step}"
            assert loaded.training_info["loss"] == {1: 0.5, 2: 0.1, 10: 0.3}[step]


async def test_loaded_objects_are_new(tmp_path: Path) -> None:
    """Two loads share nothing, and their arrays can be written to."""
    async with CheckpointManager(tmp_path) as manager:
        await save_all(manager, {1: 0.0})
        one, two = await manager.load(1), await manager.load(1)
        assert one is not None
        assert two is not None
        one.state["w"][:] = 7
        assert two.state["w"].tolist() == [1] * 10


async def test_missing_checkpoints(tmp_path: Path) -> None:
    """Where there is nothing, the error says where it looked; `missing_ok` gives None."""
    async with CheckpointManager(tmp_path / "none") as manager:
        for which in ("latest", "best", 3):
            assert await manager.load(which, missing_ok=True) is None  # type: ignore[arg-type]
            with pytest.raises(CheckpointNotFoundError, match="none") as caught:
                await manager.load(which)  # type: ignore[arg-type]
            assert isinstance(caught.value, FileNotFoundError)
            assert caught.value.step == (3 if which == 3 else None)
        with pytest.raises(CheckpointNotFoundError):
            await manager.verify(3)
        with pytest.raises(ValueError, match="-1"):
            await manager.load(-1)
        with pytest.raises(TypeError, match="newest"):
            await manager.load("newest")  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists(), "loading makes no directory"


async def test_an_uncommitted_step_advises_to_await_its_handle(tmp_path: Path) -> None:
    """A step that is queued or being written is not there yet, and the error says what to wait for."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        await save_all(manager, {1: 0.0})
        with hold(disk) as gate:
            writing = await manager.save(2, {"w": 2})
            waiting = await manager.save(3, {"w": 3})
            await gate.reached()
            for step in (2, 3):
                with pytest.raises(CheckpointNotFoundError, match="await its handle") as caught:
                    await manager.load(step)
                assert caught.value.step == step
                with pytest.raises(CheckpointNotFoundError):
                    await manager.verify(step)
            loaded = await manager.load("latest")
            assert loaded is not None
            assert loaded.step == 1
        await writing
        await waiting
        assert (await manager.load(3)).state == {"w": 3}  # type: ignore[union-attr]


async def test_an_overwrite_in_flight_leaves_the_old_one_loadable(tmp_path: Path) -> None:
    """While a step is overwritten, its committed contents load."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        await (await manager.save(1, "old"))
        with hold(disk) as gate:
            handle = await manager.save(1, "new", overwrite=True)
            await gate.reached()
            assert (await manager.load(1)).state == "old"  # type: ignore[union-attr]
        await handle
        assert (await manager.load(1)).state == "new"  # type: ignore[union-attr]


# --- fallback ---------------------------------------------------------------------------------------------------------


@both_formats
@pytest.mark.parametrize("which", ["latest", "best"])
async def test_falls_back_to_the_next_intact_one(tmp_path: Path, form: Any, which: Any) -> None:
    """Corrupt ones are passed over, each with a warning that names it, the reason and its stand-in."""
    async with CheckpointManager(tmp_path, format=form, metric_name="loss") as manager:
        await save_all(manager, {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0})
        damage(state_file(tmp_path / "step_4"))
        (tmp_path / "step_3" / "training_info.json").unlink()
        with pytest.warns(CheckpointWarning) as caught:
            loaded = await manager.load(which)
        assert loaded is not None
        assert loaded.step == 2
        texts = [str(each.message) for each in caught]
        assert len(texts) == 2
        assert "step 4" in texts[0] and "damaged" in texts[0] and "step 3" in texts[0]  # noqa: PT018
        assert "step 3" in texts[1] and "training_info.json" in texts[1] and "step 2" in texts[1]  # noqa: PT018
        assert (manager.latest_step(), manager.best_step(), manager.steps()) == (2, 2, [1, 2, 3, 4])
        again = await manager.load(which)
        assert again is not None
        assert again.step == 2


async def test_without_fallback_the_error_comes_out(tmp_path: Path) -> None:
    """`fallback=False` raises what was found; the next call then means the next one."""
    async with CheckpointManager(tmp_path, fallback=False) as manager:
        await save_all(manager, {1: 0.0, 2: 0.0})
        damage(state_file(tmp_path / "step_2"))
        with pytest.raises(CorruptCheckpointError, match="step 2") as caught:
            await manager.load("latest")
        assert (caught.value.step, caught.value.file) == (2, "state.msgpack")


async def test_all_corrupt_is_an_error_even_if_missing_is_not(tmp_path: Path) -> None:
    """Damage is never taken for absence: no run starts from nothing because its checkpoints are damaged."""
    async with CheckpointManager(tmp_path) as manager:
        await save_all(manager, {1: 0.0, 2: 0.0})
        for step in (1, 2):
            damage(state_file(tmp_path / f"step_{step}"))
        with pytest.warns(CheckpointWarning, match="step 2 to step 1"), pytest.raises(CorruptCheckpointError):
            await manager.load("latest", missing_ok=True)
        assert manager.latest_step() is None
        for which in ("latest", "best"):  # known by now, and still no absence
            with pytest.raises(CorruptCheckpointError, match="1, 2"):
                await manager.load(which, missing_ok=True)


async def test_a_given_step_never_falls_back(tmp_path: Path) -> None:
    """Asking for a step gets that step or an error."""
    async with CheckpointManager(tmp_path) as manager:
        await save_all(manager, {1: 0.0, 2: 0.0})
        damage(state_file(tmp_path / "step_2"))
        for _ in range(2):
            with pytest.raises(CorruptCheckpointError, match="step 2"):
                await manager.load(2, missing_ok=True)


async def test_corrupt_ones_count_for_nothing(tmp_path: Path) -> None:
    """One found corrupt is neither the newest nor a place in retention, can be saved again, and is listed still."""
    async with CheckpointManager(tmp_path, keep_latest_k=2) as manager:
        await save_all(manager, {1: 0.0, 2: 0.0})
        damage(tmp_path / "step_2" / "manifest.json")
        with pytest.raises(CorruptCheckpointError):
            await manager.verify(2)
        assert manager.latest_step() == 1
        assert manager.statistics().last_committed_step == 1
        await save_all(manager, {3: 0.0})
        assert {1, 3} <= set(manager.steps()), "step 1 is one of the two most recent intact ones"
        with pytest.warns(CheckpointWarning, match="below"):
            await (await manager.save(2, "again"))
        loaded = await manager.load(2)
        assert loaded is not None
        assert loaded.state == "again"


# --- damage -----------------------------------------------------------------------------------------------------------


@both_formats
def test_every_flipped_bit_and_every_cut_is_found(tmp_path: Path, form: str) -> None:
    """Any single changed bit or cut of any file fails verification, and no load returns anything but the truth."""
    state = {"w": np.arange(20, dtype="<i2"), "x": [1, "a", None], "big": np.arange(1100.0)}
    path = save_to(tmp_path, 1, state, form=form, info=b'{"loss": 0.25}\n')
    before = canonical(state)
    rng = np.random.default_rng(0)
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        positions = np.arange(len(data)) if len(data) < 1000 else np.unique(rng.integers(0, len(data), 300))
        for position in positions.tolist():
            changed = bytearray(data)
            changed[position] ^= 1 << int(rng.integers(8))
            file.write_bytes(changed)
            _check_damage(tmp_path, before)
        for length in (0, 1, len(data) // 2, len(data) - 1):
            file.write_bytes(data[:length])
            _check_damage(tmp_path, before)
        file.write_bytes(data + b"\0")
        _check_damage(tmp_path, before)
        file.unlink()
        _check_damage(tmp_path, before)
        file.write_bytes(data)
    verify(tmp_path, 1)


def _check_damage(root: Path, expected: object) -> None:
    with pytest.raises(CorruptCheckpointError) as caught:
        verify(root, 1)
    assert caught.value.step == 1
    try:
        found = load_from(root, 1)
    except CorruptCheckpointError:
        return
    assert canonical(found) == expected


async def test_verify_finds_what_a_load_does_not_look_at(tmp_path: Path) -> None:
    """The configuration is verified, too, though no load reads it."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"w": 1}, run_config={"lr": 0.1}))
        await manager.verify(1)
        damage(tmp_path / "step_1" / "config.yaml", 3)
        assert (await manager.load(1)).state == {"w": 1}  # type: ignore[union-attr]
        with pytest.raises(CorruptCheckpointError, match=r"config\.yaml"):
            await manager.verify(1)
        assert manager.latest_step() is None


async def test_a_directory_under_another_steps_name_is_refused(tmp_path: Path) -> None:
    """A copied directory does not pass for another step."""
    async with CheckpointManager(tmp_path) as manager:
        await save_all(manager, {1: 0.0})
        shutil.copytree(tmp_path / "step_1", tmp_path / "step_5")
        await manager.refresh()
        with pytest.raises(CorruptCheckpointError, match="step 1"):
            await manager.load(5)


def reseal(path: Path, **changes: Any) -> None:
    """Change a manifest and give it a valid digest again."""
    content = json.loads((path / "manifest.json").read_bytes())
    del content["digest"]
    content.update(changes)
    body = json.dumps(content, separators=(",", ":")).encode()[:-1]
    (path / "manifest.json").write_bytes(body + b',"digest":"%s"}\n' % xxhash.xxh3_128_hexdigest(body).encode())


def change_index(path: Path, **changes: Any) -> None:
    """Put another index into a checkpoint, and seal it."""
    file = path / "state.msgpack"
    place = json.loads((path / "manifest.json").read_bytes())["index"]
    data = file.read_bytes()
    index = msgpack.unpackb(data[: place["nbytes"]], unicode_errors="surrogatepass")
    index.update(changes)
    made = msgpack.packb(index) + data[place["nbytes"] :]
    file.write_bytes(made)
    record = digest_bytes(made)
    files = json.loads((path / "manifest.json").read_bytes())["files"]
    files["state.msgpack"] = {"nbytes": record.nbytes, "xxh3_128": record.digests.hex()}
    nbytes = len(msgpack.packb(index))
    reseal(path, files=files, index={"file": "state.msgpack", "offset": 0, "nbytes": nbytes})


async def test_a_later_format_is_no_corruption(tmp_path: Path) -> None:
    """An unknown version or feature is said by name; nothing falls back, and the checkpoint is not called corrupt."""
    async with CheckpointManager(tmp_path) as manager:
        await save_all(manager, {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0})
        reseal(tmp_path / "step_2", format_version=7)
        change_index(tmp_path / "step_3", asyncckpt=9)
        change_index(tmp_path / "step_4", features=["compression", "sharing"])
        for step, text in ((2, "7"), (3, "9"), (4, "compression, sharing")):
            with pytest.raises(UnsupportedFormatError, match=text):
                await manager.load(step)
            with pytest.raises(UnsupportedFormatError, match=text):
                await manager.verify(step)
        with pytest.raises(UnsupportedFormatError):
            await manager.load("latest")
        assert manager.latest_step() == 4


async def test_an_index_that_lies_is_corruption(tmp_path: Path) -> None:
    """Even with valid digests, an index that claims the impossible is refused, and falls back."""
    async with CheckpointManager(tmp_path) as manager:
        await save_all(manager, {1: 0.0, 2: 0.0, 3: 0.0})
        change_index(tmp_path / "step_2", tree=[msgpack.packb([msgpack.ExtType(9, msgpack.packb(99))])])
        change_index(tmp_path / "step_3", tree=[msgpack.packb([1, 2])])
        with pytest.raises(CorruptCheckpointError, match="trailing nodes after the tree"):
            await manager.verify(3)
        with pytest.warns(CheckpointWarning, match="array 99"):
            loaded = await manager.load("latest")
        assert loaded is not None
        assert loaded.step == 1


# --- like, select -----------------------------------------------------------------------------------------------------


async def test_like_checks_leaf_by_leaf(tmp_path: Path) -> None:
    """A template that does not fit is an error with all the facts, even under "latest"; the checkpoint stays good."""
    async with CheckpointManager(tmp_path) as manager:
        await save_all(manager, {1: 0.0, 2: 0.0})
        loaded = await manager.load("latest", like={"step": 0, "w": np.zeros(10, int)})
        assert loaded is not None
        with pytest.raises(StateMismatchError) as caught:
            await manager.load("latest", like={"step": 0, "w": np.zeros(11, int)})
        error = caught.value
        assert (error.path, error.field, error.expected, error.found, error.step) == ("w", "shape", (11,), (10,), 2)
        assert isinstance(error, ValueError)
        assert manager.latest_step() == 2


@both_formats
def test_select_reads_the_index_and_the_blocks_it_needs(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not selected is not read: no block without a wanted byte; damage there is not seen."""
    state = {f"layer{i}": {"w": np.full(3 * MIB, i, "u1"), "b": np.full(10, i)} for i in range(6)}
    path = save_to(tmp_path, 1, state, form=form)
    ranges: list[tuple[int, int]] = []

    def preadv(fd: int, buffers: Any, offset: int) -> int:
        count = os.preadv(fd, buffers, offset)
        if pathlib.Path(f"/proc/self/fd/{fd}").readlink().name in {"state.msgpack", "state.h5"}:
            ranges.append((offset, offset + count))
        return count

    class Os:
        def __getattr__(self, name: str) -> Any:
            return preadv if name == "preadv" else getattr(os, name)

    monkeypatch.setattr(read_blocks, "os", Os())
    assert_same(load_from(tmp_path, 1, select="layer3/w"), {"layer3": {"w": state["layer3"]["w"]}})
    read = {block for low, high in ranges for block in range(low // MIB, -(-high // MIB))}
    assert len(read) <= 6, "three or four blocks of the array, and the index's"
    manifest = decode_manifest((path / "manifest.json").read_bytes(), 1)
    file = state_file(path)
    total = -(-manifest.files[file.name].nbytes // MIB)
    untouched = sorted(set(range(total)) - read)
    assert len(untouched) >= 12
    for block in untouched:
        damage(file, block * MIB + 5)
    ranges.clear()
    assert_same(load_from(tmp_path, 1, select="layer3/w"), {"layer3": {"w": state["layer3"]["w"]}})
    with pytest.raises(CorruptCheckpointError):
        load_from(tmp_path, 1)
    ranges.clear()
    with pytest.raises(CorruptCheckpointError):
        verify(tmp_path, 1)


async def test_select_through_the_manager(tmp_path: Path) -> None:
    """Prefixes, globs and several of them select; keyword and template may be combined."""
    async with CheckpointManager(tmp_path) as manager:
        state = {"params": {"w": np.arange(3), "b": np.arange(2)}, "opt": {"w": np.zeros(3)}}
        await (await manager.save(1, state))
        for select, expected in (
            ("params", {"params": state["params"]}),
            ("*/w", {"params": {"w": np.arange(3)}, "opt": {"w": np.zeros(3)}}),
            (["opt", "params/b"], {"params": {"b": np.arange(2)}, "opt": state["opt"]}),
        ):
            loaded = await manager.load(1, select=select)  # type: ignore[arg-type]
            assert loaded is not None
            assert_same(loaded.state, expected)
        loaded = await manager.load(1, select="params/w", like=state)
        assert loaded is not None
        assert_same(loaded.state, {"params": {"w": np.arange(3)}})
        with pytest.raises(StateMismatchError):
            await manager.load(1, select="params/w", like={**state, "params": {"w": np.arange(4), "b": 0}})


# --- lazy -------------------------------------------------------------------------------------------------------------


@both_formats
async def test_lazy_arrays_are_read_only_maps(tmp_path: Path, form: Any) -> None:
    """Lazy arrays cannot be written to, have the saved contents, and other leaves are ordinary."""
    state = {
        "w": np.arange(50_000.0),
        "e": np.zeros((0, 2)),
        "t": (1, "x" * 9000, list(range(5000))),
        "b": np.array(3, ">i4"),
    }
    async with CheckpointManager(tmp_path, format=form) as manager:
        await (await manager.save(1, state))
        loaded = await manager.load(1, lazy=True)
        assert loaded is not None
        assert_same(loaded.state, state)
        for name in ("w", "e", "b"):
            assert not loaded.state[name].flags.writeable
        assert not loaded.state["w"].flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            loaded.state["w"][0] = 1


@both_formats
async def test_lazy_verifies_the_index_and_leaves_the_payload_to_verify(tmp_path: Path, form: Any) -> None:
    """A lazy load finds damage of manifest and index, not of the payload; `verify` finds it."""
    async with CheckpointManager(tmp_path, format=form) as manager:
        for step in (1, 2, 3):
            await (await manager.save(step, {"w": np.zeros(4 * MIB, "u1"), "x": step}))
        content = json.loads((tmp_path / "step_1" / "manifest.json").read_bytes())
        damage(state_file(tmp_path / "step_1"), 2 * MIB)
        loaded = await manager.load(1, lazy=True)
        assert loaded is not None
        assert loaded.state["w"].sum() == 1
        with pytest.raises(CorruptCheckpointError):
            await manager.verify(1)
        damage(state_file(tmp_path / "step_2"), content["index"]["offset"] + 3)
        damage(tmp_path / "step_3" / "manifest.json")
        for step in (2, 3):
            with pytest.raises(CorruptCheckpointError):
                await manager.load(step, lazy=True)


@both_formats
@pytest.mark.parametrize(
    "leaf", ["x" * 3 * MIB, b"x" * 3 * MIB, [1.5] * (3 * MIB // 8)], ids=["str", "bytes", "numbers"]
)
def test_lazy_verifies_what_it_reads(tmp_path: Path, form: str, leaf: Any) -> None:
    """Leaves that are made from payload at once, long strings and runs of numbers, are verified even so."""
    path = save_to(tmp_path, 1, {"leaf": leaf, "w": np.zeros(10)}, form=form)
    assert_same(load_from(tmp_path, 1, lazy=True)["w"], np.zeros(10))
    damage(state_file(path), 2 * MIB)
    with pytest.raises(CorruptCheckpointError):
        load_from(tmp_path, 1, lazy=True)


@both_formats
async def test_lazy_arrays_stay_valid_when_the_checkpoint_goes(tmp_path: Path, form: Any) -> None:
    """After a prune, an overwrite and a delete, lazily loaded arrays hold what they held."""
    async with CheckpointManager(tmp_path, format=form, keep_latest_k=1) as manager:
        await (await manager.save(1, {"w": np.full(MIB, 1, "u1")}))
        one = await manager.load(1, lazy=True)
        await (await manager.save(2, {"w": np.full(MIB, 2, "u1")}))
        await manager.flush()
        assert manager.steps() == [2]
        two = await manager.load(2, lazy=True)
        await (await manager.save(2, {"w": np.full(MIB, 3, "u1")}, overwrite=True))
        await manager.delete(2)
    assert not list(tmp_path.glob("*_*"))
    assert one is not None
    assert two is not None
    assert (one.state["w"] == 1).all()
    assert (two.state["w"] == 2).all()


def test_a_lazy_load_of_everything_walks_the_tree_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be mapped, because it is the contents of a string or a list, is found at a glance."""
    state = {"a": np.arange(2000), "s": "s" * 9000, "b": b"b" * 9000, "n": list(range(9000)), "t": (1.5,) * 9000}
    save_to(tmp_path, 1, state)
    walks = []
    walk = Decoder._walk
    monkeypatch.setattr(Decoder, "_walk", lambda decoder: walks.append(decoder) or walk(decoder))
    assert_same(load_from(tmp_path, 1, lazy=True), state)
    assert len(walks) == 1


def test_a_thousand_lazy_arrays_cost_one_mapping(tmp_path: Path) -> None:
    """Many lazy arrays share one mapping and one descriptor at most, which go with the last of them."""
    state = {f"a{i}": np.full(2000, i) for i in range(1000)}
    save_to(tmp_path, 1, state)
    lazy = load_from(tmp_path, 1, lazy=True)
    assert len(descriptors_below(tmp_path)) <= 1
    assert pathlib.Path("/proc/self/maps").read_text(encoding="utf-8").count(str(tmp_path)) == 1
    assert_same(lazy, state)
    last = lazy.pop("a999")
    del lazy
    assert last[0] == 999
    del last
    assert descriptors_below(tmp_path) == []
    assert str(tmp_path) not in pathlib.Path("/proc/self/maps").read_text(encoding="utf-8")


# --- beside each other ------------------------------------------------------------------------------------------------


async def test_loads_run_beside_saves_and_each_other(tmp_path: Path) -> None:
    """Loads do not wait for a save that hangs in the disk, nor for each other."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        await (await manager.save(1, {"w": np.arange(300_000)}))
        with hold(disk, "sync", "state") as gate:
            handle = await manager.save(2, {"w": np.arange(300_000)})
            await gate.reached()
            loaded = await asyncio.gather(
                *(manager.load(1) for _ in range(6)), manager.load("latest"), manager.verify(1)
            )
            for each in loaded[:7]:
                assert each is not None
                assert_same(each.state, {"w": np.arange(300_000)})
        await handle


def hold_reads(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> list[str]:
    """Let every read of a state file wait at a gate; note each that begins and ends."""
    events: list[str] = []

    def preadv(fd: int, buffers: Any, offset: int) -> int:
        if offset < MIB:  # the index
            return os.preadv(fd, buffers, offset)
        events.append("begin")
        gate()
        count = os.preadv(fd, buffers, offset)
        events.append("end")
        return count

    class Os:
        def __getattr__(self, name: str) -> Any:
            return preadv if name == "preadv" else getattr(os, name)

    monkeypatch.setattr(read_blocks, "os", Os())
    return events


@pytest.mark.parametrize("kind", ["load", "restore", "verify"])
async def test_a_cancelled_load_raises_when_its_threads_have_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Cancelling is answered only when no thread reads any more, however often it is asked; what was begun ends."""
    async with CheckpointManager(tmp_path) as manager:
        state = {"w": np.zeros(80 * MIB, "u1")}
        await (await manager.save(1, state))
        with Gate() as gate:
            events = hold_reads(monkeypatch, gate)
            job = {
                "load": lambda: manager.load(1),
                "restore": lambda: manager.restore(1, into=state),
                "verify": lambda: manager.verify(1),
            }[kind]
            task = asyncio.ensure_future(job())  # type: ignore[arg-type]
            await gate.reached()
            for _ in range(3):
                task.cancel()
                await turns(20)
                assert not task.done()
            gate.open()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert events.count("begin") == events.count("end") <= read_blocks.READERS
            count = len(events)
            await turns(50)
            assert len(events) == count
        monkeypatch.undo()
        assert (await manager.load(1)) is not None


async def test_what_is_being_loaded_is_not_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention passes over a checkpoint while it is loaded here, and takes it with the next commit."""
    async with CheckpointManager(tmp_path, keep_latest_k=1) as manager:
        await (await manager.save(1, {"w": np.zeros(10 * MIB, "u1")}))
        with Gate() as gate:
            hold_reads(monkeypatch, gate)
            task = asyncio.ensure_future(manager.load(1))
            await gate.reached()
            await (await manager.save(2, {}))
            await manager.flush()
            assert manager.steps() == [1, 2]
            gate.open()
            assert (await task) is not None
        await (await manager.save(3, {}))
        await manager.flush()
        assert manager.steps() == [3]


async def test_a_checkpoint_swapped_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader beside a writer that overwrites and deletes what is being read gets the old or the new one, whole."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"w": np.full(20 * MIB, 1, "u1")}))
        async with CheckpointManager(tmp_path, read_only=True) as reader:
            with Gate() as gate:
                hold_reads(monkeypatch, gate)
                task = asyncio.ensure_future(reader.load(1))
                await gate.reached()
                await (await manager.save(1, {"w": np.full(20 * MIB, 2, "u1")}, overwrite=True))
                await manager.flush()
                gate.open()
                loaded = await task
            assert loaded is not None
            assert set(np.unique(loaded.state["w"])) in ({1}, {2})


def test_a_checkpoint_that_is_swapped_again_and_again_is_never_called_damaged(tmp_path: Path) -> None:
    """What a reader met while a writer deleted the files under it says nothing, however often that happens."""
    swaps = 0
    save_to(tmp_path, 1, {"a": 1})

    def swapped_under_us(_: CheckpointReader) -> str:
        nonlocal swaps
        if swaps < 5:
            swaps += 1
            shutil.rmtree(tmp_path / "step_1")
            save_to(tmp_path, 1, {"a": swaps})
            raise CorruptCheckpointError("its files were being deleted")
        return "whole"

    store = LocalStore(tmp_path, DiskOps())
    assert load_job._reading(lambda: store.open(1), swapped_under_us) == "whole"
    assert swaps == 5

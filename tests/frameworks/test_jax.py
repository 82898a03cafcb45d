"""Arrays of JAX in a state: what comes back, in every way to load."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from asyncckpt import CheckpointManager, StateMismatchError, UnsupportedFormatError, UnsupportedLeafError
from asyncckpt.arrays.adapters import find_adapter
from asyncckpt.arrays.source import view_bytes

jax = pytest.importorskip("jax")
jnp = jax.numpy
jnp.zeros(()).block_until_ready()  # the first array starts threads

DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "complex64", "bfloat16"),
    *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"),
    *("float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn", "int2", "uint2", "int4", "uint4"),
)
ROOT = Path(__file__).parents[2]


class Moments(NamedTuple):
    """As the states of optimizers are."""

    count: Any
    mean: Any


def make_state() -> dict[str, Any]:
    """Make a state with arrays of every kind."""
    numbers = jax.random.normal(jax.random.key(3), (300, 17))
    return {
        "dtypes": {name: jnp.arange(24).reshape(4, 6).astype(name) for name in DTYPES},
        "large": jax.random.normal(jax.random.key(1), (1000, 257)),
        "scalar": jnp.float32(2.5),
        "empty": jnp.zeros((0, 3)),
        "weak": jnp.asarray(1.5),
        "keys": [jax.random.key(7), jax.random.split(jax.random.key(8, impl="rbg"), 3)],
        "tied": [numbers, numbers],
        "numpy": np.arange(5.0),
    }


def assert_equal(found: Any, expected: Any) -> None:
    """Compare states bit for bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert type(one) is type(other)
        if isinstance(other, jax.Array):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert getattr(one, "weak_type", None) == getattr(other, "weak_type", None)
            if jnp.issubdtype(other.dtype, jax.dtypes.prng_key):
                one, other = jax.random.key_data(one), jax.random.key_data(other)  # noqa: PLW2901
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("format_", ["msgpack", "hdf5"])
async def test_it_comes_back_equal_in_every_way(tmp_path: Path, format_: str, frozen: bool) -> None:
    """Plain, lazily, like a template, and into a state, whose arrays are replaced where they are."""
    state = make_state()
    async with CheckpointManager(tmp_path, format=format_) as manager:
        moments = {"moments": Moments(jnp.int32(3), {"w": jnp.ones(5)})}
        await (await manager.save(0, moments, frozen=frozen))
        assert_equal((await manager.load(0, like=moments)).state, moments)
        zeros = {"moments": Moments(jnp.int32(0), {"w": jnp.zeros(5)})}
        await manager.restore(0, into=zeros)
        assert_equal(zeros, moments)
        await (await manager.save(1, state, frozen=frozen))
        found = (await manager.load(1, like=state)).state
        assert_equal(found, state)
        plain = (await manager.load(1, select=["dtypes", "large", "scalar", "empty", "weak", "keys", "tied"])).state
        assert_equal(plain, {name: state[name] for name in plain})
        assert plain["tied"][0] is plain["tied"][1]
        lazy = (await manager.load(1, select="large", lazy=True)).state
        assert_equal(lazy, {"large": state["large"]})
        into = jax.tree.map(lambda leaf: leaf, state) | {"large": jnp.zeros_like(state["large"]), "numpy": np.zeros(5)}
        dtypes = into["dtypes"]
        await manager.restore(1, into=into)
        assert_equal(into, state)
        assert into["dtypes"] is dtypes
        numpy = (await manager.load(1, arrays="numpy", select=["dtypes/*", "keys"])).state
        assert {type(each) for each in numpy["dtypes"].values()} == {np.ndarray}
        assert numpy["keys"][0].dtype == np.uint32


async def test_frozen_arrays_outlive_a_donation(tmp_path: Path) -> None:
    """The save holds a view, so the donation copies."""
    array = jax.random.normal(jax.random.key(1), (512, 512))
    expected = np.array(array)
    async with CheckpointManager(tmp_path) as manager:
        handle = await manager.save(1, {"a": array}, frozen=True)
        jax.jit(lambda a: a * 0, donate_argnums=0)(array).block_until_ready()
        await handle
        assert np.asarray((await manager.load(1)).state["a"]).tobytes() == expected.tobytes()


async def test_an_array_that_is_still_computed_does_not_stop_the_loop(tmp_path: Path) -> None:
    """It is waited for in a thread."""
    product = jnp.eye(600) * 0.5 + 0.001
    compute = jax.jit(lambda matrix: jax.lax.fori_loop(0, 60, lambda _, each: each @ product, matrix))
    expected = np.array(compute(product))  # compiled
    ticks = 0
    async with CheckpointManager(tmp_path) as manager:
        pending = compute(product)
        assert not pending.is_ready()
        with pytest.raises(ValueError, match=r"^step 1: the state has an array that is still being computed, at a:"):
            manager.save_nowait(1, {"a": pending})
        saving = asyncio.create_task(manager.save(1, {"a": pending}))
        while not saving.done():
            await asyncio.sleep(0)
            ticks += not pending.is_ready()
        await (await saving)
        assert np.asarray((await manager.load(1)).state["a"]).tobytes() == expected.tobytes()
    assert ticks > 1


async def test_what_cannot_be_saved_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """A deleted array, functions and other code, and an array that is being traced."""
    deleted = jnp.arange(3)
    deleted.delete()
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(UnsupportedLeafError, match=r"^step 1: a/x: an array that was deleted"):
            await manager.save(1, {"a": {"x": deleted}})
        for function in (jax.nn.relu, jax.jit(abs), jnp.add, abs, type("Dtypes", (), {"dtype": np.zeros(2)})):
            with pytest.raises(
                UnsupportedLeafError, match=r"^step 1: a/x: .* cannot be saved, .*a file holds no code: "
            ):
                await manager.save(1, {"a": {"x": function}})

        def traced(array: Any) -> Any:
            with pytest.raises(UnsupportedLeafError, match=r"^step 1: a/x: .*traced"):
                manager.save_nowait(1, {"a": {"x": array}})
            return array

        jax.jit(traced)(jnp.arange(3))
        assert manager.steps() == []


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64", "complex128"])
async def test_wide_arrays_are_not_narrowed(tmp_path: Path, dtype: str) -> None:
    """Without jax_enable_x64, JAX would make arrays of half as many bits of them silently."""
    with jax.enable_x64(True):  # noqa: FBT003 - JAX's own argument
        wide = jnp.arange(3, dtype=dtype)
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"a": wide}))
        await (await manager.save(2, {"a": np.asarray(wide)}))
        with pytest.raises(UnsupportedFormatError, match=rf"a: an array of {dtype} .*jax_enable_x64.*arrays=\"numpy\""):
            await manager.load(1)
        for step in (1, 2):
            with pytest.raises(StateMismatchError, match=rf"^step {step}: a: dtype differs.*{dtype}"):
                await manager.load(step, like={"a": jnp.arange(3)})
            for template in (wide, jax.ShapeDtypeStruct((3,), dtype)):
                with pytest.raises(StateMismatchError, match=rf"^step {step}: a: .* {dtype} .*jax_enable_x64"):
                    await manager.load(step, like={"a": template})
            for found in (
                await manager.load(step, arrays="numpy"),
                await manager.load(step, like={"a": np.zeros(3, dtype)}),
            ):
                assert found.state["a"].dtype == dtype
                assert np.array_equal(found.state["a"], np.arange(3))


async def test_arrays_of_float0(tmp_path: Path) -> None:
    """JAX's own, the gradients of integers, are refused; numpy's come back as any array of numpy."""
    gradient = jax.grad(lambda _: 1.0, allow_int=True)(jnp.arange(3))
    async with CheckpointManager(tmp_path) as manager:
        if type(gradient) is not np.ndarray:  # as older versions make it
            with pytest.raises(UnsupportedLeafError, match=r"^step 1: a/x: an array of float0, .*leave it out"):
                await manager.save(1, {"a": {"x": gradient}})
        await (await manager.save(1, {"a": np.asarray(gradient)}))
        found = (await manager.load(1)).state["a"]
        assert (type(found), found.dtype, found.shape) == (np.ndarray, jax.dtypes.float0, (3,))


def test_arrays_are_read_where_they_are() -> None:
    """So a save with `frozen` copies nothing."""
    array = jax.random.normal(jax.random.key(1), (300, 1000)).block_until_ready()
    source: Any = find_adapter(type(array)).leaf(array).source
    assert source.ctypes.data == array.unsafe_buffer_pointer()
    data = view_bytes(source, 4096, 8192)
    assert data is not None
    assert data.ctypes.data == array.unsafe_buffer_pointer() + 4096


@pytest.mark.parametrize("lazy", [False, True])
async def test_loaded_arrays_keep_their_contents(tmp_path: Path, lazy: bool) -> None:
    """JAX may use the memory that it is given without a copy, so later loads and saves must not use it again."""
    states = [{"a": jnp.arange(300_000) + step, "small": jnp.arange(9) + step} for step in range(3)]
    async with CheckpointManager(tmp_path) as manager:
        for step, state in enumerate(states):
            await (await manager.save(step, state))
        found = [
            loaded.state
            for step in range(3)
            for loaded in (await manager.load(step, lazy=lazy), await manager.load(step, like=states[0]))
        ]
        for step in range(3, 6):
            await (await manager.save(step, {"a": np.zeros(300_000, "int32"), "small": np.zeros(9, "int32")}))
            await manager.load(step, lazy=lazy)
        for number, each in enumerate(found):
            assert_equal(each, states[number // 2])


@pytest.mark.parametrize("is_numpy", [False, True])
async def test_shapes_are_templates(tmp_path: Path, is_numpy: bool) -> None:
    """What `jax.eval_shape` returns says what is wanted, of a file of numpy arrays, too."""
    state: dict[str, Any] = {
        "moments": Moments(jnp.int32(3), {"w": jnp.ones(5, jnp.bfloat16)}),
        "weak": jnp.asarray(2.0),
    }
    shapes = jax.eval_shape(lambda: state)
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, jax.tree.map(np.array, state) if is_numpy else state))
        assert_equal((await manager.load(1, like=shapes)).state, state)
        into = dict(shapes)
        await manager.restore(1, into=into)
        assert_equal(into, state)
        shapes["moments"].mean["w"] = jax.ShapeDtypeStruct((6,), "bfloat16")
        with pytest.raises(StateMismatchError, match=r"^step 1: moments/1/w: shape differs.*\(6,\).*\(5,\)"):
            await manager.load(1, like=shapes)
        shapes["moments"].mean["w"] = jax.ShapeDtypeStruct((5,), "float32")
        with pytest.raises(StateMismatchError, match=r"^step 1: moments/1/w: dtype differs.*float32.*bfloat16"):
            await manager.load(1, like=shapes)
        with pytest.raises(UnsupportedLeafError, match=r"^step 2: a: a ShapeDtypeStruct has no contents"):
            await manager.save(2, {"a": jax.ShapeDtypeStruct((5,), "float32")})


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
async def test_keys_are_of_the_same_kind(tmp_path: Path, impl: str) -> None:
    """One and several, plainly and like keys or their shapes, but not like those of another kind."""
    state = {"one": jax.random.key(1, impl=impl), "all": jax.random.split(jax.random.key(2, impl=impl), (2, 3))}
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, state))
        other = jax.tree.map(lambda keys: jax.random.wrap_key_data(jax.random.key_data(keys) + 1, impl=impl), state)
        for found in (
            await manager.load(1),
            await manager.load(1, like=other),
            await manager.load(1, like=jax.eval_shape(lambda: state)),
        ):
            assert_equal(found.state, state)
            assert jax.random.key_impl(found.state["all"]) == impl
        plain = (await manager.load(1, arrays="numpy")).state
        assert np.array_equal(plain["all"], jax.random.key_data(state["all"]))
        other = {"one": jax.random.key(1, impl="rbg" if impl == "threefry2x32" else "threefry2x32")}
        with pytest.raises(StateMismatchError, match=rf"^step 1: one: dtype differs.*key<.*key<{impl}>"):
            await manager.load(1, like=other, select="one")


async def test_the_contents_of_a_template_do_not_matter(tmp_path: Path) -> None:
    """It may be deleted, such as by a donation, or still be computed."""
    state = {"a": jnp.arange(3), "key": jax.random.key(1)}
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, state))
        deleted = {"a": jnp.zeros(3, "int32"), "key": jax.random.key(2)}
        for each in deleted.values():
            each.delete()
        assert_equal((await manager.load(1, like=deleted)).state, state)
        product = jnp.eye(600) * 0.5 + 0.001
        compute = jax.jit(lambda a: jax.lax.fori_loop(0, 60, lambda _, each: each @ product, a)[0, :3].astype("int32"))
        deleted["a"] = compute(product)
        assert_equal((await manager.load(1, like=deleted)).state, state)
        await manager.restore(1, into=deleted)
        assert_equal(deleted, state)


async def test_one_array_for_different_templates(tmp_path: Path) -> None:
    """It becomes one array where the templates ask for the same, and memory is not shared by others."""
    tied = jnp.arange(300_000.0)  # large enough that JAX uses the memory of numpy's arrays without a copy
    state = {"a": tied, "b": tied, "c": tied, "numpy": tied}
    template = {
        "a": tied,
        "b": tied + 1,
        "c": jax.device_put(tied, jax.devices()[0]),
        "numpy": np.zeros(300_000, "float32"),
    }
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, state))
        for names in (["a", "b", "c", "numpy"], ["numpy", "c", "b", "a"]):
            await (await manager.save(1, dict.fromkeys(names, tied), overwrite=True))
            found = (await manager.load(1, like={name: template[name] for name in names})).state
            assert found["a"] is found["b"]
            assert (found["a"].committed, found["c"].committed) == (False, True)
            found["numpy"][:] = 7
            assert all(np.array_equal(found[name], tied) for name in "abc")


async def test_the_weak_type_of_the_file_comes_back(tmp_path: Path) -> None:
    """A program that is resumed computes with the types of the one that was stopped."""
    state = {"weak": jnp.asarray(1.5), "strong": jnp.float32(1.5)}
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, state))
        found = (await manager.load(1, like={"weak": jnp.float32(0), "strong": jnp.asarray(0.0)})).state
        assert_equal(found, state)


WITHOUT = """
import asyncio, sys, asyncckpt

async def main():
    async with asyncckpt.CheckpointManager(sys.argv[1]) as manager:
        for way in ({}, {"lazy": True}, {"select": "a"}):
            try:
                await manager.load(1, **way)
            except asyncckpt.UnsupportedFormatError as error:
                assert "a is an array of jax" in str(error) and 'arrays="numpy"' in str(error), error
            else:
                raise SystemExit("it was loaded")
        assert (await manager.load(1, arrays="numpy")).state["a"].tolist() == [0, 1, 2]
        await manager.verify(1)
    assert "jax" not in sys.modules

asyncio.run(main())
"""


async def test_a_program_without_jax_is_told_so(tmp_path: Path) -> None:
    """And can load numpy arrays."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"a": jnp.arange(3)}))
    command = [sys.executable, "-c", WITHOUT, str(tmp_path)]
    result = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


SHARDED = """
import asyncio, sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from asyncckpt import CheckpointManager
from asyncckpt.arrays.adapters import find_adapter

async def main():
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    whole = np.arange(24 * 1001 * 6, dtype=np.float32).reshape(24, 1001, 6)
    specs = [P("x"), P("x", None, "y"), P(None, None, "y"), P(), P(("x", "y"))]
    state = [jax.device_put(whole + n, NamedSharding(mesh, spec)) for n, spec in enumerate(specs)]
    small = jax.device_put(np.arange(16), NamedSharding(mesh, P("x")))
    for each in state[:3]:  # one of the replicas is read, where it is
        shards = find_adapter(type(each)).leaf(each).source._shards
        places = {shard.data.unsafe_buffer_pointer() for shard in each.addressable_shards if shard.replica_id == 0}
        assert {data.ctypes.data for _, data in shards} == places, "shards were copied"
        assert len(shards) == len({str(shard.index) for shard in each.addressable_shards}), "replicas were read"
    async with CheckpointManager(sys.argv[1]) as manager:
        for step, frozen in enumerate((False, True)):
            await (await manager.save(step, [*state, small], frozen=frozen))
            for loaded in ((await manager.load(step)).state, (await manager.load(step, like=[*state, small])).state):
                assert all(np.array_equal(found, whole + n) for n, found in enumerate(loaded[:-1]))
                assert np.array_equal(loaded[-1], np.arange(16))
        assert [each.sharding for each in loaded] == [each.sharding for each in [*state, small]]
        many = jax.random.split(jax.random.key(1), 16)
        keys = [jax.device_put(many, NamedSharding(mesh, spec)) for spec in specs[3:]]
        keys.append(jax.device_put(keys[0].reshape(4, 4), NamedSharding(mesh, P("y", "x"))))
        await (await manager.save(3, keys))
        for loaded in ((await manager.load(3)).state, (await manager.load(3, like=keys)).state):
            for one, other in zip(loaded, keys, strict=True):
                assert one.dtype == other.dtype
                assert np.array_equal(jax.random.key_data(one), jax.random.key_data(other))
        assert [each.sharding for each in loaded] == [each.sharding for each in keys]
        shape, dtype = whole.shape, whole.dtype
        asked = [NamedSharding(mesh, spec) for spec in (P("y"), P(None, None, ("y",)), P())]
        like = [jax.ShapeDtypeStruct(shape, dtype, sharding=each) for each in asked]
        await (await manager.save(2, [state[0]] * 3))
        found = (await manager.load(2, like=like)).state
        assert [each.sharding for each in found] == asked
        assert all(np.array_equal(each, whole) for each in found)
    assert all(each._npy_value is None for each in state[:3]), "numpy's copy of the whole was made"

asyncio.run(main())
"""


def test_arrays_in_several_shards(tmp_path: Path) -> None:
    """Each shard is read by itself, and a template's sharding is that of what is loaded."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SHARDED, str(tmp_path)]
    result = subprocess.run(  # noqa: S603 - the command is this test's own
        command, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr

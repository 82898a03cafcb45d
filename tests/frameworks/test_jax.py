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

from asyncckpt import CheckpointManager, UnsupportedFormatError, UnsupportedLeafError

jax = pytest.importorskip("jax")
jnp = jax.numpy
jnp.zeros(()).block_until_ready()  # the first array starts threads

DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "complex64", "bfloat16"),
    *("float8_e4m3fn", "float8_e5m2", "int4", "uint4"),
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
        saving = asyncio.create_task(manager.save(1, {"a": pending}))
        while not saving.done():
            await asyncio.sleep(0)
            ticks += not pending.is_ready()
        await (await saving)
        assert np.asarray((await manager.load(1)).state["a"]).tobytes() == expected.tobytes()
    assert ticks > 1


async def test_what_cannot_be_saved_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """A deleted array, and one that is being traced."""
    deleted = jnp.arange(3)
    deleted.delete()
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(UnsupportedLeafError, match=r"^step 1: a/x: an array that was deleted"):
            await manager.save(1, {"a": {"x": deleted}})

        def traced(array: Any) -> Any:
            with pytest.raises(UnsupportedLeafError, match=r"^step 1: a/x: .*traced"):
                manager.save_nowait(1, {"a": {"x": array}})
            return array

        jax.jit(traced)(jnp.arange(3))
        assert manager.steps() == []


async def test_wide_arrays_are_not_narrowed(tmp_path: Path) -> None:
    """Without jax_enable_x64, JAX would make float32 of them silently."""
    async with CheckpointManager(tmp_path) as manager:
        with jax.enable_x64(True):  # noqa: FBT003 - JAX's own argument
            await (await manager.save(1, {"a": jnp.arange(3, dtype="float64")}))
        with pytest.raises(UnsupportedFormatError, match=r"a: an array of float64 .*jax_enable_x64.*arrays=\"numpy\""):
            await manager.load(1)
        assert (await manager.load(1, arrays="numpy")).state["a"].dtype == np.float64


SHARDED = """
import asyncio, sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from asyncckpt import CheckpointManager

async def main():
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    whole = np.arange(24 * 1001 * 6, dtype=np.float32).reshape(24, 1001, 6)
    specs = [P("x"), P("x", None, "y"), P(None, None, "y"), P(), P(("x", "y"))]
    state = [jax.device_put(whole + n, NamedSharding(mesh, spec)) for n, spec in enumerate(specs)]
    small = jax.device_put(np.arange(16), NamedSharding(mesh, P("x")))
    async with CheckpointManager(sys.argv[1]) as manager:
        for step, frozen in enumerate((False, True)):
            await (await manager.save(step, [*state, small], frozen=frozen))
            for loaded in ((await manager.load(step)).state, (await manager.load(step, like=[*state, small])).state):
                assert all(np.array_equal(found, whole + n) for n, found in enumerate(loaded[:-1]))
                assert np.array_equal(loaded[-1], np.arange(16))
        assert [each.sharding for each in loaded] == [each.sharding for each in [*state, small]]
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

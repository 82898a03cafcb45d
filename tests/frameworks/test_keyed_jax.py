"""Arrays of JAX as values of keyed files, and as numpy arrays."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import asyncckpt

if TYPE_CHECKING:
    from pathlib import Path

jax = pytest.importorskip("jax")
jnp = jax.numpy
jnp.zeros(()).block_until_ready()  # the first array starts threads
EXTENSIONS = ["json", "npz", "msgpack", "h5", "memory"]


def make_value() -> dict[str, Any]:
    """Make a value with arrays of several kinds."""
    tied = jnp.arange(1000.0).astype("bfloat16")
    return {
        "tied": [tied, tied],
        "weak": jnp.asarray(1.5),
        "keys": jax.random.split(jax.random.key(8, impl="rbg"), 3),
        "empty": jnp.zeros((0, 3)),
        "int4": jnp.arange(4).astype("int4"),
        "large": jnp.arange(300_000.0),
    }


def opened(directory: Path, extension: str) -> asyncckpt.Checkpointer:
    """Return a Checkpointer of a kind."""
    if extension == "memory":
        return asyncckpt.DictCheckpointer()
    return asyncckpt.Checkpointer.from_file(directory / f"x.{extension}")


def check(found: Any, plain: Any) -> None:
    """Compare both ways to load with what was saved."""
    value = make_value()
    assert found["tied"][0] is found["tied"][1]
    assert found["weak"].weak_type
    assert jax.random.key_impl(found["keys"]) == "rbg"
    value["keys"], found["keys"] = jax.random.key_data(value["keys"]), jax.random.key_data(found["keys"])
    for one, other, numpy in zip(*map(jax.tree.leaves, (found, value, plain)), strict=True):
        assert type(one) is type(other)
        assert type(numpy) is np.ndarray
        assert one.dtype == other.dtype == numpy.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes() == numpy.tobytes()


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_they_come_back_in_both_ways(tmp_path: Path, extension: str) -> None:
    """As arrays of JAX with their kinds, or as numpy arrays; alone, and at a path, too."""
    with opened(tmp_path, extension) as chk:
        chk["value"], chk["alone"] = make_value(), jnp.ones(3)
        chk.flush()
        check(chk["value"], chk.load_parameter("value", arrays="numpy"))
        assert type(chk.load_parameter("alone", arrays="numpy")) is np.ndarray
        assert type(chk.load_parameter(("value", "weak"), arrays="numpy")) is np.ndarray
        chk["value", "more"] = 1  # rewrites the value, with its kinds
        assert chk["value"]["weak"].weak_type
        with pytest.raises(asyncckpt.ConfigError, match="arrays must be one of"):
            chk.load_parameter("alone", arrays="torch")  # type: ignore[arg-type]


@pytest.mark.parametrize("extension", EXTENSIONS)
async def test_the_asynchronous_view_does_the_same(tmp_path: Path, extension: str) -> None:
    """While the value waits to be written, and after that."""
    async with opened(tmp_path, extension) as chk:
        await chk.save_parameter("value", make_value())
        for _ in range(2):
            check(await chk.load_parameter("value"), await chk.load_parameter("value", arrays="numpy"))
            await chk.flush()
        with pytest.raises(asyncckpt.ConfigError, match="arrays must be one of"):
            await chk.load_parameter("value", arrays="torch")  # type: ignore[arg-type]


WITHOUT = """
import sys, numpy, asyncckpt
with asyncckpt.Checkpointer.from_file(sys.argv[1]) as chk:
    try:
        chk["a"]
    except asyncckpt.UnsupportedFormatError as error:
        assert 'array of jax' in str(error) and 'arrays="numpy"' in str(error), error
    else:
        raise SystemExit("it was read")
    assert chk.load_parameter("a", arrays="numpy").tolist() == [0, 1, 2]
assert "jax" not in sys.modules
"""


def test_a_program_without_jax_reads_numpy_arrays(tmp_path: Path) -> None:
    """And is told so."""
    for extension in EXTENSIONS[:-1]:
        with opened(tmp_path, extension) as chk:
            chk["a"] = jnp.arange(3)
        command = [sys.executable, "-c", WITHOUT, str(tmp_path / f"x.{extension}")]
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the test's own
        assert result.returncode == 0, result.stderr

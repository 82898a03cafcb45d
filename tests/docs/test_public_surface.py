"""What the package shows to its users: exactly `__all__`, documented, and cheap to import."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest

import asyncckpt
import asyncckpt.testing

if TYPE_CHECKING:
    from collections.abc import Iterator

PUBLIC = [getattr(asyncckpt, name) for name in asyncckpt.__all__] + [
    asyncckpt.testing.FaultyDisk,
    asyncckpt.testing.StorageContract,
]
COSTLY = (
    "h5py",
    "torch",
    "jax",
    "tensorflow",
    "yaml",
    "ml_dtypes",
    "scipy",
    "pandas",
    "trio",
    "uvloop",
    "asyncckpt.keyed",
    "asyncckpt.cut",
    "asyncckpt.formats.hdf5.layout",
    "asyncckpt.formats.msgpack",
    "difflib",
    "numpy.random",
    "zoneinfo",
)


def own_members(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class that are of our own making, inherited ones included."""
    for base in cls.__mro__:
        if not base.__module__.startswith("asyncckpt"):
            continue
        for name, member in vars(base).items():
            is_ours = inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod)
            if is_ours and not name.startswith("_"):
                yield f"{cls.__name__}.{name}", member


MEMBERS = dict(member for public in PUBLIC if inspect.isclass(public) for member in own_members(public))


def test_the_public_names_are_exactly_all() -> None:
    """`__all__` has, sorted, everything in the package except modules and private names."""
    names = {
        name
        for name, value in vars(asyncckpt).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert names == set(asyncckpt.__all__)
    assert asyncckpt.__all__ == sorted(asyncckpt.__all__)


def test_the_given_private_name_is_there() -> None:
    """`_load_checkpoint_history` can be had from the package, for programs that list a directory without a manager."""
    assert callable(asyncckpt._load_checkpoint_history)


@pytest.mark.parametrize("name", asyncckpt.__all__)
def test_every_public_name_has_a_docstring_of_its_own(name: str) -> None:
    """A class does not borrow its base's docstring, nor a named tuple the made one."""
    doc = vars(getattr(asyncckpt, name))["__doc__"] if inspect.isclass(getattr(asyncckpt, name)) else None
    doc = doc or getattr(asyncckpt, name).__doc__
    assert doc
    assert not doc.startswith(f"{name}(")


@pytest.mark.parametrize("name", MEMBERS)
def test_every_public_method_has_a_docstring(name: str) -> None:
    """Methods and properties of public classes say what they do."""
    assert inspect.getdoc(MEMBERS[name])


def test_every_error_derives_from_the_one_base() -> None:
    """`except CheckpointError` catches everything that is ours."""
    errors = [public for name, public in vars(asyncckpt).items() if name.endswith("Error")]
    assert len(errors) > 10
    assert all(issubclass(error, asyncckpt.CheckpointError) for error in errors)


def test_importing_costs_nothing_that_is_not_needed() -> None:
    """To import asyncckpt imports neither h5py nor a framework, nor a module that only some programs need."""
    code = (
        "import numpy, sys; present = set(sys.modules); import asyncckpt;"
        f" print(*[name for name in {COSTLY!r} if name in sys.modules.keys() - present])"
    )
    result = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not result.stdout.split()


def test_a_msgpack_program_never_imports_h5py(tmp_path: str) -> None:
    """Saving and loading in the msgpack format leaves h5py alone."""
    code = f"""
import asyncio, sys, asyncckpt
async def main():
    async with asyncckpt.CheckpointManager({str(tmp_path)!r}) as manager:
        await (await manager.save(1, {{"a": 1}}))
        await manager.load(1)
asyncio.run(main())
print("h5py" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert result.stdout.split() == ["False"]

"""Programs that have not imported PyTorch, or not yet: it is found if it is there, and never imported for them."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.support import FORMATS, load_from, save_to
from helpers.tensors import IGNORED, assert_equal, torch

from asyncckpt import Checkpointer, CorruptCheckpointError, UnsupportedFormatError
from asyncckpt.arrays import adapters
from asyncckpt.state import index

pytestmark = IGNORED
ROOT = Path(__file__).parents[2]
BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "jax", "jaxlib", "flax"):
            raise AssertionError(f"{name} was imported")

sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv[2])
"""
WITHOUT = (
    BLOCKED
    + """
import asyncio, ml_dtypes, warnings, numpy as np
from pathlib import Path
from asyncckpt import CheckpointManager, Checkpointer, UnsupportedFormatError

async def main():
    root = Path(sys.argv[1])
    for form in ("msgpack", "hdf5"):
        async with CheckpointManager(root / form) as manager:
            await manager.verify(1)
            for select in (None, "half", "size", "m/w"):
                for lazy in (False, True):
                    found = (await manager.load(1, arrays="numpy", select=select, lazy=lazy)).state
                    if select in (None, "half"):
                        assert found["half"].dtype == ml_dtypes.bfloat16 and found["half"].tolist() == [0, 1, 2]
                    if select is None:
                        assert found["m"]["w"].shape == (50, 100) and found["plain"].tolist() == [0, 1]
                        assert found["size"] == (2, 3) and found["tied"] is found["m"]["w"]
                        assert found["pairs"].shape == (3, 2) and found["pairs"].dtype == np.float16
            for options in ({}, {"select": "m/*"}, {"lazy": True}):
                try:
                    await manager.load(1, **options)
                except UnsupportedFormatError as error:
                    message = str(error)
                assert message.startswith("step 1: m/w is an array of torch"), message
                assert "import it before the load" in message and 'arrays="numpy"' in message, message
            assert (await manager.load(1, select="plain")).state["plain"].tolist() == [0, 1]
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert (await manager.load(1, select="size")).state["size"] == (2, 3)
            (warning,) = caught
            assert "size was saved as torch.Size" in str(warning.message), warning
            assert "import torch before the load" in str(warning.message), warning
            template = {"m": {"w": np.zeros((50, 100), "f4")}, "half": np.zeros(3, ml_dtypes.bfloat16)}
            like = (await manager.load(1, like=template, select=["m/w", "half"])).state
            assert type(like["m"]["w"]) is np.ndarray and like["m"]["w"].any()
            await (await manager.save(2, {"a": np.ones(3), "b": [1, 2.5], "c": np.ones(9, ml_dtypes.bfloat16)}))
            assert (await manager.load(2)).state["a"].tolist() == [1, 1, 1]
    for path in root.glob("keyed.*"):
        async with Checkpointer.from_file(path) as keyed:
            assert (await keyed.load_parameter("k", arrays="numpy"))["w"].tolist() == [1, 1]
            try:
                await keyed.load_parameter("k")
            except UnsupportedFormatError as error:
                message = str(error)
            assert message.startswith(f"{path}: the value of 'k': w is an array of torch"), message

asyncio.run(main())
"""
)


def run(script: str, *arguments: object) -> str:
    """Run a program without this one's modules; return what it prints."""
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter
    assert result.returncode == 0, result.stderr
    return result.stdout


def make_state() -> dict[str, Any]:
    """Make a state of tensors and of what needs no framework."""
    weight = torch.arange(5000.0).view(50, 100)
    return {
        "plain": np.arange(2),
        "m": {"w": weight},
        "tied": weight,
        "half": torch.arange(3).bfloat16(),
        "pairs": torch.ones(3).to(torch.complex32),
        "size": torch.Size([2, 3]),
    }


@pytest.mark.filterwarnings("ignore:.*torch.Size")
def test_files_are_read_without_it(tmp_path: Path) -> None:
    """As numpy arrays if asked for; else the error names what to do. A numpy program imports no framework."""
    for form in FORMATS:
        (tmp_path / form).mkdir()
        save_to(tmp_path / form, 1, make_state(), form=form)
    for kind in ("json", "npz", "msgpack", "h5"):
        with Checkpointer.from_file(tmp_path / f"keyed.{kind}") as keyed:
            keyed["k"] = {"w": torch.ones(2)}
    run(WITHOUT, tmp_path, ROOT)


def test_the_package_imports_no_framework() -> None:
    """Nor ml_dtypes, so that `import asyncckpt` costs no more with them installed."""
    script = (
        f"{BLOCKED}\nimport asyncckpt\nprint(*(each for each in ('torch', 'jax', 'ml_dtypes') if each in sys.modules))"
    )
    assert run(script, "", ROOT) == "\n"


@pytest.mark.parametrize("form", FORMATS)
def test_it_is_refused_before_an_array_is_read(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That one is damaged is not even noticed."""
    path = save_to(tmp_path, 1, {"n": np.arange(9), "a": torch.full((1 << 20,), 3.0)}, form=form)
    file = next(path.glob("state.*"))
    data = bytearray(file.read_bytes())
    data[data.rindex(np.full(1 << 10, 3, "f4").tobytes()) - (1 << 20)] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptCheckpointError):
        load_from(tmp_path, 1)
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(UnsupportedFormatError, match=r"^step 1: a is an array of torch, .* import it before the load"):
        load_from(tmp_path, 1)


def test_a_half_imported_framework_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as another thread imports it, it is there, and has no tensors yet."""
    save_to(tmp_path, 1, {"a": torch.ones(2)})
    assert torch.__spec__ is not None
    monkeypatch.setattr(torch.__spec__, "_initializing", True, raising=False)
    with pytest.raises(UnsupportedFormatError, match="which this program has not imported"):
        load_from(tmp_path, 1)
    assert load_from(tmp_path, 1, arrays="numpy")["a"].tolist() == [1, 1]
    monkeypatch.setattr(torch.__spec__, "_initializing", False)
    assert_equal(load_from(tmp_path, 1), {"a": torch.ones(2)})


IMPORTING = """
import asyncio, sys, threading
sys.path.insert(0, sys.argv[2])
from asyncckpt import CheckpointManager, UnsupportedFormatError

async def main():
    async with CheckpointManager(sys.argv[1]) as manager:
        thread = threading.Thread(target=__import__, args=("torch",))
        thread.start()
        seen = set()
        while "tensor" not in seen:
            try:
                found = (await manager.load(1)).state["a"]
                seen.add("tensor")
                assert type(found).__name__ == "Tensor" and found.tolist() == [1, 1]
            except UnsupportedFormatError as error:
                seen.add("refused")
                assert "which this program has not imported" in str(error)
        thread.join()
        print(*sorted(seen))

asyncio.run(main())
"""


def test_it_may_be_imported_during_a_load(tmp_path: Path) -> None:
    """In another thread: a load refuses the tensors, or makes them."""
    save_to(tmp_path, 1, {"a": torch.ones(2)})
    assert run(IMPORTING, tmp_path, ROOT) in ("refused tensor\n", "tensor\n")


def test_threads_that_meet_the_first_tensor_find_one_adapter(tmp_path: Path) -> None:
    """Which is registered once."""
    del tmp_path
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(adapters.find_adapter(torch.Tensor))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert found[0] is not None


@pytest.mark.parametrize("form", FORMATS)
def test_an_earlier_reader_refuses_tensors(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index names the framework as a feature. Files without its arrays are read as before."""
    save_to(tmp_path, 1, {"a": torch.ones(2)}, form=form)
    save_to(tmp_path, 2, {"a": np.ones(2), "b": torch.Size([1])}, form=form)
    monkeypatch.setattr(index, "FEATURES", index.FEATURES - {"torch"})
    with pytest.raises(
        UnsupportedFormatError, match=r"^step 1: the index needs torch, which this asyncckpt cannot read"
    ):
        load_from(tmp_path, 1, arrays="numpy")
    assert load_from(tmp_path, 2)["a"].tolist() == [1, 1]

"""Golden files: what version 1 of the format wrote loads for ever, equal to what its script says."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.support import canonical, load_from, verify

import asyncckpt
from asyncckpt import _load_checkpoint_history

HERE = Path(__file__).parent
FOLDERS = sorted(path for path in (HERE / "version_1").iterdir() if path.is_dir())
NPZ = HERE / "npz_1"


def script(name: str) -> Any:
    """Import a script that made files, as its siblings do."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


MAKE = script("make")
MAKE_KEYED = script("make_keyed")


def plain(value: Any) -> Any:
    """Take the script's own types apart, so that they can be compared."""
    if isinstance(value, MAKE.Point):
        return ["Point", *map(canonical, value)]
    if isinstance(value, MAKE.Params):
        return ["Params", canonical(value.weights), value.count]
    if isinstance(value, MAKE.Own):
        return ["Own", [plain(each) for each in value.data] if isinstance(value.data, list) else value.data]
    if isinstance(value, MAKE.Key):
        return ["Key", canonical(value.held)]
    return canonical(value)


def test_all_are_there() -> None:
    """Both formats, an array in several segments and npz files are kept, in little space."""
    assert [path.name for path in FOLDERS] == ["hdf5", "msgpack", "segments"]
    assert {path.name for path in NPZ.iterdir()} == {"own.npz", "savez.npz", "savez_compressed.npz"}
    assert (
        sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        < 400_000
    )


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_golden_files_load(folder: Path, lazy: bool) -> None:
    """Each verifies, and loads to the bit, types and tied arrays included."""
    verify(folder, 7)
    found, expected = load_from(folder, 7, lazy=lazy), MAKE.state_of(folder.name)
    assert list(found) == list(expected)
    for name in expected:
        if name == "types":
            assert [plain(each) for each in found[name]] == [plain(each) for each in expected[name]]
        else:
            assert canonical(found[name]) == canonical(expected[name]), name
    tied = found["arrays"]["tied"]
    assert tied[0] is tied[1]["again"] is found["types"][1].y


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_golden_files_fill_and_select(folder: Path) -> None:
    """They restore in place and load in part, too."""
    target = MAKE.state_of(folder.name)
    array = target["arrays"]["page"]
    array[:] = 0
    load_from(folder, 7, template=target, in_place=True)
    assert target["arrays"]["page"] is array
    assert (array == np.arange(1030)).all()
    assert list(load_from(folder, 7, select="arrays/w*")["arrays"]) == ["words"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_golden_documents(folder: Path) -> None:
    """Their small files read back equal."""
    ((step, path, info),) = _load_checkpoint_history(folder)
    assert (step, path) == (7, folder / "step_7")
    assert repr(info) == repr(MAKE.TRAINING_INFO)
    assert yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")) == MAKE.RUN_CONFIG
    assert json.loads((path / "manifest.json").read_bytes())["format_version"] == 1


def test_the_readers_of_the_documentation_read_them() -> None:
    """The page's reader, which uses no asyncckpt, gets through all of them."""
    page = (HERE.parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n# read\n(.*?)```", page, re.DOTALL)
    assert found is not None
    scope: dict[str, Any] = {}
    exec(compile(found[1], "docs/format.md", "exec"), scope)  # noqa: S102 - the page's own program
    for folder in FOLDERS:
        state = scope["read"](folder / "step_7")
        assert (state["arrays"]["page"] == np.arange(1030)).all()
        assert state["types"][0] == "red"


def test_a_golden_file_of_keys_loads() -> None:
    """A JSON file of version 1 opens with its keys in their order and values equal to the bit; no read changes it."""
    path = HERE / "keyed_1" / "woof.json"
    before = path.read_bytes()
    expected = MAKE_KEYED.values()
    with asyncckpt.Checkpointer.from_file(path) as chk:
        assert list(chk) == list(expected)
        found = dict(chk)
    assert [plain(each) for each in found.pop("types")] == [plain(each) for each in expected.pop("types")]
    held = found.pop("a key that holds an array")
    (key, shared), *others = held.items()
    assert plain(key) == ["Key", canonical(np.arange(4.0))]
    assert key.held is shared
    assert canonical(others) == canonical([((1, 2.5), {"below": {3: None}})])
    for name, value in found.items():
        assert canonical(value) == canonical(expected[name]), name
    assert path.read_bytes() == before
    document = json.loads(before)
    assert document["plain"][:3] == [None, True, False]
    assert document["foreign"] == found["foreign"]


def test_a_golden_file_of_keys_is_gone_on_with(tmp_path: Path) -> None:
    """What did not change is what it was after a flush, and json reads the file."""
    path = tmp_path / "woof.json"
    path.write_bytes((HERE / "keyed_1" / "woof.json").read_bytes())
    before = json.loads(path.read_bytes())
    with asyncckpt.Checkpointer.from_file(path) as chk:
        chk["new"] = (1, np.arange(3))
        del chk["nan"]
    after = json.loads(path.read_bytes())
    assert after.pop("new")["__asyncckpt__"] == "tuple"
    before.pop("nan")
    assert list(after.items()) == list(before.items())


def check_npz(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare them, to the bit."""
    assert set(found) == set(expected)
    for key, value in expected.items():
        if key == "types":
            assert [plain(each) for each in found[key]] == [plain(each) for each in value]
        else:
            assert canonical(found[key]) == canonical(np.asarray(value) if isinstance(value, np.ndarray) else value), (
                key
            )


@pytest.mark.parametrize("name", ["own.npz", "savez.npz", "savez_compressed.npz"])
def test_golden_npz_files_load_and_can_be_changed(name: str, tmp_path: Path) -> None:
    """Each loads to the bit, and again after one key of it has changed; arrays are what numpy finds in it."""
    expected = MAKE.own_npz() if name == "own.npz" else MAKE.foreign_npz()
    path = tmp_path / name
    shutil.copy(NPZ / name, path)
    with asyncckpt.Checkpointer.from_file(path, rewrite=name != "own.npz") as chk:
        assert list(chk)[-1] == list(expected)[-1]
        check_npz(dict(chk), expected)
        chk["new"] = np.ones(2)
    with asyncckpt.Checkpointer.from_file(path) as chk:
        check_npz(dict(chk), expected | {"new": np.ones(2)})
    with np.load(path, allow_pickle=False) as found:
        assert (found["new"] == 1).all()
    with zipfile.ZipFile(path) as after, zipfile.ZipFile(NPZ / name) as before:
        for member in set(before.namelist()) - {"__asyncckpt__.npy"}:
            assert after.read(member) == before.read(member)
            assert after.getinfo(member).compress_size == before.getinfo(member).compress_size

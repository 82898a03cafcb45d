"""The README keeps what it says: every Python block runs as written, and its tables are complete."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import asyncckpt
from asyncckpt.config import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run_block(code: str, directory: Path) -> str:
    """Run a block as a script of its own, with warnings as errors, and return what it printed."""
    (directory / "block.py").write_text(code)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, "-W", "error", "block.py"],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, code + result.stdout + result.stderr
    return result.stdout


def test_the_example_runs_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """The first block has at most 15 lines, blank ones aside; run again, it resumes and ends with the same number."""
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 15
    first, second = run_block(BLOCKS[0], tmp_path), run_block(BLOCKS[0], tmp_path)
    assert first == second
    assert "at step 94" in first


def test_every_block_runs_as_written(tmp_path: Path) -> None:
    """All blocks run in order, in one directory, each as a script of its own."""
    assert len(BLOCKS) >= 5
    for block in BLOCKS:
        run_block(block, tmp_path)


def test_every_error_is_in_the_table() -> None:
    """Each public error has its row, with the builtin or public error that it also is."""
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(\w+Error)` \| ([^|]*)\|", README, re.MULTILINE)}
    errors = {
        name: getattr(asyncckpt, name)
        for name in asyncckpt.__all__
        if name.endswith("Error") and name != "CheckpointError"
    }
    assert rows.keys() == errors.keys()
    for name, error in errors.items():
        also = [base.__name__ for base in error.__bases__ if base is not asyncckpt.CheckpointError]
        assert [each.strip() for each in rows[name].split(",") if each.strip()] == also, name


def test_every_option_is_in_the_table_with_its_default() -> None:
    """Each option of a manager has its row, and the default that stands there is the true one."""
    table = README.partition("## Options")[2].partition("## Formats")[0]
    found = {}
    for names, default in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", table, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            found[name] = default.strip()
    options = {field.name: field.default for field in dataclasses.fields(Settings) if field.name != "checkpoint_dir"}
    assert found.keys() == options.keys()
    for name, default in options.items():
        spelled = {2 * 1024**3: "2 GiB"}.get(default) if type(default) is int else None
        assert found[name] == (spelled or (f'"{default}"' if isinstance(default, str) else repr(default)))


def test_every_kind_of_checkpointer_is_in_the_table() -> None:
    """Each kind has its row, with the extensions that it is made for."""
    found = {
        name: {each.strip() for each in extensions.split(",") if each.strip()}
        for name, extensions in re.findall(r"^\| `(\w+Checkpointer)` \| ([^|]*)\|", README, re.MULTILINE)
    }
    kinds = {name: set() for name in asyncckpt.__all__ if re.fullmatch(r"(?!Async)\w+Checkpointer", name)}
    for extension, kind in asyncckpt.Checkpointer.extension_map().items():
        kinds[kind.__name__].add(extension)
    assert found == kinds


def test_links_lead_to_files() -> None:
    """Each relative link names a file of the project."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_the_make_targets_exist(target: str) -> None:
    """The README names make targets that the Makefile has."""
    assert f"`make {target}`" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_methods_that_the_readme_names_exist() -> None:
    """Each lower-case `name(...)` in backticks is a method of a public class, or of a user's own type."""
    kinds = (asyncckpt.CheckpointManager, asyncckpt.SaveHandle, asyncckpt.Checkpointer, asyncckpt.AsyncCheckpointer)
    public = {name for kind in kinds for name in dir(kind)}
    named = set(re.findall(r"`([a-z_]+)\(", README))
    assert named <= public | {"register_type", "to_state", "from_state", "update_state"}

"""The README and the pages keep what they say: each Python block runs as written, tables are complete, links work."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import asyncckpt
from asyncckpt.config import CheckpointingConfig, Settings

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
}
README = PAGES["README.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANY_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {name: BLOCK.findall(page) for name, page in PAGES.items() if name != "docs/format.md"}  # see test_format_docs

LIGHTNING = (
    *("-W", "ignore:`isinstance(treespec, LeafSpec)` is deprecated:FutureWarning"),  # which it does itself
    *("-W", "ignore:The 'train_dataloader' does not have many workers"),  # and need not have, for a few numbers
)
"""Filters for the warnings that Lightning issues in a small training."""


def run_block(code: str, directory: Path) -> str:
    """Run a block as a script of its own, with warnings as errors, and return what it printed."""
    (directory / "block.py").write_text(code)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, "-W", "error", *(LIGHTNING if "import lightning" in code else ()), "block.py"],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, code + result.stdout + result.stderr
    return result.stdout


def slugs(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", ANY_BLOCK.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_example_runs_and_resumes(tmp_path: Path) -> None:
    """The README's first block has at most 15 lines that are not blank; run again, it ends with the same number."""
    example = BLOCKS["README.md"][0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    first, second = run_block(example, tmp_path), run_block(example, tmp_path)
    assert first == second
    assert "at step 95" in first


def test_the_guides_have_examples() -> None:
    """Every guide shows code, so the test below is not an empty one."""
    assert all(blocks for name, blocks in BLOCKS.items() if name.startswith("docs/guide/"))


@pytest.mark.parametrize("name", [name for name, blocks in BLOCKS.items() if blocks])
def test_every_block_of_a_page_runs_as_written(name: str, tmp_path: Path) -> None:
    """A page's blocks run in order, in one directory, each as a script of its own."""
    for block in BLOCKS[name]:
        for framework in re.findall(
            r"^(?:import|from) (torch|jax|stable_baselines3|lightning|ase)\b", block, re.MULTILINE
        ):
            if find_spec(framework) is None:
                pytest.skip(f"an example of {name} needs {framework}")
        run_block(block, tmp_path)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    """Each relative link of a page names a file of the project, and a heading in it if it has an anchor."""
    for target in re.findall(r"\]\(([^)\s]+)\)", ANY_BLOCK.sub("", PAGES[name])):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = ((ROOT / name).parent / file).resolve() if file else ROOT / name
        assert path.exists(), target
        assert not anchor or anchor in slugs(path.read_text(encoding="utf-8")), target


def test_every_page_is_reached_from_the_readme() -> None:
    """The README links every page, and every page says what it is in one title."""
    linked = set(re.findall(r"\]\(([^)#:]+\.md)\)", README))
    assert PAGES.keys() - {"README.md"} <= linked
    for name, page in PAGES.items():
        assert page.startswith("# "), name


def test_every_error_is_in_the_table() -> None:
    """Each public error has its row, with the builtin or public error that it also is."""
    page = PAGES["docs/reference/errors.md"]
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(\w+Error)` \| ([^|]*)\|", page, re.MULTILINE)}
    errors = {
        name: getattr(asyncckpt, name)
        for name in asyncckpt.__all__
        if name.endswith("Error") and name != "CheckpointError"
    }
    assert rows.keys() == errors.keys()
    for name, error in errors.items():
        also = [base.__name__ for base in error.__bases__ if base is not asyncckpt.CheckpointError]
        assert [each.strip() for each in rows[name].split(",") if each.strip()] == also, name


def test_every_option_is_described_with_its_default() -> None:
    """`Settings` is the list of options; the docstring describes each, and the page repeats its text."""
    doc = inspect.getdoc(CheckpointingConfig) or ""
    described = {}
    for name, text in re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", doc, re.MULTILINE | re.DOTALL):
        described[name], _, default = " ".join(text.split()).replace("``", "`").partition(" Default: ")
        field = next(field for field in dataclasses.fields(Settings) if field.name == name)
        spelled = f'"{field.default}"' if isinstance(field.default, str) else str(field.default)
        spelled = "2 GiB" if type(field.default) is int and field.default == 2 * 1024**3 else spelled
        expected = "" if field.default is dataclasses.MISSING else f"{spelled}."
        assert default == expected, name
        described[name] = f"| `{name}` | {spelled} | {described[name]} |"
    assert described.keys() == {field.name for field in dataclasses.fields(Settings)}
    del described["checkpoint_dir"]  # an argument of its own
    rows = re.findall(r"^\| `.*$", PAGES["docs/reference/options.md"], re.MULTILINE)
    assert rows == list(described.values()), "the table should be:\n" + "\n".join(described.values())


def test_every_kind_of_checkpointer_is_in_the_table() -> None:
    """Each kind has its row, with the extensions that it is made for."""
    found = {
        name: {each.strip() for each in extensions.split(",") if each.strip()}
        for name, extensions in re.findall(
            r"^\| `(\w+Checkpointer)` \| ([^|]*)\|", PAGES["docs/guide/keyed-files.md"], re.MULTILINE
        )
    }
    kinds = {name: set() for name in asyncckpt.__all__ if re.fullmatch(r"(?!Async)\w+Checkpointer", name)}
    for extension, kind in asyncckpt.Checkpointer.extension_map().items():
        kinds[kind.__name__].add(extension)
    assert found == kinds


@pytest.mark.parametrize("target", ["demo", "test", "lint", "rigs"])
def test_the_make_targets_exist(target: str) -> None:
    """The README names the make targets that the Makefile has."""
    assert f"`make {target}`" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_methods_that_the_guides_name_exist() -> None:
    """Each lower-case `name(...)` in backticks is a method of a public class, or of a user's own type."""
    kinds = (asyncckpt.CheckpointManager, asyncckpt.SaveHandle, asyncckpt.Checkpointer, asyncckpt.AsyncCheckpointer)
    kinds += (asyncckpt.Cut, asyncckpt.Participant, asyncckpt.CutQueue, asyncckpt.CutWorkQueue)
    public = {name for kind in kinds for name in dir(kind)}
    pages = [page for name, page in PAGES.items() if name.startswith(("README", "docs/guide", "docs/reference"))]
    named = {name for page in pages for name in re.findall(r"`([a-z_]+)\(", page)}
    others = {"register_type", "to_state", "from_state", "update_state", "model_dump", "state_dict", "clone"}
    assert named <= public | others

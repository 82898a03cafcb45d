"""Modules of the package import each other in one direction only, also where only a type checker looks."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import asyncckpt

ROOT = Path(asyncckpt.__file__).parent


def imports(root: Path) -> dict[str, set[str]]:
    """Return the modules of a package, each with those of them that it imports anywhere."""
    paths = {".".join(path.relative_to(root.parent).with_suffix("").parts): path for path in root.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                members = {f"{node.module}.{each.name}" for each in node.names}
                names |= {each if each in modules else node.module for each in members}
            elif isinstance(node, ast.Import):
                names |= {each.name for each in node.names}
        found[name] = names & modules.keys()
    return found


def test_there_are_no_import_cycles() -> None:
    """Each module can be read when those that it imports have been."""
    found = imports(ROOT)
    assert "asyncckpt.runtime.pacing" in found["asyncckpt.keyed.values"]
    list(TopologicalSorter(found).static_order())


def test_a_cycle_is_found(tmp_path: Path) -> None:
    """Also one through a block that only type checkers see."""
    root = tmp_path / "package"
    root.mkdir()
    (root / "a.py").write_text("from package.b import B\n")
    (root / "b.py").write_text("if TYPE_CHECKING:\n    from package import a\n")
    with pytest.raises(CycleError):
        list(TopologicalSorter(imports(root)).static_order())

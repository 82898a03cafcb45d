"""docs/design.md describes what is: its tables agree with the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from asyncckpt.saving.tracking import TRANSITIONS, SaveState

ROOT = Path(__file__).parents[2]
DESIGN = (ROOT / "docs" / "design.md").read_text()


def test_the_table_of_a_handles_states_is_the_one_in_the_code() -> None:
    """Each state has its row, with exactly the states that it may become; there are no other rows."""
    table = DESIGN.partition("may become |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (\w+) \| ([\w, -]+) \|$", table, re.MULTILINE)
    documented = {state: set() if after == "-" else set(after.split(", ")) for state, after in rows}
    assert documented == {str(state): {str(each) for each in after} for state, after in TRANSITIONS.items()}
    assert documented.keys() == {str(state) for state in SaveState}


def test_every_module_is_named_and_exists() -> None:
    """The list of modules has each module and each package, and no others."""
    section = DESIGN.partition("## 3.")[2].partition("Who owns what")[0]
    package = ROOT / "asyncckpt"
    modules = {path.name for path in package.rglob("*.py") if path.name != "__init__.py"}
    assert set(re.findall(r"`(\w+\.py)`", section)) == modules
    folders = {f"{path.name}/" for path in package.rglob("*/") if (path / "__init__.py").exists()}
    assert set(re.findall(r"`(\w+/)`", section)) == folders


def test_only_the_loops_side_is_async() -> None:
    """No module but those of saving/, its jobs, cuts, the manager, and the view of a Checkpointer has a coroutine."""
    package = ROOT / "asyncckpt"
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(isinstance(node, ast.AsyncFunctionDef) for node in ast.walk(ast.parse(path.read_text())))
    }
    assert {name for name in found if not name.startswith("saving/")} <= {
        "blocking.py",
        "loading.py",
        "manager.py",
        "cut/core.py",
        "cut/cut.py",
        "cut/participant.py",
        "cut/queue.py",
        "cut/work_queue.py",
        "runtime/cancellation.py",
        "runtime/deadline.py",
        "runtime/jobs.py",
        "runtime/portal.py",
        "keyed/lifecycle.py",
        "keyed/store_jobs.py",
        "keyed/async_session.py",
        "keyed/view.py",
    }

"""A benchmark that is run in chunks is one benchmark: nothing is measured twice, and nothing is mixed unnoticed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the benchmark, which is not installed, be imported from the project's root."""
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])


@pytest.fixture
def results() -> Callable[..., Any]:
    """Make results with one sample for each workload."""
    from benchmarks.samples import Sample
    from benchmarks.store import Results, Session

    def make(*workloads: str, scale: str = "full", version: str = "1") -> Any:
        made = Results(scale=scale)
        for workload in workloads:
            made.samples.extend([Sample(workload=workload, system="pickle 5", measure="blocked", value=0.5, round=1)])
            made.sessions[workload] = [
                Session(started="now", load_average="0", seconds=6, processes=1, facts={"pickle": version})
            ]
        return made

    return make


def test_no_two_processes_of_a_system_have_the_same_number() -> None:
    """The floors, which are measured before each of ours, are counted through, so that none seems done."""
    from benchmarks.scale import SCALES
    from benchmarks.workloads import WORKLOADS

    for workload in WORKLOADS:
        turns = list(workload.turns(SCALES["full"]))
        assert len(turns) == len(set(turns))


def test_peers_have_several_rounds_on_the_main_row_and_as_many_as_asked_for_elsewhere() -> None:
    """Who wants more rounds of peers gets them."""
    from benchmarks.scale import SCALES
    from benchmarks.workloads import WORKLOADS

    main, *others = WORKLOADS
    assert sum(turn.system == "Orbax" for turn in main.turns(SCALES["full"])) >= 2
    many = next(workload for workload in others if workload.name == "many")
    assert sum(turn.system == "Orbax" for turn in many.turns(SCALES["full"], 4)) == 4


def test_what_is_written_is_read(tmp_path: Path, results: Callable[..., Any]) -> None:
    """Samples, sessions and scale come back; workloads that are measured anew are left out."""
    from benchmarks import store

    made = results("arrays", "many")
    for workload in ("arrays", "many"):
        made.write(workload, tmp_path)
    found = store.read(tmp_path)
    assert (found.scale, found.samples.all, found.sessions) == (made.scale, made.samples.all, made.sessions)
    assert store.read(tmp_path, without=["arrays"]).samples.workloads() == ["many"]


def test_sizes_are_not_mixed(tmp_path: Path, results: Callable[..., Any]) -> None:
    """Results of a quick run stop a full one from adding to them."""
    from benchmarks import store

    results("arrays", scale="quick").write("arrays", tmp_path)
    with pytest.raises(ValueError, match="another size"):
        store.read(tmp_path, scale="full")
    assert not store.read(tmp_path, scale="full", without=["arrays"]).samples.all


def test_versions_that_differ_between_sessions_are_all_named(results: Callable[..., Any]) -> None:
    """A report of two sessions does not claim the versions of one."""
    made = results("arrays")
    made.sessions |= results("many", version="2").sessions
    assert made.facts() == {"pickle": "1; 2"}

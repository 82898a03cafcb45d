"""docs/performance.md and the README show the results of the benchmark that are kept, and the options exist."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from asyncckpt.config import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the benchmark, which is not installed, be imported from the project's root."""
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])


def test_the_tables_are_those_of_the_results() -> None:
    """Filling the pages from the samples that are kept changes nothing."""
    from benchmarks import page, store

    for path in page.PAGES:
        text = path.read_text(encoding="utf-8")
        assert page.fill(text, store.read(RESULTS)) == text, path


def test_the_report_is_that_of_the_results() -> None:
    """The report next to the samples is made from them."""
    from benchmarks import report, store

    assert report.write_report(store.read(RESULTS)) == (RESULTS / "table.md").read_text(encoding="utf-8")


def test_a_changed_sample_changes_the_page() -> None:
    """The comparison above can fail: tables are written from the samples, not kept as they are."""
    from benchmarks import page, store

    results = store.read(RESULTS)
    first = next(each for each in results.samples.all if (each.workload, each.measure) == ("arrays", "blocked"))
    results.samples.extend([dataclasses.replace(first, value=first.value * 1000)] * 100)
    for path in page.PAGES:
        text = path.read_text(encoding="utf-8")
        assert page.fill(text, results) != text, path


def test_every_workload_is_shown_once() -> None:
    """No workload is missing from the page, and none is there twice."""
    from benchmarks.page import BLOCK
    from benchmarks.workloads import WORKLOADS

    names = [found[2] for found in BLOCK.finditer(PAGE)]
    assert sorted(names) == sorted([*(workload.name for workload in WORKLOADS), "machine", "goals"])


def test_the_options_to_tune_exist() -> None:
    """What the text calls an option of the manager is one."""
    options = {field.name for field in dataclasses.fields(Settings)}
    assert {"max_staged_nbytes", "overflow", "format", "keep_latest_k", "keep_top_k", "keep_every"} <= options
    text = PAGE.partition("## What to tune")[2].partition("## Limits")[0]
    arguments = {"frozen", "select", "lazy"}
    assert set(re.findall(r"`(\w+)=", text)) <= options | arguments

"""A program that is killed at any moment trains on each sample exactly once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_killed_training_trains_on_each_sample_once_in_order(tmp_path: Path) -> None:
    """See `reliability/cut_program.py`; `make rigs` kills it a thousand times."""
    ledger = tmp_path / "ledger.jsonl"
    command = [sys.executable, "-m", "tests.reliability", "--rigs", "cut-kill", "--units", "kills/0/20", "--jobs", "1"]
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [*command, "--ledger", ledger], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (entry,) = [entry for entry in map(json.loads, ledger.read_text().splitlines()) if "tried" in entry]
    assert (entry["tried"], entry["lost"]) == (20, 0)
    assert entry["counts"]["samples"] >= 100

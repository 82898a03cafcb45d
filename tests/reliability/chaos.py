"""Rig: ckpt-chaos, which others have written, kills a program at each of its file events and has it go on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from .chaos_program import EXTENSIONS
from .rig import Result, Rig

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).parents[2]
_FORMS = ("msgpack", "hdf5", *EXTENSIONS)
_POINTS_MAX = 100
_SECONDS = 60  # for one run of the program
_CONTROL = "no crash"
_NOT_KILLED = "[DID NOT CRASH]"


class Chaos(Rig):
    """Uses it as its documentation says, by its command line."""

    name = "chaos"
    tries = (
        "ckpt-chaos, a tool for the checkpoints of any training script, kills a small program at every file that it"
        " opens for writing, renames, makes or removes; called again, the program finds what it had acknowledged, goes"
        " on from the newest checkpoint, and ends as one that nobody kills."
    )
    cases = "kill points"
    quick = 60
    goal = 90
    seconds = 1200.0  # it starts some fifty interpreters one after the other, and bounds each

    def missing(self) -> str | None:
        """Ask for the package."""
        return None if importlib.util.find_spec("ckpt_chaos") else "ckpt-chaos is not installed"

    def units(self, seed: int) -> Iterator[str]:  # noqa: ARG002 - the same for all seeds
        """Give a unit for each format and each kind of keyed file."""
        return iter(_FORMS)

    def run(self, unit: str, scratch: Path) -> Result:
        """Let it kill the program, and judge."""
        verdicts = scratch / "verdicts.xml"
        command = [
            *(sys.executable, "-m", "ckpt_chaos", "run"),
            *("--work", str(scratch / "work"), "--junit", str(verdicts), "--result-file", "{out}/../result"),
            *("--max-points", str(_POINTS_MAX), "--timeout", str(_SECONDS), "--step-regex", r"resumed from step (\d+)"),
            *("--fail-on", "HARD_FAIL,SILENT_DIVERGENCE,LOST_WORK,CONTROL_FAIL"),
        ]
        if unit not in EXTENSIONS:
            command += ["--checkpoint-glob", "{out}/step_*", "--ckpt-ignore-size"]
        program = [sys.executable, "-m", f"{__package__}.chaos_program", unit, "{out}"]
        done = subprocess.run(  # noqa: S603 - our own command line
            [*command, "--", *program],
            cwd=_ROOT,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        return _judge(unit, verdicts, done.stdout + done.stderr)


def _judge(unit: str, verdicts: Path, output: str) -> Result:
    """Count what it has tried; what fails without a kill is a loss, too, and what was not killed is no case."""
    result = Result()
    cases = ET.parse(verdicts).findall("testcase") if verdicts.exists() else []  # noqa: S314 - our own child's
    spared = [line for line in output.splitlines() if line.endswith(_NOT_KILLED)]
    for case in cases:
        name = case.attrib["name"]
        has_run = case.find("error") is None and not name.startswith(_CONTROL)
        is_killed = has_run and not any(line.startswith(name) for line in spared)
        result.tried += is_killed
        result.count(f"of {unit}", is_killed)
        result.losses += [f"{name}: {each.attrib['message']}: {each.text}" for each in case]
    if result.tried == 0:
        result.losses.append(f"it has killed nothing: {output[-2000:]}")
    return result

"""The examples, run as a user runs them: killed in the middle of a save, resumed, compared with a run left alone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.support import need

import asyncckpt

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_short_demo(script: str, directory: Path) -> str:
    """Run an example's short demo to its end, with warnings as errors, and return what it printed."""
    result = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, str(EXAMPLES / script), "--demo", "--short", "--dir", str(directory)],
        env=os.environ | {"PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def last_states(directory: Path) -> tuple[Any, Any]:
    """The final states of the run left alone and of the run that was killed."""

    async def load(name: str) -> Any:
        async with asyncckpt.CheckpointManager(directory / name, read_only=True) as manager:
            return (await manager.load("latest")).state

    return asyncio.run(load("uninterrupted")), asyncio.run(load("killed"))


def assert_same_arrays(expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Every array is there in both, with the same bits."""
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        assert array.dtype == found[name].dtype
        assert array.shape == found[name].shape
        assert array.tobytes() == found[name].tobytes(), name


def test_cartpole_killed_in_a_save_ends_with_the_parameters_of_a_run_left_alone(tmp_path: Path) -> None:
    """The asynchronous learner goes on after SIGKILL to the same parameters and Adam moments, bit for bit."""
    need("gymnasium")
    output = run_short_demo("async_cartpole.py", tmp_path)
    assert "killed while it saved step" in output
    assert "resuming from" in output
    expected, found = (state["learner"] for state in last_states(tmp_path))
    for network in ("policy", "value"):
        assert_same_arrays(expected["params"][network], found["params"][network])
        for moment in ("m", "v"):
            assert_same_arrays(expected["adam"][network][moment], found["adam"][network][moment])
    assert np.any(expected["adam"]["policy"]["m"]["w0"])  # it did learn something


def test_argon_killed_in_a_save_continues_the_trajectory_of_a_run_left_alone(tmp_path: Path) -> None:
    """The simulated atoms move on after SIGKILL along the same trajectory, bit for bit, saved as HDF5."""
    need("ase")
    output = run_short_demo("md_argon.py", tmp_path)
    assert "killed while it saved step" in output
    assert "resuming from" in output
    expected, found = last_states(tmp_path)
    assert expected.pop("rng").bit_generator.state == found.pop("rng").bit_generator.state
    assert_same_arrays(expected, found)
    trajectory = expected["trajectory"]
    assert len(np.unique(trajectory[:, 0, 0])) == len(trajectory)  # the atoms do move
    assert list(tmp_path.glob("killed/step_*/state.h5"))


# Runs a script that stops when it has printed three lines: however slow this process is, the script does not end.
_STOPPING = """
import builtins, runpy, signal, sys
lines = []
def counting(*args, print=print, **options):
    print(*args, **options)
    lines.append(args)
    if len(lines) == 3:
        signal.pause()
builtins.print = counting
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


_STOPPING_AT_37 = _STOPPING.replace("len(lines) == 3", "args == ('step 37',)")


@pytest.mark.parametrize("extension", [".hdf5", ".json"])  # one that is added to, and one that is written anew
def test_a_scan_that_is_killed_computes_nothing_twice(tmp_path: Path, extension: str) -> None:
    """After SIGKILL what was stored is loaded, only the rest computed, and the result is that of a run left alone."""
    need("scipy")
    options = ["--couplings=3", "--points=14"]
    killed = tmp_path / f"killed{extension}"

    def command(file: Path, *before: str) -> list[str]:
        return [sys.executable, *before, str(EXAMPLES / "scan_potential.py"), f"--file={file}", *options]

    def pairs(output: str, what: str) -> set[str]:
        return {line.partition(":")[0].split(None, 1)[1] for line in output.splitlines() if line.startswith(what)}

    stored = ""
    with subprocess.Popen(command(killed, "-c", _STOPPING), stdout=subprocess.PIPE, text=True) as child:  # noqa: S603
        assert child.stdout is not None
        for _ in range(3):
            stored += child.stdout.readline()
        child.kill()
        stored += child.stdout.read()
    assert child.returncode < 0, "it ended before it was killed"
    assert len(pairs(stored, "computed")) >= 3
    resumed = subprocess.run(command(killed), capture_output=True, text=True, check=True).stdout  # noqa: S603 - as above
    assert pairs(stored, "computed") <= pairs(resumed, "loaded")
    assert not pairs(resumed, "computed") & pairs(stored, "computed")
    assert len(pairs(resumed, "computed") | pairs(resumed, "loaded")) == 9
    assert "9 pairs" in resumed
    whole = tmp_path / f"whole{extension}"
    subprocess.run(command(whole), capture_output=True, text=True, check=True)  # noqa: S603 - as above
    expected, found = (dict(asyncckpt.Checkpointer.from_file(file)) for file in (whole, killed))
    assert expected.keys() == found.keys()
    assert expected["energies"].tobytes() == found["energies"].tobytes()
    assert expected["energies"][0, 0, 0] == pytest.approx(1.0, abs=1e-3)  # two oscillators at rest


def test_a_loader_with_workers_that_is_killed_reads_each_sample_once_in_each_epoch(tmp_path: Path) -> None:
    """After SIGKILL in the middle of the second epoch, the position of torchdata's loader comes from the checkpoint."""
    need("torchdata")
    command = [sys.executable, str(EXAMPLES / "torch_dataloader.py"), f"--dir={tmp_path}"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([*command[:1], "-c", _STOPPING_AT_37, *command[1:]], **options) as child:  # type: ignore[call-overload] # noqa: S603
        lines = []
        while not lines or lines[-1] != "step 37\n":  # of 48: 24 make an epoch
            lines.append(child.stdout.readline())
            assert lines[-1], "".join(lines)
        child.kill()
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - as above
    assert "resuming from" in output
    resumed_at = int(output.split("step_")[1].split()[0])
    assert 24 < resumed_at < 37
    assert output.splitlines()[1] == f"step {resumed_at + 1}"
    assert "2 epochs, each sample used 1 times in each" in output

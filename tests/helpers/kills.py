"""Runs a training or a simulation whole, killed and resumed, each in a forked process, and says how each ends.

A test starts a program of tests/integrations, which imports its library once and calls `report` for all of its cases.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_TESTS = Path(__file__).parents[1]
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Bits = dict[str, str]
"""The path of each leaf of a state, and its type and bits as a string."""


def run_program(name: str, directory: Path) -> dict[str, dict[str, Any]]:
    """Run a program of tests/integrations and return what it reports: of each case, the runs with the bits of each."""
    path = os.pathsep.join([str(_TESTS), str(_TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, "-W", "error", str(_TESTS / "integrations" / name), str(directory)],
        env=os.environ | {"PYTHONPATH": path, **_ONE_THREAD},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
    return found


def report(run: Callable[..., Any], cases: Mapping[str, Iterable[str]]) -> None:
    """Print what `run_program` returns.

    Args:
        run: Is called with a case, a directory, whether it is to kill its process, and the name of a part of the state
            that it is not to load, or None. It returns the state that it ends with.
        cases: The cases, and the names of parts without which each is resumed, too.
    """
    found = {}
    for case, parts in cases.items():
        base = Path(sys.argv[1]) / case
        whole = _fork(run, case, base / "whole")
        killed = _fork(run, case, base / "killed", killed=True)
        runs = {"whole": whole, "killed": killed}
        for part in parts:
            copy = shutil.copytree(base / "killed", base / f"without {part}".replace("/", " "))
            runs[f"without {part}"] = _fork(run, case, copy, without=part)
        found[case] = runs | {"resumed": _fork(run, case, base / "killed")}
    print(json.dumps(found))  # noqa: T201 - the program's output


def assert_exact(runs: dict[str, Any]) -> None:
    """A run that was killed and resumed ends as a whole one, to the bit; without a part of its state, it does not."""
    assert runs["killed"] == -signal.SIGKILL
    assert isinstance(runs["whole"], dict), "the run ended by itself"
    whole, resumed = runs["whole"], runs["resumed"]
    assert isinstance(resumed, dict), "the run that resumed ended by itself"
    paths = whole.keys() | resumed.keys()
    differing = {path: (whole.get(path), resumed.get(path)) for path in paths if whole.get(path) != resumed.get(path)}
    assert not differing, differing
    for name, bits in runs.items():
        if name.startswith("without"):
            assert isinstance(bits, dict), name
            assert bits != runs["whole"], name


def bits_of(state: Any, path: str = "") -> Bits:
    """Return the bits of each leaf of a state."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, (list, tuple, deque)):
        items = enumerate(state)
    else:
        return {path: _bits(state)}
    return {where: bits for key, item in items for where, bits in bits_of(item, f"{path}/{key}").items()}


def _bits(leaf: Any) -> str:
    if (torch := sys.modules.get("torch")) is not None and isinstance(leaf, torch.Tensor):
        leaf = leaf.detach().numpy()
    if isinstance(leaf, np.ndarray):
        return f"{leaf.dtype} {leaf.shape} {hashlib.sha256(leaf.tobytes()).hexdigest()}"
    if isinstance(leaf, np.random.Generator):
        return repr(leaf.bit_generator.state)
    return f"{type(leaf).__name__} {leaf!r}"


def _fork(
    run: Callable[..., Any], case: str, directory: Path, *, killed: bool = False, without: str | None = None
) -> Bits | int:
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.dup2(2, 1)
            bits = bits_of(run(case, directory, killed=killed, without=without))
            with os.fdopen(writing, "w") as file:
                json.dump(bits, file)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - as at the end of a program
            traceback.print_exc()
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return json.loads(text) if status == 0 else status

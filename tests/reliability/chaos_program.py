"""The program that ckpt-chaos kills: it saves a few steps, and goes on where it finds itself.

Called again, it first looks whether what it had acknowledged is there, and whether all that is there is right. What it
has acknowledged stands beside the directory, in a file that is none of the library's.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np

import asyncckpt

from .workload import same

STEPS = 4
KEPT = 2
EXTENSIONS = {"keyed-hdf5": ".h5", "keyed-msgpack": ".msgpack", "keyed-json": ".json", "keyed-npz": ".npz"}


def make_state(step: int) -> dict[str, Any]:
    """Return the state of a step."""
    return {"step": step, "array": np.full(3000, float(step)), "text": f"step {step}", "list": [step, None, [step]]}


class Told:
    """What was acknowledged: a line for each step."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def steps(self) -> list[int]:
        """Return the steps."""
        return [int(line) for line in self._path.read_text().split()] if self._path.exists() else []

    def add(self, step: int) -> None:
        """Note a step."""
        with self._path.open("a") as file:
            file.write(f"{step}\n")


async def run_manager(form: str, root: Path, told: Told) -> None:
    """Save each step as a checkpoint, and keep the last."""
    async with asyncckpt.CheckpointManager(root, format=form, keep_latest_k=KEPT) as manager:  # type: ignore[arg-type]
        found = manager.steps()
        for step in found:
            if not same((await manager.load(step)).state, make_state(step)):
                sys.exit(f"step {step} is not what was saved")
        for step in told.steps():
            if step not in found and sum(later > step for later in found) < KEPT:
                sys.exit(f"step {step} was acknowledged, and there are {found}")
        print(f"resumed from step {max(found, default=0)}")
        for step in range(max(found, default=0) + 1, STEPS + 1):
            await (await manager.save(step, make_state(step)))
            told.add(step)
        await manager.flush()
        result = (await manager.load("latest")).state
    root.with_name("result").write_text(repr((result["step"], result["array"].tobytes())))


async def run_keyed(form: str, root: Path, told: Told) -> None:
    """Save each step under a key of its own."""
    root.mkdir(exist_ok=True)
    async with asyncckpt.Checkpointer.from_file(root / f"steps{EXTENSIONS[form]}") as chk:
        found = [step for step in range(1, STEPS + 1) if f"step {step}" in chk]
        for step in found:
            if not same(await chk.load_parameter(f"step {step}"), make_state(step)):
                sys.exit(f"step {step} is not what was saved")
        if missing := {*told.steps()} - {*found}:
            sys.exit(f"steps {sorted(missing)} were acknowledged, and there are {found}")
        print(f"resumed from step {max(found, default=0)}")
        for step in range(max(found, default=0) + 1, STEPS + 1):
            await chk.save_parameter(f"step {step}", make_state(step))
            await chk.flush()
            told.add(step)
        result = [(await chk.load_parameter(f"step {step}"))["array"].tobytes() for step in range(1, STEPS + 1)]
    root.with_name("result").write_text(repr(result))


def main(form: str, root: Path) -> None:
    """Run."""
    play = run_keyed if form in EXTENSIONS else run_manager
    asyncio.run(play(form, root, Told(root.with_name("told"))))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

"""Runs the training of an example in processes that are killed, and says which bits it ends with.

A `Trainer` starts this file as a program, which imports the example, and forks a process for each run: to import a
framework takes seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self
from unittest.mock import patch

import numpy as np

import asyncckpt
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

_ROOT = Path(__file__).parents[2]
_STEPS, _PERIOD = 12, 4
_PATIENCE = 60.0  # seconds until a run that waits in vain fails
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""A process should have no threads of numpy's when it forks."""

Bits = dict[str, str]
"""The path of each part of a training, and its type, dtype, shape and bits as a string."""


class Trainer:
    """Runs the training of one example, any number of times.

    Args:
        script: The name of the example.
        environment: Environment variables for its processes.
    """

    def __init__(self, script: str, environment: dict[str, str]) -> None:
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._server = subprocess.Popen(  # noqa: S603 - our own command line
            [sys.executable, "-W", "error", __file__, str(_ROOT / "examples" / script)],
            env=os.environ | {"PYTHONPATH": path, **_ONE_THREAD} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, directory: Path, *, expected: int = 0, **options: Any) -> Bits:
        """Train to the end, from the newest checkpoint in the directory if there is one.

        Args:
            directory: Where the checkpoints are.
            expected: The exit status that the process must have.
            options: The example's options, as attributes of its `args`. Besides:
                without: Names of parts of the state that are not loaded.
                by: "load" or "restore", the way to resume.
                frozen: Whether saves have ``frozen=True``.
        """
        answers = self._ask([{"dir": str(directory), **options}], expected)
        return answers[0] if answers else {}

    def run_in_turn(self, runs: Iterable[dict[str, Any]]) -> list[Bits]:
        """Make runs as `run` does, but all in one process, which need not be started and warmed up for each."""
        return self._ask([{**options, "dir": str(options["dir"])} for options in runs], 0)

    def _ask(self, runs: list[dict[str, Any]], expected: int) -> list[Bits]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(runs), file=self._server.stdin, flush=True)
        answers = []
        while not answers or isinstance(answers[-1], dict):
            answers.append(json.loads(self._server.stdout.readline()))
        assert answers.pop() == expected, "the exit status"
        return answers

    def kill(self, directory: Path, **options: Any) -> None:
        """Train until the process is killed in the middle of its second save; the first one is committed by then.

        The first one is written after the next step has changed the training, and the kill comes after the step that
        follows the second one.
        """
        self.run(directory, killed=True, expected=-signal.SIGKILL, **options)
        assert sorted(path.name for path in directory.glob("*step_*")) == [f"step_{_PERIOD}", f"tmp_step_{2 * _PERIOD}"]

    def __enter__(self) -> Self:
        """Return the trainer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End its processes."""
        self._server.communicate()


def _serve(script: str) -> None:
    """Answer each request with the bits of its runs, as far as they ended by themselves, and the exit status."""
    spec = importlib.util.spec_from_file_location("example", script)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    if "torch" in sys.modules:
        importlib.import_module("torch._dynamo")  # as the first optimizer does
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            try:
                for options in json.loads(line):
                    with contextlib.redirect_stdout(sys.stderr):
                        bits = _Run(**options).train(example)
                    _answer(bits)
                os._exit(0)
            except BaseException:  # noqa: BLE001 - as at the end of a program
                traceback.print_exc()
                os._exit(1)
        _answer(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _answer(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


class _Run:
    """A call of an example's `train`."""

    def __init__(
        self,
        *,
        without: Iterable[str] = (),
        by: str = "load",
        frozen: bool = False,
        killed: bool = False,
        **options: Any,
    ) -> None:
        self._args = SimpleNamespace(seed=1, steps=_STEPS, width=8, save_period=_PERIOD, format="msgpack")
        self._args.optimizer = "default"
        vars(self._args).update(options)
        self._without, self._by, self._frozen = without, by, frozen
        self._made = {step: threading.Event() for step in range(1, _STEPS + 1)}
        self._disk = FaultyDisk()
        if killed:
            self._disk.fail("write", lambda: self._wait_for(_PERIOD + 1), path_part=f"tmp_step_{_PERIOD}")
            self._disk.fail("rename", self._kill, path_part=f"tmp_step_{2 * _PERIOD}")

    def _wait_for(self, step: int) -> None:
        if not self._made[step].wait(_PATIENCE):
            os._exit(2)

    def _kill(self) -> None:
        self._wait_for(2 * _PERIOD + 1)
        os.kill(os.getpid(), signal.SIGKILL)

    def train(self, example: Any) -> Bits:
        """Train, and return the bits of all that the training and its process have."""
        run, trainings = self, []

        class Training(example.Training):
            def __init__(self, args: SimpleNamespace) -> None:
                super().__init__(args)
                trainings.append(self)

            def advance(self) -> None:
                super().advance()
                run._made[self.step].set()

            def load(self, state: dict[str, Any]) -> None:
                mine = self.state()
                super().load(state | {name: mine[name] for name in run._without})

        class Manager(asyncckpt.CheckpointManager):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options, disk=run._disk)

            async def save(self, step: int, state: object, **options: Any) -> asyncckpt.SaveHandle:
                return await super().save(step, state, **options, frozen=run._frozen)

            async def load(self, step: Any, **options: Any) -> asyncckpt.LoadedCheckpoint | None:
                if run._by == "load":
                    return await super().load(step, **options)
                trainings[0].advance()  # an optimizer of PyTorch has its arrays from the first step on
                return await self.restore(step, into=trainings[0].state())

        random.seed(1)  # a fork draws a seed of its own
        np.random.seed(1)  # noqa: NPY002 - as for every run
        with patch.object(example, "Training", Training), patch.object(asyncckpt, "CheckpointManager", Manager):
            asyncio.run(example.train(self._args))
        (training,) = trainings
        return dict(_bits_of(vars(training) | _globals()))


def _globals() -> dict[str, Any]:
    """Return the state that a process has once."""
    found = {"numpy.random": np.random.get_state(), "random": _plain(random.getstate())}  # noqa: NPY002 - all of it
    if torch := sys.modules.get("torch"):
        found["torch.random"] = torch.get_rng_state()
    return found


def _bits_of(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the bits of each leaf of objects."""
    value = _opened(value)
    if isinstance(value, dict | list | tuple):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _bits_of(each, f"{path}/{key}")
    elif isinstance(value, int | str | None):
        yield path, repr(value)
    elif isinstance(value, float):
        yield path, value.hex()
    elif hasattr(value, "dtype"):
        yield path, _bits_of_array(value)
    elif not callable(value):  # functions have no state
        raise TypeError(path, value)


def _opened(value: Any) -> Any:
    """Return the state of an object by its own methods; gradients belong to a module's."""
    if hasattr(value, "state_dict"):
        gradients = [each.grad for each in value.parameters()] if hasattr(value, "parameters") else []
        return {**value.state_dict(), "gradients": gradients}
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    return _plain(value.getstate()) if isinstance(value, random.Random) else value


def _plain(state: tuple[Any, ...]) -> list[Any]:
    """Return a state of the module `random`, which has hundreds of numbers, as few leaves."""
    return [np.array(state[1]), state[2]]


def _bits_of_array(array: Any) -> str:
    """Describe an array of numpy, PyTorch or JAX."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    kind = f"{type(array).__name__} {array.dtype} {tuple(array.shape)}"
    if torch and isinstance(array, torch.Tensor):
        array = array.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif jax and isinstance(array, jax.Array):
        if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        kind += " weak" * array.weak_type
    return f"{kind} {hashlib.sha256(np.asarray(array).tobytes()).hexdigest()[:16]}"


if __name__ == "__main__":
    _serve(sys.argv[1])

"""Other savers, through the rigs of power cuts and of damage: each as its documentation says, and no more.

1. A peer's save is acknowledged when its own call says so: when it returns, or when its wait does. Nothing is synced
   for it.
2. What of a peer counts as lost: after a power cut, an acknowledged checkpoint that does not load; always, one that
   loads and is not what was saved.
3. They live in an environment of their own, and skip where they are not installed.
"""

from __future__ import annotations

import asyncio
import bisect
import importlib.util
import itertools
import os
import random
import signal
import warnings
from abc import ABC, abstractmethod
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from .corrupt import CorruptRig
from .damage import DAMAGED, DETECTED, EQUAL, files_of, make_state
from .kernel import FILE_SYSTEMS, KernelRig, cut_everywhere
from .rig import Result

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

    from .fuse_disk import FuseDisk

Arrays = dict[str, np.ndarray]


class Peer(ABC):
    """A saver of arrays."""

    name: ClassVar[str]
    package: ClassVar[str]
    promise: ClassVar[str]
    """What its documentation promises, in a sentence."""

    def path(self, root: Path, step: int) -> Path:
        """Return where a step is."""
        return root / f"step_{step}"

    @abstractmethod
    def save(self, path: Path, arrays: Arrays) -> None:
        """Save; return when it is acknowledged."""

    @abstractmethod
    def load(self, path: Path, like: Arrays) -> Arrays:
        """Load; whatever is raised is a detection."""


class Safetensors(Peer):
    """One file, its header in JSON."""

    name = "safetensors"
    package = "safetensors"
    promise = "safe to parse, no code; no digest, no sync, no atomic replacement"

    def save(self, path: Path, arrays: Arrays) -> None:
        """Save with `save_file`."""
        from safetensors.numpy import save_file

        save_file(arrays, path)

    def load(self, path: Path, like: Arrays) -> Arrays:
        """Load with `load_file`."""
        from safetensors.numpy import load_file

        del like
        return load_file(path)


class PlainH5py(Peer):
    """One dataset an array."""

    name = "plain h5py"
    package = "h5py"
    promise = "a closed file is whole; digests (fletcher32) only where asked for; no sync"

    def save(self, path: Path, arrays: Arrays) -> None:
        """Write a file and close it."""
        import h5py

        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array

    def load(self, path: Path, like: Arrays) -> Arrays:
        """Read all datasets."""
        import h5py

        del like
        with h5py.File(path, "r") as file:
            return {name: dataset[()] for name, dataset in file.items()}


class TorchDcp(Peer):
    """torch.distributed.checkpoint, in one process."""

    name = "torch DCP"
    package = "torch"
    promise = "files are synced before their metadata is renamed into place; no digest, directories are not synced"

    def save(self, path: Path, arrays: Arrays) -> None:
        """Save with `save`."""
        import torch
        from torch.distributed.checkpoint.state_dict_saver import save

        save({name: torch.from_numpy(array) for name, array in arrays.items()}, checkpoint_id=path, no_dist=True)

    def load(self, path: Path, like: Arrays) -> Arrays:
        """Load into fresh tensors, as it always does."""
        import torch
        from torch.distributed.checkpoint.state_dict_loader import load

        found = {name: torch.zeros_like(torch.from_numpy(array)) for name, array in like.items()}
        load(found, checkpoint_id=path, no_dist=True)
        return {name: tensor.numpy() for name, tensor in found.items()}


class Orbax(Peer):
    """Its `AsyncCheckpointer` with the standard handler."""

    name = "Orbax"
    package = "orbax"
    promise = "a checkpoint appears whole, by a rename, when it is finished; the array store's own checksums"

    def save(self, path: Path, arrays: Arrays) -> None:
        """Save, and wait until it says that it is finished."""
        import orbax.checkpoint as ocp

        with ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(path.absolute(), args=ocp.args.StandardSave(arrays))
            checkpointer.wait_until_finished()

    def load(self, path: Path, like: Arrays) -> Arrays:
        """Restore as numpy arrays."""
        import orbax.checkpoint as ocp

        del like
        with ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            found: Arrays = checkpointer.restore(path.absolute(), args=ocp.args.StandardRestore())
            return found


class WriteAndRename(Peer):
    """What many programs do: write beside, rename, done. It shows that the rig sees a sync that is missing."""

    name = "write and rename"
    package = "numpy"
    promise = "a name appears with its whole file behind it: true of a kill, not of a power cut"

    def save(self, path: Path, arrays: Arrays) -> None:
        """Write beside, and rename."""
        beside = path.with_name(f"{path.name}.tmp")
        with beside.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        beside.rename(path)

    def load(self, path: Path, like: Arrays) -> Arrays:
        """Read all arrays."""
        del like
        with np.load(path) as file:
            return {name: file[name] for name in file.files}


PEERS: Final[tuple[Peer, ...]] = (Orbax(), Safetensors(), TorchDcp(), PlainH5py(), WriteAndRename())


def _is_missing(peer: Peer) -> str | None:
    if importlib.util.find_spec(peer.package) is None:
        return f"needs the package {peer.package}"
    return None


def _same(found: Any, expected: Arrays) -> bool:
    return sorted(found) == sorted(expected) and all(
        np.asarray(found[name]).dtype == array.dtype
        and np.asarray(found[name]).shape == array.shape
        and np.asarray(found[name]).tobytes() == array.tobytes()
        for name, array in expected.items()
    )


class Worker:
    """A process that saves and loads, in which a peer may crash or hang; the next request gets a new one."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._child: Connection | None = None
        self._pid = 0

    def ask(self, kind: str, path: Path, arrays: Arrays, seconds: float = 60.0) -> str:
        """Save, or load and compare.

        Returns:
            `EQUAL` where it went well; `DETECTED` where an error was raised; else what is wrong.
        """
        if self._child is None:
            self._start()
        assert self._child is not None
        self._child.send((kind, path, arrays))
        outcome = "hung"
        try:
            if self._child.poll(seconds):
                return str(self._child.recv())
        except (EOFError, ConnectionResetError):
            outcome = "crashed"
        self.stop()
        return outcome

    def _start(self) -> None:
        self._child, other = Pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._child.close()
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                while True:
                    other.send(self._answer(*other.recv()))
            finally:
                os._exit(0)
        other.close()

    def _answer(self, kind: str, path: Path, arrays: Arrays) -> str:
        try:
            if kind == "save":
                self._peer.save(path, arrays)
                return EQUAL
            found = self._peer.load(path, arrays)
        except BaseException as error:  # noqa: BLE001 - whatever it says, it has noticed; DCP's own is no Exception
            return DETECTED if kind == "load" else f"the save failed: {error!r:.200}"
        return EQUAL if _same(found, arrays) else "silently wrong"

    def stop(self) -> None:
        """End the process."""
        if self._child is not None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._child.close()
            self._child = None


# --- damage -----------------------------------------------------------------------------------------------------------

_DAMAGES: Final = 64  # of a unit


class PeerCorruptRig(CorruptRig):
    """Single flips of random bits, and cuts at random lengths, of a peer's checkpoint of some 10 KiB."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.subject = peer.name
        self.promise = peer.promise
        self.quick, self.goal = 0, 512  # type: ignore[misc] # a peer's own

    def missing(self) -> str | None:
        """Look for the package."""
        return _is_missing(self._peer)

    def units(self, seed: int) -> Iterator[str]:
        """Give one of each kind."""
        yield f"bits/{seed}"
        yield f"cuts/{seed}"

    def run(self, unit: str, scratch: Path) -> Result:
        """Save one checkpoint, and damage it in many ways."""
        warnings.simplefilter("ignore")
        kind = unit.partition("/")[0]
        each = 8 if kind == "bits" else 1
        arrays = {"numbers": make_state("16 KiB", DAMAGED)["numbers"]}
        path, worker, result = self._peer.path(scratch, DAMAGED), Worker(self._peer), Result()
        saved = worker.ask("save", path, arrays)
        files = {file: file.read_bytes() for file in files_of(path)}
        chance = random.Random(f"{self.subject} {unit}")  # noqa: S311 - seeded on purpose
        ends = list(itertools.accumulate(len(data) * each for data in files.values()))
        for place in sorted(chance.sample(range(ends[-1]), _DAMAGES)):
            number = bisect.bisect_right(ends, place)
            file, data = list(files.items())[number]
            at = place - (ends[number - 1] if number else 0)
            file.write_bytes(_flipped(data, at) if kind == "bits" else data[:at])
            outcome = worker.ask("load", path, arrays) if saved == EQUAL else saved
            file.write_bytes(data)
            result.tried += 1
            result.count(outcome)
            if outcome not in (EQUAL, DETECTED):
                result.losses.append(f"{kind} {at} of {file.name}: {outcome}")
        worker.stop()
        return result


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# --- power cuts -------------------------------------------------------------------------------------------------------

_SAVES: Final = 4


class PeerKernelRig(KernelRig):
    """Four saves of a peer, one after the other, and the power cut among them."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(peer.name)
        self._peer = peer
        self.promise = peer.promise
        self.must_lose = False
        # One needs nothing that CI lacks, and shows there what the rig sees.
        self.quick, self.goal = 100 * (peer.package == "numpy"), 240  # type: ignore[misc] # a peer's own

    def missing(self) -> str | None:
        """Look for the package, and for what the rig needs."""
        return _is_missing(self._peer) or super().missing()

    def units(self, seed: int) -> Iterator[str]:
        """Give each file system."""
        yield from (f"{system}/{seed}" for system in FILE_SYSTEMS)

    def run(self, unit: str, scratch: Path) -> Result:
        """Record four saves, and cut the power in many places."""
        system, _, seed = unit.partition("/")
        result, worker = Result(), Worker(self._peer)
        states = [_content(int(seed), step) for step in range(_SAVES)]

        async def fill(root: Path) -> None:
            await asyncio.to_thread(root.mkdir)

        async def play(root: Path, disk: FuseDisk) -> None:
            for step, state in enumerate(states):
                disk.mark(f"begin {step}")
                outcome = worker.ask("save", self._peer.path(root, step), state)
                if outcome != EQUAL:
                    raise RuntimeError(outcome)
                disk.mark(f"ack {step}")

        def judge(root: Path, marks: Sequence[str]) -> str | None:
            for step, state in enumerate(states):
                path, is_acknowledged = self._peer.path(root, step), f"ack {step}" in marks
                outcome = worker.ask("load", path, state) if path.exists() else DETECTED
                if outcome == EQUAL or (outcome == DETECTED and not is_acknowledged):
                    continue
                result.count("acknowledged and lost" if outcome == DETECTED else outcome)
                return f"step {step}: {outcome}, {'' if is_acknowledged else 'not '}acknowledged"
            return None

        cut_everywhere(result, FILE_SYSTEMS[system], scratch, unit, fill, play, judge)
        worker.stop()
        return result


def _content(seed: int, step: int) -> Arrays:
    chance = np.random.default_rng([seed, step])
    return {"weights": chance.standard_normal(3000), "bias": chance.standard_normal(40)}


PEER_RIGS: Final = tuple(itertools.chain.from_iterable((PeerKernelRig(peer), PeerCorruptRig(peer)) for peer in PEERS))

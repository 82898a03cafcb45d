"""Formats that come with a blocking writer: safetensors, torch.save, np.savez, pickle and h5py."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from benchmarks.systems.base import FileWriter

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.states import State


class Pickle5(FileWriter):
    """pickle's protocol 5, into one file."""

    def _write(self, path: Path, state: Any) -> None:
        with path.open("wb") as file:
            pickle.dump(state, file, protocol=5)

    def _read(self, path: Path) -> Any:
        with path.open("rb") as file:
            return pickle.load(file)  # noqa: S301 - written by this very process


class NumpySavez(FileWriter):
    """`np.savez`."""

    def _write(self, path: Path, state: Any) -> None:
        with path.open("wb") as file:
            np.savez(file, **state)

    def _read(self, path: Path) -> Any:
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}


class PlainH5py(FileWriter):
    """One dataset an array."""

    def _write(self, path: Path, state: Any) -> None:
        with h5py.File(path, "w") as file:
            for name, array in state.items():
                file[name] = array

    def _read(self, path: Path) -> Any:
        with h5py.File(path) as file:
            return {name: dataset[()] for name, dataset in file.items()}


class Safetensors(FileWriter):
    """safetensors' functions for numpy."""

    def _write(self, path: Path, state: Any) -> None:
        from safetensors.numpy import save_file

        save_file(state, path)

    def _read(self, path: Path) -> Any:
        from safetensors.numpy import load_file

        return load_file(path)


class TorchSave(FileWriter):
    """`torch.save`."""

    def adopt(self, state: State) -> Any:
        """Wrap the arrays as tensors."""
        import torch

        return {name: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf for name, leaf in state.items()}

    def _copy(self, state: Any) -> Any:
        import torch

        copied = super()._copy(state)
        return {name: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for name, leaf in copied.items()}

    def _write(self, path: Path, state: Any) -> None:
        import torch

        torch.save(state, path)

    def _read(self, path: Path) -> Any:
        import torch

        return torch.load(path)

"""Shared by the libraries that take torch tensors and load into given tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from benchmarks.systems.base import System

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.states import State


class TensorSystem(System):
    """A library whose states are dicts of tensors, and which always loads in place."""

    restores_in_place = True

    def __init__(self, root: Path, *, staged_nbytes: int | None = None) -> None:
        super().__init__(root, staged_nbytes=staged_nbytes)
        self._template: dict[str, torch.Tensor] = {}

    def adopt(self, state: State) -> dict[str, torch.Tensor]:
        """Wrap the arrays as tensors."""
        self._template = {name: torch.from_numpy(array) for name, array in state.items()}
        return self._template

    async def load(self, step: int) -> Any:
        """Load into new tensors."""
        fresh = {name: torch.empty_like(tensor) for name, tensor in self._template.items()}
        await self.restore(step, fresh)
        return fresh

"""The global random generators of a process: those of `random`, `numpy.random` and PyTorch."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np


def get_random_states() -> dict[str, Any]:
    """Return the states of all global generators, as a state that can be saved.

    PyTorch's are among them if the program has imported it, and those of CUDA devices if it uses any.
    """
    version, words, gauss = random.getstate()
    states: dict[str, Any] = {
        "python": {"version": version, "words": np.array(words, np.uint32), "gauss": gauss},  # one array, not 625 ints
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
    }
    if torch := sys.modules.get("torch"):
        states["torch"] = torch.get_rng_state()
        if torch.cuda.is_initialized():
            states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Let the global generators continue as those whose states these are."""
    python = states["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state(states["numpy"])  # noqa: NPY002
    if torch := sys.modules.get("torch"):
        if "torch" in states:
            torch.set_rng_state(states["torch"])
        for device, state in zip(range(torch.cuda.device_count()), states.get("cuda", ()), strict=False):
            torch.cuda.set_rng_state(state, device)

"""The libraries of the integrations are imported by the tests that use them, because each takes seconds."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

import pytest
from helpers.support import need

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def imported() -> Callable[..., None]:
    """Return a function that imports a library and further modules, or skips the test where the library is missing."""

    def load(library: str, *modules: str) -> None:
        need(library)
        variables = set(os.environ)
        for name in (library, *modules):
            importlib.import_module(name)
        if "torch" in sys.modules:
            importlib.import_module("torch._dynamo")  # as the first optimizer does
        for name in os.environ.keys() - variables:  # which some libraries set
            del os.environ[name]
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(1)

    return load

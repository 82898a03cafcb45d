"""The dicts that Lightning makes of a training, and how they are saved."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from asyncckpt.errors import UnsupportedLeafError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asyncckpt.blocking import CheckpointManager, SaveHandle

_HYPERPARAMETERS: Final = ("hyper_parameters", "datamodule_hyper_parameters")


def save_dump(
    manager: CheckpointManager, step: int, dump: Mapping[str, Any], training_info: Mapping[str, Any]
) -> SaveHandle:
    """Save a dump. Hyperparameters in subclasses of dict and in namespaces come back in dicts.

    Raises:
        UnsupportedLeafError: It holds a value that cannot be saved. A note says what to do about a hyperparameter.
    """
    state = {key: _plain(item) if key in _HYPERPARAMETERS else item for key, item in dump.items()}
    try:
        return manager.save(step, state, training_info=training_info)
    except UnsupportedLeafError as error:
        if error.path.startswith(_HYPERPARAMETERS):
            error.add_note("Leave it out: `self.save_hyperparameters(ignore=[...])` in the module's `__init__`.")
        raise


def _plain(value: Any) -> Any:
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(map(_plain, value))
    return value

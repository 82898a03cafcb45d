"""Errors are data, too: they can be copied, and pickled for another process."""

from __future__ import annotations

import copy
import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import asyncckpt
from asyncckpt import errors

MADE: list[Any] = [
    asyncckpt.StepExistsError("exists", step=3),
    asyncckpt.CheckpointNotFoundError("none", step=None),
    asyncckpt.CheckpointKeyError("no key", key=("a", 1), known=["b"]),
    asyncckpt.StateMismatchError("a/b", "dtype", "float32", "int8"),
    asyncckpt.UnsupportedLeafError("of type function", path="a"),
    asyncckpt.StateChangedError("changed", path=""),
    asyncckpt.FileLockedError("locked", file="x.h5"),
    asyncckpt.ReadOnlyFileError("another program's", file="x.h5", losses="links"),
    asyncckpt.CorruptCheckpointError("damaged", step=1, file="state.msgpack"),
    asyncckpt.SaveFailedError("failed", step=4),
    asyncckpt.CutTimeoutError("late", late={"actor": "line 3"}, resting={"learner": "line 9, in a safe point"}),
    asyncckpt.TornStateError("torn", torn={"actor": "died of a ValueError"}),
    asyncckpt.MetricMissingError("no metric", step=4, metric_name="loss", known=["los"]),
]
KINDS = {each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, errors.CheckpointError)}
PLAIN = [kind("a message") for kind in KINDS - {type(each) for each in MADE} - {errors.LeafError}]
PLAIN.sort(key=lambda error: type(error).__name__)


@pytest.mark.parametrize("error", [*MADE, *PLAIN], ids=lambda error: type(error).__name__)
def test_an_error_comes_back_as_it_was(error: Any) -> None:
    """With its message, and all that it knows."""
    if isinstance(error, errors.LeafError):
        error.name_step(7)
    error.add_note("a note")
    pickled = pickle.loads(pickle.dumps(error))  # noqa: S301 - of our own
    for found in (pickled, copy.copy(error), copy.deepcopy(error)):
        assert type(found) is type(error)
        assert str(found) == str(error)
        assert found.args == error.args
        assert vars(found) == vars(error)


def test_a_warning_names_the_line_of_the_program(tmp_path: Path) -> None:
    """However many functions of the library and of contextlib lie between; in a thread of its own, the library's."""
    with pytest.warns(asyncckpt.CheckpointWarning) as warned, ExitStack() as stack:
        stack.callback(asyncckpt.CheckpointManager, tmp_path, keep_every=1)
    assert {each.filename for each in warned} == {__file__}
    with pytest.warns(asyncckpt.CheckpointWarning) as warned, ThreadPoolExecutor(1) as pool:
        pool.submit(asyncckpt.CheckpointManager, tmp_path, keep_every=1).result()
    assert Path(warned[0].filename).name == "session.py"

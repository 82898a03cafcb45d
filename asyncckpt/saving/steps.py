"""The arguments that name a checkpoint: a step, "latest" or "best", or a path (pure functions)."""

from __future__ import annotations

import operator
import os
import re
import reprlib
from pathlib import Path
from typing import Final, Literal, cast, get_args

import numpy as np

from asyncckpt.errors import brief, nearest

Choice = Literal["latest", "best"]

MAX_STEP: Final = (1 << 63) - 1
_CHOICES: Final = get_args(Choice)
_SYNONYMS: Final = {"newest": "latest", "last": "latest", "recent": "latest", "top": "best"}
_STEP_IN_TEXT: Final = re.compile(r"(?:.*/)?(?:step_)?([0-9]{1,18})/?")


def check_step(step: object) -> int:
    """Return a step as an int.

    Raises:
        TypeError: It is not an integer of Python or numpy.
        ValueError: It is negative, or too large.
    """
    if isinstance(step, bool):
        raise TypeError(_no_step(step))
    try:
        number = operator.index(step)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(_no_step(step)) from None
    if not 0 <= number <= MAX_STEP:
        message = f"a step is an int from 0 to {MAX_STEP}, not {number}"
        raise ValueError(message)
    return number


def check_which(step: object) -> int | Choice | Path:
    """Return a step as an int, "latest" or "best", or a checkpoint's path.

    Raises:
        TypeError: The argument is none of them.
        ValueError: It is negative, or too large.
    """
    if isinstance(step, os.PathLike):
        return Path(step)
    if not isinstance(step, str):
        return check_step(step)
    if step in _CHOICES:
        return cast("Choice", str(step))
    known = '"latest", "best", a step (an int) or the path of a checkpoint (a pathlib.Path)'
    raise TypeError(f"a checkpoint is named by {known}, not by {_shown(step)}{_nearest(step)}")


def _no_step(value: object) -> str:
    """Return the message that a value is not a step, and what to pass instead."""
    message = f"a step is an int >= 0, not {_shown(value)}"
    if isinstance(value, str) and value in _CHOICES:
        return f"{message}: only load and restore take the word; {value}_step() returns the step"
    if isinstance(value, str):
        return ": ".join([message, *_step_in(value)])
    if isinstance(value, float | np.floating) and value.is_integer():
        return f"{message}: pass {int(value)}, or int(step)"
    return message


def _nearest(word: str) -> str:
    """Return what an unknown word was probably meant to be."""
    synonym = _SYNONYMS.get(word.strip().casefold())
    for close in [synonym] if synonym else nearest(word, _CHOICES):
        return f'; did you mean "{close}"?'
    ways = _step_in(word)
    if "/" in word:
        ways.append(f"pass Path({brief(repr(word))}) for the checkpoint there")
    return ": " * bool(ways) + ", or ".join(ways)


def _step_in(text: str) -> list[str]:
    found = _STEP_IN_TEXT.fullmatch(text.strip())
    return [f"pass the int {int(found[1])}"] if found else []


def _shown(value: object) -> str:
    return f"{reprlib.repr(value)} ({type(value).__name__})"

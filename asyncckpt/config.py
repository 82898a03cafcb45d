"""What a manager can be told: the options, their types, their defaults and their check.

1. `Settings` is the one list of options: each field carries its default and its check. The two TypedDicts repeat the
   names and types for type checkers, who need them spelled out; a test holds the three together.
2. `resolve_settings` is pure: it looks at values, never at the disk, and reports every problem at once.
"""

# No `from __future__ import annotations` here: TypedDict would not see NotRequired, and tools that read the keys at run
# time would take every key as required.
import math
import numbers
import operator
import os
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, NotRequired, TypedDict, get_args

import numpy as np

from asyncckpt.errors import ConfigError, nearest

Format = Literal["msgpack", "hdf5"]
"""How a state is laid out in its file: a msgpack stream or an HDF5 file."""

Overflow = Literal["wait", "skip", "replace"]
"""What a save does when the budget of captured bytes or the queue is full."""

DEFAULT_MAX_STAGED_NBYTES: Final = 2 * 1024**3
"""Bytes that captured states may hold until they are on disk, unless told otherwise: 2 GiB."""

DEFAULT_GRACE: Final = 30.0
"""Seconds that a cancelled manager may take to write what was captured, unless told otherwise."""


class CheckpointingConfig(TypedDict):
    """One mapping that configures a manager, as it would stand in a training script's configuration file.

    Type checkers ask for the keys that are not marked as optional. At run time only ``checkpoint_dir`` must be present:
    any other key may be left out and takes the default given here.

    Keys:
        enabled: False writes nothing, and every save's handle says that it was skipped. Default True.
        checkpoint_dir: The directory that holds the checkpoints; ``~`` is not expanded. A relative one is of the
            working directory in which the manager is made.
        metric_name: The key in ``training_info`` of the number that ranks checkpoints. Default None: the one that the
            directory was saved with; the step ranks where there is none.
        higher_is_better: Whether the best checkpoint has the greatest metric, or the smallest. Default True, or what
            the directory was saved with.
        metric_required: Whether a save without the metric is an error; it needs ``metric_name``. Default False: the
            first one is warned of.
        save_period: An int >= 1; ``should_save`` says yes to its multiples. Default None: to every step.
        keep_top_k: An int >= 0; how many of the best periodic checkpoints stay. Default None: no such limit.
        keep_latest_k: An int >= 0; how many of the most recent checkpoints stay. Default None: no such rule.
        keep_every: An int >= 1; checkpoints at its multiples stay. Default None: no such rule.
        keep_periodic: Whether all multiples of ``save_period`` stay where there is no ``keep_top_k``. Default True.
        format: "msgpack" (default) or "hdf5".
        overflow: "wait" (default), "skip" or "replace", for saves that meet a full budget or queue.
        max_staged_nbytes: An int >= 1; bytes that captured states may hold until they are on disk. Default 2 GiB.
        min_free_nbytes: An int >= 0; bytes that the disk must have free before a checkpoint is written. Default None:
            as many as that checkpoint takes. 0: the disk is not looked at before.
        grace: Seconds >= 0, inf allowed, that a cancelled manager may take to write what was captured. Default 30.
        fallback: Whether "latest" and "best" fall back to the next intact checkpoint. Default True.
        read_only: True reads beside another process that writes: no lock, no recovery, no saving. Default False.
    """

    enabled: bool
    checkpoint_dir: str | os.PathLike[str]
    metric_name: str | None
    higher_is_better: bool
    metric_required: NotRequired[bool]
    save_period: int | None
    keep_top_k: int | None
    keep_latest_k: NotRequired[int | None]
    keep_every: NotRequired[int | None]
    keep_periodic: NotRequired[bool]
    format: NotRequired[Format]
    overflow: NotRequired[Overflow]
    max_staged_nbytes: NotRequired[int]
    min_free_nbytes: NotRequired[int | None]
    grace: NotRequired[float]
    fallback: NotRequired[bool]
    read_only: NotRequired[bool]


class CheckpointingOptions(TypedDict, total=False):
    """The keywords that go with a directory: the keys of `CheckpointingConfig` but ``checkpoint_dir``, all optional."""

    enabled: bool
    metric_name: str | None
    higher_is_better: bool
    metric_required: bool
    save_period: int | None
    keep_top_k: int | None
    keep_latest_k: int | None
    keep_every: int | None
    keep_periodic: bool
    format: Format
    overflow: Overflow
    max_staged_nbytes: int
    min_free_nbytes: int | None
    grace: float
    fallback: bool
    read_only: bool


class _Check(NamedTuple):
    """What an option accepts, in words, and the function that turns an accepted value into the setting."""

    expected: str
    parse: Callable[[object], object]
    """Raises ValueError, TypeError or OverflowError for a value that it does not accept."""


def _parse_bool(value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError
    return bool(value)


def _parse_path(value: object) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise TypeError
    name = os.fspath(value)
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError
    return Path(name)


def _parse_str(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return str.__str__(value)  # the plain str, also of a subclass


def _parse_seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError
    seconds = float(value)
    if math.isnan(seconds) or seconds < 0:
        raise ValueError
    return seconds


def _whole(least: int) -> _Check:
    def parse(value: object) -> int:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]  # raises the TypeError that is wanted
        if number < least:
            raise ValueError
        return number

    return _Check(expected=f"an int >= {least}", parse=parse)


def _one_of(choices: object) -> _Check:
    known = get_args(choices)

    def parse(value: object) -> str:
        word = _parse_str(value)
        if word not in known:
            raise ValueError
        return word

    return _Check(expected=" or ".join(repr(choice) for choice in known), parse=parse)


def _optional(check: _Check) -> _Check:
    def parse(value: object) -> object:
        return None if value is None else check.parse(value)

    return _Check(expected=f"None or {check.expected}", parse=parse)


_BOOL: Final = _Check(expected="a bool", parse=_parse_bool)
_PATH: Final = _Check(expected="a str or an os.PathLike of str, not empty and without NUL", parse=_parse_path)
_STR: Final = _Check(expected="a str", parse=_parse_str)
_SECONDS: Final = _Check(expected="a number of seconds >= 0", parse=_parse_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The checked options of one manager; `CheckpointingConfig` says what each of them means.

    Made by `resolve_settings`; a Settings made directly is not checked.
    """

    checkpoint_dir: Path = field(metadata={"check": _PATH})
    enabled: bool = field(default=True, metadata={"check": _BOOL})
    metric_name: str | None = field(default=None, metadata={"check": _optional(_STR)})
    higher_is_better: bool = field(default=True, metadata={"check": _BOOL})
    metric_required: bool = field(default=False, metadata={"check": _BOOL})
    save_period: int | None = field(default=None, metadata={"check": _optional(_whole(1))})
    keep_top_k: int | None = field(default=None, metadata={"check": _optional(_whole(0))})
    keep_latest_k: int | None = field(default=None, metadata={"check": _optional(_whole(0))})
    keep_every: int | None = field(default=None, metadata={"check": _optional(_whole(1))})
    keep_periodic: bool = field(default=True, metadata={"check": _BOOL})
    format: Format = field(default="msgpack", metadata={"check": _one_of(Format)})
    overflow: Overflow = field(default="wait", metadata={"check": _one_of(Overflow)})
    max_staged_nbytes: int = field(default=DEFAULT_MAX_STAGED_NBYTES, metadata={"check": _whole(1)})
    min_free_nbytes: int | None = field(default=None, metadata={"check": _optional(_whole(0))})
    grace: float = field(default=DEFAULT_GRACE, metadata={"check": _SECONDS})
    fallback: bool = field(default=True, metadata={"check": _BOOL})
    read_only: bool = field(default=False, metadata={"check": _BOOL})


_CHECKS: Final[Mapping[str, _Check]] = {option.name: option.metadata["check"] for option in fields(Settings)}


def resolve_settings(
    directory_or_config: str | os.PathLike[str] | Mapping[str, object],
    options: Mapping[str, object],
) -> Settings:
    """Check what a manager was given and fill in the defaults.

    Args:
        directory_or_config: The checkpoint directory, or one mapping with the keys of `CheckpointingConfig`.
        options: The keywords that came with it; empty where a mapping was given.

    Returns:
        The settings, with plain Python values: numpy's integers, floats and bools are accepted and converted.

    Raises:
        ConfigError: A key is unknown, a value is not what its key accepts, a mapping lacks ``checkpoint_dir``, a metric
            is required and has no name, or the directory or the options were given twice. The message lists every
            problem, and the known keys.
    """
    given: dict[str, object]
    if isinstance(directory_or_config, Mapping):
        if options:
            raise ConfigError(
                "the options were given twice, as a configuration mapping and as the keywords "
                f"{_listed(options)}: put them all into the one or the other"
            )
        given = dict(directory_or_config)
    elif "checkpoint_dir" in options:
        raise ConfigError("checkpoint_dir was given twice, as the first argument and as a keyword: leave one out")
    else:
        given = {"checkpoint_dir": directory_or_config, **options}

    problems = [_unknown(key) for key in given if key not in _CHECKS]
    if "checkpoint_dir" not in given:
        problems.append("checkpoint_dir: missing; every other key has a default")
    values: dict[str, Any] = {}
    for name, check in _CHECKS.items():
        if name not in given:
            continue
        try:
            values[name] = check.parse(given[name])
        except (ValueError, TypeError, OverflowError):
            problems.append(f"{name}: expected {check.expected}, found {_found(given[name])}")
    if values.get("metric_required") and given.get("metric_name") is None:
        problems.append("metric_required: needs metric_name, the key of the metric that each save must have")
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(f"the checkpointing options are not valid:{lines}\nKnown keys: {', '.join(_CHECKS)}")
    return Settings(**values)


def is_given(
    name: str, directory_or_config: str | os.PathLike[str] | Mapping[str, object], options: Mapping[str, object]
) -> bool:
    """Whether an option was given, be it with its default; the arguments are those of `resolve_settings`."""
    return name in (directory_or_config if isinstance(directory_or_config, Mapping) else options)


def _unknown(key: object) -> str:
    close = nearest(key, _CHECKS) if isinstance(key, str) else []
    return f"{reprlib.repr(key)}: unknown" + (f"; did you mean {close[0]!r}?" if close else "")


def _found(value: object) -> str:
    return f"{reprlib.repr(value)} ({type(value).__qualname__})"


def _listed(keys: Mapping[str, object]) -> str:
    return ", ".join(repr(key) for key in keys)

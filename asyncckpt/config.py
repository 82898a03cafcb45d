"""The options of a manager: their types, defaults and checks.

1. `Settings` is the one list of options; each field carries its default and its check. The two TypedDicts repeat the
   names and types for type checkers. `CheckpointingConfig` describes the options, and docs/reference/options.md repeats
   its text. Tests keep them all equal.
2. `resolve_settings` is pure: it looks at values, never at the disk, and reports all problems at once.
"""

# No `from __future__ import annotations` here: TypedDict would not see NotRequired, and tools that read the keys at run
# time would take every key as required.
import math
import numbers
import operator
import os
import reprlib
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, NotRequired, TypedDict, cast, get_args

import numpy as np

from asyncckpt.errors import ConfigError, ManagerUsageError, nearest

Format = Literal["msgpack", "hdf5"]
"""How a state is laid out in its file: a msgpack stream or an HDF5 file."""

Overflow = Literal["wait", "skip", "replace"]
"""What a save does when the budget of captured bytes or the queue is full."""

Arrays = Literal["saved", "numpy"]
"""What loaded arrays are: those of the frameworks that they were saved from, or numpy arrays."""

Signal = signal.Signals | int | str
"""A signal, its number, or its name: "SIGUSR1"."""


class CheckpointingConfig(TypedDict):
    """A mapping that configures a `CheckpointManager`, such as a section of a training script's configuration file.

    Type checkers require the keys that are not marked as optional. At run time only ``checkpoint_dir`` is required.

    Keys:
        enabled: Whether anything is written. If False, every save returns a handle that says "skipped". Default: True.
        checkpoint_dir: The directory that holds the checkpoints. ``~`` is not expanded. A relative path is resolved
            against the working directory in which the manager is made.
        metric_name: The key in ``training_info`` of the number that ranks checkpoints. If None, the metric that the
            directory was saved with ranks them, or the step if there is none. Default: None.
        higher_is_better: Whether the best checkpoint has the greatest metric, or the smallest. If not given, what the
            directory was saved with. Default: True.
        metric_required: Whether a save without the metric is an error instead of a warning. Needs ``metric_name``.
            Default: False.
        save_period: ``should_save(step)`` returns True for multiples of this int >= 1. If None, for every step, unless
            there is one of the next three rules. Default: None.
        save_interval: ``should_save`` also returns True if the last save was called so many seconds ago, a number > 0.
            Default: None.
        max_overhead: ``should_save`` also returns True if the time that saves hold their callers stays within this
            share of all time, a number between 0 and 1 such as 0.02. Default: None.
        save_by: ``should_save`` also returns True, for one last save, before this deadline: a datetime with a time
            zone, a timedelta from the opening of the manager, or a number of seconds since the epoch. Default: None.
        preempt_signals: The signals that set ``manager.preempted`` while the manager is open: one, or several; each a
            ``signal.Signals``, a number or a name such as "SIGUSR1". If None, SIGTERM does, from the first use of
            ``manager.preempted`` on. Default: None.
        keep_top_k: How many of the best periodic checkpoints to keep, an int >= 0. If None, there is no such limit.
            Default: None.
        keep_latest_k: How many of the most recent checkpoints to keep, an int >= 0. If None, there is no such rule.
            Default: None.
        keep_every: Keep the checkpoints at multiples of this int >= 1. If None, there is no such rule. Default: None.
        keep_periodic: Whether to keep all multiples of ``save_period`` if ``keep_top_k`` is None. Default: True.
        format: The format of new checkpoints, "msgpack" or "hdf5". A directory may hold both, and loading goes by what
            is there. Default: "msgpack".
        overflow: What a save does when the budget, or the queue of 64 saves, is full: "wait", "skip" (the new save) or
            "replace" (saves that are not being written yet). Default: "wait".
        max_staged_nbytes: The budget: how many bytes captured states may take until they are on disk, an int >= 1.
            Default: 2 GiB.
        min_free_nbytes: How many bytes the disk must have free before a checkpoint is written, an int >= 0. If None, as
            many as the checkpoint takes. If 0, the disk is not checked beforehand. Default: None.
        grace: How many seconds (>= 0, inf allowed) a cancelled manager (Ctrl-C) may take to write what was captured. A
            normal exit has no limit. Default: 30.0.
        fallback: Whether loading "latest" or "best" falls back to the next intact checkpoint. Default: True.
        read_only: Whether to read beside another process that writes: no lock, no recovery, no saving. Default: False.
        debug: Whether each save looks at the state again when it has been captured, and raises `StateChangedError` if a
            task or thread has changed it meanwhile. Saves then take longer to return. Default: False.
    """

    enabled: bool
    checkpoint_dir: str | os.PathLike[str]
    metric_name: str | None
    higher_is_better: bool
    metric_required: NotRequired[bool]
    save_period: int | None
    save_interval: NotRequired[float | None]
    max_overhead: NotRequired[float | None]
    save_by: NotRequired[datetime | timedelta | float | None]
    preempt_signals: NotRequired[Signal | Iterable[Signal] | None]
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
    debug: NotRequired[bool]


class CheckpointingOptions(TypedDict, total=False):
    """The options that may be given as keywords: the keys of `CheckpointingConfig` except ``checkpoint_dir``."""

    enabled: bool
    metric_name: str | None
    higher_is_better: bool
    metric_required: bool
    save_period: int | None
    save_interval: float | None
    max_overhead: float | None
    save_by: datetime | timedelta | float | None
    preempt_signals: Signal | Iterable[Signal] | None
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
    debug: bool


_UNCATCHABLE: Final = frozenset(
    {signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
)
"""The system handles the first two itself; the others come again and again, before a handler in Python is called."""


class _Check(NamedTuple):
    """The check of an option's value: what it accepts, in words, and a function that converts what is accepted."""

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
    return str.__str__(value)  # a plain str, even from a subclass


def _parse_real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError
    return float(value)


def _parse_seconds(value: object) -> float:
    seconds = _parse_real(value)
    if math.isnan(seconds) or seconds < 0:
        raise ValueError
    return seconds


def _parse_duration(value: object) -> float:
    seconds = _parse_real(value)
    if not 0 < seconds < math.inf:
        raise ValueError
    return seconds


def _parse_share(value: object) -> float:
    share = _parse_real(value)
    if not 0 < share < 1:
        raise ValueError
    return share


def _parse_deadline(value: object) -> datetime | timedelta | float:
    if isinstance(value, timedelta):
        if value <= timedelta(0):
            raise ValueError
        return value
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise ValueError
        return value
    return _parse_duration(value)


def _parse_signals(value: object) -> tuple[int, ...]:
    given = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    numbers_given = tuple(dict.fromkeys(map(_parse_signal, given)))
    if not _UNCATCHABLE.isdisjoint(numbers_given):
        raise ValueError
    return numbers_given


def _parse_signal(value: object) -> int:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, str):
        number = next((each for each in signal.valid_signals() if signal_name(each) == value), 0)
    else:
        number = operator.index(value)  # type: ignore[arg-type]  # raises TypeError for a value that is not an int
    if number not in signal.valid_signals():
        raise ValueError
    return int(number)


def _whole(least: int) -> _Check:
    def parse(value: object) -> int:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]  # raises TypeError for a value that is not an int
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
_DURATION: Final = _Check(expected="a finite number of seconds > 0", parse=_parse_duration)
_SHARE: Final = _Check(expected="a number between 0 and 1, both excluded, such as 0.02", parse=_parse_share)
_DEADLINE: Final = _Check(
    expected="a datetime with a time zone, a timedelta > 0, or a finite number of seconds since the epoch > 0",
    parse=_parse_deadline,
)
_SIGNALS: Final = _Check(
    expected="a signal that can be caught (a signal.Signals, its number or its name), or several",
    parse=_parse_signals,
)
_SECONDS: Final = _Check(expected="a number of seconds >= 0", parse=_parse_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The checked options of one manager, as `resolve_settings` returns them; `CheckpointingConfig` describes each.

    A `Settings` that is constructed directly is not checked.
    """

    checkpoint_dir: Path = field(metadata={"check": _PATH})
    enabled: bool = field(default=True, metadata={"check": _BOOL})
    metric_name: str | None = field(default=None, metadata={"check": _optional(_STR)})
    higher_is_better: bool = field(default=True, metadata={"check": _BOOL})
    metric_required: bool = field(default=False, metadata={"check": _BOOL})
    save_period: int | None = field(default=None, metadata={"check": _optional(_whole(1))})
    save_interval: float | None = field(default=None, metadata={"check": _optional(_DURATION)})
    max_overhead: float | None = field(default=None, metadata={"check": _optional(_SHARE)})
    save_by: datetime | timedelta | float | None = field(default=None, metadata={"check": _optional(_DEADLINE)})
    preempt_signals: Signal | Iterable[Signal] | None = field(default=None, metadata={"check": _optional(_SIGNALS)})
    keep_top_k: int | None = field(default=None, metadata={"check": _optional(_whole(0))})
    keep_latest_k: int | None = field(default=None, metadata={"check": _optional(_whole(0))})
    keep_every: int | None = field(default=None, metadata={"check": _optional(_whole(1))})
    keep_periodic: bool = field(default=True, metadata={"check": _BOOL})
    format: Format = field(default="msgpack", metadata={"check": _one_of(Format)})
    overflow: Overflow = field(default="wait", metadata={"check": _one_of(Overflow)})
    max_staged_nbytes: int = field(default=2 << 30, metadata={"check": _whole(1)})
    min_free_nbytes: int | None = field(default=None, metadata={"check": _optional(_whole(0))})
    grace: float = field(default=30.0, metadata={"check": _SECONDS})
    fallback: bool = field(default=True, metadata={"check": _BOOL})
    read_only: bool = field(default=False, metadata={"check": _BOOL})
    debug: bool = field(default=False, metadata={"check": _BOOL})

    @property
    def has_rules_of_time(self) -> bool:
        """Whether `should_save` goes by more than the step."""
        return (self.save_interval, self.max_overhead, self.save_by) != (None, None, None)

    @property
    def is_writer(self) -> bool:
        """Whether the manager may write."""
        return self.enabled and not self.read_only


_CHECKS: Final[Mapping[str, _Check]] = {option.name: option.metadata["check"] for option in fields(Settings)}


def check_arrays(arrays: object) -> Arrays:
    """Return what loaded arrays are to be.

    Raises:
        ConfigError: It is not one of `Arrays`.
    """
    if arrays not in get_args(Arrays):
        raise ConfigError(f"arrays must be one of {', '.join(map(repr, get_args(Arrays)))}, not {arrays!r}")
    return cast("Arrays", arrays)


def check_duration(name: str, seconds: object) -> float:
    """Return a number of seconds, an argument of this name.

    Raises:
        ConfigError: It is something else, or not above zero.
    """
    try:
        return _parse_duration(seconds)
    except (ValueError, TypeError, OverflowError):
        found = f"{reprlib.repr(seconds)} ({type(seconds).__qualname__})"
        raise ConfigError(f"{name}: expected {_DURATION.expected}, found {found}") from None


def check_signals(signals: object) -> tuple[int, ...]:
    """Return the numbers of signals.

    Raises:
        ConfigError: There is something else among them.
        ManagerUsageError: One of them cannot be caught.
    """
    try:
        return _parse_signals(signals)
    except (ValueError, TypeError, OverflowError):
        pass
    expected = f"signals: expected {_SIGNALS.expected}, found {reprlib.repr(signals)}"
    given = signals if isinstance(signals, Iterable) and not isinstance(signals, str) else [signals]
    try:
        names = [signal_name(number) for number in map(_parse_signal, given) if number in _UNCATCHABLE]
    except (ValueError, TypeError, OverflowError):
        raise ConfigError(expected) from None
    message = f"signals: {', '.join(names)} cannot be caught by a program in Python: leave it out"
    raise ManagerUsageError(message)


def signal_name(number: int) -> str:
    """Return the name of a signal; those for real time have no names but the first and the last."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


def resolve_settings(
    directory_or_config: str | os.PathLike[str] | Mapping[str, object],
    options: Mapping[str, object],
) -> Settings:
    """Check a manager's arguments and fill in the defaults.

    Args:
        directory_or_config: The checkpoint directory, or a mapping with the keys of `CheckpointingConfig`.
        options: The options given as keywords; empty if a mapping was given.

    Returns:
        The settings, as plain Python values: numpy integers, floats and bools are accepted and converted.

    Raises:
        ConfigError: A key is unknown, a value is not accepted, a mapping lacks ``checkpoint_dir``, a metric is required
            but has no name, or the directory or the options were given twice. The message lists every problem, and the
            known keys.
    """
    given: dict[str, object]
    if isinstance(directory_or_config, Mapping):
        if options:
            raise ConfigError(
                "the options were given twice, in a configuration mapping and as the keywords "
                f"{', '.join(map(repr, options))}: put them all in one or the other"
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
            found = f"{reprlib.repr(given[name])} ({type(given[name]).__qualname__})"
            problems.append(f"{name}: expected {check.expected}, found {found}")
    if values.get("metric_required") and given.get("metric_name") is None:
        problems.append("metric_required: needs metric_name, the key of the metric that every save must have")
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(f"the checkpointing options are not valid:{lines}\nKnown keys: {', '.join(_CHECKS)}")
    return Settings(**values)


def is_given(
    name: str, directory_or_config: str | os.PathLike[str] | Mapping[str, object], options: Mapping[str, object]
) -> bool:
    """Return whether an option was given explicitly; the arguments are those of `resolve_settings`."""
    return name in (directory_or_config if isinstance(directory_or_config, Mapping) else options)


def _unknown(key: object) -> str:
    close = nearest(key, _CHECKS) if isinstance(key, str) else []
    return f"{reprlib.repr(key)}: unknown" + (f"; did you mean {close[0]!r}?" if close else "")

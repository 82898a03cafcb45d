"""Options: every key is checked, every problem is reported, and the three lists of keys agree."""

from __future__ import annotations

import dataclasses
import math
import re
import signal
import typing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import numpy as np
import pytest

from asyncckpt.config import (
    CheckpointingConfig,
    CheckpointingOptions,
    Settings,
    is_given,
    resolve_settings,
)
from asyncckpt.errors import CheckpointError, ConfigError

KEYS = [option.name for option in dataclasses.fields(Settings)]

BOOLS = ("enabled", "higher_is_better", "metric_required", "keep_periodic", "fallback", "read_only")

ILL_TYPED: list[tuple[str, object]] = [
    ("checkpoint_dir", None),
    ("checkpoint_dir", 3),
    ("checkpoint_dir", b"runs"),
    ("checkpoint_dir", ""),
    ("checkpoint_dir", "a\0b"),
    *[(key, value) for key in BOOLS for value in (1, None, "yes")],
    *[(key, value) for key in ("save_period", "keep_every") for value in (0, -1, True, 2.0, "2")],
    *[(key, value) for key in ("keep_top_k", "keep_latest_k") for value in (-1, False, 2.0, "2", np.True_)],
    *[("max_staged_nbytes", value) for value in (0, None, True, 1e9, "1GiB")],
    *[("metric_name", value) for value in (3, b"loss", ["loss"])],
    *[("format", value) for value in ("pickle", None, "HDF5", ["hdf5"])],
    *[("overflow", value) for value in ("drop", None, 1)],
    *[
        (key, value)
        for key in ("save_interval", "max_overhead", "save_by")
        for value in (0, -1, math.nan, math.inf, True, np.True_, "60", 1j, 10**400)
    ],
    *[("max_overhead", value) for value in (1, 2.0)],
    *[("save_by", value) for value in (datetime(2030, 1, 1), timedelta(0), date(2030, 1, 1))],  # noqa: DTZ001 - the case
    *[
        ("preempt_signals", value)
        for value in (0, -1, 1000, True, "TERM", b"SIGTERM", 15.0, signal.SIGKILL, ["SIGUSR1", "SIGSTOP"], [[15]])
    ],
    *[("grace", value) for value in (-0.5, math.nan, None, "30", True, 1j, 10**400)],
]

WELL_TYPED: list[tuple[str, object, object]] = [
    ("enabled", False, False),
    ("enabled", np.False_, False),
    ("metric_name", None, None),
    ("metric_name", np.str_("loss"), "loss"),
    ("higher_is_better", False, False),
    ("save_period", None, None),
    ("save_period", np.int64(10), 10),
    ("save_period", 1, 1),
    ("keep_top_k", 0, 0),
    ("keep_top_k", np.uint8(3), 3),
    ("keep_latest_k", 0, 0),
    ("keep_every", 1, 1),
    ("keep_periodic", np.False_, False),
    ("metric_required", False, False),
    ("format", "hdf5", "hdf5"),
    ("overflow", "replace", "replace"),
    ("overflow", "skip", "skip"),
    ("max_staged_nbytes", 1, 1),
    ("min_free_nbytes", 0, 0),
    ("min_free_nbytes", None, None),
    ("min_free_nbytes", np.int64(5), 5),
    ("grace", 0, 0.0),
    ("grace", math.inf, math.inf),
    ("grace", np.float32(0.5), 0.5),
    ("save_interval", np.float32(0.5), 0.5),
    ("save_interval", 600, 600.0),
    ("max_overhead", np.float64(0.5), 0.5),
    ("save_by", timedelta(hours=1), timedelta(hours=1)),
    ("save_by", datetime(2030, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)),
    ("save_by", np.int64(1_900_000_000), 1.9e9),
    ("save_by", None, None),
    ("preempt_signals", signal.SIGUSR1, (signal.SIGUSR1,)),
    ("preempt_signals", ["SIGUSR1", 15, np.int64(15)], (signal.SIGUSR1, signal.SIGTERM)),
    ("preempt_signals", {"SIGRTMIN+1"}, (signal.SIGRTMIN + 1,)),
    ("preempt_signals", (), ()),
    ("fallback", False, False),
    ("read_only", True, True),
]


def test_defaults() -> None:
    """A directory alone gives the documented defaults."""
    assert resolve_settings("runs/a", {}) == Settings(
        checkpoint_dir=Path("runs/a"),
        enabled=True,
        metric_name=None,
        higher_is_better=True,
        metric_required=False,
        save_period=None,
        keep_top_k=None,
        keep_latest_k=None,
        keep_every=None,
        keep_periodic=True,
        format="msgpack",
        overflow="wait",
        max_staged_nbytes=2 * 1024**3,
        min_free_nbytes=None,
        grace=30.0,
        fallback=True,
        read_only=False,
    )


@pytest.mark.parametrize("directory", ["runs/a", Path("runs/a"), PurePosixPath("runs/a")])
def test_directory_forms(directory: typing.Any) -> None:
    """The directory may be a str or path-like, as the argument or in the mapping, and is taken as given."""
    assert resolve_settings(directory, {}).checkpoint_dir == Path("runs/a")
    assert resolve_settings({"checkpoint_dir": directory}, {}).checkpoint_dir == Path("runs/a")


def test_mapping_and_keywords_agree() -> None:
    """A configuration mapping and the same options as keywords give the same settings."""
    options = {"metric_name": "loss", "higher_is_better": False, "keep_top_k": 3, "format": "hdf5"}
    config = MappingProxyType({"checkpoint_dir": "runs", **options})
    settings = resolve_settings(config, {})
    assert settings == resolve_settings("runs", options)
    assert (settings.metric_name, settings.keep_top_k) == ("loss", 3)


@pytest.mark.parametrize(("key", "value", "expected"), WELL_TYPED)
def test_well_typed(key: str, value: object, expected: object) -> None:
    """Values within the documented bounds are accepted, and numpy's become plain Python ones."""
    found = getattr(resolve_settings("runs", {key: value}), key)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("key", "value"), ILL_TYPED)
def test_ill_typed(key: str, value: object) -> None:
    """A value outside a key's type or bounds is refused by name, with what was expected and what was found."""
    config = {"checkpoint_dir": "runs", key: value}
    with pytest.raises(ConfigError) as caught:
        resolve_settings(config, {})
    line = next(line for line in str(caught.value).splitlines() if line.startswith(f"  {key}: expected "))
    assert line.endswith(f"({type(value).__qualname__})")


@pytest.mark.parametrize("options", [{}, {"metric_name": None}])
def test_a_required_metric_needs_a_name(options: dict[str, object]) -> None:
    """Otherwise nothing would ever be refused; with a name it is accepted."""
    with pytest.raises(ConfigError, match="metric_required: needs metric_name"):
        resolve_settings("runs", {"metric_required": True, **options})
    assert resolve_settings("runs", {"metric_required": True, "metric_name": "loss"}).metric_required


@pytest.mark.parametrize("value", [True, False])
def test_a_default_that_was_given_is_told_from_one_that_was_not(value: bool) -> None:
    """In a mapping and as a keyword."""
    for name in ("higher_is_better", "metric_name"):
        given = name == "higher_is_better"
        assert is_given(name, "runs", {"higher_is_better": value}) == given
        assert is_given(name, {"checkpoint_dir": "runs", "higher_is_better": value}, {}) == given


def test_every_problem_is_reported_at_once() -> None:
    """One error lists the unknown keys, the closest known ones, the ill-typed values and all known keys."""
    options = {"keep_topk": 3, "save_period": 0, "grace": "long", "zzz": None, 7: None}
    with pytest.raises(ConfigError) as caught:
        resolve_settings("runs", typing.cast("dict[str, object]", options))
    message = str(caught.value)
    assert "'keep_topk': unknown; did you mean 'keep_top_k'?" in message
    assert re.search(r"'zzz': unknown$", message, re.MULTILINE)
    assert re.search(r"^  7: unknown$", message, re.MULTILINE)
    assert "save_period: expected None or an int >= 1, found 0 (int)" in message
    assert "grace: expected a number of seconds >= 0, found 'long' (str)" in message
    assert message.endswith("Known keys: " + ", ".join(KEYS))


def test_error_is_both_builtin_kinds() -> None:
    """A ConfigError is a CheckpointError, a ValueError and a TypeError, for all who catch one of these."""
    for kind in (CheckpointError, ValueError, TypeError):
        with pytest.raises(kind, match="keep_top_k"):
            resolve_settings("runs", {"keep_top_k": -1})


def test_long_values_are_cut() -> None:
    """A huge ill-typed value does not end up whole in the message."""
    with pytest.raises(ConfigError) as caught:
        resolve_settings("runs", {"metric_name": list(range(10**5))})
    assert len(str(caught.value)) < 1000


def test_mapping_without_directory() -> None:
    """Only `checkpoint_dir` must be in a mapping, and its lack is said."""
    with pytest.raises(ConfigError, match=r"checkpoint_dir: missing"):
        resolve_settings({"enabled": True}, {})


def test_options_given_twice() -> None:
    """A mapping together with keywords is refused, naming the keywords; so is a directory given twice."""
    with pytest.raises(ConfigError, match=r"twice.*'keep_top_k', 'grace'"):
        resolve_settings({"checkpoint_dir": "runs"}, {"keep_top_k": 3, "grace": 1.0})
    with pytest.raises(ConfigError, match=r"checkpoint_dir was given twice"):
        resolve_settings("runs", {"checkpoint_dir": "other"})


def test_settings_are_frozen() -> None:
    """Settings cross threads, so they cannot be changed."""
    settings = resolve_settings("runs", {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.grace = 1.0  # type: ignore[misc]


def test_typed_dicts_and_settings_agree() -> None:
    """The keys and types that type checkers see are those that are checked, and the docstring explains each."""
    settings = typing.get_type_hints(Settings)
    config = typing.get_type_hints(CheckpointingConfig)
    options = typing.get_type_hints(CheckpointingOptions)
    assert list(config) == ["enabled", "checkpoint_dir", *KEYS[2:]]
    del settings["checkpoint_dir"], config["checkpoint_dir"]
    assert settings == config == options
    assert not CheckpointingOptions.__required_keys__
    assert CheckpointingConfig.__required_keys__ == {
        "enabled",
        "checkpoint_dir",
        "metric_name",
        "higher_is_better",
        "save_period",
        "keep_top_k",
    }
    assert re.findall(r"^ {8}(\w+): ", CheckpointingConfig.__doc__ or "", re.MULTILINE) == [
        "enabled",
        *KEYS[:1],
        *KEYS[2:],
    ]


def test_defaults_pass_their_own_checks() -> None:
    """Every default is a value that its key would accept from a user."""
    defaults = {
        option.name: option.default for option in dataclasses.fields(Settings) if option.name != "checkpoint_dir"
    }
    assert resolve_settings("runs", defaults) == resolve_settings("runs", {})
    assert defaults["max_staged_nbytes"] == 2 << 30

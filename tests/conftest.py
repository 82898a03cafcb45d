"""What every test runs under: both loops, blocking-call detection, and no disk or format work on a loop's thread."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import tracemalloc
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings

import asyncckpt.disk.checkpoint
import asyncckpt.disk.diagnosis
import asyncckpt.disk.listing
import asyncckpt.disk.lock
import asyncckpt.disk.mapping
import asyncckpt.disk.metric_file
import asyncckpt.disk.obstacles
import asyncckpt.disk.ops
import asyncckpt.disk.publish
import asyncckpt.disk.read_blocks
import asyncckpt.disk.removal
import asyncckpt.disk.room
import asyncckpt.disk.write_blocks
import asyncckpt.formats.hdf5.layout
import asyncckpt.formats.msgpack
import asyncckpt.keyed.appender
import asyncckpt.keyed.file_object
import asyncckpt.keyed.hdf5.changed_file
import asyncckpt.keyed.hdf5.data_file
import asyncckpt.keyed.hdf5.foreign_file
import asyncckpt.keyed.hdf5.object_reader
import asyncckpt.keyed.hdf5.store
import asyncckpt.keyed.json_file
import asyncckpt.keyed.json_values
import asyncckpt.keyed.location
import asyncckpt.keyed.log.records
import asyncckpt.keyed.log.store
import asyncckpt.keyed.memory
import asyncckpt.keyed.npz
import asyncckpt.keyed.npz_file
import asyncckpt.keyed.stored_value
import asyncckpt.storage.local.records
import asyncckpt.testing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

# The suite is deterministic, and says nothing about time: that is what benchmarks/ is for.
_COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("asyncckpt", derandomize=True, max_examples=50, **_COMMON)
settings.register_profile("explore", max_examples=2000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "asyncckpt"))

_BLOCKING_MODULES = (
    asyncckpt.disk.write_blocks,
    asyncckpt.disk.checkpoint,
    asyncckpt.disk.diagnosis,
    asyncckpt.disk.listing,
    asyncckpt.disk.lock,
    asyncckpt.disk.mapping,
    asyncckpt.disk.metric_file,
    asyncckpt.disk.obstacles,
    asyncckpt.disk.ops,
    asyncckpt.disk.publish,
    asyncckpt.disk.read_blocks,
    asyncckpt.disk.removal,
    asyncckpt.disk.room,
    asyncckpt.formats.hdf5.layout,
    asyncckpt.formats.msgpack,
    asyncckpt.keyed.hdf5.changed_file,
    asyncckpt.keyed.hdf5.data_file,
    asyncckpt.keyed.hdf5.foreign_file,
    asyncckpt.keyed.hdf5.object_reader,
    asyncckpt.keyed.hdf5.store,
    asyncckpt.keyed.location,
    asyncckpt.keyed.json_file,
    asyncckpt.keyed.json_values,
    asyncckpt.keyed.log.store,
    asyncckpt.keyed.log.records,
    asyncckpt.keyed.memory,
    asyncckpt.keyed.npz,
    asyncckpt.keyed.npz_file,
    asyncckpt.keyed.stored_value,
    asyncckpt.keyed.file_object,
    asyncckpt.keyed.appender,
    asyncckpt.storage.local.records,
    asyncckpt.testing,
)
# What these modules lend to the loop's thread: memory only.
_HARMLESS = {
    "_close_in_child",
    "_renameat2",
    "_libc",
    "__init__",
    "release",
    "fail",
    "heal",
    "names",
    "check_stream",
    "_can",
}


_LOOPS = ["asyncio", "uvloop"]
_ON_BOTH = {"test_cancellation.py", "test_close.py", "test_sigterm.py", "test_pacing.py", "test_async_session.py"}
"""Files of tests in which the loops may differ: signals, cancellation, timers and the end."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--loops`."""
    parser.addoption(
        "--loops",
        choices=("both", "either"),
        default="both",
        help="run async tests on both loops, or most of them on either, which the seed of the random order decides",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--loops=either`, leave each async test one of its loops."""
    if config.getoption("loops") == "both":
        return
    seed = config.getoption("randomly_seed", 0)
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        loop = (
            item.callspec.params.get("anyio_backend")
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else None
        )
        name = f"{seed} {item.nodeid.replace(str(loop), '')}"
        is_chosen = loop not in _LOOPS or item.path.name in _ON_BOTH or loop == _LOOPS[zlib.crc32(name.encode()) % 2]
        (kept if is_chosen else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


@pytest.fixture(params=_LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run every async test on the stock loop and on uvloop."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that mounts a small file system, with tmpfs's options ("size=4m"), and returns its root."""
    with ExitStack() as mounted:

        def mount(*options: str) -> Path:
            root = Path(tempfile.mkdtemp(dir=tmp_path))
            command = [shutil.which("mount") or "false", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", root]
            if subprocess.run(command, capture_output=True, check=False).returncode:  # noqa: S603
                pytest.skip("mounting a small disk takes root's rights")
            mounted.callback(subprocess.run, [shutil.which("umount") or "", root], check=True)
            return root

        yield mount


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> Iterator[None]:
    """Let a blocking call of the library's on a loop's thread fail the test."""
    with blockbuster_ctx("asyncckpt") as blocking:
        # The working directory, which the kernel has in memory: a relative path is of the one it was given in.
        blocking.functions["os.getcwd"].can_block_in("asyncckpt/keyed/lifecycle.py", "_check_file")
        blocking.functions["os.getcwd"].can_block_in("asyncckpt/saving/session.py", "__init__")
        yield


@pytest.fixture(autouse=True)
def _nothing_is_left_to_the_next_test() -> Iterator[None]:
    """Let a test that changes what all tests share fail by itself, and not whichever happens to come after it."""
    threads, before = set(threading.enumerate()), _shared()
    yield
    left = [each for each in threading.enumerate() if each not in threads and each.name.startswith("asyncckpt")]
    if left:
        gc.collect()  # a manager that was never closed ends its threads when it is collected
        for each in left:
            each.join(60)
        assert not any(each.is_alive() for each in left), f"{left} of the library's still run"
    after = _shared()
    assert [(name, before[name], after[name]) for name in after if after[name] != before[name]] == []


_SIGNALS = signal.valid_signals() - {signal.SIGALRM}  # which is pytest-timeout's


def _shared() -> dict[str, object]:
    """Describe what the tests of a process have in common, and none may leave changed."""
    return {
        **{f"handler of signal {number:d}": signal.getsignal(number) for number in _SIGNALS},
        "collector": (gc.get_threshold(), gc.isenabled(), gc.get_freeze_count() > 0),
        "collector's callbacks": [each for each in gc.callbacks if each.__module__.startswith("asyncckpt")],
        "tracing": (tracemalloc.is_tracing(), sys.getprofile(), threading.getprofile()),
        "interpreter": (sys.getswitchinterval(), sys.getrecursionlimit(), list(sys.path)),
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "working directory": Path.cwd(),
    }


def _off_the_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def checked(*args: object, **kwargs: object) -> object:
        assert asyncio._get_running_loop() is None, f"{function.__qualname__} was called on a loop's thread"
        return function(*args, **kwargs)

    return checked


def _check_module(module: ModuleType) -> None:
    """Wrap every function and method of a module, wherever it has been imported to."""
    users = [each for name, each in sys.modules.items() if name.startswith("asyncckpt")]
    for name, found in list(vars(module).items()):
        if getattr(found, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(found) and name not in _HARMLESS:
            wrapped = _off_the_loop(found)
            for user in users:
                if vars(user).get(name) is found:
                    setattr(user, name, wrapped)
        elif inspect.isclass(found) and not issubclass(found, tuple):
            for method, function in list(vars(found).items()):
                if inspect.isfunction(function) and method not in _HARMLESS:
                    setattr(found, method, _off_the_loop(function))


for _module in _BLOCKING_MODULES:
    _check_module(_module)

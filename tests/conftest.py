"""What every test runs under: both loops, blocking-call detection, and no disk or format work on a loop's thread."""

from __future__ import annotations

import _signal
import asyncio
import functools
import gc
import importlib
import inspect
import os
import re
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
from blockbuster import BlockBusterFunction, blockbuster_ctx
from hypothesis import HealthCheck, settings

import asyncckpt.testing.faulty_disk

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

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # with which JAX compiles in half the time
settings.register_profile("asyncckpt", derandomize=True, max_examples=50, **_COMMON)
settings.register_profile("explore", max_examples=2000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "asyncckpt"))

_ROOT = Path(__file__).parents[1]
_BLOCKING_CALLS = (
    *("os.open", "os.fstat", "os.lstat", "os.walk", "os.fchmod", "os.ftruncate", "os.fsync", "os.posix_fadvise"),
    *("os.pread", "os.preadv", "os.pwrite", "os.pwritev", "mmap.mmap", "fcntl.ioctl", "fcntl.flock"),
)
"""What blockbuster does not know of."""
_HARMLESS = {
    *("name_of", "parse_name", "paths_of", "block_nbytes_within", "check_stream", "_can"),
    *("Lock.release", "_close_in_child", "CheckpointRecord.__init__", "Committed.record"),
    *("LocalStore.__init__", "LocalStore.release", "PendingDirectories.__init__", "PendingDirectories.parse_step"),
}
"""What the modules of threads lend to the loop's thread: a few instructions that never wait."""

_LOOPS = ["asyncio", "uvloop"]
_ON_BOTH = {
    "test_cancellation.py",
    "test_close.py",
    "test_sigterm.py",
    "test_preempted.py",
    "test_every.py",
    "test_pacing.py",
    "test_async_session.py",
}
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


_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - directories of the tests' own are made in it


@pytest.fixture
def quick_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory in memory, where a sync costs nothing, for tests that do not need a disk."""
    if not os.access(_IN_MEMORY, os.W_OK) or shutil.disk_usage(_IN_MEMORY).free < 1 << 30:
        yield tmp_path_factory.mktemp("quick")
        return
    with tempfile.TemporaryDirectory(prefix="asyncckpt-test-", dir=_IN_MEMORY) as directory:
        yield Path(directory)


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """Freeze all tests and modules, so that a full collection, of which many tests make some, does not walk them."""
    gc.collect()
    gc.freeze()
    yield
    # `gc.get_freeze_count` would walk all that is frozen.
    assert not any(each is _THREADS for each in gc.get_objects()), "a test has thawed what all share"


@pytest.fixture(scope="module")
def thawed(_frozen: None) -> Iterator[None]:
    """Freeze nothing, for tests of the collector: it is left alone in a program that has frozen objects."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session", autouse=True)
def _no_blocking_calls() -> Iterator[None]:
    """Let a blocking call of the library's on a loop's thread fail the test that makes it."""
    with blockbuster_ctx("asyncckpt") as blocking:
        # The working directory, which the kernel has in memory: a relative path is of the one it was given in.
        blocking.functions["os.getcwd"].can_block_in("asyncckpt/keyed/lifecycle.py", "_check_file")
        blocking.functions["os.getcwd"].can_block_in("asyncckpt/manager.py", "__init__")
        blocking.functions["os.getcwd"].can_block_in("asyncckpt/saving/files.py", "_check_source")
        blocking.functions["os.getcwd"].can_block_in("asyncckpt/loading.py", "load")
        # What is called without `await` on a loop's thread waits for another thread; it was asked to.
        for where in (("runtime/portal.py", {"__init__", "stop"}), ("keyed/apart.py", "run_apart")):
            blocking.functions["threading.Lock.acquire"].can_block_in(f"asyncckpt/{where[0]}", where[1])
        more = [BlockBusterFunction(None, name, scanned_modules="asyncckpt") for name in _BLOCKING_CALLS]
        more[-1].can_block_in("asyncckpt/disk/lock.py", "_unlock")  # it never waits
        for each in more:
            each.activate()
        try:
            yield
        finally:
            for each in more:
                each.deactivate()


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


_SIGNALS = [int(each) for each in signal.valid_signals() - {signal.SIGALRM}]  # which is pytest-timeout's


def _shared() -> dict[str, object]:
    """Describe what the tests of a process have in common, and none may leave changed."""
    return {
        "handlers of signals": list(map(_signal.getsignal, _SIGNALS)),
        "collector": (gc.get_threshold(), gc.isenabled()),
        "collector's callbacks": [each for each in gc.callbacks if each.__module__.startswith("asyncckpt")],
        "tracing": (tracemalloc.is_tracing(), sys.getprofile(), threading.getprofile()),
        "interpreter": (sys.getswitchinterval(), sys.getrecursionlimit(), list(sys.path)),
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "working directory": Path.cwd(),
    }


def _off_the_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def checked(*args: object, **kwargs: object) -> object:
        if asyncio._get_running_loop() is None or _called.by_a_test:
            return function(*args, **kwargs)
        caller = sys._getframe(1).f_globals["__name__"]
        assert not caller.startswith("asyncckpt"), f"{caller} calls {function.__qualname__} on a loop's thread"
        _called.by_a_test = True
        try:
            return function(*args, **kwargs)
        finally:
            _called.by_a_test = False

    return checked


class _Called(threading.local):
    by_a_test = False
    """Whether what runs on a loop's thread was called there by a test, which may."""


_called = _Called()


def _modules_of_threads() -> Iterator[ModuleType]:
    """Import the modules of which docs/design.md says, in the headings of its section 3, that threads use them."""
    design = (_ROOT / "docs/design.md").read_text().partition("## 3.")[2].partition("Who owns what")[0]
    for folder, names in re.findall(r"^`(\w+)/`[^\n]* threads?:\n\n(.*?)\n\n", design, re.DOTALL | re.MULTILINE):
        for name in re.findall(r"`(\w+\.py)`", names):
            for path in (_ROOT / "asyncckpt" / folder).rglob(name):
                yield importlib.import_module(".".join(path.relative_to(_ROOT).with_suffix("").parts))


def _check_module(module: ModuleType) -> None:
    """Wrap every function and method of a module, wherever it has been imported to."""
    users = [each for name, each in sys.modules.items() if name.startswith("asyncckpt")]
    for name, found in list(vars(module).items()):
        if getattr(found, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(found) and found.__qualname__ not in _HARMLESS:
            wrapped = _off_the_loop(found)
            for user in users:
                if vars(user).get(name) is found:
                    setattr(user, name, wrapped)
        elif inspect.isclass(found) and not issubclass(found, tuple):
            for method, function in list(vars(found).items()):
                if inspect.isfunction(function) and function.__qualname__ not in _HARMLESS:
                    setattr(found, method, _off_the_loop(function))


_THREADS = dict.fromkeys((*_modules_of_threads(), asyncckpt.testing.faulty_disk))
for _module in _THREADS:
    _check_module(_module)

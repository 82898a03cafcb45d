"""The lifecycle of a `Checkpointer`'s file: it is opened in one of two modes, used and closed.

1. A file is open in one mode at a time. Blocks of the same mode may be nested, and share one opened file.
2. Blocking access in a thread in which an event loop runs is done in a thread of its own, for which the caller waits.
3. The exception of a block's body is raised unchanged. If the flush fails, too, the exception gets a note.
"""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from asyncckpt.disk.ops import DiskOps
from asyncckpt.errors import CheckpointerUsageError, ConfigError
from asyncckpt.keyed.apart import EngineApart, is_loop_running, run_apart
from asyncckpt.keyed.async_session import Session
from asyncckpt.keyed.engine import Engine, Key, KeyRules, Serializer
from asyncckpt.keyed.evaluations import Evaluations
from asyncckpt.keyed.file_object import FileObjectLocation, check_stream
from asyncckpt.keyed.location import FileLocation
from asyncckpt.keyed.view import AsyncCheckpointer
from asyncckpt.runtime.cleanup import on_failure
from asyncckpt.runtime.context import JobContext

if TYPE_CHECKING:
    from types import TracebackType

    from asyncckpt.keyed.base import Store
    from asyncckpt.keyed.location import Rewrite

DEFAULT_STAGED_NBYTES: Final = 2 << 30
_OF_THIS_PROCESS: Final = frozenset(("_lock", "_evaluations", "_depth", "_engine", "_session", "_process"))


class FileLifecycle(ABC):
    """Opens and closes the file of an `asyncckpt.Checkpointer`, which adds loading and saving."""

    def __init__(  # noqa: PLR0913 - the last five by keyword
        self,
        checkpoint_file: Any,
        allowed_keys: Iterable[str] | None = None,
        omitted_keys: Iterable[str] | None = None,
        *,
        serializer: Serializer | None = None,
        disk: DiskOps | None = None,
        max_staged_nbytes: int = DEFAULT_STAGED_NBYTES,
        rewrite: Rewrite = False,
        **unknown: object,
    ) -> None:
        if unknown:
            message = f"{type(self).__name__} has no option {', '.join(map(repr, unknown))}"
            raise ConfigError(message)
        if rewrite not in (False, True, "without_backup"):
            message = f"rewrite must be False, True or 'without_backup', not {rewrite!r}"
            raise ConfigError(message)
        self.checkpoint_file = self._check_file(checkpoint_file)
        self._rules = KeyRules(
            self._file_name, _key_set("allowed_keys", allowed_keys), _key_set("omitted_keys", omitted_keys)
        )
        self._serializer = serializer
        self._disk = disk or DiskOps()
        self._max_staged_nbytes = max_staged_nbytes
        self._rewrite = rewrite
        self._settle()

    def _settle(self) -> None:
        """Begin closed, with what belongs to this process alone."""
        self._lock = threading.RLock()
        self._evaluations = Evaluations[Future[Any]](Future)
        self._depth = 0  # of the blocks in blocking mode
        self._engine: Engine | None = None
        self._session: Session | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of, in this process or another one: the file and the options.

        Raises:
            CheckpointerUsageError: It is open.
        """
        if self.is_open:
            message = f"{self!r} cannot be copied or pickled while it is open: close it first"
            raise CheckpointerUsageError(message)
        return {name: value for name, value in vars(self).items() if name not in _OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a closed Checkpointer of the same file."""
        vars(self).update(state)
        self._settle()

    def __repr__(self) -> str:
        """Show the file and whether it is open."""
        return f"<{type(self).__name__} {self._file_name} ({'open' if self.is_open else 'closed'})>"

    @property
    def _file_name(self) -> str:
        """The name of the file in error messages."""
        file = self.checkpoint_file
        return repr(str(file) if isinstance(file, Path) else getattr(file, "name", file))

    @property
    def allowed_keys(self) -> tuple[str, ...] | None:
        """The only keys that may be used; None if there is no such restriction."""
        return None if self._rules.allowed is None else tuple(self._rules.allowed)

    @property
    def omitted_keys(self) -> tuple[str, ...] | None:
        """Keys that may not be used; None if there are none."""
        return None if self._rules.omitted is None else tuple(self._rules.omitted)

    def check_allowed_key(self, key: Key) -> None:
        """Check that a key, or the first part of a path, may be used.

        Raises:
            CheckpointKeyError: It is omitted, or not among the allowed keys.
            TypeError: It is not a key.
        """
        self._rules.path(key, self._known_keys)

    def _known_keys(self) -> list[str] | None:
        """Return the keys of the file; None where they cannot be read."""
        if self._session is not None:
            return self._session.index.keys()
        try:
            with self._using() as engine:
                return engine.keys()
        except CheckpointerUsageError:
            return None

    @abstractmethod
    def _open_location(self, location: FileLocation, context: JobContext) -> Store:
        """Open the store of a file of this kind."""

    def _check_file(self, file: Any) -> Any:
        if isinstance(file, str | os.PathLike):
            return Path(file).absolute()  # the working directory may have changed when it is opened
        if not hasattr(file, "read"):
            message = f"{type(self).__name__} takes a path or an open binary file, not {file!r}"
            raise ConfigError(message)
        check_stream(file)
        return file

    def open_checkpoint_file(self, chk: Any) -> Store:
        """Open a file of this kind, and return its store for `close_checkpoint_file`. `with` does both."""
        self._check_blocking(is_open=False)
        return run_apart(self._open_store, self._check_file(chk), JobContext())

    def close_checkpoint_file(self, stream: Store) -> None:
        """Flush and close a store that `open_checkpoint_file` returned. A file object of the caller's stays open."""
        self._check_blocking(is_open=False)
        try:
            run_apart(Engine(stream, self._file_name, None).commit, JobContext())
        finally:
            run_apart(stream.close)

    def _open_store(self, file: Any, context: JobContext) -> Store:
        is_path = isinstance(file, Path)
        rewrite = self._rewrite
        location = FileLocation(file, self._disk, rewrite=rewrite) if is_path else FileObjectLocation(file, rewrite)
        with on_failure(location.close):
            return self._open_location(location, context)

    def _open_engine(self, context: JobContext) -> Engine:
        return Engine(self._open_store(self.checkpoint_file, context), self._file_name, self._serializer)

    @property
    def is_open(self) -> bool:
        """Whether the file is open, in either mode."""
        return self._engine is not None or self._session is not None

    @property
    def stream(self) -> Store | None:
        """The store that the blocking mode has opened, or None."""
        return self._engine.store if self._engine is not None else None

    def __enter__(self) -> Self:
        """Open the file, unless it is open.

        Raises:
            CheckpointerUsageError: The file is open in the other mode.
            CorruptCheckpointError: The file is damaged.
            OSError: It cannot be read.
        """
        self._check_blocking()
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._process = os.getpid()
                try:
                    self._engine = run_apart(self._open_engine, JobContext())
                except BaseException:
                    self._depth = 0
                    raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Flush and close the file, if this is the outermost block; also when the block raised."""
        self._check_blocking()
        with self._lock:
            if self._engine is None:
                message = f"{self!r} is not open: its `with` block was not entered, or has been left"
                raise CheckpointerUsageError(message)
            self._depth -= 1
            if self._depth:
                return
            engine, self._engine = self._engine, None
            try:
                run_apart(engine.commit, JobContext())
            except Exception as failure:
                if error is None:
                    raise
                error.add_note(f"asyncckpt: {self._file_name} could not be flushed: {failure}")
            finally:
                run_apart(engine.store.close)

    async def __aenter__(self) -> AsyncCheckpointer:
        """Open the file, unless it is open, and return its asynchronous view.

        Raises:
            CheckpointerUsageError: The file is open in the other mode, or on another loop.
            CorruptCheckpointError: The file is damaged.
            OSError: It cannot be read.
        """
        if self._depth:
            message = f"{self!r} is open in blocking mode: leave its `with` before entering `async with`"
            raise CheckpointerUsageError(message)
        while True:
            session = self._session
            if session is None:
                session = self._session = self._new_session()
            try:
                is_entered = await session.enter()
            finally:
                self._forget(session)
            if is_entered:
                return AsyncCheckpointer(f"{type(self).__name__} {self._file_name}", self._rules, session)

    def _new_session(self) -> Session:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            message = f"{self!r}: the asynchronous view needs an asyncio event loop (stock or uvloop)"
            raise CheckpointerUsageError(message) from None
        return Session(self._open_engine, self._file_name, self._max_staged_nbytes)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Flush and close the file, if this is the outermost block; also when the block raised."""
        session = self._session
        if session is None:
            message = f"{self!r} is not open: its `async with` block was not entered, or has been left"
            raise CheckpointerUsageError(message)
        try:
            await session.leave(error)
        finally:
            self._forget(session)

    def _forget(self, session: Session) -> None:
        if session.is_over and self._session is session:
            self._session = None

    @contextmanager
    def _using(self) -> Iterator[Engine]:
        """Provide the engine for one access. Outside any block, the file is opened and closed for it."""
        self._check_blocking()
        with self._lock, self:
            assert self._engine is not None  # noqa: S101 - entering has made it
            yield EngineApart(self._engine) if is_loop_running() else self._engine

    def _check_blocking(self, *, is_open: bool = True) -> None:
        """Check that blocking access is possible now, in this thread and process.

        Raises:
            CheckpointerUsageError: It is not; the message says why.
        """
        if is_open and self._session is not None:
            message = (
                f"{self!r} is open in asynchronous mode: use the view that `async with` returned, or leave it first"
            )
            raise CheckpointerUsageError(message)
        if self._depth and self._process != os.getpid():
            message = f"{self!r} was opened by the parent process: a forked child cannot use it: make a new one"
            raise CheckpointerUsageError(message)


def _key_set(name: str, keys: Iterable[str] | None) -> dict[str, None] | None:
    if keys is None:
        return None
    if isinstance(keys, str) or not isinstance(keys, Iterable):
        message = f"{name} must be a collection of str, not {keys!r}"
        raise ConfigError(message)
    found = dict.fromkeys(keys)
    for key in found:
        if not isinstance(key, str):
            message = f"{name} contains {key!r}, but keys are str"
            raise ConfigError(message)
    return found

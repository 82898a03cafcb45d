"""AsyncCheckpointer: the view of a `Checkpointer` for event loops."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar

from asyncckpt.config import check_arrays
from asyncckpt.errors import CheckpointerUsageError, CheckpointKeyError
from asyncckpt.keyed.engine import parse_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping

    from asyncckpt.config import Arrays
    from asyncckpt.keyed.async_session import Session
    from asyncckpt.keyed.engine import Key, KeyRules, Path

ItemT = TypeVar("ItemT")

_MISSING: Final = object()


class AsyncCheckpointer:
    """The view of a `Checkpointer` for event loops, which `async with` returns.

    Calls take effect in their order: a load sees the writes before it. (A coroutine does so when it runs, and a
    `save_parameter` once it has captured the value, so await it before any call that must come after it.) A write
    captures the value during the call, so the value may be changed afterwards, and stores it in the background.
    `flush`, or leaving the block, makes all writes durable, together. A change that is refused in the background is
    dropped, such as every change while another Checkpointer is the writer, and its error is raised by the next change,
    `flush` or end of the block.

    `chk[key] = value` captures at once, up to about 1 MiB. `in`, `len`, iteration, `keys()` and `del` use an index in
    memory. It has all keys, and those of the dicts in their values if they are few; for a path below any others, `in`
    and `del` raise `CheckpointerUsageError`, and `get`, `pop` and `delete_parameter` are to be used. Everything else is
    awaited; ``await chk[key]`` loads.
    """

    def __init__(self, owner: str, rules: KeyRules, session: Session) -> None:
        self._owner = owner
        self._rules = rules
        self._session = session

    def __repr__(self) -> str:
        """Show the file, and whether it is open."""
        return f"<{type(self).__name__} of {self._owner} ({'open' if self.is_open else 'closed'})>"

    @property
    def is_open(self) -> bool:
        """Whether the view can be used."""
        return not self._session.is_over

    if not TYPE_CHECKING:  # a type checker refuses `with` by itself

        def __enter__(self) -> NoReturn:
            """Raise an error that names what to enter instead."""
            message = f"{self!r} was returned by `async with`: use it as it is, or enter the {self._owner} itself"
            raise CheckpointerUsageError(message)

        def __exit__(self, *_: object) -> None:
            """Do nothing. `with` requires it before it calls `__enter__`."""

        async def __aenter__(self) -> NoReturn:
            """Raise the same error."""
            self.__enter__()

        async def __aexit__(self, *_: object) -> None:
            """Do nothing."""

    def check_allowed_key(self, key: Key) -> None:
        """Check that a key may be used; see `Checkpointer.check_allowed_key`."""
        self._path(key)

    def _path(self, key: Key) -> Path:
        return self._rules.path(key, self.keys)

    # --- the index in memory ------------------------------------------------------------------------------------------

    def keys(self) -> AwaitableList[str]:
        """Return the keys in the order in which they were added. The list may be awaited, too."""
        return AwaitableList(self._rules.visible(self._session.index.view()))

    def __contains__(self, key: object) -> bool:
        """Tell whether there is a value, and the key is allowed.

        Raises:
            CheckpointerUsageError: The index does not have the keys of the dicts in the value: use `get`.
        """
        try:
            path = parse_key(key)
        except TypeError:
            return False
        return self._rules.allows(path[0]) and self._session.index.contains(path)

    def __iter__(self) -> Iterator[str]:
        """Iterate over a snapshot of the keys."""
        return iter(self.keys())

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._session.index) if self._rules.allow_all else len(self.keys())

    # --- changes ------------------------------------------------------------------------------------------------------

    def __setitem__(self, key: Key, value: object) -> None:
        """Capture a value at once, to be written in the background.

        Raises:
            CheckpointKeyError: The key is not allowed, or a part of the path is not a dict.
            CheckpointerUsageError: The value is larger than about 1 MiB: use `save_parameter`.
            QueueFullError: The values that wait to be written fill the budget.
            UnsupportedLeafError: The value cannot be saved.
            FileLockedError: An earlier change was refused, because another Checkpointer is changing the file. Other
                errors of earlier changes are raised here, too (such as a ReadOnlyFileError, if the file is another
                program's); several as an ExceptionGroup.
        """
        self._session.save_now(self._path(key), value)

    async def save_parameter(self, key: Key, value: object) -> None:
        """Capture a value of any size in a worker thread, to be written in the background.

        Waits for room in the budget. A value larger than the whole budget is written before this returns.

        Raises:
            CheckpointKeyError: The key is not allowed.
            UnsupportedLeafError: The value cannot be saved.
            FileLockedError: Another Checkpointer is changing the file.
            OSError: The disk failed while earlier values were written to make room.
        """
        await self._session.save(self._path(key), value)

    def __delitem__(self, key: Key) -> None:
        """Delete a key, or the value at a path.

        Raises:
            CheckpointKeyError: There is none, or the key is not allowed.
            CheckpointerUsageError: The index does not have the keys of the dicts in the value: use `delete_parameter`.
        """
        self._session.delete(self._path(key))

    async def delete_parameter(self, key: Key) -> None:
        """Delete a key, or the value at a path.

        Raises:
            CheckpointKeyError: There is none, or the key is not allowed.
            FileLockedError: Another Checkpointer is changing the file.
        """
        await self._session.remove(self._path(key))

    async def update(self, values: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = (), /, **more: object) -> None:
        """Save the values of a mapping, or of pairs."""
        pairs = values.items() if hasattr(values, "items") else values
        for key, value in (*pairs, *more.items()):
            await self.save_parameter(key, value)

    async def flush(self) -> None:
        """Make all changes so far durable, together.

        Raises:
            OSError: The disk failed. The changes are kept, and the next flush tries again.
            FileLockedError: Another Checkpointer is changing the file. The changes were dropped.
            CheckpointError: A change is not possible, because a part of its path is not a dict, say. It was dropped.
            ExceptionGroup: There are several such errors.
        """
        await self._session.flush()

    # --- loading ------------------------------------------------------------------------------------------------------

    async def load_parameter(self, key: Key, *, arrays: Arrays = "saved") -> Any:
        """Load the value of a key or at a path.

        Args:
            key: The key, or a path.
            arrays: "saved": arrays are those of the frameworks that they were saved from. "numpy": they are numpy
                arrays, also without the framework.

        Raises:
            ConfigError: `arrays` is neither.
            UnsupportedFormatError: The program has not imported a framework whose arrays are in the value.
            CheckpointKeyError: There is none, or the key is not allowed.
            CorruptCheckpointError: It is damaged.
            OSError: It cannot be read, or the disk refused an earlier change of the same key, which is still queued.
        """
        return await self._session.load(self._path(key), arrays=check_arrays(arrays))

    def __getitem__(self, key: Key) -> Awaitable[Any]:
        """Return an awaitable that loads the value."""
        return self.load_parameter(key)

    async def get(self, key: Key, default: Any = None) -> Any:
        """Load a value; if there is none, return the default."""
        try:
            return await self._session.load(self._path(key), default)
        except CheckpointKeyError:
            return default

    async def get_keys(self, keys: Iterable[Key]) -> list[Any]:
        """Load the values of several keys, in their order."""
        return [await self.load_parameter(key) for key in keys]

    async def pop(self, key: Key, default: Any = _MISSING) -> Any:
        """Load a value and delete it. If there is none, return the default, if that is given."""
        try:
            return await self._session.take(self._path(key))
        except CheckpointKeyError:
            if default is _MISSING:
                raise
            return default

    async def cached_eval(
        self,
        key: Key,
        generator: Callable[..., Any],
        *,
        condition: Callable[[Any], bool] | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Load a value, or compute and save it; see `Checkpointer.cached_eval`.

        Of concurrent calls for one key, one computes it, and the others use the result if it meets their condition.
        What `generator` returns is awaited, if it is awaitable. A plain function runs on the loop's thread, and should
        use `asyncio.to_thread` for long computations.

        Raises:
            CheckpointerUsageError: There is a deadlock: generators wait for each other's keys, or one waits for its
                own.
        """
        path = self._path(key)
        evaluations = self._session.evaluations
        while True:
            evaluation, is_new = evaluations.join(path)
            if is_new:
                break
            with evaluation.waiting():
                await asyncio.wait((evaluation.result,))
            if not evaluation.result.cancelled():
                value = await self.get(key, evaluation.result.result())
                if condition is None or condition(value):
                    return value
        with evaluations.computing(path, evaluation):
            value = await self.get(key, _MISSING)
            if value is _MISSING or (condition is not None and not condition(value)):
                value = generator(*args, **(kwargs or {}))
                if inspect.isawaitable(value):
                    value = await value
                await self.save_parameter(key, value)
            evaluation.result.set_result(value)
        return value


class AwaitableList(list[ItemT], Generic[ItemT]):
    """A list that may be awaited, which returns it."""

    def __await__(self) -> Generator[Any, None, AwaitableList[ItemT]]:
        """Return the list."""
        return self
        yield

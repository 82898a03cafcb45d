"""What `async with` on a `Checkpointer` gives."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar

from asyncckpt.errors import CheckpointerUsageError, CheckpointKeyError
from asyncckpt.keyed.engine import parse_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping

    from asyncckpt.keyed.async_session import Session
    from asyncckpt.keyed.engine import Key, KeyRules, Path

ItemT = TypeVar("ItemT")

_MISSING: Final = object()


class AsyncCheckpointer:
    """The view of a `Checkpointer` for event loops, which `async with` gives.

    Calls take effect in their order: a load sees the writes before it. (A coroutine does so when it runs, and a
    `save_parameter` once it has captured the value: await it before what shall come after it.) Writes are captured when
    they are called, so that the value may be changed afterwards, and stored in the background; `flush`, or leaving the
    block, makes them durable, all together. What was refused in the background, such as every change while another
    Checkpointer is the writer, is dropped, and raises at the next change, `flush` or end of the block.

    `chk[key] = value` captures on the spot, up to about 1 MiB. `in`, `len`, iteration, `keys()` and `del` look at an
    index in memory. It has all keys, and those of the dicts in their values where they are few; for a path below any
    others, `in` and `del` raise `CheckpointerUsageError`, and `get`, `pop` and `delete_parameter` serve. Everything
    else is awaited; ``await chk[key]`` loads.
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
            """Say what is entered instead."""
            message = f"{self!r} is what `async with` gave: use it as it is, or enter the {self._owner} itself"
            raise CheckpointerUsageError(message)

        def __exit__(self, *_: object) -> None:
            """Do nothing: `with` looks for it before it calls `__enter__`."""

        async def __aenter__(self) -> NoReturn:
            """Say the same."""
            self.__enter__()

        async def __aexit__(self, *_: object) -> None:
            """Do nothing, as above."""

    def check_allowed_key(self, key: Key) -> None:
        """Check that a key may be used; see `Checkpointer.check_allowed_key`."""
        self._path(key)

    def _path(self, key: Key) -> Path:
        return self._rules.path(key, self.keys)

    # --- the index in memory ------------------------------------------------------------------------------------------

    def keys(self) -> AwaitableList[str]:
        """Return the keys in the order in which they came; may be awaited, too."""
        return AwaitableList(self._rules.visible(self._session.names.view()))

    def __contains__(self, key: object) -> bool:
        """Tell whether there is a value, and the key is allowed.

        Raises:
            CheckpointerUsageError: It is a path below a key whose dicts are not in the index: use `get`.
        """
        try:
            path = parse_key(key)
        except TypeError:
            return False
        return self._rules.allows(path[0]) and self._session.names.contains(path)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys there are now."""
        return iter(self.keys())

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._session.names) if self._rules.allow_all else len(self.keys())

    # --- changes ------------------------------------------------------------------------------------------------------

    def __setitem__(self, key: Key, value: object) -> None:
        """Capture a value on the spot, to be written in the background.

        Raises:
            CheckpointKeyError: The key is not allowed.
            CheckpointerUsageError: The value is larger than about 1 MiB: use `save_parameter`.
            QueueFullError: The values that wait to be written fill the budget.
            UnsupportedLeafError: The value cannot be saved.
            FileLockedError: Another Checkpointer is changing the file, and an earlier change was refused for it. Any
                other error of an earlier change comes here, too (such as that the file is another program's, a
                ReadOnlyFileError); several come as an ExceptionGroup.
        """
        self._session.save_now(self._path(key), value)

    async def save_parameter(self, key: Key, value: object) -> None:
        """Capture a value of any size in a worker thread, to be written in the background.

        Waits for room in the budget. A value larger than that is written while the call lasts.

        Raises:
            CheckpointKeyError: The key is not allowed.
            UnsupportedLeafError: The value cannot be saved.
            FileLockedError: Another Checkpointer is changing the file.
            OSError: The disk failed when room was to be made.
        """
        await self._session.save(self._path(key), value)

    def __delitem__(self, key: Key) -> None:
        """Delete a key, or what a path leads to.

        Raises:
            CheckpointKeyError: There is none, or it is not allowed.
            CheckpointerUsageError: It is a path below a key whose dicts are not in the index: use `delete_parameter`.
        """
        self._session.delete(self._path(key))

    async def delete_parameter(self, key: Key) -> None:
        """Delete a key, or what a path leads to.

        Raises:
            CheckpointKeyError: There is none, or it is not allowed.
            FileLockedError: Another Checkpointer is changing the file.
        """
        await self._session.remove(self._path(key))

    async def update(self, values: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = (), /, **more: object) -> None:
        """Save the values of a mapping, or of pairs."""
        pairs = values.items() if hasattr(values, "items") else values
        for key, value in (*pairs, *more.items()):
            await self.save_parameter(key, value)

    async def flush(self) -> None:
        """Make all changes called so far durable, together.

        Raises:
            OSError: The disk failed. The changes are kept, and the next flush tries again.
            FileLockedError: Another Checkpointer is changing the file; the changes were dropped.
            CheckpointError: So was a change that can never be made: of a path that leads into what is no dict, say.
            ExceptionGroup: There are several such errors.
        """
        await self._session.flush()

    # --- loading ------------------------------------------------------------------------------------------------------

    async def load_parameter(self, key: Key) -> Any:
        """Load the value of a key, or what a path leads to.

        Raises:
            CheckpointKeyError: There is none, or it is not allowed.
            CorruptCheckpointError: It is damaged.
            OSError: It cannot be read, or the disk refused an earlier change of the same key, which waits.
        """
        return await self._session.load(self._path(key))

    def __getitem__(self, key: Key) -> Awaitable[Any]:
        """Return what loads the value when it is awaited."""
        return self.load_parameter(key)

    async def get(self, key: Key, default: Any = None) -> Any:
        """Load a value; without one, return the default."""
        try:
            return await self._session.load(self._path(key), default)
        except CheckpointKeyError:
            return default

    async def get_keys(self, keys: Iterable[Key]) -> list[Any]:
        """Load the values of several keys, in their order."""
        return [await self.load_parameter(key) for key in keys]

    async def pop(self, key: Key, default: Any = _MISSING) -> Any:
        """Load a value and delete it; without one, return the default if there is one."""
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

        Concurrent calls for one key compute it once, if it will do for all. What `generator` returns is awaited if it
        can be. A plain function runs on the loop: hand long ones to `asyncio.to_thread` in it.

        Raises:
            CheckpointerUsageError: Generators wait for each other's keys, or one for its own.
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
    """A list that may be awaited, and is itself."""

    def __await__(self) -> Generator[Any, None, AwaitableList[ItemT]]:
        """Return the list."""
        return self
        yield

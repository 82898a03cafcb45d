"""Which task or thread computes the value of a key for `cached_eval`, and which ones wait for it.

1. Of concurrent calls for one key of an open file, one computes the value and the others wait for its result. If there
   is none, because it failed or was cancelled, the next of them computes.
2. A generator may ask for further keys, and its evaluation then waits for theirs. The call that would close a cycle of
   such evaluations is refused, because none of them could ever end. Tasks that a generator starts belong to its
   evaluation, by a context variable; threads that it starts itself do not.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from asyncckpt.errors import CheckpointerUsageError

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures
    from collections.abc import Callable, Iterator

    from asyncckpt.keyed.engine import Path

FutureT = TypeVar("FutureT", bound="asyncio.Future[Any] | concurrent.futures.Future[Any]")

_current: ContextVar[Evaluation[Any] | None] = ContextVar("asyncckpt_evaluation", default=None)
_lock: Final = threading.Lock()  # of all tables, and of the graph, because generators may use several files


class Evaluation(Generic[FutureT]):
    """A value that is being computed, or loaded to see whether it will do.

    Attributes:
        key: The key, for errors.
        result: The value, once it has been saved; cancelled if there is none.
        waits_for: The evaluations that this one cannot end before.
    """

    def __init__(self, path: Path, result: FutureT) -> None:
        self.result = result
        self.waits_for: list[Evaluation[Any]] = []
        self.key = path[0] if len(path) == 1 else path

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let the evaluation that runs here, if there is one, wait for this one.

        Raises:
            CheckpointerUsageError: This one waits for it, directly or through others.
        """
        current = _current.get()
        if current is None:
            yield
            return
        with _lock:
            cycle = self._path_to(current)
            if cycle is not None:
                keys = ", which waits for ".join(repr(each.key) for each in cycle)
                message = f"cached_eval deadlock: {current.key!r} waits for {keys}"
                raise CheckpointerUsageError(message)
            current.waits_for.append(self)
        try:
            yield
        finally:
            with _lock:
                current.waits_for.remove(self)

    def _path_to(self, other: Evaluation[Any]) -> list[Evaluation[Any]] | None:
        """Return evaluations from this one to another, each of which waits for the next; None if there are none."""
        chains: list[list[Evaluation[Any]]] = [[self]]
        seen: set[Evaluation[Any]] = {self}
        while chains:
            chain = chains.pop()
            if chain[-1] is other:
                return chain
            for each in chain[-1].waits_for:
                if each not in seen:
                    seen.add(each)
                    chains.append([*chain, each])
        return None


class Evaluations(Generic[FutureT]):
    """The evaluations of one file that are running. For threads or for tasks, as its futures are."""

    def __init__(self, new_future: Callable[[], FutureT]) -> None:
        self._new_future = new_future
        self._running: dict[Path, Evaluation[FutureT]] = {}

    def join(self, path: Path) -> tuple[Evaluation[FutureT], bool]:
        """Return the evaluation of a key that is running, or else a new one, and whether it is new.

        The caller that gets a new one has to compute it; see `computing`.
        """
        with _lock:
            running = self._running.get(path)
            if running is not None:
                return running, False
            evaluation = self._running[path] = Evaluation(path, self._new_future())
            return evaluation, True

    @contextmanager
    def computing(self, path: Path, evaluation: Evaluation[FutureT]) -> Iterator[None]:
        """Compute the value here; the block sets the result."""
        try:
            with evaluation.waiting():
                token = _current.set(evaluation)
                try:
                    yield
                finally:
                    _current.reset(token)
        finally:
            with _lock:
                del self._running[path]
            evaluation.result.cancel()  # unless it has been set

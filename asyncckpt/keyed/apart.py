"""Blocking access in a thread in which an event loop runs: the work is done in a thread of its own.

The caller waits, and its loop stands still meanwhile; that is what it asked for. The work gets the caller's context
variables, the current streams of devices, and the line that warnings point to.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from asyncckpt.arrays.adapters import current_moment
from asyncckpt.errors import ProgramLine, program_line
from asyncckpt.keyed.engine import Engine
from asyncckpt.runtime.context import JobContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncckpt.arrays.device import Moment
    from asyncckpt.config import Arrays
    from asyncckpt.keyed.engine import Path
    from asyncckpt.keyed.values import Found

ResultT = TypeVar("ResultT")
Params = ParamSpec("Params")


def is_loop_running() -> bool:
    """Tell whether an event loop runs in this thread."""
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - get_running_loop raises, which costs more
        return True
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_run()


def run_apart(job: Callable[Params, ResultT], /, *args: Params.args, **kwargs: Params.kwargs) -> ResultT:
    """Call a function that blocks, in a thread of its own if a loop runs in this one, and wait until it has ended.

    An exception of a signal's handler (Ctrl-C) asks the job to stop, and is raised when it has.
    """
    if not is_loop_running():
        return job(*args, **kwargs)
    future: Future[ResultT] = Future()
    context = copy_context()
    context.run(program_line.set, ProgramLine.here(str))
    work = partial(_run, future, current_moment(), partial(job, *args, **kwargs))
    thread = threading.Thread(target=context.run, args=(work,), name="asyncckpt beside a loop")
    interruption: BaseException | None = None
    while not future.done() or thread.is_alive():
        try:
            if thread.ident is None:
                thread.start()
            thread.join()
        except BaseException as error:
            if thread.ident is None:
                raise
            interruption = interruption or error
            for each in args:
                if isinstance(each, JobContext):
                    each.stop.set()
    if interruption is not None:
        try:
            raise interruption
        finally:
            del interruption
    return future.result()


def _run(future: Future[Any], moment: Moment, job: Callable[[], Any]) -> None:
    try:
        with moment.entered():
            future.set_result(job())
    except BaseException as error:  # noqa: BLE001 - raised by the future's result
        future.set_exception(error)


class EngineApart(Engine):
    """An engine whose work on the store is done apart; its keys are in memory."""

    def __init__(self, engine: Engine) -> None:
        """Use the store of an engine."""
        vars(self).update(vars(engine))

    def contains(self, path: Path, context: JobContext) -> bool:
        """Do what an engine does."""
        return run_apart(super().contains, path, context)

    def read(self, path: Path, context: JobContext, arrays: Arrays = "saved") -> Found:
        """Do what an engine does."""
        return run_apart(super().read, path, context, arrays)

    def write(self, path: Path, value: object, context: JobContext) -> None:
        """Do what an engine does."""
        run_apart(super().write, path, value, context)

    def begin(self, context: JobContext) -> None:
        """Do what an engine does."""
        run_apart(super().begin, context)

    def commit(self, context: JobContext) -> None:
        """Do what an engine does."""
        run_apart(super().commit, context)

    def delete(self, path: Path, context: JobContext) -> None:
        """Do what an engine does."""
        run_apart(super().delete, path, context)

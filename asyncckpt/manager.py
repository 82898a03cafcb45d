"""`CheckpointManager`: checkpoints in a directory."""

from __future__ import annotations

from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from asyncckpt.arrays.adapters import current_moment
from asyncckpt.config import check_arrays, is_given, resolve_settings
from asyncckpt.disk.ops import DiskOps
from asyncckpt.errors import CheckpointNotFoundError, LeafError, ManagerUsageError
from asyncckpt.saving.admission import SaveRequest, encode_documents
from asyncckpt.saving.load_job import LoadRequest
from asyncckpt.saving.pending_checkpoint import PendingCheckpoint
from asyncckpt.saving.periodic import PeriodicSaves
from asyncckpt.saving.session import Session
from asyncckpt.saving.steps import Choice, check_step, check_which
from asyncckpt.state.decode_walk import ABSENT
from asyncckpt.storage.local.store import LocalStore

if TYPE_CHECKING:
    import asyncio
    import os
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import NoReturn, Self, Unpack

    from asyncckpt.config import Arrays, CheckpointingConfig, CheckpointingOptions
    from asyncckpt.cut.cut import Cut
    from asyncckpt.saving.catalog import LoadedCheckpoint
    from asyncckpt.saving.files import Source
    from asyncckpt.saving.schedule import SaveReason
    from asyncckpt.saving.tracking import SaveHandle
    from asyncckpt.storage.results import CheckpointRecord

Which: TypeAlias = "int | Choice | os.PathLike[str]"


class ManagerStatistics(NamedTuple):
    """The current state of a manager, as `CheckpointManager.statistics` returns it."""

    queue_depth: int
    """The number of saves that wait, without the one that is being written."""
    staged_nbytes: int
    """The memory that captured states hold, in bytes."""
    last_committed_step: int | None
    """The newest committed step that is not known to be corrupt."""
    trash_nbytes: int
    """The disk space that deleted, pruned and overwritten checkpoints still take, in bytes."""


class CheckpointManager:
    """Saves and loads checkpoints in a directory without stopping the event loop.

    Use it as an async context manager, from one asyncio loop::

        async with CheckpointManager("runs/a", save_period=10, keep_top_k=3) as manager:
            handle = await manager.save(step, state)
            await handle  # durable

    Leaving the block writes what was captured. After a normal exit there is no time limit; if the body was cancelled
    (Ctrl-C, `asyncio.run` ending) the limit is ``grace`` seconds, and a second cancellation stops the writing. An
    exception of the body is raised unchanged, with failed saves added to it as notes; without one, the failures are
    raised.

    Args:
        directory: The checkpoint directory, or one `CheckpointingConfig` mapping with all options.
        disk: The operations that change the disk; tests pass `asyncckpt.testing.FaultyDisk`.
        clock: Measures time for `should_save`: a function that returns seconds and never goes back. Tests pass one of
            their own; ``save_by`` is a time of it then. If None, the system's, in seconds since the epoch; it is read
            once and then counted on, so that setting it changes nothing.
        **options: The options, by keyword: any keys of `CheckpointingConfig`, which describes each, except
            ``checkpoint_dir``.

    Raises:
        ConfigError: An option is unknown or ill-typed; all problems are named.

    Warns:
        CheckpointWarning: Retention was asked for, and keeps every step that `should_save` allows.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | CheckpointingConfig | Mapping[str, Any],
        *,
        disk: DiskOps | None = None,
        clock: Callable[[], float] | None = None,
        **options: Unpack[CheckpointingOptions],
    ) -> None:
        settings = resolve_settings(directory, options)
        # The working directory may change until the manager is entered.
        self._settings = settings = replace(settings, checkpoint_dir=settings.checkpoint_dir.absolute())
        self._session = Session(
            settings,
            LocalStore(settings.checkpoint_dir, disk or DiskOps()),
            is_direction_given=is_given("higher_is_better", directory, options),
            kind=type(self).__name__,
            clock=clock,
        )

    def __repr__(self) -> str:
        """Show the directory."""
        return repr(self._session)

    # --- opening and closing ------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """List what is committed, and start the background writer; return the manager.

        This is for programs that cannot use a block, such as the cells of a notebook; `aclose` ends it.

        Raises:
            ManagerUsageError: The manager was opened before, or this task is not run by asyncio.
            ConfigError: The directory is not a directory of checkpoints, but a checkpoint.
            NotADirectoryError: There is a file in the directory's place.
            PermissionError: The directory cannot be read.
        """
        await self._session.open()
        return self

    async def __aenter__(self) -> Self:
        """Open the manager; see `open`."""
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what was captured, and stop; the class says how long that may take."""
        await self._session.close(error)

    async def aclose(self) -> None:
        """Write what was captured, and stop. Any task may call this, more than once: all of them wait.

        Raises:
            SaveFailedError: A save failed, and no caller had received the error; several come as an ExceptionGroup.
        """
        await self._session.close(None)

    if not TYPE_CHECKING:  # a type checker refuses `with` by itself

        def __enter__(self) -> NoReturn:
            """Say that this takes ``async with``."""
            message = f"{self!r} was entered by `with`: use `async with`, inside an `async def`"
            raise ManagerUsageError(message)

        def __exit__(self, *_: object) -> None:
            """Do nothing: `with` looks for it before it calls `__enter__`."""

    # --- saving -------------------------------------------------------------------------------------------------------

    def should_save(self, step: int) -> bool:
        """Return whether a step is to be saved: whether any rule says so, or there is none.

        The rules are the options ``save_period``, ``save_interval``, ``max_overhead`` and ``save_by``, and `preempted`.
        `save_reason` says which of them hold, and docs/guide/when.md how each decides. Asking changes nothing; a save
        that is skipped, or fails, counts as not made. Before the manager is entered, only ``save_period`` counts.

        Raises:
            TypeError: The step is not an integer of Python or numpy.
            ValueError: The step is negative, or 2**63 or more.
        """
        return bool(self.save_reason(step))

    def save_reason(self, step: int) -> SaveReason:
        """Return why a step is to be saved: all rules that say so. It is false if there is none; see `should_save`.

        Raises:
            TypeError: The step is not an integer of Python or numpy.
            ValueError: The step is negative, or 2**63 or more.
        """
        return self._session.schedule.reason(check_step(step))

    @property
    def preempted(self) -> asyncio.Event:
        """The event that is set when the program must leave soon: when SIGTERM comes, or ``preempt_signals``.

        For loops that would rather look than be cancelled, as `leave_on_sigterm` does it::

            while not manager.preempted.is_set():
                ...

        While it is set, `should_save` asks for one save. The program may set it itself, if it learns in another way
        that it must leave, and clear it to go on.

        The signals are handled from the first use of this property on (with ``preempt_signals`` from the entering of
        the manager on) until the manager is closed. Another signal changes nothing while the event is set, but a second
        SIGINT interrupts. Several managers, and `leave_on_sigterm`, all learn of a signal.

        Raises:
            ManagerUsageError: The manager was not entered, or this is not the main thread, which alone receives
                signals; there, ``preempt_signals=()`` gives an event that only the program sets.

        Warns:
            CheckpointWarning: The loop had a handler for one of the signals, which was removed.
        """
        return self._session.preempted()

    async def save(  # noqa: PLR0913 - the arguments of a save
        self,
        step: int,
        state: object,
        *,
        training_info: Mapping[str, object] | None = None,
        run_config: object = None,
        overwrite: bool = False,
        frozen: bool = False,
        files: Mapping[str, Source] | None = None,
        cut: Cut | None = None,
        cut_timeout: float | None = 30.0,
    ) -> SaveHandle:
        """Capture a state and queue it for writing.

        Nothing may change the state until this returns; afterwards anything may. The bytes of arrays are copied in
        worker threads; states of at most 1 MiB and 512 nodes are copied on the loop. If this raises, including
        `asyncio.CancelledError`, nothing was queued, the step is free again, and no thread reads the arrays any more.

        Args:
            step: The checkpoint's key, an int >= 0. A step below the latest one is saved with a warning.
            state: Nested containers of leaves; docs/guide/saving.md lists their types.
            training_info: Metrics and other values, written as JSON: a mapping from str to numbers, strings, and lists
                and mappings of them.
            run_config: Written as YAML: a mapping, a dataclass, or an object with ``model_dump()``.
            overwrite: Whether the step may be committed or in flight already; the last save of a step wins.
            frozen: A promise not to change the arrays until the save is committed; they are not copied then. If the
                promise is broken, the checkpoint holds a mixture of old and new bytes, which is not detected.
            files: Files of the program's own for the same commit, by their names in the checkpoint ("weights",
                "logs/train.txt"). A source is the path of a file or directory, which is copied; a `FileSource`; or an
                async function that gets the path of an empty directory to fill, and is called once, on this loop, when
                the state has been written. Paths must not change until the save is done. If a source fails, so does
                the save, and nothing is left of it.
            cut: A cut to hold while the state is captured: docs/guide/cuts.md. `state` may be a function then, which is
                called without arguments while the cut is held, and returns the state. It must change nothing: if there
                is no room for what it returns, it is called again, later.
            cut_timeout: How long to wait until all participants of the cut are at rest, in seconds; None for ever.

        Returns:
            The save's handle. With ``overflow="skip"`` it may say "skipped".

        Raises:
            StepExistsError: The step exists or is in flight, and `overwrite` was not given.
            MetricMissingError: `training_info` lacks the metric, and the manager has ``metric_required=True``.
            UnsupportedLeafError: A leaf cannot be saved; nothing was written.
            StateChangedError: A container changed while it was captured; with ``debug=True``, anything in the state.
            CutTimeoutError: Not all participants of the cut came to rest in time. The program goes on.
            TornStateError: A participant of the cut died otherwise than at rest.
            CutUsageError: A participant of a cut that is wanted saves without it, or this task holds it already.
            ConfigError: The state is larger than the budget, which it must not be with `cut`.
            SaveFailedError: An earlier save failed, and no caller had received its error; this state was not looked at.
                Or this state is larger than the budget, and writing it failed. Several come as an ExceptionGroup.
            DirectoryLockedError: Another writer uses the directory.
            ManagerClosedError: The manager is closing.
            OSError: The directory cannot be made or written, or a path of `files` is missing or cannot be read.
            ReadOnlyError: The manager is read-only.
            ValueError: A name in `files` is invalid, taken, or clashes with another.
            TypeError: A source in `files` is none of the above, `cut` is no cut, or the function a coroutine function.
            CheckpointError: A path of `files` leads to a symbolic link or a special file, or cannot be moved.
        """
        here = self._session.use(writes=True)
        step = check_step(step)
        if not self._settings.enabled:
            return here.leave_out(step)
        here.queue.failures.raise_any()
        with LeafError.naming(step):
            return await here.admission.save(
                SaveRequest(step, state, training_info, run_config, overwrite, frozen, files, cut, cut_timeout)
            )

    def save_nowait(  # noqa: PLR0913 - as `save`
        self,
        step: int,
        state: object,
        *,
        training_info: Mapping[str, object] | None = None,
        run_config: object = None,
        overwrite: bool = False,
        frozen: bool = False,
        files: Mapping[str, Source] | None = None,
        cut: Cut | None = None,
    ) -> SaveHandle:
        """Capture a small state and queue it for writing, without waiting. The arguments are those of `save`.

        Paths in `files` are looked at when the save is written: if one is missing or refused, the handle says so.

        Raises:
            ValueError: The state has more than 1 MiB or 512 nodes.
            QueueFullError: `save` would wait.
            CutBusyError: Not all participants of the cut are at rest, or another call holds it or wants it.
            CheckpointError: As `save`; but if the directory cannot be written, the handle raises the error.
        """
        here = self._session.use(writes=True)
        step = check_step(step)
        if not self._settings.enabled:
            return here.leave_out(step)
        here.queue.failures.raise_any()
        with LeafError.naming(step):
            return here.admission.save_nowait(
                SaveRequest(step, state, training_info, run_config, overwrite, frozen, files, cut)
            )

    def every(  # noqa: PLR0913 - as `save`
        self,
        seconds: float,
        make_state: Callable[[], object],
        *,
        make_training_info: Callable[[], Mapping[str, object]] | None = None,
        frozen: bool = False,
        cut: Cut | None = None,
        cut_timeout: float | None = 30.0,
    ) -> AbstractAsyncContextManager[None]:
        """Save beside a block, every so many seconds, for programs that have no steps.

        Servers and agents use it like this::

            async with manager.every(60, make_state):
                await serve()

        The steps are counted up from the newest one; the first is 1. The first save comes after `seconds`, and one more
        when the block ends normally; that one is durable when the block has ended. After an exception, a cancellation
        included, there is none, because the state may be half changed. A save begins `seconds` after the last one
        began, but not before that one is durable.

        Args:
            seconds: The time between the beginnings of two saves, a finite number > 0.
            make_state: Called on the loop, between two awaits of the program; returns the state. It may be an async
                function. What it returns is captured as by `save`. The body goes on meanwhile, and must not change
                it: return what nobody changes, such as a copy. A state of at most 1 MiB and 512 nodes needs no copy:
                it is captured before the body goes on, unless the budget is full.
            make_training_info: Called right after it; returns the save's ``training_info``.
            frozen: As for `save`.
            cut: As for `save`: each save is one moment of all tasks that take part. `make_state` is called while the
                cut is held, so it may be no async function; `make_training_info` is called before. The task of the
                block takes no part itself, unless within it.
            cut_timeout: As for `save`.

        Returns:
            An async context manager, to be entered once.

        Raises:
            ConfigError: An argument has the wrong type or value.
            CutUsageError: The task of the block takes part in the cut.
            SaveFailedError: From the block: a save failed. The body is cancelled at its next await, as by
                `asyncio.timeout`, and this is raised instead.
            Exception: From the block, in the same way: what `make_state` or `save` has raised. If the body ends with
                another exception, or is cancelled by others, that is raised, with this as a note.
        """
        here = self._session.use(writes=True)

        async def save(state: object, training_info: Mapping[str, object] | None) -> SaveHandle:
            step = here.admission.next_step()
            return await self.save(
                step, state, training_info=training_info, frozen=frozen, cut=cut, cut_timeout=cut_timeout
            )

        saves = PeriodicSaves(seconds, make_state, make_training_info, here.admission.get_ready, save, cut=cut)
        return saves if self._settings.enabled else nullcontext()

    async def prewarm(self, state: object) -> None:
        """Allocate the memory that a save of `state` needs, so that the first save is as fast as later ones.

        Copying into fresh memory takes several times as long as copying into memory that has been used. Nothing is
        saved, and no reference to `state` is kept; only its structure and sizes matter.

        Raises:
            UnsupportedLeafError: A leaf cannot be saved.
            StateChangedError: A container changed during the call.
        """
        here = self._session.use(writes=True)
        if self._settings.enabled:
            await here.admission.prewarm(state)

    async def flush(self) -> None:
        """Wait until all saves and deletes that are queued now are done.

        Raises:
            SaveFailedError: A save failed, and no caller had received the error; several come as an ExceptionGroup.
        """
        here = self._session.use()
        await here.queue.perform(_nothing)
        here.queue.failures.raise_any()

    async def delete(self, step: int) -> None:
        """Delete a checkpoint, after everything that is queued now. When this returns, it is durably not committed.

        Its files are deleted in the background, or before this returns if they take more than half of the free space:
        ``statistics().trash_nbytes`` is what is still there.

        Raises:
            CheckpointNotFoundError: The step is not committed. What a failed save of the step left is deleted, too.
            ManagerUsageError: The manager is disabled.
            OSError: The disk failed, or the checkpoint cannot be removed: the message names its owner, or the file
                system that prevents it. It is still committed.
        """
        here = self._session.use(writes=True)
        step = check_step(step)
        self._check_enabled()

        async def action() -> None:
            await here.owner.take_in_writer()
            is_committed = here.catalog.get(step) is not None
            await here.pruner.retire([step])
            await here.pruner.finish_if_short()
            if not is_committed:
                message = f"step {step} is not committed in {self._settings.checkpoint_dir}"
                raise CheckpointNotFoundError(message, step=step)

        await here.queue.perform(action)

    # --- loading ------------------------------------------------------------------------------------------------------

    async def load(  # noqa: PLR0913 - each is independent of the others
        self,
        step: Which,
        *,
        like: object = None,
        select: str | Iterable[str] | None = None,
        lazy: bool = False,
        arrays: Arrays = "saved",
        missing_ok: bool = False,
        discard_later: bool = False,
    ) -> LoadedCheckpoint | None:
        """Load a checkpoint into new objects. Loads may run concurrently with saves and other loads.

        Args:
            step: A step, "latest" or "best". The latter two fall back to the next intact checkpoint, with a warning,
                unless the manager was made with ``fallback=False``. Or a ``pathlib.Path``: the directory of a
                checkpoint, wherever it is and whatever its name.
            like: A template: containers are restored as its types, and each leaf must have its type, dtype and shape.
            select: A path ("params"), a glob whose parts match the parts of paths ("params/*/w", "**/bias"), or
                several. Only the digest blocks that hold the selected arrays are read. Dicts keep only what is
                selected; in lists and tuples the other items are None; a selected part of an object is plain data.
            lazy: Whether arrays are mapped read-only instead of read. Only the manifest and the index are verified
                then, and accessing an array reads from the disk, in the thread that does it. The arrays stay valid when
                the checkpoint is pruned. `verify` verifies the rest.
            arrays: "saved": arrays of a framework come back as such, and the program has to have imported it. "numpy":
                they come back as numpy arrays, with or without the framework. The leaves of `like` decide for
                themselves.
            missing_ok: Whether to return None if there is no such checkpoint.
            discard_later: Whether the run goes on from this step: the checkpoints of later steps are deleted once the
                next save is committed, and not before. Until then this step is not pruned, and the later steps may be
                saved again without ``overwrite``. The last such load counts.

        Returns:
            The checkpoint with its state, or None with `missing_ok`.

        Raises:
            CheckpointNotFoundError: There is no such checkpoint, or it is not committed yet.
            CorruptCheckpointError: The checkpoint is damaged, and so are those to fall back to.
            StateMismatchError: The template does not fit; names the path, what was expected and what was found.
            CheckpointKeyError: Nothing matches `select`.
            UnsupportedFormatError: A later release wrote it, or a dtype needs a package that is not installed, or an
                array a framework that is not imported. Nothing was read.
            ConfigError: `arrays` has another value.
            DirectoryLockedError: Another writer uses the directory, with `discard_later`.
            ReadOnlyError: The manager is read-only, with `discard_later`.
            ManagerUsageError: The manager is disabled, or `step` is a path, with `discard_later`.
            OSError: The disk failed, or the process has no file descriptors left.
        """
        template = ABSENT if like is None else like
        request = LoadRequest(template=template, select=select, lazy=lazy, arrays=check_arrays(arrays))
        try:
            return await self._load(step, request, discard_later=discard_later)
        except CheckpointNotFoundError:
            if missing_ok and step not in self._session.use().steps.in_flight:
                return None
            raise

    async def restore(self, step: Which, *, into: object, discard_later: bool = False) -> LoadedCheckpoint:
        """Load a checkpoint into an existing state.

        Structure, dtypes, shapes and writability are checked before the first byte is read. Arrays are filled in place;
        dicts, lists, deques, sets, dataclasses and Generators are updated; other leaves are replaced. Nothing may use
        the state until this returns.

        Args:
            step: As for `load`.
            into: The state to fill. If the root itself cannot be updated in place, the new one is the ``state`` of what
                is returned.
            discard_later: As for `load`.

        Returns:
            The checkpoint, whose ``state`` is `into`.

        Raises:
            StateMismatchError: The state does not fit. Nothing was changed, except after a fallback: then a note names
                the arrays that a damaged checkpoint had begun to overwrite.
            CorruptCheckpointError: The checkpoint is damaged, and there is none to fall back to: `overwritten` names
                the arrays that hold a mixture now.
            CheckpointNotFoundError: There is no such checkpoint, or it is not committed yet.
        """
        return await self._load(step, LoadRequest(template=into, in_place=True), discard_later=discard_later)

    async def _load(self, step: Which, request: LoadRequest, *, discard_later: bool) -> LoadedCheckpoint:
        here = self._session.use(writes=discard_later)
        which = check_which(step)
        request = request._replace(moment=current_moment())
        if not discard_later:
            return await self._load_which(which, request)
        if isinstance(which, Path):
            message = f"{which} is a path: discard_later goes back to a step of this manager, so pass its step"
            raise ManagerUsageError(message)
        return await here.going_back.load(partial(self._load_which, which, request))

    async def _load_which(self, which: int | Choice | Path, request: LoadRequest) -> LoadedCheckpoint:
        loader = self._session.use().loader
        if isinstance(which, str):
            return await loader.load_choice(which, request)
        if isinstance(which, int):
            return await loader.load_step(which, request)
        return await loader.load_path(which, request)

    async def fork(self, source_dir: str | os.PathLike[str], step: int | Choice) -> CheckpointRecord:
        """Start this run from a checkpoint of another run, which is copied, verified and committed.

        It keeps its step, and holds the same files, also those that a caller wrote. It is done after everything that is
        queued now. The other run is not locked, and nothing is written there. If this is cancelled, nothing is
        committed, unless that had been done.

        Args:
            source_dir: The checkpoint directory of the other run.
            step: A step of it, "latest" or "best"; there is no fallback.

        Returns:
            The record of the copy.

        Raises:
            CheckpointNotFoundError: The other run has no such checkpoint, or it was pruned meanwhile.
            CorruptCheckpointError: It is damaged; the message names it, and nothing was committed.
            StepExistsError: This run has the step already.
            ManagerUsageError: It is this manager's own directory, or the manager is disabled.
            DirectoryLockedError: Another writer uses this manager's directory.
            ReadOnlyError: The manager is read-only.
            TypeError: `step` is a path.
            OSError: The disk failed, or has too little room.
        """
        here = self._session.use(writes=True)
        self._check_enabled()
        which = check_which(step)
        if isinstance(which, Path):
            message = f"{which} is a path: pass the directory of the other run, and a step of it"
            raise TypeError(message)
        return await here.forking.fork(_store_of(source_dir), which)

    async def verify(self, step: int) -> None:
        """Read every file of a checkpoint and verify every bit of it.

        Raises:
            CorruptCheckpointError: It is damaged; from now on it is neither the latest nor the best.
            CheckpointNotFoundError: It is not committed.
        """
        await self._session.use().loader.verify(check_step(step))

    def steps(self) -> list[int]:
        """Return the committed steps, ascending, corrupt ones included. No I/O."""
        return self._session.use().catalog.steps()

    def latest_step(self) -> int | None:
        """Return the newest committed step that is not known to be corrupt, or None. No I/O."""
        return self._session.use().catalog.latest()

    def best_step(self) -> int | None:
        """Return the committed step with the best metric, or None. No I/O.

        Among equals the higher step wins. Checkpoints without the metric are left out, with a warning; if none has it,
        the latest is returned, with another warning.
        """
        return self._session.use().loader.chosen("best")

    async def refresh(self) -> None:
        """List the directory again, to see which steps other processes have saved or deleted.

        The files of a step that is known are not read again, because committed checkpoints do not change.
        """
        await self._session.use().loader.refresh()

    def statistics(self) -> ManagerStatistics:
        """Return the lengths of the queue and the trash, the memory that is used, and the last committed step."""
        here = self._session.use(is_closing=True)
        return ManagerStatistics(
            here.queue.waiting_saves, here.queue.staged_nbytes, here.catalog.latest(), here.pruner.nbytes
        )

    # --- for programs that write their own files ----------------------------------------------------------------------

    async def init_tmp_checkpoint(
        self, step: int, training_info: Mapping[str, object] | None = None, run_config: object = None
    ) -> Path:
        """Make a pending directory for a step, to which the caller writes files.

        Args:
            step: The step.
            training_info: Written to ``training_info.json``; scalars and 0-d arrays of numpy and torch become numbers.
            run_config: Written to ``config.yaml`` if given.

        Returns:
            The directory, ``tmp_step_{step}``. A stale one is cleared first; if that fails, or if the name is used for
            something else, a number is appended.

        Raises:
            StepExistsError: A save of this step is in flight.
            UnsupportedLeafError: A value cannot be written.
            MetricMissingError: `training_info` lacks the metric, and ``metric_required`` is set; nothing was written.
            ManagerUsageError: The manager is disabled.
            OSError: The disk failed.
        """
        here = self._session.use(writes=True)
        step = check_step(step)
        self._check_enabled()
        with LeafError.naming(step):
            documents = encode_documents(step, training_info, run_config, here.metric)
        return await here.pending.begin(step, documents)

    async def finalize_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Commit a pending directory: manifest, sync, rename to ``step_{step}``, sync, then `remove_old_checkpoints`.

        It is done after everything that is queued now. An existing ``step_{step}`` is replaced.

        Args:
            path: What `init_tmp_checkpoint` returned. It may contain files and directories, nothing else.

        Raises:
            ValueError: The path is not a pending directory of this manager.
            MetricMissingError: Its training_info.json lacks the metric, and ``metric_required`` is set. The directory
                is kept, and may be finalized again.
            CheckpointError: It holds a symbolic link or a special file.
            OSError: The disk failed. The step is not listed.
        """
        here = self._session.use(writes=True)
        self._check_enabled()
        await here.pending.commit(Path(path))

    async def remove_old_checkpoints(self, exclude_latest: bool = True) -> None:  # noqa: FBT001, FBT002 - a given name
        """Apply the retention policy, after everything that is queued now.

        When this returns, the checkpoints that the policy does not keep are not committed any more. Their files are
        deleted in the background, or before this returns if they take more than half of the free space:
        ``statistics().trash_nbytes``. A step that cannot be removed is kept, and a warning names the reason.

        Args:
            exclude_latest: Whether the newest checkpoint is kept whatever the policy says.
        """
        here = self._session.use(writes=True)
        if not self._settings.enabled:
            return

        async def action() -> None:
            await here.owner.take_in_writer()
            await here.pruner.prune(exclude_latest=exclude_latest)
            await here.pruner.finish_if_short()

        await here.queue.perform(action)

    @asynccontextmanager
    async def checkpoint(
        self, step: int, training_info: Mapping[str, object] | None = None, run_config: object = None
    ) -> AsyncIterator[PendingCheckpoint]:
        """Make a pending directory, and commit it at the end of the block; an exception of the block discards it.

        What it yields is the directory's path, and ``await pending.save(state)`` writes a state into it.

        Raises:
            CheckpointError: As `init_tmp_checkpoint` and `finalize_checkpoint`.
        """
        path = await self.init_tmp_checkpoint(step, training_info, run_config)
        pending = PendingCheckpoint.of(path, check_step(step), self._session.use().pending)
        try:
            yield pending
        except BaseException as error:
            try:
                await pending.close()
            finally:
                await self._session.use(is_closing=True).pending.discard(path, error)
            raise
        state = await pending.close()
        await self._session.use(writes=True).pending.commit(path, state)

    async def get_best_checkpoint_path(self) -> str | None:
        """Return the directory of the best checkpoint, or None if there is none; see `best_step`."""
        here = self._session.use()
        return here.catalog.path_of(await here.loader.choose("best"))

    async def get_latest_checkpoint_path(self) -> str | None:
        """Return the directory of the latest checkpoint, or None if there is none."""
        here = self._session.use()
        return here.catalog.path_of(await here.loader.choose("latest"))

    async def load_training_info(self, path: str | os.PathLike[str] | None = None) -> dict[str, Any] | None:
        """Read a checkpoint's ``training_info.json``, without verifying it.

        Args:
            path: The checkpoint's directory; the latest one by default.

        Returns:
            The mapping, or None if `path` is None and there is no checkpoint.

        Raises:
            CheckpointNotFoundError: There is no such file.
            CorruptCheckpointError: It is not JSON.
        """
        here = self._session.use()
        found = path if path is not None else await self.get_latest_checkpoint_path()
        return None if found is None else await here.loader.read_training_info(Path(found))

    def _check_enabled(self) -> None:
        if not self._settings.enabled:
            message = f"{self!r} is disabled (enabled=False) and writes nothing: leave it out"
            raise ManagerUsageError(message)


def _store_of(directory: str | os.PathLike[str]) -> LocalStore:
    return LocalStore(Path(directory).absolute(), DiskOps())


async def _nothing() -> None:
    """Do nothing, after everything that is queued before."""


def _load_checkpoint_history(
    checkpoint_dir: str | os.PathLike[str],
) -> list[tuple[int, Path, dict[str, Any]]]:
    """List the committed checkpoints of a directory as (step, path, training_info), by ascending step. Blocks."""
    records = LocalStore(Path(checkpoint_dir), DiskOps()).list_checkpoints({}).records.values()
    return [(record.step, record.path, record.training_info) for record in records]

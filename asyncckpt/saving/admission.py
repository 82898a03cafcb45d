"""Admission of saves: from a call of `save` to a place in the queue.

1. A step is reserved when `save` is called, and free again if `save` raises.
2. Saves are admitted one at a time, in the order of the calls, so that at most one state is encoded beyond the budget.
3. A cancellation counts until the state is captured; then the save is queued and returned without another await. If it
   counts, nothing is queued, and no thread reads the caller's arrays any more when it is raised.
4. A small state is captured at once, on the loop's thread: a thread hop would cost more than the copy.
5. A state beyond the budget is queued before it is captured, and copied block by block while it is written.
6. While a cut is held, a save waits for nothing but its own jobs: room is found before. If the state is larger than
   expected, the cut is released, and held again when there is room.
7. With `debug`, each way to capture a state ends with a second look at it (`state/recheck.py`), while a cut is held.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.arrays.adapters import current_moment
from asyncckpt.arrays.device import Moment, devices_of
from asyncckpt.documents import (
    CONFIG_NAME,
    TRAINING_INFO_NAME,
    encode_training_info,
    normalize_training_info,
    run_config_bytes,
)
from asyncckpt.errors import ConfigError, QueueFullError, StepExistsError, warn
from asyncckpt.formats.base import find_format
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.context import JobContext
from asyncckpt.saving.commit import check_sources
from asyncckpt.saving.cuts import at_once, check_cut, locked_at_rest, put_together, resting
from asyncckpt.saving.files import check_files
from asyncckpt.saving.queue import MAX_WAITING_SAVES, QueuedSave
from asyncckpt.saving.tracking import SaveHandle, SaveState, SaveTracker
from asyncckpt.state.capture import Capture, staged_nbytes
from asyncckpt.state.encode import flatten
from asyncckpt.state.encode_leaves import TooLargeError
from asyncckpt.state.inline import flatten_inline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from asyncckpt.config import Settings
    from asyncckpt.cut.cut import Cut
    from asyncckpt.runtime.buffers import BufferPool
    from asyncckpt.saving.environment import Environment
    from asyncckpt.saving.files import CallersFile, Source
    from asyncckpt.saving.metric import MetricWatch
    from asyncckpt.saving.ownership import DirectoryOwner
    from asyncckpt.saving.queue import SaveQueue
    from asyncckpt.state.flat import FlatState

_NO_TRAINING_INFO: Final = encode_training_info({})


class SaveRequest(NamedTuple):
    """The arguments of a save; see `CheckpointManager.save`."""

    step: int
    state: object
    training_info: Mapping[str, object] | None
    run_config: object
    overwrite: bool
    frozen: bool
    files: Mapping[str, Source] | None = None
    cut: Cut | None = None
    cut_timeout: float | None = None


class _Content(NamedTuple):
    """What a save consists of, besides the state."""

    tracker: SaveTracker
    documents: Mapping[str, bytes]
    files: tuple[CallersFile, ...]


class _Walked(NamedTuple):
    """A state whose tree was encoded, and when the program called."""

    state: object
    moment: Moment
    flat: FlatState


class _Mode(Enum):
    """How a state is captured."""

    INLINE = auto()
    """Copied on the loop's thread: it is small."""
    STAGED = auto()
    """Copied into buffers, in threads."""
    FROZEN = auto()
    """Written from where it is: the caller does not change it."""
    STREAMED = auto()
    """Copied block by block while it is written: the budget does not hold it."""


def encode_documents(
    step: int, training_info: Mapping[str, object] | None, run_config: object, metric: MetricWatch
) -> dict[str, bytes]:
    """Encode the small files of a checkpoint, and warn if it lacks the metric.

    Raises:
        UnsupportedLeafError: A value cannot be written; names its path.
        MetricMissingError: The metric is missing, and required.
    """
    plain = {} if training_info is None else normalize_training_info(training_info)
    documents = {TRAINING_INFO_NAME: encode_training_info(plain) if plain else _NO_TRAINING_INFO}
    if run_config is not None:
        documents[CONFIG_NAME] = run_config_bytes(run_config)
    if (lack := metric.check(step, plain)) is not None:
        warn(lack)
    return documents


class Admission:
    """Captures states and queues them. Used on the loop's thread only."""

    def __init__(self, env: Environment, queue: SaveQueue, owner: DirectoryOwner) -> None:
        self._env = env
        self._queue = queue
        self._owner = owner
        self._lock = asyncio.Lock()  # held by the save that is being admitted
        self._is_streaming = False
        self._has_staged = False
        self._last_nbytes: int | None = None  # of the state that was captured last
        self._copy: Callable[..., Capture] = _copy
        self._refer: Callable[..., Capture] = _refer
        if env.settings.debug:
            from asyncckpt.state.recheck import copy_state, refer_to_state

            self._copy, self._refer = copy_state, refer_to_state

    def _reserve(self, step: int, *, overwrite: bool) -> int:
        """Reserve a step, and return the latest one in flight.

        Raises:
            StepExistsError: It is committed or in flight, and may not be overwritten; or its pending directory is being
                filled by a caller.
        """
        if step in self._env.steps.filling:
            message = f"step {step} has a pending directory that is being filled: finalize_checkpoint() it first"
            raise StepExistsError(message, step=step)
        if not overwrite and step in self._env.steps.in_flight:
            message = f"step {step} is being saved already: await its handle, or pass overwrite=True"
            raise StepExistsError(message, step=step)
        self._check_absent(step, overwrite=overwrite)
        self._env.steps.reserve(step)
        return max(self._env.steps.in_flight)

    async def get_ready(self) -> None:
        """Wait until a save would be captured without waiting for the directory or for another save."""
        await self._owner.take()
        while self._lock.locked():
            async with self._lock:
                pass

    def next_step(self) -> int:
        """Return the step after all that are committed or under way, at least 1."""
        steps = self._env.steps
        return max([0, *self._env.catalog.steps()[-1:], *steps.in_flight, *steps.filling]) + 1

    async def save(self, request: SaveRequest) -> SaveHandle:
        """Admit a save; see `CheckpointManager.save`."""
        moment = current_moment()
        tracker = SaveTracker(request.step)
        with self._env.schedule.calling(tracker):
            return await self._save(tracker, request, moment)

    async def _save(self, tracker: SaveTracker, request: SaveRequest, moment: Moment) -> SaveHandle:
        step = request.step
        check_cut(request.cut, step)
        files = check_files(request.files)
        documents = encode_documents(step, request.training_info, request.run_config, self._env.metric)
        latest = self._reserve(step, overwrite=request.overwrite)
        if self._is_streaming and self._env.settings.overflow == "skip":
            self._env.steps.free(step)
            return SaveHandle.skipped(step)
        item = None
        try:
            async with resting(request.cut), locked_at_rest(self._lock):
                self._queue.check_open()
                await self._owner.take()
                self._check_absent(step, overwrite=request.overwrite)
                self._warn_if_below(step, latest)
                if files:
                    await self._env.jobs.run(check_sources, self._env.store, files)
                content = _Content(tracker, documents, files)
                if request.cut is None:
                    item = await self._capture(content, request.state, moment, frozen=request.frozen)
                else:
                    item = await self._capture_at_cut(content, request, request.cut)
                if item is not None and item.streams:
                    await self._stream(item)
        finally:
            if item is None:
                self._env.steps.free(step)
        if item is None:
            return SaveHandle.skipped(step)
        tracker.time("blocked")
        return SaveHandle(tracker)

    def save_nowait(self, request: SaveRequest) -> SaveHandle:
        """Admit a small save without awaiting; see `CheckpointManager.save_nowait`."""
        tracker = SaveTracker(request.step)
        with self._env.schedule.calling(tracker):
            return self._save_nowait(tracker, request)

    def _save_nowait(self, tracker: SaveTracker, request: SaveRequest) -> SaveHandle:
        step = request.step
        if request.cut is not None:
            check_cut(request.cut, step)
        files = check_files(request.files)
        documents = encode_documents(step, request.training_info, request.run_config, self._env.metric)
        with at_once(request.cut):
            state = request.state if request.cut is None else put_together(request.state)
            return self._save_inline(_Content(tracker, documents, files), request, state)

    def _save_inline(self, content: _Content, request: SaveRequest, state: object) -> SaveHandle:
        step, tracker = request.step, content.tracker
        try:
            flat = flatten_inline(state, keeps_sets=self._env.settings.debug)
        except TooLargeError as error:
            raise ValueError(f"step {step}: the state has {error}: use await save()") from None
        latest = self._reserve(step, overwrite=request.overwrite)
        try:
            self._warn_if_below(step, latest)
            if not self._make_room(step, flat.encoded_nbytes + flat.array_nbytes):
                self._env.steps.free(step)
                return SaveHandle.skipped(step)
            if request.frozen:
                capture = self._refer(flat, state, Moment(), _on_the_loop(), is_frozen=True)
            else:
                capture = self._copy(flat, state, Moment(), None, _on_the_loop())
            self._queue.add(QueuedSave(capture=capture, **content._asdict()))
        except BaseException:
            self._env.steps.free(step)
            raise
        tracker.time("blocked")
        return SaveHandle(tracker)

    async def prewarm(self, state: object) -> None:
        """Allocate the memory that a save of such a state needs; see `CheckpointManager.prewarm`."""
        await self._env.jobs.run_in_context(1, _prewarm, state, current_moment(), self._env.settings, self._env.pool)

    def _make_room(self, step: int, nbytes: int) -> bool:
        """Make room without waiting; return False if the save is to be skipped."""
        if not self._lock.locked():
            if not self._queue.has_room(nbytes) and self._env.settings.overflow == "replace":
                self._queue.replace_waiting()
            if self._queue.has_room(nbytes):
                return True
        if self._env.settings.overflow == "skip":
            return False
        message = f"step {step}: the queue or its budget is full, or a save is being admitted: use await save()"
        raise QueueFullError(message)

    # --- steps of a save ----------------------------------------------------------------------------------------------

    def _check_absent(self, step: int, *, overwrite: bool) -> None:
        """Refuse a committed step; asked again when the directory has been taken, because it may hold the step."""
        if not overwrite and step in self._env.catalog and step not in self._env.steps.discarded:
            message = f"step {step} exists: pass overwrite=True to replace it, or delete it first"
            raise StepExistsError(message, step=step)

    async def _capture(self, content: _Content, state: object, moment: Moment, *, frozen: bool) -> QueuedSave | None:
        """Wait for room, copy the state and queue it; None if it is to be skipped."""
        if self._env.settings.overflow == "skip" and self._queue.waiting_saves >= MAX_WAITING_SAVES:
            return None
        mode, flat = await self._flatten(state, moment)
        nbytes = flat.encoded_nbytes + flat.array_nbytes
        is_beyond = nbytes > self._env.settings.max_staged_nbytes
        if frozen:
            mode = _Mode.FROZEN
        elif is_beyond:
            mode = _Mode.STREAMED
        needed = flat.encoded_nbytes if mode is _Mode.STREAMED else nbytes
        if not await self._find_room(needed, is_beyond=is_beyond):
            return None
        return await self._take(content, mode, _Walked(state, moment, flat))

    async def _capture_at_cut(self, content: _Content, request: SaveRequest, cut: Cut) -> QueuedSave | None:
        """Find room, hold the cut, put the state together, copy it and queue it; None if it is to be skipped."""
        budget = self._env.settings.max_staged_nbytes
        expected = budget if self._last_nbytes is None else min(budget, self._last_nbytes + self._last_nbytes // 8)
        if not await self._find_room(expected, is_beyond=False):
            return None
        while True:
            async with cut.hold(request.cut_timeout):
                state = put_together(request.state)
                moment = current_moment()
                mode, flat = await self._flatten(state, moment)
                nbytes = flat.encoded_nbytes + flat.array_nbytes
                if request.frozen:
                    mode = _Mode.FROZEN
                elif nbytes > budget:
                    message = (
                        f"step {request.step}: the state has {nbytes} bytes, and a cut is held only for states within"
                        f" max_staged_nbytes={budget}: make the manager with max_staged_nbytes={nbytes} or more"
                    )
                    raise ConfigError(message)
                if self._queue.has_room(nbytes):
                    return await self._take(content, mode, _Walked(state, moment, flat))
                del state, flat
            async with resting(cut):
                await self._queue.wait_for_room(nbytes)

    async def _flatten(self, state: object, moment: Moment) -> tuple[_Mode, FlatState]:
        keeps_sets = self._env.settings.debug
        try:
            return _Mode.INLINE, flatten_inline(state, keeps_sets=keeps_sets)
        except TooLargeError:
            walk = partial(_flatten_in_thread, keeps_sets=keeps_sets)
            return _Mode.STAGED, await self._env.jobs.run_in_context(0, walk, state, moment)

    async def _find_room(self, nbytes: int, *, is_beyond: bool) -> bool:
        """Wait for room; return False if the save is to be skipped, unless it is beyond the budget."""
        if not self._queue.has_room(nbytes):
            if self._env.settings.overflow == "skip" and not is_beyond:
                return False
            if self._env.settings.overflow == "replace" and not is_beyond:
                self._queue.replace_waiting()
            await self._queue.wait_for_room(nbytes)
        return True

    async def _take(self, content: _Content, mode: _Mode, walked: _Walked) -> QueuedSave:
        """Copy a state, unless it is written from where it is, and queue the save."""
        state, moment, flat = walked
        jobs = self._env.jobs
        if mode is _Mode.STAGED:
            self._env.warmer.stop()
            stage = partial(_stage, self._copy)
            capture = await jobs.run_in_context(
                1, stage, flat, state, moment, self._env.pool, discard=Capture.give_back
            )
        elif mode is _Mode.INLINE:
            capture = self._copy(flat, state, moment, None, _on_the_loop())
        else:
            refer = partial(self._refer, is_frozen=mode is _Mode.FROZEN)
            if mode is _Mode.FROZEN and self._env.settings.debug:  # it is looked at twice at once, which takes time
                capture = await jobs.run_in_context(1, refer, flat, state, moment, discard=Capture.give_back)
            else:
                capture = refer(flat, state, moment, _on_the_loop())
        item = QueuedSave(capture=capture, streams=mode is _Mode.STREAMED, **content._asdict())
        self._queue.add(item)
        self._last_nbytes = flat.encoded_nbytes + flat.array_nbytes
        self._warm_once(mode, capture.nbytes)
        return item

    def _warm_once(self, mode: _Mode, nbytes: int) -> None:
        """Once a first state has been staged, make memory ready for the next, which may come while it is written."""
        if mode is _Mode.STAGED and not self._has_staged:
            self._has_staged = True
            self._env.warmer.warm(nbytes)

    async def _stream(self, item: QueuedSave) -> None:
        """Wait until the writer has copied the last block of a streaming save."""
        tracker = item.tracker
        self._is_streaming = True
        try:
            with tracker.waiting():  # if it fails, this call raises the error
                await item.captured.wait()
        except asyncio.CancelledError:
            if not item.captured.is_set():
                self._queue.withdraw(item)
                await _wait_through_cancellation(tracker)
            if not item.captured.is_set() or tracker.state not in (SaveState.WRITING, SaveState.COMMITTED):
                raise
            _cancel_again()  # it came too late, and is raised at the next await of the caller
        finally:
            self._is_streaming = False
        if tracker.state is SaveState.FAILED:
            if self._env.settings.debug and tracker.is_state_changed:
                raise tracker.take_cause()
            await SaveHandle(tracker)  # raises the error

    def _warn_if_below(self, step: int, latest: int) -> None:
        latest = max(latest, self._env.catalog.latest(without=self._env.steps.discarded) or 0)
        if step < latest:
            message = (
                f'step {step} is saved below the latest, step {latest}, which `load("latest")` goes on returning: if'
                " this run starts again from an earlier step, load that with discard_later=True, or `delete` later ones"
            )
            warn(message)


def _flatten_in_thread(state: object, moment: Moment, context: JobContext, *, keeps_sets: bool = False) -> FlatState:
    with young_collections_only(), moment.entered():
        return flatten(state, pacer=context.pacer, moment=moment, keeps_sets=keeps_sets)


def _prewarm(state: object, moment: Moment, settings: Settings, pool: BufferPool, context: JobContext) -> None:
    find_format(settings.format)
    flat = _flatten_in_thread(state, moment, context)
    nbytes = staged_nbytes(flat, context.pacer)
    if nbytes > settings.max_staged_nbytes:
        return  # it will be streamed, through a few buffers of its own
    buffers = pool.take(nbytes)
    try:
        context.run(lambda buffer: buffer.fill(0), buffers)  # the system allocates a page when it is touched
        for device in devices_of(flat.sources) if flat.is_on_device else ():
            context.run(device.prepare, buffers)
    finally:
        pool.give(buffers)


def _stage(copy: Callable[..., Capture], *args: object) -> Capture:
    with young_collections_only():
        return copy(*args)


def _copy(flat: FlatState, _: object, __: Moment, pool: BufferPool | None, context: JobContext) -> Capture:
    return Capture.staged(flat, pool, context)


def _refer(flat: FlatState, _: object, __: Moment, ___: JobContext, *, is_frozen: bool) -> Capture:
    return Capture.live(flat, is_frozen=is_frozen)


def _on_the_loop() -> JobContext:
    """Return the context of work that is small enough for the loop's thread."""
    return JobContext(yields=False)


def _cancel_again() -> None:
    """Deliver a cancellation once more, at the task's next await, unless it is withdrawn before.

    By then, an `asyncio.timeout` around the save alone has ended, and the task may have ended, too.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - it was cancelled
    requests = task.cancelling()

    def deliver() -> None:
        if task.cancelling() >= requests:
            task.uncancel()
            task.cancel()

    task.get_loop().call_soon(deliver)


async def _wait_through_cancellation(tracker: SaveTracker) -> None:
    while not tracker.is_done:
        try:
            await tracker.wait()
        except asyncio.CancelledError:
            continue

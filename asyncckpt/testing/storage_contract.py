"""A contract for stores of checkpoints: tests of what `asyncckpt.storage.base` promises."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, IndexLocation, Manifest, digest_bytes
from asyncckpt.disk.plan import FilePlan, PlanEntry, Span
from asyncckpt.disk.read_blocks import Target
from asyncckpt.disk.write_blocks import Content
from asyncckpt.documents import TRAINING_INFO_NAME
from asyncckpt.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, DirectoryLockedError
from asyncckpt.runtime.context import JobContext
from asyncckpt.runtime.memory import PAGE_NBYTES
from asyncckpt.runtime.pacing import StopFlag, Stopped
from asyncckpt.storage.results import METRIC_NAME, NoRoomError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from asyncckpt.storage.base import Attempt, CheckpointStore
    from asyncckpt.storage.results import Committed

    Bytes = NDArray[np.uint8]

STATE_NAME: Final = "state"
_BLOCK: Final = DIGEST_BLOCK_NBYTES
_LARGEST_STEP: Final = (1 << 63) - 1
_INDEX_NBYTES: Final = 100
_OLD, _NEW, _STATE = (text.ljust(PAGE_NBYTES, b"\0") for text in (b"old", b"new", b"state"))  # whole pages


ErrorT = TypeVar("ErrorT", bound=BaseException)


class StorageContract:
    """What every store of checkpoints must do, as tests in the style of pytest; this needs no pytest itself.

    Derive a class whose name begins with `Test`, and define the four methods below::

        class TestMyStore(StorageContract):
            def make_store(self):
                return MyStore(f"memory://{uuid4()}")
            ...

    The protocol is not public yet, and may change with any release.

    Each test makes one store, and others of the same location by `reopen`, as other processes would.
    """

    # --- what is to be defined ----------------------------------------------------------------------------------------

    def make_store(self) -> CheckpointStore:
        """Make a store of a new, empty location."""
        raise NotImplementedError

    def reopen(self, store: CheckpointStore) -> CheckpointStore:
        """Make another store of the same location."""
        raise NotImplementedError

    def damage(self, store: CheckpointStore, step: int, name: str, position: int) -> None:
        """Change the byte at a position of a file of a committed checkpoint."""
        raise NotImplementedError

    def lose(self, store: CheckpointStore) -> None:
        """Let another writer take over the location of a store that was taken, or remove the location."""
        raise NotImplementedError

    # --- commits ------------------------------------------------------------------------------------------------------

    def test_a_new_store_is_empty(self) -> None:
        """Nothing is listed or found in it, before and after it was taken."""
        store = self.make_store()
        assert store.enter(is_writer=True, must_exist=False).records == {}
        for _ in range(2):
            assert store.list_checkpoints({}).records == {}
            assert store.missing([0, 7]) == [0, 7]
            with _raises(CheckpointNotFoundError) as caught:
                store.open(7)
            assert caught[0].step == 7, "the error names the step"
            store.take({})
            store.release()

    def test_a_commit_is_found_as_it_was_written(self) -> None:
        """Its record, its manifest and every byte of its files, also by other stores of the location."""
        store = self._taken()
        data = _random(3 * _BLOCK + PAGE_NBYTES)
        committed = _commit(store, 5, data, _info(loss=0.5))
        assert not committed.trash, "nothing was replaced"
        for each in (store, self.reopen(store)):
            records = each.list_checkpoints({}).records
            assert list(records) == [5]
            record = records[5]
            assert record.step == 5
            assert record.training_info == {"loss": 0.5}
            assert record.directory == committed.directory
            assert record.identity == committed.identity, "a commit and a listing identify a checkpoint in the same way"
            assert each.missing([4, 5]) == [4]
            assert each.nbytes_of([5]) >= len(data)
            with each.open(5) as reader:
                assert reader.manifest.step == 5
                assert reader.manifest.files[STATE_NAME] == digest_bytes(data)
                assert reader.manifest.index == IndexLocation(STATE_NAME, 0, _INDEX_NBYTES)
                assert reader.read_small(STATE_NAME) == data
                assert json.loads(reader.read_small(TRAINING_INFO_NAME)) == {"loss": 0.5}
                for name in reader.manifest.files:
                    reader.verify(name, JobContext())
                assert reader.is_current()

    def test_steps_are_listed_in_ascending_order(self) -> None:
        """As numbers, up to the largest, in whatever order they were committed."""
        store = self._taken()
        steps = [10, 9, _LARGEST_STEP, 0, 100]
        for step in steps:
            _commit(store, step, _STATE)
        for each in (store, self.reopen(store)):
            assert list(each.list_checkpoints({}).records) == sorted(steps)
            assert each.missing(steps) == []

    def test_an_attempt_is_invisible_until_it_is_committed(self) -> None:
        """However much of it has been written."""
        store = self._taken()
        other = self.reopen(store)
        with store.begin(1, 100) as attempt:
            manifest = _write(attempt, 1, _STATE)
            for each in (store, other):
                assert each.list_checkpoints({}).records == {}
                with _raises(CheckpointNotFoundError):
                    each.open(1)
            attempt.commit(manifest, StopFlag())
        assert list(other.list_checkpoints({}).records) == [1]

    def test_a_commit_replaces_a_checkpoint(self) -> None:
        """Readers find the new one, and what the old one consisted of is trash."""
        store = self._taken()
        first = _commit(store, 1, _OLD, {"extra": b"of the old one"})
        second = _commit(store, 1, _NEW)
        assert first.identity != second.identity
        assert len(second.trash) == 1
        for each in (store, self.reopen(store)):
            assert list(each.list_checkpoints({}).records) == [1]
            with each.open(1) as reader:
                assert sorted(reader.manifest.files) == sorted([STATE_NAME, TRAINING_INFO_NAME])
                assert reader.read_small(STATE_NAME) == _NEW

    def test_a_commit_that_fails_leaves_what_was_there(self) -> None:
        """An error before the commit, or a stop in time, discards the attempt."""
        store = self._taken()
        _commit(store, 1, _OLD)
        with _raises(ZeroDivisionError), store.begin(1, 100) as attempt:
            _write(attempt, 1, _NEW)
            raise ZeroDivisionError
        stopped = StopFlag()
        stopped.set()
        with _raises(Stopped), store.begin(1, 100) as attempt:
            attempt.commit(_write(attempt, 1, _NEW), stopped)
        with _raises(Stopped), store.begin(1, 100) as attempt:
            _write(attempt, 1, _NEW, stop=stopped)
        for each in (store, self.reopen(store)):
            assert list(each.list_checkpoints({}).records) == [1]
            with each.open(1) as reader:
                assert reader.read_small(STATE_NAME) == _OLD

    def test_a_discarded_attempt_leaves_nothing(self) -> None:
        """The next attempt of the step has its own files only."""
        store = self._taken()
        with store.begin(1, 100) as attempt:
            _write(attempt, 1, _OLD, {"extra": b"discarded"})
        with store.begin(1, 100) as attempt:
            _write(attempt, 1, _OLD)
            attempt.discard()
            attempt.discard()  # more than once does no harm
        assert store.missing([1]) == [1]
        assert store.sweep(None, StopFlag()) == (0, 0, ())
        _commit(store, 1, _NEW)
        with store.open(1) as reader:
            assert reader.read_small(STATE_NAME) == _NEW
            assert "extra" not in reader.manifest.files

    def test_an_attempt_of_a_killed_writer_does_no_harm(self) -> None:
        """Neither readers nor the next writer see it."""
        store = self._taken()
        attempt = store.begin(1, 100)
        _write(attempt, 1, _OLD)
        store.release()
        other = self.reopen(store)
        assert other.enter(is_writer=True, must_exist=True).records == {}
        other.take({})
        assert other.list_checkpoints({}).records == {}
        _commit(other, 1, _NEW)
        with other.open(1) as reader:
            assert reader.read_small(STATE_NAME) == _NEW

    def test_a_file_is_linked_or_refused(self) -> None:
        """A linked file is read as the base's, and stays when the base is deleted."""
        store = self._taken()
        base = _commit(store, 1, _OLD, {"pack": b"shared"})
        with store.begin(2, 100) as attempt:
            manifest = _write(attempt, 2, _NEW)
            try:
                record = attempt.link("pack", 1)
            except OSError:
                return
            attempt.commit(replace(manifest, files={**manifest.files, "pack": record}), StopFlag())
        assert not base.trash
        store.sweep(store.retire([1]).trash, StopFlag())
        with store.open(2) as reader:
            assert reader.read_small("pack") == b"shared"

    # --- room ---------------------------------------------------------------------------------------------------------

    def test_a_lack_of_room_is_seen_before_anything_is_written(self) -> None:
        """The error says how much must be free; where the room is not known, there is no such error."""
        store = self._taken()
        if store.free_nbytes() is None:
            return
        for arguments in ((1 << 62,), (1, 1 << 62)):
            with _raises(NoRoomError) as caught:
                store.begin(1, *arguments)
            assert caught[0].nbytes == 1 << 62
        assert store.missing([1]) == [1]
        with store.begin(1, 1 << 62, 0):
            pass

    # --- writers ------------------------------------------------------------------------------------------------------

    def test_a_second_writer_is_refused(self) -> None:
        """Until the first one releases the location; readers are not."""
        store = self._taken()
        other = self.reopen(store)
        with _raises(DirectoryLockedError) as caught:
            other.take({})
        assert store.location in str(caught[0]), "the error names the location"
        _commit(store, 1, _STATE)
        assert list(other.list_checkpoints({}).records) == [1]
        store.release()
        store.release()
        other.take({})
        with _raises(DirectoryLockedError):
            store.take({})
        other.release()

    def test_a_writer_that_was_replaced_fails_the_check(self) -> None:
        """And no check fails before."""
        store = self.make_store()
        store.check()
        store.take({})
        store.check()
        self.lose(store)
        with _raises(OSError):
            store.check()

    # --- reading ------------------------------------------------------------------------------------------------------

    def test_ranges_are_read_from_verified_blocks(self) -> None:
        """Any range, and several at once, into memory or through a function."""
        store = self._taken()
        data = _random(2 * _BLOCK + PAGE_NBYTES)
        _commit(store, 1, data)
        edges = [0, 1, _BLOCK - 1, _BLOCK, _BLOCK + 1, 2 * _BLOCK, len(data) - 1, len(data)]
        with store.open(1) as reader:
            for low in edges:
                for high in edges:
                    if low <= high:
                        assert reader.read_range(STATE_NAME, low, high - low) == data[low:high]
            memory = np.zeros(_BLOCK, np.uint8)
            parts: dict[int, bytes] = {}
            with reader.open(STATE_NAME) as file:
                file.read(
                    [
                        Target(10, len(memory), memory),
                        Target(2 * _BLOCK - 5, 10, None, lambda at, part: parts.update({at: bytes(part)})),
                    ],
                    JobContext(),
                )
            assert bytes(memory) == data[10 : 10 + _BLOCK]
            assert b"".join(parts[at] for at in sorted(parts)) == data[2 * _BLOCK - 5 : 2 * _BLOCK + 5]

    def test_a_range_past_the_end_is_refused(self) -> None:
        """So is a file that the manifest lacks."""
        store = self._taken()
        _commit(store, 1, _STATE)
        with store.open(1) as reader:
            for offset, nbytes in ((0, PAGE_NBYTES + 1), (PAGE_NBYTES, 1), (1 << 40, 1)):
                with _raises(CorruptCheckpointError):
                    reader.read_range(STATE_NAME, offset, nbytes)
                with reader.open(STATE_NAME) as file, _raises(CorruptCheckpointError):
                    file.read([Target(offset, nbytes, np.empty(nbytes, np.uint8))])
            with _raises(CorruptCheckpointError) as caught:
                reader.open("missing")
            assert (caught[0].step, caught[0].file) == (1, "missing")

    def test_damage_is_found(self) -> None:
        """By whatever touches the block; the error names the step and the file, and other blocks are read still."""
        store = self._taken()
        data = _random(3 * _BLOCK)
        _commit(store, 1, data)
        self.damage(store, 1, STATE_NAME, _BLOCK + 17)
        with store.open(1) as reader:
            assert reader.read_range(STATE_NAME, 0, _BLOCK) == data[:_BLOCK]
            assert reader.read_range(STATE_NAME, 2 * _BLOCK, 5) == data[2 * _BLOCK : 2 * _BLOCK + 5]
            with _raises(CorruptCheckpointError) as caught:
                reader.read_range(STATE_NAME, 2 * _BLOCK - 1, 1)
            assert (caught[0].step, caught[0].file) == (1, STATE_NAME)
            with _raises(CorruptCheckpointError):
                reader.verify(STATE_NAME, JobContext())
            assert reader.is_current(), "damage is not replacement"

    def test_a_read_can_be_stopped(self) -> None:
        """By the flag of its job."""
        store = self._taken()
        _commit(store, 1, _random(3 * _BLOCK))
        context = JobContext()
        context.stop.set()
        with store.open(1) as reader, _raises(Stopped):
            reader.verify(STATE_NAME, context)

    def test_a_file_is_mapped_or_refused(self) -> None:
        """A store without local files says so."""
        store = self._taken()
        data = _random(2 * _BLOCK)
        _commit(store, 1, data)
        with store.open(1) as reader, reader.open(STATE_NAME) as file:
            try:
                mapped = file.map(is_private=False)
            except CheckpointError as error:
                assert "lazy" in str(error)  # noqa: PT017 - pytest is not imported here
                return
        assert bytes(mapped.memory) == data

    # --- listing ------------------------------------------------------------------------------------------------------

    def test_known_records_are_kept(self) -> None:
        """A listing returns the known record of each checkpoint that is the same still, and a new one of each other."""
        store = self._taken()
        for step in (1, 2, 3):
            _commit(store, step, _STATE, _info(round=1))
        known = store.list_checkpoints({}).records
        _commit(store, 2, _NEW, _info(round=2))
        store.retire([3])
        _commit(store, 4, _STATE, _info(round=2))
        records = store.list_checkpoints(known).records
        assert records[1] is known[1]
        assert records[2] is not known[2]
        assert {step: record.training_info["round"] for step, record in records.items()} == {1: 1, 2: 2, 4: 2}

    def test_documents_come_back(self) -> None:
        """As a whole; a new version replaces the old one."""
        store = self._taken()
        other = self.reopen(store)
        assert other.read_document(METRIC_NAME) is None
        for data in (b"first, which is longer", b"second"):
            store.write_document(METRIC_NAME, data)
            assert store.read_document(METRIC_NAME) == other.read_document(METRIC_NAME) == data
        store.release()
        other.take({})
        assert other.read_document(METRIC_NAME) == b"second"
        assert other.list_checkpoints({}).records == {}, "a document is not a checkpoint"

    # --- deletion -----------------------------------------------------------------------------------------------------

    def test_what_is_retired_is_gone_at_once(self) -> None:
        """For all stores of the location; steps that are not committed are left out."""
        store = self._taken()
        for step in (1, 2, 3):
            _commit(store, step, _STATE)
        retired = store.retire([1, 3, 4])
        assert len(retired.trash) == 2
        assert not retired.refused
        store.release()
        other = self.reopen(store)
        for each in (store, other):
            assert list(each.list_checkpoints({}).records) == [2]
            assert each.missing([1, 2, 3]) == [1, 3]
            with _raises(CheckpointNotFoundError):
                each.open(1)
        other.take({})
        assert list(other.list_checkpoints({}).records) == [2], "a new writer does not bring it back"

    def test_a_reader_goes_on_reading_what_is_retired_or_replaced(self) -> None:
        """It sees the checkpoint that it has opened, and says that this is the step's no more."""
        store = self._taken()
        for step in (1, 2):
            _commit(store, step, _OLD)
        with store.open(1) as first, store.open(2) as second:
            store.retire([1])
            _commit(store, 2, _NEW)
            for reader in (first, second):
                assert reader.read_small(STATE_NAME) == _OLD
                assert not reader.is_current()

    def test_a_sweep_deletes_trash_and_can_be_stopped(self) -> None:
        """What it did not reach is deleted by the next one, which can also delete all trash there is."""
        store = self._taken()
        for step in (1, 2, 3, 4):
            _commit(store, step, _STATE)
        trash = store.retire([1, 2, 3], durably=False).trash
        stopped = StopFlag()
        stopped.set()
        assert store.sweep(trash, stopped).done == 0
        assert store.sweep(trash[:1], StopFlag()) == (1, 0, ())
        assert store.sweep(None, StopFlag()) == (2, 0, ())
        assert store.sweep(None, StopFlag()) == (0, 0, ())
        assert list(store.list_checkpoints({}).records) == [4]
        with store.open(4) as reader:
            assert reader.read_small(STATE_NAME) == _STATE

    def _taken(self) -> CheckpointStore:
        store = self.make_store()
        store.take({})
        return store


class _Arrays:
    """One captured array, whose bytes are written."""

    def __init__(self, data: bytes) -> None:
        self._data = np.frombuffer(data, np.uint8)

    def view(self, array: int, start: int, nbytes: int) -> Sequence[Bytes] | None:
        assert array == 0
        return None if nbytes % 2 else [self._data[start : start + nbytes]]

    def copy_to(self, target: Bytes, array: int, start: int) -> None:
        assert array == 0
        target[:] = self._data[start : start + len(target)]


def _write(
    attempt: Attempt, step: int, data: bytes, small: Mapping[str, bytes] | None = None, stop: StopFlag | None = None
) -> Manifest:
    """Write the files of a checkpoint: small ones, and one from a plan, whose first bytes are not those of an array."""
    small = {**_info(), **(small or {})}
    files = {name: attempt.write(name, content) for name, content in small.items()}
    head = data[:_INDEX_NBYTES]
    entries = [PlanEntry(0, len(head), head), PlanEntry(len(head), len(data) - len(head), Span(0, len(head)))]
    plan = FilePlan(len(data), entries, index_offset=0, index_nbytes=len(head))
    files[STATE_NAME] = attempt.write_content(STATE_NAME, Content(plan, _Arrays(data)), JobContext(stop=stop))
    for name, content in {STATE_NAME: data, **small}.items():
        assert files[name] == digest_bytes(content), "the records of files have their sizes and digests"
    return Manifest(step=step, created=time.time(), files=files, index=IndexLocation(STATE_NAME, 0, len(head)))


def _commit(store: CheckpointStore, step: int, data: bytes, small: Mapping[str, bytes] | None = None) -> Committed:
    with store.begin(step, len(data)) as attempt:
        return attempt.commit(_write(attempt, step, data, small), StopFlag())


def _info(**info: float) -> dict[str, bytes]:
    return {TRAINING_INFO_NAME: json.dumps(info).encode()}


def _random(nbytes: int) -> bytes:
    return np.random.default_rng(nbytes).bytes(nbytes)


@contextmanager
def _raises(kind: type[ErrorT]) -> Iterator[list[ErrorT]]:
    """Assert that an error is raised; it is put into the list."""
    caught: list[ErrorT] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    else:
        message = f"{kind.__name__} was not raised"
        raise AssertionError(message)

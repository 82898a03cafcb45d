"""Every store keeps the contract of stores, and a store that breaks a promise fails it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from helpers.memory_store import Checkpoint, MemoryAttempt, MemoryFile, MemoryStore, Shared

from asyncckpt import CorruptCheckpointError
from asyncckpt.disk.manifest import FileRecord, Manifest, digest_bytes
from asyncckpt.disk.ops import DiskOps
from asyncckpt.runtime.pacing import StopFlag
from asyncckpt.storage.local.store import LocalStore
from asyncckpt.storage.results import Committed, Listing, Retired, Swept
from asyncckpt.testing import StorageContract

if TYPE_CHECKING:
    from asyncckpt.storage.base import Attempt, CheckpointStore


class TestLocalStore(StorageContract):
    """A directory of the local file system."""

    disk: type[DiskOps] = DiskOps

    @pytest.fixture(autouse=True)
    def _root(self, tmp_path: Path) -> None:
        self.root = tmp_path

    def make_store(self) -> CheckpointStore:
        """Name a directory that does not exist."""
        return LocalStore(Path(tempfile.mkdtemp(dir=self.root)) / "run", self.disk())

    def reopen(self, store: CheckpointStore) -> CheckpointStore:
        """Name it again."""
        return LocalStore(Path(store.location), self.disk())

    def damage(self, store: CheckpointStore, step: int, name: str, position: int) -> None:
        """Change a byte of a file."""
        with Path(store.location, f"step_{step}", name).open("r+b") as file:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 1]))

    def lose(self, store: CheckpointStore) -> None:
        """Rename the directory."""
        Path(store.location).rename(self.root / "elsewhere")


class NoExchange(DiskOps):
    """A file system that cannot exchange two names."""

    def exchange(self, first: Path, second: Path) -> bool:
        return False


class TestLocalStoreWithoutExchange(TestLocalStore):
    """A directory that is replaced by renaming the old one first."""

    disk = NoExchange


class MemoryContract(StorageContract):
    """A store in memory, of some kind."""

    kind = MemoryStore

    def make_store(self) -> CheckpointStore:
        """Make a location of its own."""
        return self.kind(Shared())

    def reopen(self, store: CheckpointStore) -> CheckpointStore:
        """Use its location again."""
        assert isinstance(store, MemoryStore)
        return self.kind(store.shared)

    def damage(self, store: CheckpointStore, step: int, name: str, position: int) -> None:
        """Change a byte of a file."""
        assert isinstance(store, MemoryStore)
        store.shared.checkpoints[step].files[name][position] ^= 1

    def lose(self, store: CheckpointStore) -> None:
        """Let another writer take it over."""
        assert isinstance(store, MemoryStore)
        store.shared.writer = object()


class TestMemoryStore(MemoryContract):
    """The simplest store."""


# --- stores that break a promise --------------------------------------------------------------------------------------


class ListsNothing(MemoryStore):
    """Its listing is of the location as it was when the store was made."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.seen = dict(shared.checkpoints)

    def list_checkpoints(self, known: Any) -> Listing:
        listing = super().list_checkpoints(known)
        return listing._replace(records={step: each for step, each in listing.records.items() if step in self.seen})


class SortsNamesAsText(MemoryStore):
    """It lists steps in the order of their names."""

    def list_checkpoints(self, known: Any) -> Listing:
        listing = super().list_checkpoints(known)
        return listing._replace(records={step: listing.records[step] for step in sorted(listing.records, key=str)})


class HasSomething(MemoryStore):
    """It says of every step that it is committed."""

    def missing(self, steps: Any) -> list[int]:
        return []


class VisibleAttempt(MemoryAttempt):
    """An attempt that is listed as soon as it has a file."""

    def write(self, name: str, data: bytes) -> FileRecord:
        shown = Checkpoint(Manifest(step=self.step, created=0.0), {"training_info.json": bytearray(b"{}")})
        self.shared.checkpoints.setdefault(self.step, shown)
        return super().write(name, data)


class ShowsAttempts(MemoryStore):
    """It does not hide what is being written."""

    attempt = VisibleAttempt


class MergingAttempt(MemoryAttempt):
    """An attempt that keeps the files of the checkpoint that it replaces, as an upload to the same prefix does."""

    def commit(self, manifest: Manifest, stop: StopFlag) -> Committed:
        old = self.shared.checkpoints.get(self.step)
        files = {**(old.manifest.files if old else {}), **manifest.files}
        return super().commit(replace(manifest, files=files), stop)


class MergesFiles(MemoryStore):
    """It writes into the checkpoint that is there."""

    attempt = MergingAttempt


class DeletesFirst(MemoryStore):
    """The old checkpoint goes before the new one is committed."""

    def begin(self, step: int, nbytes: int, min_free_nbytes: int | None = None) -> Attempt:
        attempt = super().begin(step, nbytes, min_free_nbytes)
        self.shared.checkpoints.pop(step, None)
        return attempt


class KeptAttempt(MemoryAttempt):
    """An attempt that becomes trash when it is discarded."""

    def discard(self) -> None:
        if self.step not in self.shared.checkpoints:
            self.shared.throw_away(Checkpoint(Manifest(step=self.step, created=0.0), {}))


class DiscardsNothing(MemoryStore):
    """It does not delete what was discarded."""

    attempt = KeptAttempt


class FinishesAttempts(MemoryStore):
    """The next writer commits what a killed one has left."""

    def begin(self, step: int, nbytes: int, min_free_nbytes: int | None = None) -> Attempt:
        attempt = super().begin(step, nbytes, min_free_nbytes)
        vars(self.shared)["attempt"] = attempt
        return attempt

    def take(self, known: Any) -> tuple[str, ...]:
        if (attempt := vars(self.shared).pop("attempt", None)) is not None:
            files = {name: digest_bytes(bytes(data)) for name, data in attempt.files.items()}
            attempt.commit(Manifest(step=attempt.step, created=0.0, files=files), StopFlag())
        return super().take(known)


class UnlinkedAttempt(MemoryAttempt):
    """An attempt that says that it has linked a file, and has not."""

    def link(self, name: str, step: int) -> FileRecord:
        record = self.shared.checkpoints[step].manifest.files[name]
        self.files[name] = bytearray(record.nbytes)
        return record


class LinksNothing(MemoryStore):
    """It cannot link."""

    attempt = UnlinkedAttempt


class HasEndlessRoom(MemoryStore):
    """It never looks how much room there is."""

    def begin(self, step: int, nbytes: int, min_free_nbytes: int | None = None) -> Attempt:
        return super().begin(step, 0, 0)


class LetsEverybodyWrite(MemoryStore):
    """It has no lock."""

    def take(self, known: Any) -> tuple[str, ...]:
        self.shared.writer = None
        return super().take(known)


class ChecksNothing(MemoryStore):
    """It does not look whether it is the writer still."""

    def check(self) -> None:
        pass


class WrongFile(MemoryFile):
    """Files are read in some wrong way."""

    def _read(self, targets: Any, context: Any, **options: Any) -> None:
        for target in targets:
            data = self.data[target.offset + 1 : target.offset + 1 + target.nbytes]
            if target.memory is not None:
                target.memory[: len(data)] = data


class ReadsElsewhere(MemoryStore):
    """It reads one byte further on than it should."""

    file = WrongFile


class UnverifiedFile(MemoryFile):
    """What is read is not verified."""

    def _read(self, targets: Any, context: Any, **options: Any) -> None:
        self.record = digest_bytes(bytes(self.data))
        super()._read(targets, context, **options)


class VerifiesNothing(MemoryStore):
    """It takes what it reads as it is."""

    file = UnverifiedFile


class EndlessFile(MemoryFile):
    """What lies past the end is zeros."""

    def check_range(self, offset: int, nbytes: int) -> None:
        pass


class ReadsPastTheEnd(MemoryStore):
    """It answers with fewer bytes than were asked for, as an object store does."""

    file = EndlessFile


class UnstoppableFile(MemoryFile):
    """Reading goes on when it is to stop."""

    def _read(self, targets: Any, context: Any, **options: Any) -> None:
        super()._read(targets, None, **options)


class ReadsOn(MemoryStore):
    """It does not look at the job's flag."""

    file = UnstoppableFile


class ZeroFile(MemoryFile):
    """A mapping is zeros."""

    def map(self, *, is_private: bool) -> Any:
        return SimpleNamespace(memory=self.data * 0)


class MapsZeros(MemoryStore):
    """It maps something else."""

    file = ZeroFile


class ForgetsWhatItKnows(MemoryStore):
    """Each listing makes new records."""

    def list_checkpoints(self, known: Any) -> Listing:
        return super().list_checkpoints({})


class ForgetsDocuments(MemoryStore):
    """Documents are not written before the writer leaves."""

    def release(self) -> None:
        super().release()
        self.shared.documents.clear()


class RetiresLater(MemoryStore):
    """What is retired goes when the trash is swept."""

    def retire(self, steps: Any, *, durably: bool = True) -> Retired:
        found = [step for step in steps if step in self.shared.checkpoints]
        return Retired(tuple(self.shared.throw_away(self.shared.checkpoints[step]) for step in found), {}, ())


class DeletesAtOnce(MemoryStore):
    """Files go when their checkpoint is retired or replaced, under its readers."""

    def retire(self, steps: Any, *, durably: bool = True) -> Retired:
        retired = super().retire(steps, durably=durably)
        for each in retired.trash:
            for data in self.shared.trash[each.name].files.values():
                data[:] = bytes(len(data))
        return retired


class SweepsOn(MemoryStore):
    """A sweep goes on when it is to stop."""

    def sweep(self, trash: Any, stop: StopFlag) -> Swept:
        return super().sweep(trash, StopFlag())


PROMISES = {
    "test_a_new_store_is_empty": HasSomething,
    "test_a_commit_is_found_as_it_was_written": ListsNothing,
    "test_steps_are_listed_in_ascending_order": SortsNamesAsText,
    "test_an_attempt_is_invisible_until_it_is_committed": ShowsAttempts,
    "test_a_commit_replaces_a_checkpoint": MergesFiles,
    "test_a_commit_that_fails_leaves_what_was_there": DeletesFirst,
    "test_a_discarded_attempt_leaves_nothing": DiscardsNothing,
    "test_an_attempt_of_a_killed_writer_does_no_harm": FinishesAttempts,
    "test_a_file_is_linked_or_refused": LinksNothing,
    "test_a_lack_of_room_is_seen_before_anything_is_written": HasEndlessRoom,
    "test_a_second_writer_is_refused": LetsEverybodyWrite,
    "test_a_writer_that_was_replaced_fails_the_check": ChecksNothing,
    "test_ranges_are_read_from_verified_blocks": ReadsElsewhere,
    "test_a_range_past_the_end_is_refused": ReadsPastTheEnd,
    "test_damage_is_found": VerifiesNothing,
    "test_a_read_can_be_stopped": ReadsOn,
    "test_a_file_is_mapped_or_refused": MapsZeros,
    "test_known_records_are_kept": ForgetsWhatItKnows,
    "test_documents_come_back": ForgetsDocuments,
    "test_what_is_retired_is_gone_at_once": RetiresLater,
    "test_a_reader_goes_on_reading_what_is_retired_or_replaced": DeletesAtOnce,
    "test_a_sweep_deletes_trash_and_can_be_stopped": SweepsOn,
}
"""The tests of the contract, each with a store that must fail it."""


@pytest.mark.parametrize("name", [name for name in dir(StorageContract) if name.startswith("test_")])
def test_a_store_that_breaks_a_promise_fails(name: str) -> None:
    """Each test of the contract sees a store that does not do what it states."""

    class Contract(MemoryContract):
        kind = PROMISES[name]

    with pytest.raises((AssertionError, CorruptCheckpointError)):
        getattr(Contract(), name)()

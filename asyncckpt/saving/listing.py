"""The jobs that list a store, and rank what they find for the catalog, in a worker thread. Nothing is verified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncckpt.runtime.cleanup import on_failure
from asyncckpt.runtime.pacing import Pacer, StopFlag
from asyncckpt.saving.catalog import candidate_of
from asyncckpt.saving.discards import discarded, note_discards, without
from asyncckpt.saving.metric import read_stored_metric, store_metric
from asyncckpt.saving.retention import Ranking

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from asyncckpt.saving.metric import MetricFile, PolicyRequest
    from asyncckpt.storage.base import CheckpointStore
    from asyncckpt.storage.results import CheckpointRecord, Listing


def enter_store(
    store: CheckpointStore, request: PolicyRequest, *, is_writer: bool, must_exist: bool
) -> tuple[Listing, Ranking]:
    """List a store for a manager that begins to use it; see `CheckpointStore.enter`."""
    listing = store.enter(is_writer=is_writer, must_exist=must_exist)
    return _ranked(_kept(store, listing), request, read_stored_metric(store))


def list_again(
    store: CheckpointStore, request: PolicyRequest, known: Mapping[int, CheckpointRecord]
) -> tuple[Listing, Ranking]:
    """List a store; see `CheckpointStore.list_checkpoints`."""
    return _ranked(_kept(store, store.list_checkpoints(known)), request, read_stored_metric(store))


def take_store(
    store: CheckpointStore, request: PolicyRequest, known: Mapping[int, CheckpointRecord]
) -> tuple[Listing, Ranking]:
    """Become the store's writer, write the metric that ranks its checkpoints, and list them.

    Raises:
        DirectoryLockedError: There is another writer.
        OSError: The store cannot be written.
    """
    remarks = store.take(known)
    with on_failure(store.release):
        file = read_stored_metric(store)
        remarks += store_metric(store, request.resolve(file)[0], file)
        listing = store.list_checkpoints(known)
        gone = discarded(store, listing.records)
        remarks += _delete(store, gone)
        return _ranked(without(listing, gone), request, file, remarks)


def _kept(store: CheckpointStore, listing: Listing) -> Listing:
    """Leave out what a commit has discarded."""
    return without(listing, discarded(store, listing.records))


def _delete(store: CheckpointStore, steps: Collection[int]) -> tuple[str, ...]:
    """Delete what a commit has discarded, and a killed writer has left; return what stays, and why."""
    if not steps:
        return ()
    try:
        retired = store.retire(steps)
        note_discards(store, None, None, retired.refused)
        swept = store.sweep(retired.trash, StopFlag())
    except OSError as error:  # they are listed no more
        return (f"what was discarded could not be deleted: {error}; the next start tries again",)
    refused = (
        f"step {step}, which was discarded, cannot be deleted: {error}" for step, error in retired.refused.items()
    )
    return (*retired.remarks, *swept.remarks, *refused)


def _ranked(
    listing: Listing, request: PolicyRequest, file: MetricFile, remarks: Iterable[str] = ()
) -> tuple[Listing, Ranking]:
    """Rank what a listing found, for a catalog; with thousands of checkpoints this takes a while."""
    policy, found = request.resolve(file)
    whole = (record for record in listing.records.values() if record.step not in listing.incomplete)
    ranking = Ranking(policy, (candidate_of(record, policy) for record in whole), Pacer())
    return listing._replace(remarks=(*found, *remarks, *listing.remarks)), ranking

"""The jobs that list a store, and rank what they find for the catalog, in a worker thread. Nothing is verified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncckpt.runtime.cleanup import on_failure
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.saving.catalog import candidate_of
from asyncckpt.saving.metric import read_stored_metric, store_metric
from asyncckpt.saving.retention import Ranking

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from asyncckpt.saving.metric import MetricFile, PolicyRequest
    from asyncckpt.storage.base import CheckpointStore
    from asyncckpt.storage.results import CheckpointRecord, Listing


def enter_store(
    store: CheckpointStore, request: PolicyRequest, *, is_writer: bool, must_exist: bool
) -> tuple[Listing, Ranking]:
    """List a store for a manager that begins to use it; see `CheckpointStore.enter`."""
    listing = store.enter(is_writer=is_writer, must_exist=must_exist)
    return _ranked(listing, request, read_stored_metric(store))


def list_again(
    store: CheckpointStore, request: PolicyRequest, known: Mapping[int, CheckpointRecord]
) -> tuple[Listing, Ranking]:
    """List a store; see `CheckpointStore.list_checkpoints`."""
    return _ranked(store.list_checkpoints(known), request, read_stored_metric(store))


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
        return _ranked(store.list_checkpoints(known), request, file, remarks)


def _ranked(
    listing: Listing, request: PolicyRequest, file: MetricFile, remarks: Iterable[str] = ()
) -> tuple[Listing, Ranking]:
    """Rank what a listing found, for a catalog; with thousands of checkpoints this takes a while."""
    policy, found = request.resolve(file)
    whole = (record for record in listing.records.values() if record.step not in listing.incomplete)
    ranking = Ranking(policy, (candidate_of(record, policy) for record in whole), Pacer())
    return listing._replace(remarks=(*found, *remarks, *listing.remarks)), ranking

"""The jobs that list a store, and arrange what they find for the catalog, in a worker thread. Nothing is verified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncckpt.runtime.pacing import Pacer
from asyncckpt.saving.catalog import Listed, candidate_of
from asyncckpt.saving.metric import metric_to_store
from asyncckpt.saving.retention import Ranking
from asyncckpt.saving.stored_metric import read_stored_metric, write_stored_metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from asyncckpt.saving.metric import PolicyRequest
    from asyncckpt.saving.stored_metric import MetricFile
    from asyncckpt.storage.base import CheckpointStore
    from asyncckpt.storage.results import CheckpointRecord, Listing


def enter_store(store: CheckpointStore, request: PolicyRequest, *, is_writer: bool, must_exist: bool) -> Listed:
    """List a store for a manager that begins to use it; see `CheckpointStore.enter`."""
    listing = store.enter(is_writer=is_writer, must_exist=must_exist)
    return _arrange(listing, request, read_stored_metric(store))


def list_again(store: CheckpointStore, request: PolicyRequest, known: Mapping[int, CheckpointRecord]) -> Listed:
    """List a store; see `CheckpointStore.list_checkpoints`."""
    return _arrange(store.list_checkpoints(known), request, read_stored_metric(store))


def take_store(store: CheckpointStore, request: PolicyRequest, known: Mapping[int, CheckpointRecord]) -> Listed:
    """Become the store's writer, write the metric that ranks its checkpoints, and list them.

    Raises:
        DirectoryLockedError: There is another writer.
        OSError: The store cannot be written.
    """
    remarks = store.take(known)
    try:
        file = read_stored_metric(store)
        remarks += _store_metric(store, request, file)
        return _arrange(store.list_checkpoints(known), request, file, remarks)
    except BaseException:
        store.release()
        raise


def _store_metric(store: CheckpointStore, request: PolicyRequest, file: MetricFile) -> tuple[str, ...]:
    """Write the metric if the store does not have it yet; return remarks."""
    metric = metric_to_store(request.resolve(file)[0], file)
    try:
        if metric is not None:
            write_stored_metric(store, metric)
    except OSError as error:  # no checkpoint depends on it: the next manager tries again
        return (f"the metric could not be stored for those who open the directory later: {error}",)
    return ()


def _arrange(listing: Listing, request: PolicyRequest, file: MetricFile, remarks: Iterable[str] = ()) -> Listed:
    """Arrange what a listing found, by ascending step, for a catalog of a manager with this policy.

    For the thread that made the listing: with thousands of checkpoints it takes a while.

    Args:
        listing: What is committed.
        request: What the manager was given.
        file: The stored metric.
        remarks: What there is to warn of, besides what the listing and the document lead to.
    """
    policy, found = request.resolve(file)
    whole = (record for record in listing.records.values() if record.step not in listing.incomplete)
    ranking = Ranking(policy, (candidate_of(record, policy) for record in whole), Pacer())
    return Listed(listing.records, ranking, (*found, *remarks, *listing.remarks), listing.incomplete)

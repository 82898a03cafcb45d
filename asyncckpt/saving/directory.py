"""The listing of a directory, arranged for the catalog, in a worker thread. Nothing is changed or verified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncckpt.disk.metric_file import read_metric_file
from asyncckpt.saving.catalog import Listed, arrange
from asyncckpt.storage.local.records import describe_strangers, read_listed, say_if_gone, scan_root

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from asyncckpt.disk.listing import Listing
    from asyncckpt.disk.metric_file import MetricFile
    from asyncckpt.saving.metric import PolicyRequest
    from asyncckpt.storage.base import CheckpointRecord


def list_again(root: Path, request: PolicyRequest, known: Mapping[int, CheckpointRecord]) -> Listed:
    """List a directory for a catalog, as `read_records` does."""
    return arrange_listed(root, scan_root(root), request, read_metric_file(root), known, say_if_gone(root, known))


def arrange_listed(  # noqa: PLR0913, PLR0917 - what was found, and what it is for
    root: Path,
    listing: Listing,
    request: PolicyRequest,
    file: MetricFile,
    known: Mapping[int, CheckpointRecord],
    remarks: Iterable[str],
) -> Listed:
    """Read what was listed, for a catalog, and say what has a checkpoint's name and is none."""
    strangers = describe_strangers(root, listing)
    return arrange(read_listed(root, listing, known), request, file, (*remarks, *strangers))

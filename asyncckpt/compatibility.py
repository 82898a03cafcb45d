"""Which files this release can read: each says its format version and the features that a reader must know.

A release that adds what earlier readers would misread names it among the features of the files that use it, so that
those readers refuse it by name. The version changes only where they could not even find the list.
"""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING

from asyncckpt.errors import UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Collection


def check_compatibility(
    what: str, version: object, features: object, *, reads: int, known: Collection[str] = ()
) -> None:
    """Refuse a file that needs a later release, before anything else of it is interpreted.

    Args:
        what: What is read, for the message: "step 7: the manifest".
        version: The format version that it has.
        features: The names of the features that it needs: a list or tuple of str.
        reads: The only version that this release reads.
        known: The features that this release knows.

    Raises:
        UnsupportedFormatError: The version is another one, or a feature is unknown.
        ValueError: The features are not a list of names.
    """
    if type(version) is not int or version != reads:
        found = reprlib.repr(version)
        message = f"{what} has format version {found}; this asyncckpt reads {reads}: use a later release"
        raise UnsupportedFormatError(message)
    if not isinstance(features, list | tuple) or not all(type(name) is str for name in features):
        message = f"the features are {reprlib.repr(features)}: expected a list of names"
        raise ValueError(message)
    unknown = [name for name in features if name not in known]
    if unknown:
        names = ", ".join(name[:40] for name in unknown[:8])
        message = f"{what} needs {names}, which this asyncckpt cannot read: use a later release"
        raise UnsupportedFormatError(message)

"""Check that this release can read a file, by the file's format version and list of features.

A release that adds something which earlier readers would misread adds its name to the features of the files that use
it, so that those readers refuse such files by name. The version changes only if they could not find the list.
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
    """Refuse a file that needs a later release. Call this before interpreting anything else in the file.

    Args:
        what: The file, for the message, such as "step 7: the manifest".
        version: The file's format version.
        features: The names of the features that the file needs: a list or tuple of str.
        reads: The version that this release reads.
        known: The features that this release supports.

    Raises:
        UnsupportedFormatError: The version differs from `reads`, or a feature is unknown.
        ValueError: `features` is not a list of names.
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

"""The manifest: the files of a checkpoint, and the digests of their bytes.

1. It is written last, so a directory with a valid manifest was complete when the manifest was written.
2. It lists every other file with its size and the digest of each block (xxh3-128, https://xxhash.com). Every bit of
   every file is covered, and a block can be verified before it is parsed.
3. Its last entry is the digest of the bytes before it.

A digest detects damage. It is not a signature: anyone who can modify a file can also modify its digest.
"""

from __future__ import annotations

import json
import reprlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from xxhash import xxh3_128_digest, xxh3_128_hexdigest

from asyncckpt.compatibility import check_compatibility
from asyncckpt.disk.names import MANIFEST_NAME
from asyncckpt.errors import CorruptCheckpointError, UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT_VERSION: Final = 1
FEATURES: Final[frozenset[str]] = frozenset()
"""The features that this reader knows. A manifest lists those that it needs."""
DIGEST_BLOCK_NBYTES: Final = 1 << 20
DIGEST_NBYTES: Final = 16
_TAIL: Final = b',"digest":"%s"}\n'
_TAIL_NBYTES: Final = len(_TAIL) - 2 + 2 * DIGEST_NBYTES


class FileRecord(NamedTuple):
    """The size and the digests of a file."""

    nbytes: int
    digests: bytes
    """The xxh3-128 of each block of `DIGEST_BLOCK_NBYTES`, the last of which may be shorter: 16 bytes each."""

    def digest(self, block: int) -> bytes:
        """Return the digest of a block."""
        return self.digests[block * DIGEST_NBYTES : (block + 1) * DIGEST_NBYTES]


class IndexLocation(NamedTuple):
    """The location of the index."""

    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The files of a checkpoint."""

    step: int
    created: float
    """When it was written, in seconds since the epoch."""
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    """By name, relative to the directory, with slashes."""
    index: IndexLocation | None = None
    """None if the caller has written the files, and there is no state file."""

    def encode(self) -> bytes:
        """Return the content of the manifest's file."""
        content = {
            "format_version": FORMAT_VERSION,
            "features": [],
            "step": self.step,
            "created": self.created,
            "block_nbytes": DIGEST_BLOCK_NBYTES,
            "files": {
                name: {"nbytes": record.nbytes, "xxh3_128": record.digests.hex()}
                for name, record in sorted(self.files.items())
            },
            "index": self.index and {"file": self.index.file, "offset": self.index.offset, "nbytes": self.index.nbytes},
        }
        body = json.dumps(content, separators=(",", ":")).encode()[:-1]
        return body + _TAIL % xxh3_128_hexdigest(body).encode()


def digest_bytes(data: bytes) -> FileRecord:
    """Return the record of a file with this content."""
    view = memoryview(data)
    blocks = range(0, len(view), DIGEST_BLOCK_NBYTES)
    return FileRecord(len(view), b"".join(xxh3_128_digest(view[i : i + DIGEST_BLOCK_NBYTES]) for i in blocks))


def decode_manifest(data: bytes, step: int) -> Manifest:
    """Decode and verify the manifest that was found in the directory of a step.

    Raises:
        CorruptCheckpointError: It is damaged, or belongs to another step.
        UnsupportedFormatError: A later release wrote it, or it needs a feature that this release does not know.
    """
    body, tail = data[:-_TAIL_NBYTES], data[-_TAIL_NBYTES:]
    if tail != _TAIL % xxh3_128_hexdigest(body).encode():
        raise _damaged(step, "its own digest does not match")
    try:
        content = json.loads(body + b"}", object_pairs_hook=_object)
        features = content.get("features", [])  # the first release wrote no list
        check_compatibility(
            f"step {step}: the manifest", content["format_version"], features, reads=FORMAT_VERSION, known=FEATURES
        )
        if content["block_nbytes"] != DIGEST_BLOCK_NBYTES:
            found = reprlib.repr(content["block_nbytes"])
            message = (
                f"step {step}: the manifest has digests of {found} bytes;"
                f" this asyncckpt reads {DIGEST_BLOCK_NBYTES}: use a later release"
            )
            raise UnsupportedFormatError(message)
        if content["step"] != step:
            found = reprlib.repr(content["step"])
            message = (
                f"step {step}: this is the manifest of step {found}: was the directory renamed or copied? Call it"
                f" step_{found} again. To have it as step {step}, load it by its path, load(Path('.../step_{step}')),"
                f" and save({step}, loaded.state, overwrite=True)"
            )
            raise CorruptCheckpointError(message, step=step, file=MANIFEST_NAME)
        place = content["index"]
        manifest = Manifest(
            step=step,
            created=float(content["created"]),
            files={name: _record(name, entry) for name, entry in content["files"].items()},
            index=place and IndexLocation(place["file"], _count(place["offset"]), _count(place["nbytes"])),
        )
        place = manifest.index
        if place is not None and place.offset + place.nbytes > manifest.files[place.file].nbytes:
            raise _damaged(step, "the index lies outside its file")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {reprlib.repr(str(error))}"
        # The frames of the traceback would hold all that was decoded.
        raise _damaged(step, reason) from error.with_traceback(None)
    return manifest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        message = "a key occurs twice"
        raise ValueError(message)
    return made


def _record(name: str, entry: dict[str, Any]) -> FileRecord:
    parts = name.split("/")
    if not all(parts) or "." in parts or ".." in parts or "\0" in name or name == MANIFEST_NAME:
        message = f"invalid file name {reprlib.repr(name)}"
        raise ValueError(message)
    record = FileRecord(_count(entry["nbytes"]), bytes.fromhex(entry["xxh3_128"]))
    blocks = -(-record.nbytes // DIGEST_BLOCK_NBYTES)
    if len(record.digests) != blocks * DIGEST_NBYTES:
        message = f"{name} has {len(record.digests)} bytes of digests for {blocks} blocks"
        raise ValueError(message)
    return record


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        message = f"{reprlib.repr(value)} is not a size"
        raise ValueError(message)
    return value


def _damaged(step: int, reason: str) -> CorruptCheckpointError:
    message = f"step {step}: {MANIFEST_NAME} is damaged: {reason}"
    return CorruptCheckpointError(message, step=step, file=MANIFEST_NAME)

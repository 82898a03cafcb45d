"""The manifest: what it promises about itself, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from xxhash import xxh3_128_digest, xxh3_128_hexdigest

from asyncckpt.disk.manifest import (
    DIGEST_BLOCK_NBYTES,
    DIGEST_NBYTES,
    FileRecord,
    IndexLocation,
    Manifest,
    decode_manifest,
    digest_bytes,
)
from asyncckpt.errors import CorruptCheckpointError, UnsupportedFormatError


def example() -> Manifest:
    """Make a manifest with one file of several blocks and an index."""
    return Manifest(
        step=7,
        created=1.5,
        files={
            "training_info.json": digest_bytes(b"{}"),
            "state.msgpack": digest_bytes(bytes(2 * DIGEST_BLOCK_NBYTES + 1)),
            "sub/käse": digest_bytes(b""),
        },
        index=IndexLocation("state.msgpack", 4, 100),
    )


def sealed(content: Any) -> bytes:
    """Write a manifest's content as one that says anything, with the right digest."""
    body = json.dumps(content, separators=(",", ":")).encode()[:-1]
    return body + b',"digest":"' + xxh3_128_hexdigest(body).encode() + b'"}\n'


def changed(**changes: Any) -> bytes:
    """Give the example with other values, and the right digest."""
    content = json.loads(example().encode())
    del content["digest"]
    return sealed(content | changes)


def test_is_read_back_equal() -> None:
    """What is encoded is decoded equal."""
    decoded = decode_manifest(example().encode(), 7)
    assert decoded == example()


def test_is_one_json_document() -> None:
    """Anybody may read it as JSON; its last entry is the digest of what stands before."""
    data = example().encode()
    content = json.loads(data)
    assert list(content)[-1] == "digest"
    assert content["digest"] == xxh3_128_hexdigest(data[: data.rindex(b',"digest"')])
    assert content["files"]["state.msgpack"]["nbytes"] == 2 * DIGEST_BLOCK_NBYTES + 1


def test_digests_are_of_blocks() -> None:
    """Each MiB has its own digest, the last chunk too; an empty file has none."""
    data = bytes(range(256)) * 4096 + b"more"
    record = digest_bytes(data)
    assert record == FileRecord(len(data), xxh3_128_digest(data[:-4]) + xxh3_128_digest(b"more"))
    assert record.digest(1) == xxh3_128_digest(b"more")
    assert len(record.digests) == 2 * DIGEST_NBYTES
    assert digest_bytes(b"").digests == b""


def test_every_changed_byte_is_found() -> None:
    """Whichever byte of it changes, and wherever it is cut off, it is corrupt and nothing else."""
    data = example().encode()
    for at in range(len(data)):
        for mask in (1, 0x80):
            damaged = bytearray(data)
            damaged[at] ^= mask
            with pytest.raises(CorruptCheckpointError, match="step 7"):
                decode_manifest(bytes(damaged), 7)
        with pytest.raises(CorruptCheckpointError):
            decode_manifest(data[:at], 7)
    with pytest.raises(CorruptCheckpointError):
        decode_manifest(data + b" ", 7)


def test_of_another_step() -> None:
    """The manifest of a directory that was renamed by hand is refused, and says so."""
    with pytest.raises(CorruptCheckpointError, match="manifest of step 7") as caught:
        decode_manifest(example().encode(), 8)
    assert caught.value.step == 8
    assert caught.value.file == "manifest.json"


@pytest.mark.parametrize("changes", [{"format_version": 2}, {"format_version": "1"}, {"block_nbytes": 4096}])
def test_of_a_later_release(changes: dict[str, Any]) -> None:
    """A format that this release does not know is not called damage."""
    with pytest.raises(UnsupportedFormatError, match="later release"):
        decode_manifest(changed(**changes), 7)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"features": ["parts"]}, "parts"),
        ({"features": ["parts", "packs"], "files": 7, "index": "?", "block_nbytes": "?"}, "parts, packs"),
        ({"features": ["x" * 100] * 9}, ", ".join(["x" * 40] * 8)),
    ],
)
def test_unknown_features_are_refused_by_name(changes: dict[str, Any], names: str) -> None:
    """What a manifest needs is looked at before anything that depends on it."""
    with pytest.raises(UnsupportedFormatError, match=f"step 7: the manifest needs {names}, which"):
        decode_manifest(changed(**changes), 7)


def test_the_first_release_wrote_no_features() -> None:
    """A manifest without the list needs nothing."""
    content = json.loads(example().encode())
    del content["digest"], content["features"]
    assert decode_manifest(sealed(content), 7) == example()


@pytest.mark.parametrize("features", [None, "", "parts", {"parts": 1}, [1], [["parts"]], True])
def test_features_are_a_list_of_names(features: object) -> None:
    """Anything else is damage."""
    with pytest.raises(CorruptCheckpointError, match="features"):
        decode_manifest(changed(features=features), 7)


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../other", "a/../../b", "./a", "a//b", "a/", "a\0b", "manifest.json", ".."],
)
def test_names_are_never_paths_out_of_the_directory(name: str) -> None:
    """A file name that would lead elsewhere makes the manifest corrupt."""
    with pytest.raises(CorruptCheckpointError):
        decode_manifest(changed(files={name: {"nbytes": 0, "xxh3_128": ""}}, index=None), 7)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"a": {"nbytes": 1, "xxh3_128": ""}}, "index": None},
        {"files": {"a": {"nbytes": 0, "xxh3_128": "00" * 16}}, "index": None},
        {"files": {"a": {"nbytes": -1, "xxh3_128": ""}}, "index": None},
        {"files": {"a": {"nbytes": True, "xxh3_128": "00" * 16}}, "index": None},
        {"files": {"a": {"nbytes": 1.0, "xxh3_128": "00" * 16}}, "index": None},
        {"files": {"a": {"nbytes": 1, "xxh3_128": "zz" * 16}}, "index": None},
        {"files": {"a": None}, "index": None},
        {"files": []},
        {"files": None},
        {"index": {"file": "nowhere", "offset": 0, "nbytes": 1}},
        {"index": {"file": "state.msgpack", "offset": 2 * DIGEST_BLOCK_NBYTES, "nbytes": 2}},
        {"index": {"file": "state.msgpack", "offset": -1, "nbytes": 2}},
        {"index": [1]},
        {"created": "yesterday"},
    ],
)
def test_nonsense_with_a_right_digest(changes: dict[str, Any]) -> None:
    """A digest is no signature: what cannot be true is corrupt all the same, never another error."""
    with pytest.raises(CorruptCheckpointError):
        decode_manifest(changed(**changes), 7)


@pytest.mark.parametrize("content", [[], [1, 2], {"a": 1}, {}])
def test_other_json_with_a_right_digest(content: Any) -> None:
    """A document of another kind is corrupt."""
    with pytest.raises(CorruptCheckpointError):
        decode_manifest(sealed(content), 7)


def test_deeply_nested_json() -> None:
    """Nesting that exhausts the parser is corrupt, not a RecursionError."""
    body = b'{"format_version":' + b"[" * 100_000
    data = body + b',"digest":"' + xxh3_128_hexdigest(body).encode() + b'"}\n'
    with pytest.raises(CorruptCheckpointError):
        decode_manifest(data, 7)

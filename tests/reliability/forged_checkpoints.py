"""Writes checkpoints as an attacker does: with digests that match.

Whoever can write the files can compute them. A case makes a directory of checkpoints whose step 7 is hostile; beside
it lies `CANARY`, which no reader may open.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack
import numpy as np
import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEP: Final = 7
CANARY: Final = "canary"
SECRET: Final = b"what lies outside of the directory"
BLOCK: Final = 1 << 20
PAGE: Final = 4096


class Case(NamedTuple):
    """A hostile checkpoint."""

    name: str
    build: Callable[[Path], object]
    """Makes it: `(directory of the checkpoint)`; the canary is `../../canary` from there."""
    is_equal: bool = False
    """Whether it must load, as `GOOD`: the hostility is where a reader has no business."""


GOOD: Final = {"numbers": np.arange(8, dtype="<i8"), "word": "good"}


def ext(code: int, argument: object) -> msgpack.ExtType:
    """Make a node."""
    return msgpack.ExtType(code, argument if isinstance(argument, bytes) else msgpack.packb(argument))


def chunk(*nodes: object) -> bytes:
    """Encode nodes."""
    packed: bytes = msgpack.packb(nodes, strict_types=False, unicode_errors="surrogatepass")
    return packed


def seal(path: Path, files: dict[str, bytes], index: object, change: Any = None) -> None:
    """Write files and a manifest with matching digests; `change` may change the manifest's contents."""
    path.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    content: Any = {
        "format_version": 1,
        "step": STEP,
        "created": 1.0,
        "block_nbytes": BLOCK,
        "files": {name: record(data) for name, data in files.items()},
        "index": index,
    }
    if change is not None:
        content = change(content) or content
    write_manifest(path, json.dumps(content).encode()[:-1] if not isinstance(content, bytes) else content)


def write_manifest(path: Path, body: bytes) -> None:
    """Write a manifest whose own digest matches."""
    (path / "manifest.json").write_bytes(body + b',"digest":"%s"}\n' % xxhash.xxh3_128_hexdigest(body).encode())


def record(data: bytes) -> dict[str, object]:
    """Say of a file what a manifest says."""
    digests = "".join(xxhash.xxh3_128_hexdigest(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK))
    return {"nbytes": len(data), "xxh3_128": digests}


def entries(**changes: Any) -> dict[str, Any]:
    """Return the parts of an index, changed."""
    made = {"asyncckpt": 1, "features": [], "dtypes": [], "tree": [chunk(None)], "arrays": [], "segments": []}
    return made | changes


def index_case(name: str, index: bytes, payload: bytes = b"", info: bytes = b"{}") -> Case:
    """Make a case of an index. The payload begins at the next page behind it."""

    def build(path: Path) -> None:
        state = index + bytes(-len(index) % PAGE) + payload
        place = {"file": "state.msgpack", "offset": 0, "nbytes": len(index)}
        seal(path, {"state.msgpack": state, "training_info.json": info}, place)

    return Case(name, build)


def tree_case(name: str, *nodes: object, **parts: Any) -> Case:
    """Make a case of nodes."""
    return index_case(name, msgpack.packb(entries(tree=[chunk(*nodes)], **parts)))


def array_case(  # noqa: PLR0913 - what an array consists of
    name: str,
    nodes: list[object],
    *,
    dtype: object = "|u1",
    shape: tuple[int, ...] = (PAGE,),
    segments: list[tuple[int, int]] | None = None,
    more: int = 0,
) -> Case:
    """Make a case of an array; the segments are offsets from the payload's begin, and sizes."""
    runs = [(0, PAGE)] if segments is None else segments

    def pack(base: int) -> bytes:
        table = b"".join(struct.pack("<3Q", 0, (base + at) % (1 << 64), nbytes) for at, nbytes in runs)
        rows = msgpack.packb([[0, *shape]])
        packed: bytes = msgpack.packb(
            entries(dtypes=[dtype], tree=[chunk(*nodes)], arrays=[rows], segments=[table] if table else [])
        )
        return packed

    index = pack(0)
    base = -(-len(pack(1 << 20)) // PAGE) * PAGE
    index = pack(base)
    payload = bytes(max([PAGE, *(at + nbytes for at, nbytes in runs if at + nbytes < 1 << 24)]) + more)

    def build(path: Path) -> None:
        state = index + bytes(base - len(index)) + payload
        place = {"file": "state.msgpack", "offset": 0, "nbytes": len(index)}
        seal(path, {"state.msgpack": state, "training_info.json": b"{}"}, place)

    return Case(name, build)


def with_entry(key: str, packed: bytes) -> bytes:
    """Return an index one of whose entries is these bytes."""
    parts = entries()
    parts.pop(key, None)
    head = b"\x82" if key == "asyncckpt" else bytes([0x80 + len(parts) + 1])
    if key == "asyncckpt":
        return head + msgpack.packb(key) + packed + msgpack.packb("features") + b"\x90"
    return head + b"".join(msgpack.packb(k) + msgpack.packb(v) for k, v in parts.items()) + msgpack.packb(key) + packed


def good_checkpoint() -> tuple[dict[str, bytes], dict[str, object]]:
    """Return the files of a good checkpoint, and where its index lies."""
    nodes = [ext(3, 2), "numbers", ext(9, 0), "word", "good"]
    table = np.array([0, PAGE, 64], "<u8").tobytes()
    index = msgpack.packb(
        entries(dtypes=["<i8"], tree=[chunk(*nodes)], arrays=[msgpack.packb([[0, 8]])], segments=[table])
    )
    state = index + bytes(PAGE - len(index)) + GOOD["numbers"].tobytes() + bytes(PAGE - 64)
    files = {"state.msgpack": state, "training_info.json": b"{}"}
    return files, {"file": "state.msgpack", "offset": 0, "nbytes": len(index)}

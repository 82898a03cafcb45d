"""The table of hostile checkpoints. A family is a function that gives cases; a new one is added to `FAMILIES`."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any, Final

import h5py
import msgpack
import numpy as np

from .forged_checkpoints import (
    BLOCK,
    PAGE,
    SECRET,
    Case,
    entries,
    good_checkpoint,
    index_case,
    record,
    seal,
    write_manifest,
)
from .hostile_parts import BOMBS, DOCUMENTS, HDF5_FILLERS, PLACES, VALUES
from .hostile_trees import arrays, dtypes, leaves, objects, trees

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def bombs() -> Iterator[Case]:
    """Every bomb in every place of an index."""
    for (place, put), (name, bomb) in itertools.product(PLACES.items(), BOMBS.items()):
        yield index_case(f"{name} as {place}", put(bomb))


def big_bombs() -> Iterator[Case]:
    """The worst of them, at 5 MB, which stock msgpack makes 267 MiB of."""
    size = 5_000_000
    for place in ("the index", "a dtype", "a chunk", "the arrays", "a table of segments", "the argument of SCALAR"):
        for byte in (b"\x80", b"\x90"):
            bomb = b"\xdd" + size.to_bytes(4, "big") + byte * size
            yield index_case(f"5 MB of {byte!r} as {place}", PLACES[place](bomb))


_NAMES: Final = (
    "../../canary", "/etc/passwd", "a/../../../canary", "..", ".", "", "/", "a//b", "a/", "manifest.json", "./x",
    "a\0b",
    "\ud800", "x" * 300, "x/" * 3000 + "y", "state.msgpack/x", "link/canary", "link", "%2e%2e/canary", "~/x",
    "a\\..\\b",
    ".lock", "pipe", "/dev/zero", "/proc/self/mem", "CON", "\u202e", "training_info.json/..",
)  # fmt: skip


def _changed(name: str, change: Callable[[Any], object], *, is_equal: bool = False) -> Case:
    def build(path: Path) -> None:
        files, place = good_checkpoint()
        seal(path, files, place, change)

    return Case(name, build, is_equal)


def _setter(*keys: str, value: object) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def manifests() -> Iterator[Case]:
    """Manifests whose own digest matches."""
    yield _changed("a good one", lambda _: None, is_equal=True)
    fields = [
        ("format_version",), ("features",), ("step",), ("created",), ("block_nbytes",), ("files",), ("index",),
        ("index", "file"), ("index", "offset"), ("index", "nbytes"), ("files", "state.msgpack"),
        ("files", "state.msgpack", "nbytes"), ("files", "state.msgpack", "xxh3_128"),
    ]  # fmt: skip
    for keys, value in itertools.product(fields, VALUES):
        yield _changed(f"{'/'.join(keys)} is {str(value)[:20]!a}", _setter(*keys, value=value))
    for name in _NAMES:

        def listed(content: Any, name: str = name) -> None:
            content["files"][name] = record(SECRET)

        def as_state(content: Any, name: str = name) -> None:
            content["files"] = {name: record(SECRET)}
            content["index"] = {"file": name, "offset": 0, "nbytes": len(SECRET)}

        yield _with_links(f"a file called {name[:40]!a}", listed)
        yield _with_links(f"the state in a file called {name[:40]!a}", as_state)
    for nbytes in (10 << 30, 1 << 40):
        digests = "00" * 16 * min(-(-nbytes // BLOCK), 1 << 16)

        def claims(content: Any, nbytes: int = nbytes, digests: str = digests) -> None:
            content["files"]["state.msgpack"] = {"nbytes": nbytes, "xxh3_128": digests}
            content["index"] = {"file": "state.msgpack", "offset": 0, "nbytes": nbytes}

        def claims_info(content: Any, nbytes: int = nbytes, digests: str = digests) -> None:
            content["files"]["training_info.json"] = {"nbytes": nbytes, "xxh3_128": digests}

        yield _changed(f"an index of {nbytes >> 30} GiB", claims)
        yield _changed(f"a training_info of {nbytes >> 30} GiB", claims_info)
    for body in (
        b"[" * 1_000_000, b'{"a":' * 200_000, b'{"files":[' + b"{}," * 1_000_000 + b"{}]", b"1", b"", b"null", b"{",
        b'{"format_version":1,"format_version":1', b'{"step":' + b"9" * 1_000_000, b'{"step":1e999999', b"\xff\xfe{",
        b'{"a":"' + b"\\ud800" * 100_000 + b'"', b'{"files":{' + b'"a":{},' * 200_000 + b'"b":{}}',
    ):  # fmt: skip
        yield Case(f"a manifest of {body[:12]!r}, {len(body)} bytes", _body_writer(body))
    yield Case("an empty manifest", lambda path: (path.mkdir(), (path / "manifest.json").touch()))
    yield _changed("a hundred thousand files", _many_files)
    yield _changed("more keys", _setter("more", value={"a": [1, 2]}), is_equal=True)


def _many_files(content: Any) -> None:
    content["files"].update({f"file{i}": record(b"") for i in range(100_000)})


def _body_writer(body: bytes) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        path.mkdir()
        write_manifest(path, body)

    return build


def _with_links(name: str, change: Callable[[Any], object]) -> Case:
    def build(path: Path) -> None:
        files, place = good_checkpoint()
        seal(path, files, place, change)
        (path / "link").symlink_to("../..")
        os.mkfifo(path / "pipe")

    return Case(name, build)


def documents() -> Iterator[Case]:
    """training_infos: they are read in a listing, too."""
    for data in DOCUMENTS:
        yield index_case(f"training_info {data[:20]!r}, {len(data)} bytes", msgpack.packb(entries()), info=data)


def hdf5() -> Iterator[Case]:
    """HDF5 files: what is loaded stands in the index, and libhdf5 never sees them."""
    for name, fill in HDF5_FILLERS.items():
        yield Case(f"{name}, beside a good index", _hdf5_builder(fill, "good"), is_equal=True)
        yield Case(f"{name}, and no index", _hdf5_builder(fill, "none"))
        yield Case(f"{name}, its metadata as index", _hdf5_builder(fill, "metadata"))
        yield Case(f"{name}, where the array is said to be", _hdf5_builder(fill, "array"))


def _hdf5_builder(fill: Callable[[h5py.File], None], where: str) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        path.mkdir()
        with h5py.File(path / "state.h5", "w") as file:
            fill(file)
        data = (path / "state.h5").read_bytes()
        data += bytes(-len(data) % PAGE)
        files, place = good_checkpoint()
        state = files.pop("state.msgpack")
        nbytes = int(str(place["nbytes"]))
        index = state[:nbytes]
        old, offset = np.array([0, PAGE, 64], "<u8").tobytes(), len(data) + PAGE
        if where == "array":
            offset = 512
        index = index.replace(old, np.array([0, offset, 64], "<u8").tobytes())
        files["state.h5"] = data + index + state[nbytes:]
        begin, size = (0, 4096) if where == "metadata" else (len(data), nbytes)
        seal(path, files, None if where == "none" else {"file": "state.h5", "offset": begin, "nbytes": size})

    return build


FAMILIES: Final[dict[str, Callable[[], Iterator[Case]]]] = {
    "manifests": manifests,
    "trees": trees,
    "objects": objects,
    "dtypes": dtypes,
    "arrays": arrays,
    "leaves": leaves,
    "documents": documents,
    "hdf5": hdf5,
    "big-bombs": big_bombs,
    "bombs": bombs,
}
"""Cases by family; the names of cases are distinct within one."""

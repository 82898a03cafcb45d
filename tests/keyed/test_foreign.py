"""Files that others wrote, or changed, in JSON and npz; and what is hostile in them."""

from __future__ import annotations

import gc
import io
import json
import struct
import weakref
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.support import assert_same, peak_nbytes
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import asyncckpt
from asyncckpt.disk.ops import DiskOps
from asyncckpt.keyed.json import store as json_store
from asyncckpt.keyed.json.codec import decode_value
from asyncckpt.keyed.npz.archive import Archive
from asyncckpt.runtime.pacing import Pacer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# --- JSON -------------------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=40,
)


def test_blanks_between_values_go_with_the_first_flush(tmp_path: Path) -> None:
    """Those within a value are part of its text, which stays."""
    path = tmp_path / "x.json"
    path.write_text('{ "a" : [1, 2 ]' + " \n" * 100_000 + ', "b": 2' + "\t" * 100_000 + "}")
    with asyncckpt.Checkpointer.from_file(path, rewrite=True) as chk:
        chk["c"] = 3
        assert list(chk.items()) == [("a", [1, 2]), ("b", 2), ("c", 3)]
    assert path.read_text() == '{\n"a": [1, 2 ],\n"b": 2,\n"c": 3\n}\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@given(document=st.dictionaries(st.text(), plain, max_size=5), indent=st.sampled_from([None, 0, 3]))
@settings(max_examples=20)
def test_json_from_anyone(
    encoding: str, document: dict[str, Any], indent: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever json writes is what comes back, in any layout and encoding, unless it holds what marks our own."""
    assume("__asyncckpt" not in json.dumps(document))
    path = tmp_path_factory.getbasetemp() / f"{encoding}.json"
    path.write_text(json.dumps(document, indent=indent), encoding=encoding)
    with asyncckpt.Checkpointer.from_file(path) as chk:
        assert_same(dict(chk), document)


def test_long_json() -> None:
    """Long elements, strings with brackets and long keys: as json has it."""
    value = {
        "long": [']}[{\\",:' * 9000, list(range(20_000)), [[[n] for n in range(12_000)]], {}],
        "k" * 100_000: {str(n): {"x": [n, None, {}]} for n in range(5_000)},
        "flat": [True] * 200_000,
    }
    for indent in (None, 1):
        assert decode_value(json.dumps(value, indent=indent).encode(), Pacer()).value == value


def _marked(count: int) -> str:
    return "[" + ",".join(f'{{"{n}": "\\\\{n}"}}' for n in range(count)) + "]"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace(",", ",,", 1),
        lambda text: text[:-1] + ",]",
        lambda text: text[:-1] + "}",
        lambda text: text[:-1],
        lambda text: text + " 1",
        lambda text: text + "]",
        lambda text: "[" + text + " 1]",
        lambda text: "[" + text + text + "]",
        lambda text: "[," + text + "]",
        lambda text: "[1 " + text + "]",
        lambda text: "[" + text + ",]",
        lambda text: '{"a" ' + text + "}",
        lambda text: '{"a": ' + text + ', "a": ' + text + "}",
        lambda text: "{" + text + "}",
        lambda text: text[:-1] + ', "' + "a" * 70_000 + "]",
        lambda text: text[:-1] + ', "' + "\\\\" * 70_000 + '\\"]',
    ],
)
@pytest.mark.parametrize("blanks", ["", " " * 40_000])
def test_long_json_is_refused_where_json_refuses_it(spoil: Callable[[str], str], blanks: str) -> None:
    """Long text with one thing wrong in it."""
    for count in (5_000, 60_000):
        text = spoil(_marked(count)) + blanks
        with pytest.raises(asyncckpt.CorruptCheckpointError):
            decode_value(text.encode(), Pacer())


def test_json_nested_as_deep_as_it_is_written(tmp_path: Path) -> None:
    """Containers of ours take two brackets each, and are read whatever their length."""
    value: Any = (np.arange(100_000), list(range(50_000)))
    for _ in range(190):
        value = (value, 1)
    path = tmp_path / "x.json"
    with asyncckpt.Checkpointer.from_file(path) as chk:
        chk["deep"] = value
    assert_same(dict(asyncckpt.Checkpointer.from_file(path))["deep"], value)


def test_json_stays_json(tmp_path: Path) -> None:
    """Native values are written as JSON's own, others as objects that say what they are; json reads both."""
    path = tmp_path / "x.json"
    with asyncckpt.Checkpointer.from_file(path) as chk:
        chk["native"] = {"a": [1, 2.5, "\u00e9", None, True, {"b": []}], "n": list(range(2000))}
        chk["array"] = np.array([1.0])
    document = json.loads(path.read_text())
    assert document["native"] == {"a": [1, 2.5, "\u00e9", None, True, {"b": []}], "n": list(range(2000))}
    assert document["array"]["__asyncckpt__"] == "array"
    path.write_text(json.dumps(document, indent=4))  # another tool has rewritten it
    assert_same(dict(asyncckpt.Checkpointer.from_file(path))["array"], np.array([1.0]))


UNPRINTABLE = b'{"__asyncckpt__": "array", "number": 0, "dtype": "<U1", "shape": [1], "data": ["////fw=="]}'
"""An array with a character that does not exist, which numpy cannot format."""


@pytest.mark.parametrize(
    "text",
    [
        b"[1]",
        b"5",
        b'"a"',
        b"{",
        b'{"a": 1',
        b'{"a": [1}',
        b'{"a": 1} x',
        b'{"a": 1,}',
        b'{"a": 1, "a": 2}',
        b'{"a"; 1}',
        b'{"a": "x}',
        b"{1: 2}",
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": nope}',
        b'{"a": \xff}',
        b'{"a": ' + b"9" * 10_000 + b"}",
        b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"a": ' + b"[" * 990 + b"]" * 990 + b"}",
        b'{"a": ' + b'{"b": ' * 200_000 + b"1" + b"}" * 200_000 + b"}",
        b'{"a": {"__asyncckpt__": "array", "number": 0, "dtype": "<f8", "shape": [1099511627776], "data": []}}',
        b'{"a": {"__asyncckpt__": "array", "number": 0, "dtype": "|O", "shape": [1], "data": ["AAAAAAAAAAA="]}}',
        b'{"a": {"__asyncckpt__": "array", "number": 3}}',
        b'{"a": {"__asyncckpt__": "array", "number": 0, "dtype": "<f8", "shape": [-1], "data": []}}',
        b'{"a": {"__asyncckpt__": "array", "number": 0, "dtype": "<f8", "data": [], "shape": ['
        + b"1," * 9999
        + b"1]}}",
        b'{"a": {"__asyncckpt__": "array", "number": 0, "dtype": "|u1", "shape": [5], "data": ["AAAABBBB"]}}',
        b'{"a": {"__asyncckpt__": "array", "number": 0, "dtype": "|u1", "shape": [3], "data": ["AAAA", "BBBB"]}}',
        b'{"a": {"__asyncckpt__": "array", "number": 0, "dtype": "|u1", "shape": [4], "data": ["AA==AAAA"]}}',
        b'{"a": {"__asyncckpt__": "array", "number": 0, "dtype": "|u1", "shape": [3], "data": ["AA\\nAA"]}}',
        b'{"a": {"__asyncckpt__": "bytes", "data": "AAAA"}}',
        b'{"a": {"__asyncckpt__": "bytes", "data": ["!"]}}',
        b'{"a": {"__asyncckpt__": "os.system", "state": 1}}',
        b'{"a": {"__asyncckpt__": "object", "type": 5, "state": 1}}',
        b'{"a": {"__asyncckpt__": "OrderedDict", "items": {"x": 1, "x": 2}}}',
        b'{"a": {"__asyncckpt__": "deque", "maxlen": "x", "items": []}}',
        b'{"a": {"__asyncckpt__": "tree", "pieces": ["kQ=="], "arrays": []}}',
        b'{"a": {"__asyncckpt__": "tree", "pieces": 5, "arrays": []}}',
        b'{"a": {"__asyncckpt__": "int", "hex": "zz"}}',
        b'{"a": {"__asyncckpt__": "complex", "parts": [1]}}',
        b'{"a": {"__asyncckpt__": "scalar", "dtype": "<f8", "value": "AA=="}}',
        b'{"a": {"__asyncckpt__": null}}',
        b'{"a": {"__asyncckpt_key__[": 1}}',
        b'{"a": {"__asyncckpt__": "set", "items": %s}}' % UNPRINTABLE,
        b'{"a": {"__asyncckpt__": "array", "number": 1, "dtype": "<f8", "data": [], "shape": [%s]}}' % UNPRINTABLE,
        b'{"__asyncckpt_key__%s": 1}' % UNPRINTABLE.replace(b'"', b'\\"'),
    ],
)
def test_hostile_json(tmp_path: Path, text: bytes) -> None:
    """One clear error, which names the file."""
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(asyncckpt.CheckpointError, match="x\\.json") as caught:
        dict(asyncckpt.Checkpointer.from_file(path))
    assert isinstance(caught.value, asyncckpt.CorruptCheckpointError)
    assert len(str(caught.value)) < 1000


def test_one_damaged_value_does_not_hide_the_others(tmp_path: Path) -> None:
    """Each key has a line and is read by itself, and what is damaged can be deleted or replaced."""
    path = tmp_path / "x.json"
    with asyncckpt.Checkpointer.from_file(path) as chk:
        chk.update(good=[1], bad=[1, 12], also={"x": 1})
    path.write_text(path.read_text().replace("1,1", "1,,"))
    with asyncckpt.Checkpointer.from_file(path) as chk:
        assert chk["good"] == [1]
        assert chk["also"] == {"x": 1}
        with pytest.raises(asyncckpt.CorruptCheckpointError, match="'bad'"):
            chk["bad"]
        chk["bad"] = 5
    assert json.loads(path.read_text()) == {"good": [1], "bad": 5, "also": {"x": 1}}


def test_foreign_json_is_of_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is too large for its layout is told how it could be read; in ours, also damaged, it may be any size."""
    path = tmp_path / "x.json"
    monkeypatch.setattr(json_store, "MAX_FOREIGN_NBYTES", 100)
    path.write_text(json.dumps({"a": [1] * 100}))
    with pytest.raises(asyncckpt.UnsupportedFormatError, match=r"x\.json: \d+ bytes .* at most 100 .* line of its own"):
        dict(asyncckpt.Checkpointer.from_file(path))
    path.write_text('{\n"a": ' + json.dumps([1] * 100) + ',\n"b": 2]\n}\n')
    with asyncckpt.Checkpointer.from_file(path) as chk:
        assert chk["a"] == [1] * 100
        with pytest.raises(asyncckpt.CorruptCheckpointError, match="'b'"):
            chk["b"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_foreign_json_gets_a_line_for_each_key(tmp_path: Path, encoding: str) -> None:
    """Line breaks within its values become blanks when it is written anew; all else of their text stays."""
    path = tmp_path / "x.json"
    path.write_text('{"a": [ 1.50,\n\n  1E400 ], "\u00e9":{"x":"\u00e9\\n"}}', encoding=encoding)
    with asyncckpt.Checkpointer.from_file(path, rewrite=True) as chk:
        before = dict(chk)
        chk["n"] = 1
        chk.flush()
        assert dict(chk) == before | {"n": 1}
    expected = '{\n"a": [ 1.50,    1E400 ],\n"\\u00e9": {"x":"\u00e9\\n"},\n"n": 1\n}\n'
    assert path.read_text(encoding="utf-8") == expected


def test_what_was_read_is_gone_with_the_last_reference_to_it() -> None:
    """Nothing of the reading of a long text keeps the value until a garbage collection."""
    array = {"__asyncckpt__": "array", "number": 0, "dtype": "|u1", "shape": [3], "data": ["AAAA"]}
    text = json.dumps({"array": array, "set": {"__asyncckpt__": "set", "items": [1]}, "long": "x" * (1 << 20)})
    gc.collect()
    gc.disable()
    try:
        value = decode_value(text.encode(), Pacer()).value
        kept = weakref.ref(value["array"])
        del value
        assert kept() is None
    finally:
        gc.enable()


def test_one_text_for_two_keys(tmp_path: Path) -> None:
    """Keys of a dict that are not equal, and look alike, stay two."""
    path = tmp_path / "x.json"
    with asyncckpt.Checkpointer.from_file(path) as chk:
        chk["a"] = {float("nan"): 1, float("nan"): 2, "b": [3]}
    assert list(asyncckpt.Checkpointer.from_file(path)["a"].values()) == [1, 2, [3]]


@pytest.mark.parametrize("text", ["[0]", '{"a":[]}'])
def test_many_containers_in_one_of_ours(tmp_path: Path, text: str) -> None:
    """They take the memory that `json` takes for them, and no multiple of it."""
    path = tmp_path / "x.json"
    path.write_text(f'{{"k":{{"__asyncckpt__":"tuple","items":[{",".join([text] * 100_000)}]}}}}')
    script = "import sys, asyncckpt, asyncckpt.keyed.json.store\npath = sys.argv[1]\n"
    ours = peak_nbytes(script + "peak = lambda: asyncckpt.Checkpointer.from_file(path)['k']", path)
    theirs = peak_nbytes("import sys, json\npeak = lambda: json.loads(open(sys.argv[1]).read())", path)
    assert ours < 1.6 * theirs


# --- npz --------------------------------------------------------------------------------------------------------------


def arrays() -> dict[str, Any]:
    """Arrays as numpy's users have them."""
    return {
        "a": np.arange(12.0).reshape(3, 4),
        "f": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "zero": np.array(5),
        "text": np.array(["x", "yy"]),
        "records": np.zeros(3, [("x", "<i4"), ("y", "S3")]),
        "folder/name": np.ones(2),
        "\u00e9": np.array([], np.float32),
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_from_numpy(tmp_path: Path, save: Any) -> None:
    """Each array is a key; what we add, numpy opens, and what we leave alone stays as it was."""
    path = tmp_path / "x.npz"
    save(path, **arrays())
    with asyncckpt.Checkpointer.from_file(path, rewrite=True) as chk:
        assert list(chk) == list(arrays())
        for key, value in arrays().items():
            assert_same(chk[key], np.asarray(value))
            assert chk[key].flags.writeable
        chk["new"] = {"x": [np.ones(3), "text"]}
        chk["a"] = np.zeros(2)
        chk["folder"] = [np.zeros(1)]  # whose member would be called folder/0
    with np.load(path, allow_pickle=False) as found:
        for key, value in (arrays() | {"a": np.zeros(2), "new/0": np.ones(3), "folder/0": np.zeros(1)}).items():
            assert_same(np.ascontiguousarray(found[key]).reshape(value.shape), np.asarray(value))
        everything = {name: found[name] for name in found.files}
    with asyncckpt.Checkpointer.from_file(path) as chk:
        assert list(chk) == [*arrays(), "new", "folder"]
        assert_same(chk["new"], {"x": [np.ones(3), "text"]})
    save(path, **everything)  # another tool has rewritten it
    with asyncckpt.Checkpointer.from_file(path) as chk:
        assert_same(chk["new"], {"x": [np.ones(3), "text"]})
    everything.pop("new/0")
    save(path, **everything)
    with pytest.raises(asyncckpt.CorruptCheckpointError, match="'new' lacks"):
        dict(asyncckpt.Checkpointer.from_file(path))


def npy(
    descr: str = "'<f8'", shape: str = "(1,)", data: bytes = bytes(8), magic: bytes = b"\x93NUMPY\x01\x00"
) -> bytes:
    """Make an npy file that says what it likes."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return magic + struct.pack("<H", len(header)) + header + data


HOSTILE = {
    "not npy": b"garbage garbage",
    "empty": b"",
    "a claimed size": npy(shape="(1099511627776,)"),
    "an overflowing size": npy(shape="(4294967296, 4294967296, 1)"),
    "a negative size": npy(shape="(-1,)"),
    "no shape": npy(shape="'x'"),
    "too many dimensions": npy(shape="(" + "1," * 70 + ")"),
    "a later version": npy(magic=b"\x93NUMPY\x09\x00"),
    "code in the header": npy(descr="__import__('os')"),
    "a deep header": npy(descr="-" * 9000 + "1"),
    "many brackets": npy(descr="(" * 3000 + ")" * 3000),
    "a bad dtype": npy(descr="'<z9'"),
    "too much data": npy(data=bytes(16)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_npy(tmp_path: Path, what: str) -> None:
    """One clear error, which names file and key; the other keys are there."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bad.npy", HOSTILE[what])
        archive.writestr("good.npy", npy())
    with asyncckpt.Checkpointer.from_file(path) as chk:
        with pytest.raises(asyncckpt.CorruptCheckpointError, match=r"x\.npz.*'bad'"):
            chk["bad"]
        assert_same(chk["good"], np.zeros(1))


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    """They are pickles: the error says why, and the rest of the file can be used."""
    path = tmp_path / "x.npz"
    np.savez(path, bad=np.array([print, {}], object), records=np.zeros(1, [("x", "O")]), good=np.ones(2))
    with asyncckpt.Checkpointer.from_file(path) as chk:
        for key in ("bad", "records"):
            with pytest.raises(asyncckpt.UnsupportedFormatError, match=rf"{key}.*Python objects"):
                chk[key]
        assert_same(chk["good"], np.ones(2))


_REFUSED = "import sys, asyncckpt, asyncckpt.keyed.npz.store, pytest\npath = sys.argv[1]\n"


def test_the_members_of_a_value_are_one_bomb(tmp_path: Path) -> None:
    """Each is small enough by itself; and what stands behind a tree that is none is not even read."""
    import msgpack

    path = tmp_path / "parts.npz"
    names = [f"{number}.npy" for number in range(4)]
    parts = {name.removesuffix(".npy"): np.zeros(20 << 20, np.uint8) for name in names}
    rows = {"asyncckpt": "keyed", "version": 1, "features": [], "keys": [["k", None, b"no tree", names]]}
    np.savez_compressed(path, __asyncckpt__=np.frombuffer(msgpack.packb(rows), np.uint8), **parts)
    with pytest.raises(asyncckpt.UntrustedFileError, match=r"3 more of \d+ bytes claim to hold"):
        asyncckpt.Checkpointer.from_file(path)["k"]
    refused = "asyncckpt.CorruptCheckpointError, lambda: asyncckpt.Checkpointer.from_file(path, trusted=True)['k']"
    assert peak_nbytes(_REFUSED + f"peak = lambda: pytest.raises({refused})", path) < 16 << 20


def test_zip_bombs_are_refused_unless_trusted(tmp_path: Path) -> None:
    """No memory is taken for what is very much larger than its file."""
    path = tmp_path / "x.npz"
    np.savez_compressed(path, zeros=np.zeros(9 << 20))
    with pytest.raises(asyncckpt.UntrustedFileError, match="trusted=True"):
        asyncckpt.Checkpointer.from_file(path)["zeros"]
    refused = "asyncckpt.UntrustedFileError, lambda: asyncckpt.Checkpointer.from_file(path)['zeros']"
    assert peak_nbytes(_REFUSED + f"peak = lambda: pytest.raises({refused})", path) < 8 << 20
    assert_same(asyncckpt.Checkpointer.from_file(path, trusted=True)["zeros"], np.zeros(9 << 20))


def test_lying_zip_files(tmp_path: Path) -> None:
    """Members that stand twice, overlap, leave the file, lie about their size or are no deflate: an error each."""
    path = tmp_path / "x.npz"
    good = io.BytesIO()
    np.savez(good, a=np.ones(100), b=np.zeros(3))
    data = good.getvalue()
    central = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", central + 1)

    def changed(at: int, fields: bytes) -> bytes:
        return data[:at] + fields + data[at + len(fields) :]

    lies = {
        "twice": data.replace(b"b.npy", b"a.npy"),
        "overlapping": changed(second + 42, struct.pack("<L", 0)),
        "outside": changed(central + 20, struct.pack("<2L", 1 << 30, 1 << 30)),
        "another size": changed(central + 24, struct.pack("<L", 1 << 30)),
        "a checksum": changed(data.index(np.ones(1).tobytes()), b"\xff"),
        "deflate": changed(central + 10, struct.pack("<H", 8)),
        "a method": changed(central + 10, struct.pack("<H", 12)),
        "encrypted": changed(central + 8, struct.pack("<H", 1)),
        "cut off": data[:-30],
        "no zip": b"PK" + bytes(100),
    }
    for name, lie in lies.items():
        path.write_bytes(lie)
        with pytest.raises(asyncckpt.CheckpointError, match="x\\.npz"):
            dict(asyncckpt.Checkpointer.from_file(path))
            pytest.fail(name)
    path.write_bytes(lies["overlapping"])
    with pytest.raises(asyncckpt.CorruptCheckpointError, match="overlaps another"):
        list(asyncckpt.Checkpointer.from_file(path))  # as soon as it is opened


def test_a_hostile_directory(tmp_path: Path) -> None:
    """What asyncckpt's own member claims is not believed."""
    import msgpack

    path = tmp_path / "x.npz"
    head = {"asyncckpt": "keyed", "version": 1, "features": []}
    for rows in (
        [["a", None, None, ["missing.npy"]]],
        [["a", None, None, []]],
        [["a", None, None, ["b.npy"]], ["a", None, None, ["b.npy"]]],
        [["a", None, b"\x80", ["b.npy"]]],
        [["a", None, b"garbage", ["b.npy"]]],
        [[5, None, None, ["b.npy"]]],
        ["a"],
        5,
    ):
        packed = np.frombuffer(msgpack.packb(head | {"keys": rows}), np.uint8)
        np.savez(path, b=np.ones(1), __asyncckpt__=packed)
        with pytest.raises(asyncckpt.CorruptCheckpointError, match="x\\.npz"):
            dict(asyncckpt.Checkpointer.from_file(path))
    np.savez(path, __asyncckpt__=np.frombuffer(msgpack.packb(head | {"version": 9, "keys": []}), np.uint8))
    with pytest.raises(asyncckpt.UnsupportedFormatError, match="later release"):
        dict(asyncckpt.Checkpointer.from_file(path))
    bomb = np.frombuffer(b"\x90" * (8 << 20), np.uint8)
    np.savez_compressed(path, __asyncckpt__=bomb)
    with pytest.raises(asyncckpt.CorruptCheckpointError, match="claims"):
        dict(asyncckpt.Checkpointer.from_file(path))


def test_bytes_and_folders_in_a_zip(tmp_path: Path) -> None:
    """A member that is no npy is bytes, as for numpy; folders are nothing."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("folder")
        archive.writestr("notes.txt", b"woof")
    assert dict(asyncckpt.Checkpointer.from_file(path)) == {"notes.txt": b"woof"}


def test_the_checksums_of_npz_are_those_of_zip(tmp_path: Path) -> None:
    """What we write, zipfile finds sound, and a flipped bit of an array is found out."""
    path = tmp_path / "x.npz"
    with asyncckpt.Checkpointer.from_file(path) as chk:
        chk["a"] = np.arange(1000)
        chk["b"] = [np.ones(5), "x"]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    data = bytearray(path.read_bytes())
    data[data.index(np.arange(1000).tobytes()) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(asyncckpt.CorruptCheckpointError, match="checksum"):
        asyncckpt.Checkpointer.from_file(path)["a"]
    assert zlib.crc32(b"") == 0


def test_more_members_than_16_bits_count(tmp_path: Path) -> None:
    """All that were written are found by zipfile."""
    path = tmp_path / "x.npz"
    file = Archive(DiskOps().create(path), DiskOps())
    try:
        first = file.add("first.npy", None, 3, [b"abc"])
        others = [zipfile.ZipInfo(f"{number}.npy") for number in range(66_000)]
        for info in others:
            info.CRC = 0
            info.header_offset = 0
        file.finish([first, *others])
    finally:
        file.close_file()
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["first.npy", *(info.filename for info in others)]
        assert np.load(archive.open("first.npy")).tobytes() == b"abc"


class _Sparse(DiskOps):
    """Leaves a hole where zeros would be."""

    def write(self, fd: int, buffers: Any, offset: int) -> int:
        """See `DiskOps`."""
        for data in map(np.asarray, buffers):
            if data.any():
                super().write(fd, [data], offset)
            offset += len(data)
        return sum(map(len, buffers))


def test_members_that_need_64_bits(quick_path: Path) -> None:
    """A large array, what lies behind it, and copies of both, are where others look for them."""
    path = quick_path / "x.npz"  # in memory, where holes are read quickly
    large = np.zeros((1 << 31) + 10, np.uint8)
    with asyncckpt.Checkpointer.from_file(path, disk=_Sparse()) as chk:
        chk["large"] = large
        chk["small"] = np.arange(3)
        chk.flush()
        chk["new"] = np.arange(4)
    with np.load(path) as found:
        assert [found[name].tolist() for name in ("small", "new")] == [[0, 1, 2], [0, 1, 2, 3]]
        with found.zip.open("large.npy") as member:
            assert np.lib.format.read_magic(member) == (1, 0)
            assert np.lib.format.read_array_header_1_0(member)[0] == large.shape
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("large.npy").file_size == len(large) + 128
        assert archive.getinfo("small.npy").header_offset > 1 << 31
    with asyncckpt.Checkpointer.from_file(path) as chk:
        assert_same(chk["new"], np.arange(4))


class _Pipe(io.RawIOBase):
    """A stream that cannot be searched, to which zipfile writes sizes behind the members."""

    def __init__(self) -> None:
        self.data = b"#!/bin/sh\n"

    def writable(self) -> bool:
        """It is for writing."""
        return True

    def write(self, data: Any) -> int:
        """Take the data."""
        self.data += bytes(data)
        return len(data)


def test_what_a_zip_file_may_be(tmp_path: Path) -> None:
    """Something before it, sizes behind members, comments, names of before UTF-8, and methods that only others read."""
    path = tmp_path / "x.npz"
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:  # type: ignore[call-overload] # it is one
        archive.comment = b"about all"
        for number, method in enumerate((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)):
            info = zipfile.ZipInfo(f"cafX{number}.npy", (2020, 1, 1, 0, 0, 0))
            info.compress_type, info.comment, info.extra = method, b"about one", struct.pack("<2HL", 0x7875, 4, 7)
            archive.writestr(info, npy(data=np.float64(number).tobytes()))
    path.write_bytes(pipe.data.replace(b"cafX", b"caf\x82"))
    for is_rewritten in (False, True):
        with asyncckpt.Checkpointer.from_file(path, rewrite="without_backup") as chk:
            assert list(chk)[:3] == ["caf\u00e90", "caf\u00e91", "caf\u00e92"]
            assert_same([chk["caf\u00e90"], chk["caf\u00e91"]], [np.zeros(1), np.ones(1)])
            with pytest.raises(asyncckpt.UnsupportedFormatError, match="other than deflate"):
                chk["caf\u00e92"]
            chk["new", str(is_rewritten)] = 5
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with np.load(path) as found:
        assert [found[f"caf\u00e9{number}"].tolist() for number in range(3)] == [[0], [1], [2]]
    assert path.read_bytes()[:4] == b"PK\x03\x04"
    assert not path.read_bytes()[6] & 8  # sizes stand before the member


def test_a_file_with_an_encrypted_member_is_only_read(tmp_path: Path) -> None:
    """It cannot be copied: the flush says so, names it, and leaves the file as it is."""
    path = tmp_path / "x.npz"
    np.savez(path, good=np.ones(2), secret=np.zeros(2))
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with (
        pytest.raises(asyncckpt.UnsupportedFormatError, match=r"x\.npz: 'secret\.npy' is encrypted"),
        asyncckpt.Checkpointer.from_file(path, rewrite=True) as chk,
    ):
        assert_same(chk["good"], np.ones(2))
        chk["new"] = 1
    assert path.read_bytes() == data


def test_a_damaged_member_that_stays_is_told_of_with_the_file(tmp_path: Path) -> None:
    """An npz file is written anew as a whole: where that fails for what is in it, the error names the file."""
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(3))
    path.write_bytes(b"XX" + path.read_bytes()[2:])
    with (
        pytest.raises(asyncckpt.CorruptCheckpointError, match=r"x\.npz: the member 'a\.npy'") as caught,
        asyncckpt.Checkpointer.from_file(path, rewrite=True) as chk,
    ):
        chk["b"] = 1
    assert caught.value.file == str(path)

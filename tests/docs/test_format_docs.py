"""docs/format.md is true: its programs run and read what is written, its tables agree with the code."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from helpers.strategies import states
from helpers.support import FORMATS, Color, Fixed, Params, Point, assert_same, canonical, save_to, verify
from hypothesis import given, settings

from asyncckpt.disk import manifest
from asyncckpt.formats import msgpack as stream
from asyncckpt.runtime.memory import PAGE_NBYTES
from asyncckpt.state import encode, encode_leaves, index, packed, types

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
BLOCKS = {found[1]: found[2] for found in re.finditer(r"```python\n# (\w+)\n(.*?)```", PAGE, re.DOTALL)}


def program(name: str) -> dict[str, Any]:
    """Run one of the page's programs and return what it defines."""
    assert "asyncckpt" not in re.findall(r"^(?:import|from) (\w+)", BLOCKS[name], re.MULTILINE)
    scope: dict[str, Any] = {}
    exec(compile(BLOCKS[name], f"docs/format.md: {name}", "exec"), scope)  # noqa: S102 - the page's own program
    return scope


STATE: Any = {
    "params": {"w": np.arange(1000.0).reshape(50, 20), "b": np.zeros(3, "<f4"), "": np.ones(2)},
    "big": 2**100,
    "text": ["x" * 5000, "a\0b", "\ud800", np.str_("s\0"), np.bytes_(b"b\0")],
    "bytes": [b"\0" * 5000, b"x"],
    "numbers": (list(range(20)), tuple(map(float, range(700))), [float(i) for i in range(2000)]),
    "complex": complex(1, -0.0),
    "sets": [{1, 2}, frozenset({"a"})],
    "structure": np.zeros(3, np.dtype([("a", "<i4"), ("b", ">f8", (2,))], align=True)),
    "scalar": np.float32(2.5),
    "none": None,
    1: True,
    (1, "a"): -1.5,
}


@pytest.mark.parametrize("form", FORMATS)
def test_the_reader_reads_both_formats(tmp_path: Path, form: str) -> None:
    """The page's reader, which uses no asyncckpt, gives the state that was saved."""
    path = save_to(tmp_path, 1, STATE, form=form)
    found = program("read")["read"](path)
    found["sets"][1] = frozenset(found["sets"][1])
    found["text"][3:] = [np.str_(found["text"][3]), np.bytes_(found["text"][4])]
    assert canonical(np.zeros(0)) == canonical(np.ndarray((0,), "<f8"))
    expected = dict(STATE)
    for name in ("structure",):  # titles and alignment aside, which the reader leaves out
        assert found[name].dtype == expected[name].dtype
        assert found.pop(name).tobytes() == expected.pop(name).tobytes()
    assert_same(found, expected)


@pytest.mark.parametrize("form", FORMATS)
def test_the_reader_gives_objects_as_plain_data(tmp_path: Path, form: str) -> None:
    """Types come as their plain states, tied arrays as one array."""
    tied = np.arange(3)
    path = save_to(tmp_path, 1, [Color.RED, Point(1, tied), Params(tied, {}), Fixed("a", Path("x"))], form=form)
    found = program("read")["read"](path)
    assert_same(found, ["red", (1, tied), {"weights": tied, "count": {}}, {"name": "a", "size": "x"}])
    assert found[1][1] is found[2]["weights"]


@pytest.mark.parametrize("form", FORMATS)
def test_the_reader_takes_arrays_of_frameworks_for_numpys(tmp_path: Path, form: str) -> None:
    """The page's reader, which imports no framework, reads tensors of every kind and objects of PyTorch."""
    torch = pytest.importorskip("torch")
    tied = torch.arange(3, dtype=torch.bfloat16)
    pairs = torch.view_as_complex(torch.tensor([[1.0, -2.0]], dtype=torch.float16))
    nibbles = torch.tensor([7], dtype=torch.uint8).view(torch.uint4)
    state = {"tied": [tied, tied], "pairs": pairs, "nibbles": nibbles, "size": torch.Size([2]), "dtype": torch.int8}
    found = program("read")["read"](save_to(tmp_path, 1, state, form=form))
    assert found["tied"][0] is found["tied"][1]
    assert_same(found.pop("tied")[0].astype(np.float32), np.arange(3, dtype=np.float32))
    expected = {"pairs": np.array([[1, -2]], np.float16), "nibbles": np.array([7], np.uint8), "size": (2,)}
    assert_same(found, expected | {"dtype": "int8"})


@pytest.mark.parametrize("form", FORMATS)
@given(state=states)
@settings(max_examples=25)
def test_the_reader_gets_through_any_state(tmp_path_factory: pytest.TempPathFactory, form: str, state: Any) -> None:
    """Whatever is saved, the reader reads to the end (dtypes that numpy alone does not know aside)."""
    path = save_to(tmp_path_factory.mktemp("any"), 1, state, form=form)
    try:
        program("read")["read"](path)
    except TypeError as error:
        if "not understood" not in str(error) and "unhashable" not in str(error):  # dataclasses as keys
            raise


@pytest.mark.parametrize("form", FORMATS)
def test_the_verifier_finds_damage(tmp_path: Path, form: str) -> None:
    """The page's verifier accepts what was written, and names the file of a flipped bit."""
    path = save_to(tmp_path, 1, {"w": np.zeros(400_000), "x": 1}, form=form)
    check = program("verify")["verify"]
    assert check(path) == []
    for file in path.iterdir():
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
        assert check(path) == [file.name]
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    verify(tmp_path, 1)


def test_a_stock_unpacker_reads_to_the_end(tmp_path: Path) -> None:
    """The stream's objects are the index and `bin`s, and the payload lies where the page says."""
    path = save_to(tmp_path, 1, STATE) / "state.msgpack"
    found = list(program("stream")["objects"](path))
    assert list(found[0]) == re.findall(
        r"^\| `(\w+)` \|", PAGE.partition("## The index")[2].partition("### ")[0], re.MULTILINE
    )
    assert {type(each) for each in found[1:]} == {bytes}
    data = path.read_bytes()
    assert len(data) % PAGE_NBYTES == 0
    assert len(found[-1]) % PAGE_NBYTES == 0
    payload = len(data) - len(found[-1])
    assert payload % PAGE_NBYTES == 0
    assert data[payload - 5 : payload] == b"\xc6" + struct.pack(">I", len(found[-1]))
    for number, offset, nbytes in np.frombuffer(b"".join(found[0]["segments"]), "<u8").reshape(-1, 3).tolist():
        assert offset % (4096 if nbytes >= 4096 else 64) == 0, number


def test_plain_h5py_reads_the_tree(tmp_path: Path) -> None:
    """Any HDF5 reader sees dicts as groups, arrays as datasets and small leaves as values, under the user's names."""
    path = save_to(tmp_path, 1, {**STATE, "step": 3, "a/b": {".": 1.5}}, form="hdf5") / "state.h5"
    found = program("hdf5")["read_hdf5"](path)
    assert_same(found["params"], STATE["params"])
    assert found["step"] == 3
    assert found["a/b"] == {".": 1.5}
    assert found["scalar"] == 2.5
    assert found["numbers"]["0"].tolist() == list(range(20))
    assert found["text"]["0"].tobytes() == b"x" * 5000


# --- the tables -------------------------------------------------------------------------------------------------------


def test_the_table_of_codes_is_the_codes() -> None:
    """Each code has its row, with its name."""
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", PAGE, re.MULTILINE)
    names = {name: code for name, code in vars(index).items() if name.isupper() and type(code) is int}
    assert {name: int(code) for code, name in rows} == {
        name: code
        for name, code in names.items()
        if name not in {"FORMAT_VERSION", "TABLE_ROWS"} and not name.startswith("_")
    }


def test_the_table_of_objects_is_complete() -> None:
    """Each builtin type that is saved as a simpler one has its row."""
    table = PAGE.partition("| name | plain state |")[2].partition("### ")[0]
    assert set(
        re.findall(r"`(\w+)`(?=[,| ])", "\n".join(row.split("|")[1] for row in table.splitlines() if "|" in row))
    ) == {each.name for each in types._BUILTINS}


def test_the_numbers_are_the_codes() -> None:
    """Sizes and bounds in the text are the code's."""
    text = " ".join(PAGE.split())
    assert f"`block_nbytes` | {manifest.DIGEST_BLOCK_NBYTES}:" in text
    assert f"({stream.EXTENT_NBYTES} bytes)" in text
    assert f"padded with zeros to a multiple of {PAGE_NBYTES} bytes" in text
    assert f"more than {encode_leaves.INLINE_LEAF_NBYTES} bytes or characters" in text
    assert f"lists and tuples of {encode._NUMBERS_MIN} or more" in text
    assert f"at most {packed.MAX_ROW} in each" in text
    assert f"in at most {index._MAX_DTYPE_NBYTES} bytes" in text
    assert f"at most {encode.MAX_KEY_DEPTH} deep" in text
    assert f"`asyncckpt` | {index.FORMAT_VERSION}," in PAGE
    assert f"`format_version` | {manifest.FORMAT_VERSION} |" in PAGE
    assert re.search(r"on disk, version (\d+)", PAGE)[1] == str(index.FORMAT_VERSION)  # type: ignore[index]


def test_padding_is_as_described() -> None:
    """Every length of padding is what the page says, and no longer or shorter."""
    assert stream.padding(0) == b""
    for n in range(2, 2 * PAGE_NBYTES + 1):
        head = b"\xc4" + bytes([n - 2]) if n <= 257 else b"\xc5" + struct.pack(">H", n - 3)
        assert stream.padding(n) == head + bytes(n - len(head))
        assert type(msgpack.unpackb(stream.padding(n))) is bytes


def test_plain_states_of_builtin_types(tmp_path: Path) -> None:
    """Dates, times and generators are stored as the page says."""
    import datetime as dt
    import zoneinfo

    rng = np.random.default_rng(3)
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    state = [dt.datetime(2020, 1, 2, 3, fold=1, tzinfo=berlin), dt.time(1, tzinfo=dt.UTC), dt.timedelta(1, 2, 3), rng]
    found = program("read")["read"](save_to(tmp_path, 1, state))
    assert found[0] == ("2020-01-02T03:00:00", 1, "Europe/Berlin")
    assert found[1] == ("01:00:00", 0, ((0, 0, 0), "UTC"))
    assert found[2] == (1, 2, 3)
    assert found[3]["state"] == rng.bit_generator.state
    assert found[3]["seed_seq"].keys() == {"entropy", "spawn_key", "pool_size", "n_children_spawned"}


def test_the_log_is_read_with_the_page_alone(tmp_path: Path) -> None:
    """The page's reader finds each key's body, whose index says the rest, and leaves out a torn tail."""
    import asyncckpt

    path = tmp_path / "x.msgpack"
    with asyncckpt.Checkpointer.from_file(path) as chk:
        chk["large"] = np.zeros(10)
        chk["gone"] = 1
        chk.flush()
        chk["large"] = np.arange(100_000.0)
        chk["small"] = {"a": [np.arange(3), "text"]}
        del chk["gone"]
    with path.open("ab") as file:
        file.write(b"\x84torn")
    found = program("log")["read_log"](path)
    assert list(found) == ["large", "small"]
    head = next(iter(program("stream")["objects"](path)))
    assert head["asyncckpt"] == "keyed"
    unpacker = msgpack.Unpacker(max_buffer_size=1 << 26)
    for content in found.values():
        unpacker.feed(content)
    large, small = (each for each in unpacker if isinstance(each, dict))
    (array, offset, nbytes) = np.frombuffer(b"".join(large["segments"]), "<u8")
    assert (array, nbytes) == (0, 800_000)
    assert_same(np.frombuffer(found["large"][offset : offset + nbytes], "<f8"), np.arange(100_000.0))
    (array, offset, nbytes) = np.frombuffer(b"".join(small["segments"]), "<u8")
    assert_same(np.frombuffer(found["small"][offset : offset + nbytes], "<i8"), np.arange(3))


def test_the_page_reads_keyed_hdf5(tmp_path: Path) -> None:
    """The page's reader of slots, catalog and indexes finds the arrays of every key."""
    import asyncckpt

    path = tmp_path / "a.h5"
    with asyncckpt.Checkpointer.from_file(path) as chk:
        chk["large"] = np.arange(100_000.0)
        chk.flush()
        chk["small"] = [np.arange(3), 1]
        chk["large"] = np.arange(90_000.0)
    found = program("keyed_hdf5")["read_keyed_hdf5"](path)
    assert list(found) == ["large", "small"]
    assert [index["asyncckpt"] for index, _ in found.values()] == [1, 1]
    assert_same(np.frombuffer(found["large"][1][0], "<f8"), np.arange(90_000.0))
    assert_same(np.frombuffer(found["small"][1][0], "<i8"), np.arange(3))


def test_the_tags_of_json_are_those_of_the_page() -> None:
    """Each kind of object that the reader knows has its row, and no row is left over."""
    from asyncckpt.keyed.json.codec import KINDS, LEAVES

    table = PAGE.partition("### JSON: .json")[2].partition("### Zip")[0]
    rows = {name for row in re.findall(r"^\| (\".*?) \|", table, re.MULTILINE) for name in re.findall(r'"(\w+)"', row)}
    assert rows == {*KINDS.values(), *LEAVES}

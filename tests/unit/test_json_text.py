"""JSON's text and base64, where what is long must not be handled in one call, nor more than once."""

from __future__ import annotations

import base64
import binascii
import errno
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncckpt.errors import CorruptCheckpointError
from asyncckpt.keyed import json_base64, json_scan, json_text
from asyncckpt.keyed.json_base64 import BLOCK_NBYTES, decode_into
from asyncckpt.keyed.json_parse import _PART_NBYTES
from asyncckpt.keyed.json_read import decode_value, split_object
from asyncckpt.keyed.json_text import PIECE_NBYTES, FileText, MemoryText
from asyncckpt.runtime.pacing import Pacer

if TYPE_CHECKING:
    from pathlib import Path


def _decoded(text: bytes) -> bytes:
    """Decode with the tables."""
    padding = text[-2:].count(b"=")
    target = np.full(len(text) // 4 * 3 - padding + 8, 0xAA, np.uint8)
    made = decode_into(text, target[:-8])
    assert bytes(target[-8:]) == b"\xaa" * 8, "nothing is written behind what it is given"
    return target[:made].tobytes()


@given(st.binary(max_size=300))
def test_base64_of_any_length(data: bytes) -> None:
    """What the tables decode is what was encoded."""
    assert _decoded(base64.b64encode(data)) == data


@pytest.mark.parametrize("in_order", [True, False], ids=["in order", "not in order"])
@pytest.mark.parametrize("rest", range(4))
def test_base64_of_many_blocks(rest: int, monkeypatch: pytest.MonkeyPatch, *, in_order: bool) -> None:
    """The seams between blocks do not show, also where numpy writes elements that overlap in another order."""
    assert json_base64._writes_in_order()
    monkeypatch.setattr(json_base64, "_writes_in_order", lambda: in_order)
    data = np.random.default_rng(rest).bytes(BLOCK_NBYTES // 4 * 3 * 2 + rest)
    assert _decoded(base64.b64encode(data)) == data


@given(st.binary(max_size=60), st.data())
def test_base64_that_is_none(data: bytes, draw: st.DataObject) -> None:
    """Whatever `binascii` refuses is refused, and nothing else, wherever it stands."""
    text = bytearray(base64.b64encode(data))
    if text:
        text[draw.draw(st.integers(0, len(text) - 1))] = draw.draw(st.integers(0, 255))
    try:
        expected = binascii.a2b_base64(bytes(text), strict_mode=True)
    except binascii.Error:
        with pytest.raises(ValueError, match=r"\w"):
            _decoded(bytes(text))
    else:
        assert _decoded(bytes(text)) == expected


def test_base64_that_does_not_fit() -> None:
    """An array is never filled by halves."""
    with pytest.raises(ValueError, match="6 bytes of base64 where there should be 5"):
        decode_into(b"AAAABBBB", np.empty(5, np.uint8))


def _file(tmp_path: Path, data: bytes) -> FileText:
    path = tmp_path / "text"
    path.write_bytes(data)
    return FileText(os.open(path, os.O_RDWR))


def test_text_of_a_file_is_read_twice_for_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long value is looked at once for its structure, and once for its bytes, in pieces; opening looks once."""
    reads: list[int] = []
    pread = os.pread

    def counted(fd: int, nbytes: int, offset: int) -> bytes:
        reads.append(nbytes)
        return pread(fd, nbytes, offset)

    text64 = base64.b64encode(bytes(196_608)).decode()
    data = ",".join(f'"{text64}"' for _ in range(40))
    content = f'{{"__asyncckpt__":"array","number":0,"dtype":"|u1","shape":[{40 * 196_608}],"data":[{data}]}}'
    text = _file(tmp_path, f'{{"key": {content}}}'.encode())
    monkeypatch.setattr(json_text.os, "pread", counted)
    try:
        ((_, low, high),) = split_object(text, Pacer())
        pieces = -(-len(text) // PIECE_NBYTES)
        assert len(reads) <= pieces + 2
        reads.clear()
        assert not decode_value(text, low, high, Pacer()).value.any()
        assert len(reads) <= 2 * pieces + 4
        assert max(reads) <= PIECE_NBYTES
    finally:
        text.drop(Pacer())


def test_windows_behind_long_strings_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an array's many long strings, the vector operations see only what is between them."""
    seen: list[int] = []
    kinds = json_scan._KINDS

    class Counted:
        def __getitem__(self, data: np.ndarray) -> np.ndarray:
            seen.append(len(data))
            return kinds[data]

    monkeypatch.setattr(json_scan, "_KINDS", Counted())
    text = MemoryText([b"[" + b",".join(b'"' + b"x" * 262_144 + b'"' for _ in range(50)) + b"]"])
    assert sum(len(window.at) for window in json_scan.windows(text, 0, len(text), 0, Pacer())) == 51
    assert sum(seen) < 3 * json_scan.WINDOW_NBYTES


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=1), st.data())
def test_a_text_in_pieces_is_one(pieces: list[bytes], draw: st.DataObject) -> None:
    """Slices are the same wherever the pieces end."""
    whole = b"".join(pieces)
    low = draw.draw(st.integers(0, len(whole)))
    high = draw.draw(st.integers(low, len(whole)))
    text = MemoryText(pieces)
    assert text.slice(low, high) == whole[low:high] == b"".join(text.pieces(low, high))


def test_a_file_that_another_program_changes(tmp_path: Path) -> None:
    """A piece that was read before is what it was, or an error."""
    data = b"".join(bytes([48 + number]) * PIECE_NBYTES for number in range(4))
    text = _file(tmp_path, data)
    try:
        assert b"".join(text.pieces(0, len(text))) == data
        with (tmp_path / "text").open("r+b") as file:
            file.seek(PIECE_NBYTES + 5)
            file.write(b"x")
        with pytest.raises(ValueError, match="another program has changed it"):
            text.slice(PIECE_NBYTES, PIECE_NBYTES + 1)
        assert text.slice(0, 3) == b"000"
    finally:
        text.drop(Pacer())


def test_a_failed_read_leaves_no_wrong_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the disk refuses to read is asked for again, and never taken from another place of the file."""
    data = b"".join(bytes([letter]) * PIECE_NBYTES for letter in b"abc")

    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    text = _file(tmp_path, data)
    try:
        for at in range(0, len(data), PIECE_NBYTES):
            assert text.slice(at, at + 1) == data[at : at + 1]
        with monkeypatch.context() as patched:
            patched.setattr(os, "pread", failing)
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                text.slice(0, 1)
        assert text.slice(0, 1) == data[:1]
    finally:
        text.drop(Pacer())


def test_padding_within_long_base64_is_refused() -> None:
    """Text of as many bytes as an array has, which decodes to fewer, leaves none of them unset."""
    letters = b"A" * (_PART_NBYTES - 2) + b"==" + b"A" * _PART_NBYTES
    nbytes = len(letters) // 4 * 3
    text = b'{"__asyncckpt__":"array","number":0,"dtype":"|u1","shape":[%d],"data":["%s"]}' % (nbytes, letters)
    with pytest.raises(CorruptCheckpointError, match=f"an array of {nbytes} bytes has {nbytes - 2}"):
        decode_value(MemoryText([text]), 0, len(text), Pacer())

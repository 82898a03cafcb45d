"""Hostile files that once hurt: each of these crashed, hung, took gigabytes, or raised what no caller expects."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ONCE_HURT = [
    ("big-bombs", r"5 MB of b'\x80' as a dtype"),
    ("big-bombs", r"5 MB of b'\x90' as a chunk"),
    ("bombs", "headers that claim what is there as the argument of LIST"),
    ("bombs", "headers that claim a chunk as a chunk"),
    ("bombs", "headers that claim all as the dtypes"),
    ("trees", "tuples 300000 deep as key"),
    ("trees", "keys of one hash"),
    ("trees", "an int of 100 kB as key"),
    ("objects", "'bytearray', state 0"),
    ("objects", "'seed_sequence', state 0"),
    ("objects", "'seed_sequence', state 2"),
    ("objects", "'bit_generator', state 1"),
    ("objects", "'bit_generator', state 8"),
    ("objects", "'random_state', state 1"),
    ("leaves", "5,000 times node 13 of 1 MiB"),
    ("leaves", "5,000 times one list"),
    ("leaves", "a scalar ('bytes_', 1099511627776)"),
    ("leaves", r"a scalar ('<U1', b'\xff\xff\xff\x7f')"),
    ("arrays", "shape (0, 9223372036854775808) and no bytes"),
    ("arrays", "segments [(0, 2048), (2048, 2048)]"),
    ("dtypes", "dtype 35 of shape (4096,)"),
    ("manifests", "created is '10000000000000000000'"),
    ("manifests", r"a file called '\ud800'"),
    ("manifests", "an index of 10 GiB"),
    ("hdf5", "an external link, beside a good index"),
    ("log-heads", "the file's asyncckpt is '[]'"),
    ("log-heads", "a file twice"),
    ("json", "5 MB of [] in a tuple"),
    ("npz-members", "a member of an empty claim"),
    ("npz-members", "a member called ''"),
    ("npz-directories", "empty maps as the directory"),
    ("npz-directories", "5 MB of empty maps"),
    ("keyed-hdf5", "empty maps as the catalog"),
    ("keyed-hdf5", "a long text as features"),
]

_SCRIPT = """
import json, sys, tempfile
from pathlib import Path
from tests.reliability.hostile import try_named
with tempfile.TemporaryDirectory() as folder:
    print(json.dumps(try_named(map(tuple, json.load(sys.stdin)), Path(folder))))
"""


@pytest.mark.rigs
def test_what_once_hurt_does_no_more() -> None:
    """Soon, in little memory, with a value or a CheckpointError, and without a look outside of the directory."""
    found = subprocess.run(  # noqa: S603 - in a process of its own: it forks, and must not have threads then
        [sys.executable, "-c", _SCRIPT],
        input=json.dumps(ONCE_HURT),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(found.stdout) == {}

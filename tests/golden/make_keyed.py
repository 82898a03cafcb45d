"""Makes the golden JSON file of many keys, and says what it holds.

    python tests/golden/make_keyed.py tests/golden/keyed_1

As with checkpoints, a file once made is never made again: it must load for ever.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import make
import numpy as np

import asyncckpt
from asyncckpt.keyed.json import codec

FOREIGN = '{"foreign": [ 1,\n 2.50, {"a\\u00e9": null} ],\n"deep": 1}'
"""What the file began with: its values are another program's text, a line break within one of them included."""


def values() -> dict[str, Any]:
    """Return what the file holds, by key."""
    tree: Any = np.arange(5, dtype=">i2")
    for number in range(260):
        tree = (tree, number) if number % 2 else [tree, {"n": number}]
    shared = np.arange(4.0)
    return {
        "foreign": [1, 2.5, {"a\u00e9": None}],
        "deep": tree,
        **make.state_of("msgpack"),
        "strings": ["\u00e9" * 3000, bytes(5000)],
        "more numbers": [list(range(-600, 600)), (float("nan"),) * 600],
        "a key that holds an array": {make.Key(shared): shared, (1, 2.5): {"below": {3: None}}},
        "": "the empty key",
        "caf\u00e9/\U0001f600\n": 1,
        "\ud800": "half a surrogate",
        "__asyncckpt__": "a key like ours",
        "__asyncckpt_key__1": {"__asyncckpt__": {"__asyncckpt__x": 1}},
    }


def make_file(path: pathlib.Path) -> None:
    """Write the file, in two flushes."""
    codec._DATA_NBYTES = 300  # so that arrays have several strings, as those above 192 KiB do
    path.write_text(FOREIGN, encoding="utf-8")
    with asyncckpt.Checkpointer.from_file(path) as chk:
        chk["gone"] = np.zeros(1000)
        chk.flush()
        del chk["gone"]
        for key, value in values().items():
            if key != "foreign":
                chk[key] = value


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir()
    make_file(folder / "woof.json")

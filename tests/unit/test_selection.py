"""Which paths a selection takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.support import FORMATS, Params, Point, assert_same, load_from, save_to

from asyncckpt import CheckpointKeyError
from asyncckpt.state.selection import Selection

if TYPE_CHECKING:
    from pathlib import Path


def takes(patterns: str | list[str], path: list[object]) -> bool:
    """Whether a selection takes a path, key by key."""
    selection = Selection.parse(patterns)
    for key in path:
        selection = selection.below(key)
    return selection.is_whole


@pytest.mark.parametrize(
    ("patterns", "path", "expected"),
    [
        ("params", ["params"], True),
        ("params", ["params", "w", 0], True),
        ("params", ["other"], False),
        ("params", ["params2"], False),
        ("params/", ["params", "w"], True),
        ("/params", ["params", "w"], True),
        ("params/*", ["params"], False),
        ("params/*", ["params", "w"], True),
        ("params/*", ["params", "w", "deep"], True),
        ("params/*/w", ["params", "a", "w"], True),
        ("params/*/w", ["params", "a", "b"], False),
        ("params/*/w", ["params", "a"], False),
        ("p*/w?", ["params", "w1"], True),
        ("p*/w?", ["params", "w12"], False),
        ("*", ["anything"], True),
        ("**", [], True),
        ("", [], True),
        ("**/bias", ["bias"], True),
        ("**/bias", ["a", "b", "bias"], True),
        ("**/bias", ["a", "b", "bias", "more"], True),
        ("**/bias", ["a", "biased"], False),
        ("a/**/z", ["a", "z"], True),
        ("a/**/z", ["a", 1, 2, "z"], True),
        ("layers/[01]", ["layers", 1], True),
        ("layers/[01]", ["layers", 2], False),
        ("layers/[!0]", ["layers", 2], True),
        ("layers/1", ["layers", "1"], True),
        ("w[0]", ["w[0]"], True),
        ("w[0]", ["w0"], True),
        ("a*b", ["a*b"], True),
        ("a/b", ["a/b"], True),
        ("a/b/c", ["a/b", "c"], True),
        ("a/b/c", ["a", "b/c"], True),
        ("a/*", ["a/b"], True),
        ("PARAMS", ["params"], False),
        (["a", "b/c"], ["b", "c"], True),
        (["a", "b/c"], ["b", "d"], False),
        ([], ["a"], False),
        ("None", [None], True),
        ("(1, 2)", [(1, 2)], True),
    ],
)
def test_patterns(patterns: str | list[str], path: list[object], expected: bool) -> None:
    """A pattern takes a path when it matches the path or a prefix of it, part by part."""
    assert takes(patterns, path) is expected


STATE: Any = {
    "params": {"w1": np.arange(4.0), "w2": np.zeros((2, 2)), "a/b": np.ones(3), "empty": {}},
    "opt": [np.arange(3), {"m": np.arange(5), "step": 7}, (1, 2)],
    "long": "x" * 10_000,
    "run": [float(i) for i in range(2000)],
    "short run": tuple(range(20)),
    "point": Point(np.arange(2), Params(np.arange(6), "deep")),
    "set": {1, 2},
    "none": None,
    1: "one",
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("params/w1", {"params": {"w1": STATE["params"]["w1"]}}),
        ("params", {"params": STATE["params"]}),
        ("params/empty", {"params": {"empty": {}}}),
        ("params/a/b", {"params": {"a/b": np.ones(3)}}),
        ("opt/1/m", {"opt": [None, {"m": np.arange(5)}, None]}),
        ("opt/2/0", {"opt": [None, None, (1, None)]}),
        (["opt/0", "none", "1"], {"opt": [np.arange(3), None, None], "none": None, 1: "one"}),
        ("long", {"long": STATE["long"]}),
        ("run", {"run": STATE["run"]}),
        ("run/3", {"run": [None] * 3 + [3.0] + [None] * 1996}),
        ("short run/1[0-1]", {"short run": (None,) * 10 + (10, 11) + (None,) * 8}),
        ("point", {"point": STATE["point"]}),
        ("point/0", {"point": (np.arange(2), None)}),
        ("point/1", {"point": (None, STATE["point"].y)}),
        ("point/1/weights", {"point": (None, {"weights": np.arange(6)})}),
        ("set", {"set": {1, 2}}),
        ("**", STATE),
        ("*/m", None),
        ("nothing", None),
        ("params/w1/deeper", None),
        ("set/0", None),
        ([], None),
    ],
    ids=str,
)
def test_what_a_selection_loads(tmp_path: Path, form: str, select: Any, expected: Any) -> None:
    """Dicts keep what is selected, lists and tuples put None for the rest, part of an object is plain data."""
    save_to(tmp_path, 1, STATE, form=form)
    if expected is None:
        with pytest.raises(CheckpointKeyError) as caught:
            load_from(tmp_path, 1, select=select)
        assert isinstance(caught.value, KeyError)
        assert "params" in caught.value.known
        assert caught.value.key == select or caught.value.key == tuple(select)
        return
    assert_same(load_from(tmp_path, 1, select=select), expected)
    assert_same(load_from(tmp_path, 1, select=select, lazy=True), expected)


def test_iterables_of_patterns(tmp_path: Path) -> None:
    """Any iterable of patterns will do."""
    save_to(tmp_path, 1, STATE)
    assert_same(load_from(tmp_path, 1, select=(each for each in ("none", "1"))), {"none": None, 1: "one"})


def test_long_runs_are_not_searched_in_vain() -> None:
    """A pattern that cannot match a position costs nothing, however long the run."""
    selection = Selection.parse("**/weights")
    assert selection.below("run").positions(10**12) == []
    assert Selection.parse("run/7").below("run").positions(10**12) == [7]
    assert Selection.parse("run/*").below("run").positions(3) == [0, 1, 2]

"""Which names in a checkpoint directory are ours."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from asyncckpt.disk.names import Kind, name_of, parse_name, paths_of

STEPS = [0, 1, 9, 10, 1234567890, 2**63, 10**19, 2**64, 10**40]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", Kind)
def test_a_name_is_read_back(kind: Kind, step: int) -> None:
    """What `name_of` makes, `parse_name` understands, however great the step."""
    assert parse_name(name_of(kind, step)) == (kind, step)


@pytest.mark.parametrize("kind", [Kind.PENDING, Kind.TRASH])
def test_what_means_nothing_may_carry_a_number(kind: Kind) -> None:
    """Where a name is taken, there is another one."""
    names = [path.name for path in itertools.islice(paths_of(Path("runs"), kind, 3), 13)]
    assert names[0] == name_of(kind, 3)
    assert names[12] == f"{kind}3.12"
    assert {parse_name(name) for name in names} == {(kind, 3)}


@pytest.mark.parametrize(
    "name",
    [
        "step_1-hf",
        "step_01",
        "step_00",
        "step_",
        "step_-1",
        "step_+1",
        "step_1.0",
        "step_1_0",
        "step_1 ",
        " step_1",
        "step_1\n",
        "step_\u0661",  # a digit to Python, not to us
        "step_1.1",
        "old_step_1.1",
        "new_step_1.1",
        "deleted_step_1.1",
        "trash_step_1.0",
        "Step_1",
        "my_step_1",
        "tmp_step_",
        "tmp_1",
        "trash_step_01",
        "trash_step_1.",
        "trash_step_1.x",
        "step_1.tmp",
        ".lock",
        "",
    ],
)
def test_other_names_are_nobodys(name: str) -> None:
    """A name that only resembles ours is left alone."""
    assert parse_name(name) is None

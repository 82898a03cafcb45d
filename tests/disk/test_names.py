"""Which names in a checkpoint directory are ours."""

from __future__ import annotations

import pytest

from asyncckpt.disk.names import Kind, name_of, parse_name

STEPS = [0, 1, 9, 10, 1234567890, 2**63, 10**19, 2**64, 10**40]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", Kind)
def test_a_name_is_read_back(kind: Kind, step: int) -> None:
    """What `name_of` makes, `parse_name` understands, however great the step."""
    assert parse_name(name_of(kind, step)) == (kind, step)


@pytest.mark.parametrize("name", ["trash_step_3.1", "trash_step_3.12"])
def test_trash_may_carry_a_number(name: str) -> None:
    """Trash of a step that was deleted before is told from the first."""
    assert parse_name(name) == (Kind.TRASH, 3)


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
        "tmp_step_1.1",
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

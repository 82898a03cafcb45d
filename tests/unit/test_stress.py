"""The plan of `make stress-test`."""

from __future__ import annotations

from stress import plan


def test_ten_runs_have_all_that_is_promised() -> None:
    """Both numbers of workers, three runs beside a load of twice the cores, of both numbers; each in its own order."""
    runs = plan(10, 7, cores=2)
    assert [run.workers for run in runs] == [2, 4] * 5
    assert [run.load for run in runs if run.load] == [4] * 3
    assert {run.workers for run in runs if run.load} == {2, 4}
    assert [run.seed for run in runs] == list(range(7, 17))
    assert len({run.seed for run in plan(10, None, cores=2)}) == 10

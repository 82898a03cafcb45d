"""The titles of the measures, and the formatting of their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.states import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.samples import Spread

TITLES: Final = {
    "blocked": "blocked",
    "prewarmed_blocked": "blocked, first save after `prewarm`",
    "durable": "durable",
    "stall_max": "longest stall",
    "stall_elsewhere": "longest stall of a separate process that only sleeps",
    "stall_p99": "stall, p99",
    "first_blocked": "blocked, first save, unprepared",
    "first_durable": "durable, first save",
    "first_stall_max": "longest stall, first save",
    "first_stall_p99": "stall, first save, p99",
    "load_after_save": "load right after its own save",
    "load_warm": "load, warm",
    "load_cold": "load, cold",
    "load_lazy": "load, lazy, warm",
    "load_stall_max": "longest stall on load",
    "restore_warm": "restore in place, warm",
    "gc_collect": "`gc.collect()` on that heap",
    "steps_alone": "steps per second, no saves",
    "steps_saving": "steps per second, saving",
    "saves_meanwhile": "saves meanwhile",
    "peak_nbytes": "peak extra memory",
    "peak_per_budget": "peak extra memory / budget",
    "open_warm": "open, warm",
    "open_cold": "open, cold",
    "open_warm_stall_max": "longest stall while opening, warm",
    "open_cold_stall_max": "longest stall while opening, cold",
    "latest_step": "`latest_step()`",
    "best_step": "`best_step()`",
    "best_step_anew": "`best_step()` right after a commit",
    "should_save": "`should_save()`",
    "import": "import, over numpy's",
    "import_beside_asyncio": "import, over numpy's and asyncio's",
    "memcpy": "two-thread memcpy, warm pages",
    "memcpy_fresh": "two-thread copy into fresh memory",
    "direct_write": "two-thread 16 MiB direct writes + fsync",
    "direct_read": "direct reads, 4 x 8 MiB in flight",
    "cached_read": "page-cache read into warm memory",
    "cached_read_fresh": "page-cache read into fresh memory",
    "bare_commit": "bare mkdir, write, fsync, rename, fsync",
    "idle_stall_max": "longest stall of an idle loop",
    "idle_stall_p99": "stall of an idle loop, p99",
}
"""The measures that have a title of their own; the others are called by their name."""


def _seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.2f} s"
    if value >= 1e-3:  # noqa: PLR2004 - a millisecond
        return f"{value * 1e3:.3g} ms" if value < 0.1 else f"{value * 1e3:.0f} ms"  # noqa: PLR2004
    return f"{value * 1e6:.3g} us"


_FORMATS: Final[dict[str, Callable[[float], str]]] = {
    "peak_nbytes": lambda value: f"{value / MIB:.0f} MiB",
    "peak_per_budget": lambda value: f"{value:.2f}",
    "steps_alone": lambda value: f"{value:.0f}",
    "steps_saving": lambda value: f"{value:.0f}",
    "saves_meanwhile": lambda value: f"{value:.0f}",
}


def title(measure: str) -> str:
    """Name a measure."""
    return TITLES.get(measure, measure)


def number(measure: str, value: float) -> str:
    """Write a number with its unit."""
    return _FORMATS.get(measure, _seconds)(value)


def spread(measure: str, found: Spread) -> str:
    """Write the median, and the least and greatest where they differ."""
    text = ("> " if found.is_censored else "") + number(measure, found.median)
    if found.samples == 1:
        return text
    return f"{text} [{number(measure, found.least)} .. {number(measure, found.greatest)}]"

"""The plots, from the same samples as the table."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from benchmarks import measures
from benchmarks.samples import FLOORS
from benchmarks.systems import NAMES, OURS
from benchmarks.workloads import BUSY_DURATIONS, WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.samples import Samples
    from benchmarks.scale import Scale

_OURS_COLOR: Final = "#1f6f8b"
_PEER_COLOR: Final = "#b8bfc6"
_FLOOR_COLOR: Final = "#d1495b"


class Panel(NamedTuple):
    """One chart of a plot: a bar for each system, and a line for the floor."""

    measure: str
    floors: tuple[str, ...] = ()
    is_logarithmic: bool = False


class Plot(NamedTuple):
    """One file."""

    name: str
    workload: str
    panels: tuple[Panel, ...]


PLOTS: Final = (
    Plot(
        "save",
        "arrays",
        (
            Panel("blocked", ("memcpy",)),
            Panel("stall_max", ("idle_stall_max",), is_logarithmic=True),
            Panel("durable", ("memcpy", "direct_write")),
        ),
    ),
    Plot("load", "arrays", (Panel("load_cold", ("direct_read",)), Panel("load_warm", ("cached_read_fresh",)))),
    Plot("busy", "busy", tuple(Panel(f"durable, {label}", is_logarithmic=True) for label in BUSY_DURATIONS)),
    Plot("many", "many", (Panel("blocked", is_logarithmic=True), Panel("durable", is_logarithmic=True))),
    Plot(
        "small",
        "small",
        (Panel("blocked", is_logarithmic=True), Panel("durable", ("bare_commit",), is_logarithmic=True)),
    ),
    Plot("steps", "steps", (Panel("steps_saving"), Panel("saves_meanwhile"))),
)


def write_plots(samples: Samples, scale: Scale, out: Path) -> Iterator[Path]:
    """Write the plots of what was measured; yield their paths."""
    mpl.rcParams.update({"svg.hashsalt": "asyncckpt", "font.size": 9})  # the same samples give the same file
    for plot in PLOTS:
        if plot.workload in samples.workloads():
            path = out / f"{plot.name}.svg"
            _draw(plot, samples, scale).savefig(path, metadata={"Date": None})
            yield path


def _tick(measure: str, value: float, _: int) -> str:
    return measures.number(measure, value) if value else "0"


def _draw(plot: Plot, samples: Samples, scale: Scale) -> Figure:
    systems = [name for name in NAMES if name in samples.systems(plot.workload)][::-1]
    figure = Figure(figsize=(3.2 * len(plot.panels) + 1.2, 0.28 * len(systems) + 1.3), layout="constrained")
    figure.suptitle(next(workload.title_at(scale) for workload in WORKLOADS if workload.name == plot.workload))
    for index, (panel, axes) in enumerate(
        zip(plot.panels, figure.subplots(1, len(plot.panels), squeeze=False)[0], strict=True)
    ):
        for row, system in enumerate(systems):
            found = samples.spread(plot.workload, system, panel.measure)
            if found is None:
                continue
            axes.barh(row, found.median, color=_OURS_COLOR if system in OURS else _PEER_COLOR)
            axes.plot([found.least, found.greatest], [row, row], color="black", linewidth=0.8)
            mark = ("> " if found.is_censored else " ") + measures.number(panel.measure, found.median)
            axes.annotate(
                mark, (found.greatest, row), va="center", fontsize=7, xytext=(2, 0), textcoords="offset points"
            )
        floors = [samples.median(plot.workload, FLOORS, name) for name in panel.floors]
        known = [floor for floor in floors if floor is not None]
        if known and len(known) == len(floors):
            axes.axvline(sum(known), color=_FLOOR_COLOR, linewidth=1, linestyle="--")
            axes.set_xlabel("dashed: " + " + ".join(panel.floors), color=_FLOOR_COLOR, fontsize=7)
        if panel.is_logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(partial(_tick, panel.measure))
        axes.tick_params(axis="x", labelsize=7)
        axes.margins(x=0.3)
        axes.set_title(measures.title(panel.measure), fontsize=9)
        axes.set_yticks(range(len(systems)), systems if index == 0 else [""] * len(systems))
        axes.spines[["top", "right"]].set_visible(False)
    return figure

"""docs/performance.md shows the results that are kept: its tables stand between marks and are written by this module.

A block begins with `<!-- measured: NAME -->` and ends with `<!-- end -->`. NAME is a workload, or one of `machine` and
`goals`. The rest of the page is text, and has no figures of a run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import report
from benchmarks.scale import SCALES
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from benchmarks.store import Results

PAGE: Final = Path(__file__).parents[1] / "docs" / "performance.md"
BLOCK: Final = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def fill(page: str, results: Results) -> str:
    """Return the page with every block as `results` have it."""
    return BLOCK.sub(lambda found: found[1] + "\n" + _block(found[2], results) + "\n" + found[3], page)


def _block(name: str, results: Results) -> str:
    if name == "machine":
        lines = list(report.machine(results))
    elif name == "goals":
        lines = list(report.missed(results))
    else:
        workload = next(each for each in WORKLOADS if each.name == name)
        lines = [f"**{workload.title_at(SCALES[results.scale])}**", ""]
        lines += report.measured(results, name) if name in results.sessions else ["Not measured yet."]
    return "\n".join(lines).rstrip() + "\n"

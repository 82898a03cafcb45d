"""Write the tables of measured results into docs/performance.md and README.md.

A table lies between `<!-- measured: NAME -->` and `<!-- end -->`. NAME is a workload, or `machine`, `goals` or
`summary`. The rest of a page is text, and quotes no figures of a run.
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

_ROOT: Final = Path(__file__).parents[1]
PAGES: Final = (_ROOT / "docs" / "performance.md", _ROOT / "README.md")
BLOCK: Final = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def fill(page: str, results: Results) -> str:
    """Return the page with every table made from `results`."""
    return BLOCK.sub(lambda found: found[1] + "\n" + _block(found[2], results) + "\n" + found[3], page)


def _block(name: str, results: Results) -> str:
    if name == "machine":
        lines = list(report.machine(results))
    elif name == "goals":
        lines = list(report.missed(results))
    elif name == "summary":
        lines = list(report.summary(results))
    else:
        workload = next(each for each in WORKLOADS if each.name == name)
        lines = [f"**{workload.title_at(SCALES[results.scale])}**", ""]
        lines += report.measured(results, name) if name in results.sessions else ["Not measured yet."]
    return "\n".join(lines).rstrip() + "\n"

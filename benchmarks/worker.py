"""One measurement, in a process of its own: `python -m benchmarks.worker WORKLOAD SYSTEM ROOT OUT [--round N]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import warnings
from pathlib import Path

from benchmarks.measuring import Context, GivenUpError, Labels
from benchmarks.samples import FLOORS
from benchmarks.scale import FULL, QUICK
from benchmarks.workloads import WORKLOADS, measure, measure_floors


def main() -> None:
    """Measure, and write the samples to OUT, one a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=[workload.name for workload in WORKLOADS])
    parser.add_argument("system")
    parser.add_argument("root", type=Path, help="an empty directory for the checkpoints")
    parser.add_argument("out", type=Path)
    parser.add_argument("--round", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()

    warnings.simplefilter("ignore")  # other libraries warn about themselves; failures raise
    workload = next(workload for workload in WORKLOADS if workload.name == args.workload)
    with args.out.open("a") as out:
        labels = Labels(workload.name, args.system, args.round)
        context = Context(QUICK if args.quick else FULL, labels=labels, root=args.root, out=out)
        if args.system == FLOORS:
            measure_floors(context, workload)
            return
        try:
            asyncio.run(measure(context, workload, args.system))
        except GivenUpError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)  # the abandoned save would keep the process alive
    sys.stdout.flush()
    os._exit(0)  # other libraries leave threads and processes behind, which would delay the exit


if __name__ == "__main__":
    main()

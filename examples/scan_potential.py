"""A parameter scan in an asyncio program: vibrational levels of two coupled oscillators, each computed once.

    python examples/scan_potential.py    # scans; killed and run again, it computes only what is missing

For each pair of couplings (a, b) the Schroedinger equation of two coordinates (mass and hbar are 1),

    V(x, y) = (x^2 + y^2) / 2 + a x y + b x^2 y^2,

is solved in a discrete variable representation: V is diagonal on the grid, and the kinetic energy is the sum of one
matrix for each coordinate, the sinc-function one of D. T. Colbert and W. H. Miller, J. Chem. Phys. 96, 1982 (1992).

`cached_eval` is all that makes it resumable: it loads the levels of a pair, or computes and saves them. The levels of
all pairs are kept in one file, HDF5 by default; `--file scan.npz` (or .json, .msgpack) keeps them in another.
"""

from __future__ import annotations

import os

# One BLAS thread: sums are split the same way in every run. BLAS reads this once, when numpy is imported.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import eigh

import asyncckpt

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_LEVELS = 8
HALF_WIDTH = 6.0  # of the grid in each coordinate


def solve(a: float, b: float, n_points: int) -> dict[str, NDArray[np.float64]]:
    """Solve for one pair of couplings.

    Args:
        a: Bilinear coupling; below 1, or the potential has no bottom.
        b: Quartic coupling, not negative.
        n_points: Grid points in each coordinate.

    Returns:
        "energies", shape (N_LEVELS,), and "density" of the ground state on the grid, shape (n_points, n_points).
    """
    x, step = np.linspace(-HALF_WIDTH, HALF_WIDTH, n_points, retstep=True)
    distance = np.subtract.outer(np.arange(n_points), np.arange(n_points))
    with np.errstate(divide="ignore"):
        kinetic = (-1.0) ** distance / (step * distance) ** 2
    np.fill_diagonal(kinetic, np.pi**2 / (6 * step**2))
    one = np.eye(n_points)
    hamiltonian = np.kron(kinetic, one) + np.kron(one, kinetic)
    y = x[:, None]
    potential = (x**2 + y**2) / 2 + a * x * y + b * x**2 * y**2
    hamiltonian[np.diag_indices_from(hamiltonian)] += potential.ravel()
    energies, states = eigh(hamiltonian, subset_by_index=(0, N_LEVELS - 1))
    return {"energies": energies, "density": (states[:, 0] ** 2 / step**2).reshape(n_points, n_points)}


async def scan(args: argparse.Namespace) -> None:
    """Compute what is missing in the file, `args.workers` pairs at a time."""
    couplings = np.linspace(0.0, 0.8, args.couplings).round(6).tolist()
    room = asyncio.Semaphore(args.workers)
    async with asyncckpt.Checkpointer.from_file(args.file) as chk:

        async def levels_of(a: float, b: float) -> Any:
            async def compute() -> Any:
                return await asyncio.to_thread(solve, a, b, args.points)

            key = f"a={a} b={b}"
            async with room:
                is_stored = key in chk
                levels = await chk.cached_eval(key, compute)
                await chk.flush()  # from here on, a kill does not lose it
            energies = " ".join(f"{energy:.6f}" for energy in levels["energies"][:4])
            print(f"{'loaded  ' if is_stored else 'computed'} {key}: {energies}", flush=True)
            return levels["energies"]

        found = await asyncio.gather(*itertools.starmap(levels_of, itertools.product(couplings, couplings)))
        energies = np.array(found).reshape(len(couplings), len(couplings), N_LEVELS)
        chk["energies"] = energies
        chk["couplings"] = couplings
    print(f"{len(found)} pairs; the first gap is smallest at {np.diff(energies[..., :2]).min():.6f}")


def main() -> None:
    """Run the scan."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--file", default="scan.hdf5", help="where the levels are kept")
    parser.add_argument("--couplings", type=int, default=6, help="values of each coupling")
    parser.add_argument("--points", type=int, default=28, help="grid points in each coordinate")
    parser.add_argument("--workers", type=int, default=2, help="pairs computed at the same time")
    asyncio.run(scan(parser.parse_args()))


if __name__ == "__main__":
    main()

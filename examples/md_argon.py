"""Molecular dynamics in an asyncio program: argon, simulated by ASE in a thread and saved by asyncckpt as HDF5.

    python examples/md_argon.py          # simulates; run again, it resumes where the last run ended
    python examples/md_argon.py --demo   # kills a run in the middle of a save, resumes it, compares bit for bit

A resumed trajectory equals an uninterrupted one, bit for bit, because

1. the thermostat's random numbers come from a Generator that is in the checkpoint, and
2. every run clears the calculator's caches after each save. The neighbor list determines the order in which forces are
   summed, and it depends on earlier positions, which are not in the checkpoint. After a save, a run that continues
   builds the same list, from the same positions, as a run that resumes there.
"""

from __future__ import annotations

import os

# One BLAS thread: sums are split the same way in every run. BLAS reads this once, when numpy is imported.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from ase import units
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.constraints import FixCom
from ase.md.langevin import Langevin
from harness import SaveMeter, kill_and_resume, new_parser, run

import asyncckpt

if TYPE_CHECKING:
    import argparse

TEMPERATURE = 94.4  # kelvin; with the density of 1.374 g/cm3, Rahman's liquid argon of 1964
LATTICE_CONSTANT = 5.78  # angstrom, for that density
SIGMA, EPSILON, CUTOFF = 3.4, 120 * units.kB, 8.5  # angstrom, eV, angstrom
TIME_STEP, FRICTION = 5 * units.fs, 0.01 / units.fs
FRAME = 5  # steps between two frames of the trajectory


class Simulation:
    """A periodic box of argon with a Langevin thermostat, and its trajectory so far."""

    def __init__(self, n_cells: int, n_steps: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.atoms = bulk("Ar", "fcc", a=LATTICE_CONSTANT, cubic=True).repeat(n_cells)
        self.atoms.calc = LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF, smooth=True)
        self.atoms.set_constraint(FixCom())
        thermal = np.sqrt(self.atoms.get_masses() * units.kB * TEMPERATURE)
        self.atoms.set_momenta(thermal[:, None] * rng.standard_normal((len(self.atoms), 3)))
        self.dynamics = Langevin(
            self.atoms, TIME_STEP, temperature_K=TEMPERATURE, friction=FRICTION, fixcm=False, rng=rng
        )
        n_frames = n_steps // FRAME
        self.trajectory = np.zeros((n_frames, len(self.atoms), 3))  # angstrom
        self.energies = np.zeros((n_frames, 2))  # eV: potential, kinetic

    @property
    def step(self) -> int:
        """The number of steps made."""
        return int(self.dynamics.nsteps)

    @property
    def n_frames(self) -> int:
        """The number of frames recorded."""
        return self.step // FRAME

    def advance(self) -> None:
        """Simulate up to the next frame. This runs in a thread, while the loop does other things."""
        self.dynamics.run(FRAME)
        self.trajectory[self.n_frames - 1] = self.atoms.positions
        self.energies[self.n_frames - 1] = self.atoms.get_potential_energy(), self.atoms.get_kinetic_energy()

    def state(self) -> dict[str, Any]:
        """Return all of the state, uncopied: `save` copies it."""
        return {
            "cell": self.atoms.cell.array,
            "positions": self.atoms.positions,
            "momenta": self.atoms.get_momenta(),
            "rng": self.dynamics.rng,
            "trajectory": self.trajectory[: self.n_frames],
            "energies": self.energies[: self.n_frames],
        }

    def restore(self, step: int, state: dict[str, Any]) -> None:
        """Continue as the simulation that had this state."""
        self.dynamics.nsteps, self.dynamics.rng = step, state["rng"]
        self.atoms.set_cell(state["cell"])
        self.atoms.set_positions(state["positions"], apply_constraint=False)
        self.atoms.set_momenta(state["momenta"], apply_constraint=False)
        self.trajectory[: self.n_frames] = state["trajectory"]
        self.energies[: self.n_frames] = state["energies"]

    def forget_caches(self) -> None:
        """Make the next forces depend on nothing but the positions (see rule 2 above)."""
        self.atoms.calc.reset()

    def mean_temperature(self) -> float:
        """The mean temperature over the second half of the frames, in kelvin."""
        kinetic = self.energies[self.n_frames // 2 : self.n_frames, 1].mean()
        return float(2 * kinetic / (3 * (len(self.atoms) - 1) * units.kB))


async def simulate(args: argparse.Namespace) -> None:
    """Simulate until step `args.steps`, starting from the newest checkpoint if there is one."""
    simulation = Simulation(args.cells, args.steps, args.seed)
    meter = SaveMeter()
    async with (
        asyncckpt.CheckpointManager(
            args.dir, save_period=args.save_period, keep_top_k=2, format=args.format
        ) as manager,
        asyncio.TaskGroup() as group,
    ):
        if last := await manager.load("latest", missing_ok=True):
            print(f"resuming from {last.path}")
            simulation.restore(last.step, last.state)
        ticking = group.create_task(meter.tick())
        while simulation.step < args.steps:
            await asyncio.to_thread(simulation.advance)
            if manager.should_save(simulation.step):
                info = {"temperature": simulation.mean_temperature()}
                meter.begin()
                handle = await manager.save(simulation.step, simulation.state(), training_info=info)
                group.create_task(meter.report(handle, f"mean temperature {info['temperature']:.1f} K"))
                simulation.forget_caches()
        await manager.flush()  # the meter measures the last saves, too
        ticking.cancel()
    print(meter.summary(), flush=True)


def main() -> None:
    """Simulate, or demonstrate."""
    parser = new_parser(__doc__, directory="runs/argon", save_period=50, format="hdf5")
    parser.add_argument("--cells", type=int, default=3, help="unit cells along each edge of the box; four atoms each")
    parser.add_argument("--steps", type=int, default=1000, help="steps of 5 fs")
    if (args := parser.parse_args()).short:
        parser.set_defaults(cells=2, steps=60, save_period=5)
        args = parser.parse_args()
    if args.save_period % FRAME or args.steps % args.save_period:
        parser.error(f"--steps is to be a multiple of --save-period, and that of {FRAME}")
    if not args.demo:
        run(simulate(args), args.loop)
        return
    final = kill_and_resume(args, kill_from=args.steps // 2, important=lambda state: state)
    if final and args.format == "hdf5":
        show(Path(final.path) / "state.h5")
    sys.exit(0 if final else 1)


def show(path: Path) -> None:
    """Print what any HDF5 tool sees in a state file."""
    print(f"{path} is an ordinary HDF5 file:")
    with h5py.File(path) as file:
        for name, item in file.items():
            if isinstance(item, h5py.Dataset):
                print(f"    /{name:<16}{item.dtype!s:<10}{item.shape}")


if __name__ == "__main__":
    main()

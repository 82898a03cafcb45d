"""Simulates copper by ASE, for test_ase.py."""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixBondLengths, FixCom
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.melchionna import MelchionnaNPT
from ase.md.nose_hoover_chain import MTKNPT, NoseHooverChainNVT
from ase.md.verlet import VelocityVerlet
from helpers.kills import report

from asyncckpt.blocking import CheckpointManager
from asyncckpt.integrations import ase as integration

if TYPE_CHECKING:
    from pathlib import Path

_STEPS, _INTERVAL, _KILLED_AT = 25, 8, 20
_FS, _TEMPERATURE = units.fs, 900


def _make(case: str) -> Any:  # noqa: PLR0911 - one for each case
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    atoms.set_momenta(np.random.default_rng(1).standard_normal((len(atoms), 3)) * 2)
    options = {"temperature_K": _TEMPERATURE, "friction": 0.01 / _FS, "fixcm": False}
    if case == "langevin":  # a neighbor list that depends on earlier positions
        atoms.set_constraint(FixCom())
        atoms.calc = LennardJones(sigma=2.3, epsilon=0.4, rc=5, smooth=True)
        return Langevin(atoms, 5 * _FS, rng=np.random.default_rng(5), **options)
    if case == "langevin_global":  # draws from numpy's global generator
        return Langevin(atoms, 5 * _FS, **options)
    if case == "bussi":
        return Bussi(atoms, 5 * _FS, _TEMPERATURE, 100 * _FS, rng=np.random.RandomState(5))
    if case == "nose_hoover_chain":
        return NoseHooverChainNVT(atoms, 5 * _FS, _TEMPERATURE, 100 * _FS)
    if case == "mtk":  # the cell changes
        return MTKNPT(atoms, 5 * _FS, _TEMPERATURE, 0.0, 100 * _FS, 1000 * _FS)
    if case == "melchionna":
        cell = {"externalstress": 0.0, "ttime": 25 * _FS, "pfactor": 1000 * _FS**2}
        return MelchionnaNPT(atoms, 5 * _FS, temperature_K=_TEMPERATURE, **cell)
    atoms.set_constraint(FixBondLengths([[0, 1]]))  # remembers the first lengths
    return VelocityVerlet(atoms, 5 * _FS)


def _simulate(case: str, directory: Path, *, killed: bool, without: str | None) -> dict[str, Any]:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global generator
    dynamics = _make(case)
    atoms = dynamics.atoms
    if without is not None:
        whole = integration._set_state
        integration._set_state = lambda dynamics, state: whole(
            dynamics, state | {without: integration._get_state(dynamics)[without]}
        )
    with CheckpointManager(directory) as manager:
        observer = integration.CheckpointObserver(dynamics, manager)
        observer.resume()
        dynamics.attach(observer, interval=_INTERVAL)

        def kill() -> None:
            if killed and dynamics.nsteps == _KILLED_AT:
                manager.flush()
                os.kill(os.getpid(), signal.SIGKILL)

        dynamics.attach(kill)
        if without == "dynamics":
            dynamics.nsteps = max(manager.steps(), default=0)
        dynamics.run(_STEPS - dynamics.nsteps)
        manager.flush()
        steps = manager.steps()
    return {"state": integration._get_state(dynamics), "energy": atoms.get_potential_energy(), "steps": steps}


if __name__ == "__main__":
    report(
        _simulate,
        {
            "langevin": ("atoms", "dynamics"),
            "langevin_global": ("random",),
            "bussi": (),
            "nose_hoover_chain": ("dynamics",),
            "mtk": (),
            "melchionna": (),
            "bonds": ("constraints",),
        },
    )

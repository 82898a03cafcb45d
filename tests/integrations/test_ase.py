"""Simulations of ASE are saved by an observer, and resumed exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.kills import assert_exact, run_program

from asyncckpt import CheckpointNotFoundError, StateMismatchError, StepExistsError, UnsupportedLeafError
from asyncckpt.blocking import CheckpointManager

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def _library(imported: Callable[..., None]) -> None:
    imported("ase", "ase.md.langevin", "ase.calculators.emt", "ase.build", "asyncckpt.integrations.ase")


def new_dynamics(element: str = "Cu", **options: Any) -> Any:
    """Return a simulation of one cell."""
    from ase.build import bulk
    from ase.calculators.emt import EMT
    from ase.md.langevin import Langevin

    atoms = bulk(element, cubic=True)
    atoms.calc = EMT()
    options = {"temperature_K": 300, "friction": 0.01, "fixcm": False, "rng": np.random.default_rng(0)} | options
    return Langevin(atoms, 0.5, **options)


def new_observer(dynamics: Any, manager: CheckpointManager, **options: Any) -> Any:
    """Return an observer."""
    from asyncckpt.integrations.ase import CheckpointObserver

    return CheckpointObserver(dynamics, manager, **options)


def test_killed_simulations_end_with_the_bits_of_whole_ones(tmp_path: Path) -> None:
    """Thermostats, barostats and constraints; without a part of the state, they end with other bits."""
    for runs in run_program("ase_program.py", tmp_path).values():
        assert_exact(runs)


def test_all_of_the_atoms_comes_back_in_place(tmp_path: Path) -> None:
    """Arrays of any name, the cell, the periodicity and the info; who holds an array or the generator sees it."""
    from asyncckpt.integrations.ase import restore

    first, second = new_dynamics(), new_dynamics()
    atoms = first.atoms
    atoms.set_array("label", np.arange(4))
    atoms.set_initial_charges([1.0, -1.0, 0.5, -0.5])
    atoms.info["notes"] = {"run": 7}
    atoms.set_cell(np.diag([4.0, 5.0, 6.0]))
    atoms.pbc = (True, False, True)
    first.set_temperature(temperature_K=500)
    positions, rng = second.atoms.positions, second.rng
    with CheckpointManager(tmp_path) as manager:
        first.attach(new_observer(first, manager), interval=4)
        first.run(4)
        manager.flush()
        assert restore(second, manager) == second.nsteps == 4
        info = manager.load(4).training_info
    assert np.array_equal(positions, atoms.positions)
    assert positions is second.atoms.positions
    assert rng is second.rng
    assert rng.bit_generator.state == first.rng.bit_generator.state
    for name, array in atoms.arrays.items():
        assert np.array_equal(second.atoms.arrays[name], array), name
    assert second.atoms.info == {"notes": {"run": 7}}
    assert np.array_equal(second.atoms.cell.array, atoms.cell.array)
    assert second.atoms.pbc.tolist() == [True, False, True]
    assert second.temp == first.temp
    assert info["temperature"] == pytest.approx(atoms.get_temperature())
    assert info["time"] == pytest.approx(first.get_time() / 0.09822694788464063)


def test_resuming(tmp_path: Path) -> None:
    """Without a checkpoint there is nothing to resume; the step that was resumed from is not saved again."""
    with CheckpointManager(tmp_path) as manager:
        dynamics = new_dynamics()
        observer = new_observer(dynamics, manager)
        assert observer.resume() is None
        observer()
        observer()
        manager.flush()
        again = new_dynamics()
        observer = new_observer(again, manager)
        assert observer.resume() == 0
        again.attach(observer, interval=3)  # which is called at step 0, too
        again.run(3)
        manager.flush()
        assert manager.steps() == [0, 3]
        third = new_dynamics()
        third.attach(new_observer(third, manager), interval=3)
        with pytest.raises(StepExistsError, match="step 0"):
            third.run(3)  # which forgot to resume


def test_the_calculator_is_reset_after_a_save(tmp_path: Path) -> None:
    """Unless the caller asks for the contrary."""
    dynamics = new_dynamics()
    with CheckpointManager(tmp_path) as manager:
        dynamics.run(1)
        new_observer(dynamics, manager, reset_calculator=False)()
        assert dynamics.atoms.calc.results
        dynamics.run(1)
        new_observer(dynamics, manager)()
        assert not dynamics.atoms.calc.results


def test_other_simulations_are_refused(tmp_path: Path) -> None:
    """Other atoms, another kind of dynamics, other constraints: nothing is changed."""
    from ase.constraints import FixAtoms
    from ase.md.verlet import VelocityVerlet

    from asyncckpt.integrations.ase import restore

    with CheckpointManager(tmp_path) as manager:
        with pytest.raises(CheckpointNotFoundError):
            restore(new_dynamics(), manager)
        dynamics = new_dynamics()
        dynamics.run(2)
        new_observer(dynamics, manager)()
        manager.flush()
        manager.save(9, {"weights": np.zeros(3)}).wait()
        with pytest.raises(StateMismatchError, match="a simulation of ASE"):
            restore(new_dynamics(), manager)
        manager.delete(9)
        fixed = new_dynamics()
        fixed.atoms.set_constraint(FixAtoms([0]))
        for other in (new_dynamics("Al"), VelocityVerlet(new_dynamics().atoms, 0.5), fixed):
            before = other.atoms.positions.copy()
            with pytest.raises(StateMismatchError):
                restore(other, manager)
            assert other.nsteps == 0
            assert np.array_equal(other.atoms.positions, before)


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    """An object in the info, or in the dynamics; there is no checkpoint then."""
    dynamics = new_dynamics()
    with CheckpointManager(tmp_path) as manager:
        dynamics.atoms.info["strange"] = object()
        with pytest.raises(UnsupportedLeafError, match="atoms/info/strange"):
            new_observer(dynamics, manager)()
        del dynamics.atoms.info["strange"]
        dynamics.strange = object()
        with pytest.raises(UnsupportedLeafError, match=r"Langevin\.strange .*state_dict"):
            new_observer(dynamics, manager)()
        del dynamics.strange
        new_observer(dynamics, manager)()

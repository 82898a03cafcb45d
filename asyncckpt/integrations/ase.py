"""ASE: an observer that saves a simulation of molecular dynamics, with its thermostat, and resumes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import ase
import numpy as np
from ase import units

from asyncckpt.errors import StateMismatchError, UnsupportedLeafError
from asyncckpt.integrations.attributes import Attributes, NoStateError, has_state_dict
from asyncckpt.integrations.managers import check_is_blocking
from asyncckpt.integrations.random_states import get_random_states, set_random_states

if TYPE_CHECKING:
    from ase.md.md import MolecularDynamics

    from asyncckpt.blocking import CheckpointManager

__all__ = ["CheckpointObserver", "restore"]

_ATTRIBUTES: Final = Attributes(
    packages=("ase",),
    constants=(ase.Atoms,),
    left_out=(
        *("optimizable", "logfile", "observers", "comm", "max_steps", "_exitstack"),
        *("trajectory", "_orig_trajectory", "_master"),
    ),
)


class CheckpointObserver:
    """Saves a simulation of molecular dynamics: its atoms, its counters, its thermostat and barostat, random numbers.

    A program that is run again after it was killed ends with the same bits as one that was never interrupted::

        with asyncckpt.blocking.CheckpointManager("runs/argon", keep_latest_k=2) as manager:
            observer = CheckpointObserver(dynamics, manager)
            observer.resume()
            dynamics.attach(observer, interval=1000)
            dynamics.run(100_000 - dynamics.nsteps)

    The step of a checkpoint is ``dynamics.nsteps``; its ``training_info`` has the time in fs and the temperature in K.

    Args:
        dynamics: An integrator of `ase.md`, or one derived from these whose attributes can be saved.
        manager: An open manager.
        reset_calculator: Whether the calculator's caches are cleared after each save, which costs one more calculation.
            A resumed simulation begins without them, and in many calculators the order of summation, and so the last
            bits of the forces, depend on them: on a neighbor list that was made some steps before, for instance.

    Raises:
        TypeError: The manager is one that has to be awaited.
    """

    def __init__(
        self, dynamics: MolecularDynamics, manager: CheckpointManager, *, reset_calculator: bool = True
    ) -> None:
        check_is_blocking(manager)
        self._dynamics, self._manager = dynamics, manager
        self._resets = reset_calculator
        self._last_step: int | None = None

    def __call__(self) -> None:
        """Save the simulation as it is now. The step that was resumed from, or saved last, is not saved again.

        Raises:
            UnsupportedLeafError: A value in the atoms or the dynamics cannot be saved.
            CheckpointError: As `CheckpointManager.save`.
        """
        dynamics = self._dynamics
        step = int(dynamics.nsteps)
        if step == self._last_step:
            return
        info = {"time": step * dynamics.dt / units.fs, "temperature": float(dynamics.atoms.get_temperature())}
        self._manager.save(step, _get_state(dynamics), training_info=info)
        self._last_step = step
        if self._resets:
            _reset(dynamics.atoms)

    def resume(self) -> int | None:
        """Continue from the latest checkpoint. Call it before the dynamics run.

        Returns:
            The step, or None if there is no checkpoint yet.

        Raises:
            StateMismatchError: The checkpoint is one of other atoms, or of other kinds of dynamics or constraints.
            CorruptCheckpointError: All checkpoints are damaged.
        """
        step = restore(self._dynamics, self._manager, missing_ok=True)
        if step is not None:
            self._last_step = step
        return step


def restore(
    dynamics: MolecularDynamics, manager: CheckpointManager, step: Any = "latest", *, missing_ok: bool = False
) -> int | None:
    """Give a simulation the state of a checkpoint, its temperature, pressure and time step included.

    Args:
        dynamics: Dynamics of the same kind and with the same atoms as those that were saved.
        manager: An open manager, which may be read-only.
        step: A step, "latest", "best", or the path of a checkpoint.
        missing_ok: Whether to return None if there is no such checkpoint.

    Returns:
        The checkpoint's step, which is ``dynamics.nsteps``, or None with `missing_ok`.

    Raises:
        CheckpointNotFoundError: There is no such checkpoint.
        StateMismatchError: It is one of other atoms, or of other kinds of dynamics or constraints. Nothing was changed.
    """
    if (checkpoint := manager.load(step, missing_ok=missing_ok)) is None:
        return None
    _set_state(dynamics, checkpoint.state)
    return int(checkpoint.step)


def _get_state(dynamics: MolecularDynamics) -> dict[str, Any]:
    atoms = dynamics.atoms
    try:
        saved = _ATTRIBUTES.get_state(dynamics, is_known=True)
        # A constraint may remember the bond lengths, say, with which the simulation began.
        constraints = [_ATTRIBUTES.get_state(each) if _has_state(each) else None for each in atoms.constraints]
    except NoStateError as error:
        message = f"the dynamics cannot be saved: {error}; give the class `state_dict` and `load_state_dict`"
        raise UnsupportedLeafError(message, path="dynamics") from None
    return {
        "classes": _classes(dynamics),
        "dynamics": saved,
        "atoms": {
            "arrays": atoms.arrays,
            "cell": np.array(atoms.cell),
            "pbc": np.array(atoms.pbc),
            "celldisp": np.array(atoms.get_celldisp()),
            "info": atoms.info,
        },
        "constraints": constraints,
        "random": get_random_states(),
    }


def _set_state(dynamics: MolecularDynamics, state: dict[str, Any]) -> None:
    if not isinstance(state, dict) or "classes" not in state:
        raise StateMismatchError("classes", "keys", "those of a simulation of ASE", "another state")
    atoms, saved = dynamics.atoms, state["atoms"]
    if state["classes"] != (expected := _classes(dynamics)):
        raise StateMismatchError("classes", "type", expected, state["classes"])
    if not np.array_equal(saved["arrays"]["numbers"], atoms.numbers):
        raise StateMismatchError(
            "atoms/numbers", "type", atoms.symbols, ase.symbols.Symbols(saved["arrays"]["numbers"])
        )
    for name, array in saved["arrays"].items():
        current = atoms.arrays.get(name)
        if current is not None and (current.dtype, current.shape) == (array.dtype, array.shape):
            current[...] = array  # others may hold it
        else:
            atoms.arrays[name] = array
    atoms.cell[...] = saved["cell"]
    atoms.pbc = saved["pbc"]
    atoms.set_celldisp(saved["celldisp"])
    atoms.info.clear()
    atoms.info.update(saved["info"])
    for constraint, each in zip(atoms.constraints, state["constraints"], strict=True):
        if each is not None:
            _ATTRIBUTES.set_state(constraint, each)
    _ATTRIBUTES.set_state(dynamics, state["dynamics"])
    set_random_states(state["random"])
    _reset(atoms)


def _classes(dynamics: MolecularDynamics) -> list[str]:
    """Return the classes of the dynamics and of the constraints."""
    return [type(each).__qualname__ for each in (dynamics, *dynamics.atoms.constraints)]


def _has_state(constraint: object) -> bool:
    return has_state_dict(constraint) or type(constraint).__module__.startswith("ase.")


def _reset(atoms: ase.Atoms) -> None:
    if hasattr(atoms.calc, "reset"):
        atoms.calc.reset()

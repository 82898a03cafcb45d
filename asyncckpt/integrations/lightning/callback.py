"""`CheckpointCallback`: saves a training of Lightning through a manager."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncckpt.integrations.lightning.dumps import save_dump
from asyncckpt.integrations.lightning.package import Checkpoint
from asyncckpt.integrations.managers import check_is_blocking
from asyncckpt.integrations.random_states import get_random_states, set_random_states

if TYPE_CHECKING:
    from asyncckpt.blocking import CheckpointManager


class CheckpointCallback(Checkpoint):
    """Saves all of a training through a manager, with the manager's retention, and with the random generators.

    A program that is run again after it was killed ends with the same bits as one that was never interrupted::

        with asyncckpt.blocking.CheckpointManager("runs/fit", metric_name="val_loss", keep_top_k=3) as manager:
            callback = CheckpointCallback(manager)
            trainer = lightning.Trainer(max_epochs=100, callbacks=[callback], plugins=[DurableCheckpointIO()])
            trainer.fit(model, data, ckpt_path=manager.get_latest_checkpoint_path())

    The step of a checkpoint is the trainer's ``global_step``. Its ``training_info`` has the epoch, and every number
    that was logged (`trainer.callback_metrics`). The states of the generators of PyTorch, numpy and `random` are the
    callback's state, so `ModelCheckpoint` saves them, too, if this callback is there.

    Args:
        manager: An open manager, or None: then this only saves the random generators, in the checkpoints of others.
        every_n_epochs: The distance of saves at the end of epochs; 1 by default, unless `every_n_train_steps` is given.
        every_n_train_steps: The distance of saves, in optimizer steps. A training that resumes in the middle of an
            epoch is exact only if its dataloader has a `state_dict`.

    Raises:
        ValueError: A distance is less than 1.
        TypeError: The manager is one that has to be awaited.
    """

    def __init__(
        self,
        manager: CheckpointManager | None,
        *,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
    ) -> None:
        super().__init__()
        check_is_blocking(manager)
        for distance in (every_n_epochs, every_n_train_steps):
            if distance is not None and distance < 1:
                message = f"the distance of saves is {distance}: give a number from 1 on, or None"
                raise ValueError(message)
        if every_n_epochs is None and every_n_train_steps is None:
            every_n_epochs = 1
        self._manager = manager
        self._every_n_epochs, self._every_n_train_steps = every_n_epochs, every_n_train_steps
        self._last_step = 0
        self._random_states: dict[str, Any] | None = None
        self._is_fitting = False

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the random generators."""
        return {"random": get_random_states()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the states of the random generators, for the training that begins."""
        self._random_states = state_dict["random"]
        if self._is_fitting:  # some strategies load when the fit has started
            self._set_random_states()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's arguments
        """Continue with the random numbers of the checkpoint. Only its data is iterated from here on."""
        self._is_fitting = True
        self._set_random_states()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - as above
        """Remember the step of the checkpoint, which need not be saved again."""
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Save, if it is time."""
        if self._every_n_train_steps is not None and trainer.global_step % self._every_n_train_steps == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - as above
        """Save, if it is time."""
        if self._every_n_epochs is not None and (trainer.current_epoch + 1) % self._every_n_epochs == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - as above
        """Save the end of the training."""
        self._save(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002 - as above
        """Forget the training."""
        self._is_fitting = False

    def _set_random_states(self) -> None:
        if self._random_states is not None:
            set_random_states(self._random_states)
            self._random_states = None

    def _save(self, trainer: Any) -> None:
        step = trainer.global_step
        if self._manager is None or step <= self._last_step or trainer.fast_dev_run:
            return
        self._last_step = step
        dump = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)  # noqa: SLF001 - as `save_checkpoint`
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            save_dump(self._manager, step, dump, {"epoch": trainer.current_epoch} | metrics)

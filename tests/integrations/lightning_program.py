"""Trains a module by PyTorch Lightning, for test_lightning.py."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import warnings
from typing import TYPE_CHECKING, Any

import torch
from helpers.kills import report

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # which Lightning's own imports issue
    import lightning
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from asyncckpt.blocking import CheckpointManager
from asyncckpt.integrations.lightning import CheckpointCallback, DurableCheckpointIO

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_EPOCHS, _KILLED_AT = 5, 14  # of 4 steps each


class Net(lightning.LightningModule):
    """A small module with dropout and statistics of its inputs."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        layers = (torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width), torch.nn.Dropout(0.3))
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(width, 1))

    def training_step(self, batch: Any, index: int) -> Any:
        """Return the loss."""
        return self.layers(batch[0]).square().mean()

    def validation_step(self, batch: Any, index: int) -> None:
        """Log the loss."""
        self.log("val_loss", self.layers(batch[0]).square().mean())

    def configure_optimizers(self) -> Any:
        """Return an optimizer and its schedule."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


class _Kill(Callback):
    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == _KILLED_AT:
            self._wait()
            os.kill(os.getpid(), signal.SIGKILL)


def _train(case: str, directory: Path, *, killed: bool, without: str | None) -> Any:
    lightning.seed_everything(1, verbose=False)
    data = torch.utils.data.TensorDataset(torch.randn(32, 4))
    loaders = [torch.utils.data.DataLoader(data, batch_size=8, shuffle=shuffle) for shuffle in (True, False)]
    plugin = DurableCheckpointIO()
    callback = CheckpointCallback(None)
    if without == "random":
        callback.load_state_dict = lambda _: None
    callbacks = [callback]
    if case == "plugin":
        callbacks += [ModelCheckpoint(dirpath=directory, save_last=True, save_top_k=2, monitor="val_loss")]
        callbacks += [_Kill(plugin.wait)] if killed else []
        state = _fit(callbacks, plugin, loaders, directory, "last")
    else:
        with CheckpointManager(directory, metric_name="val_loss", higher_is_better=False, keep_top_k=2) as manager:
            callbacks = [CheckpointCallback(manager)] + ([_Kill(manager.flush)] if killed else [])
            state = _fit(callbacks, plugin, loaders, directory, manager.get_latest_checkpoint_path())
    for name in [each for each in state["callbacks"] if "ModelCheckpoint" in each]:
        del state["callbacks"][name]  # it has paths
    return {"state": state, "names": sorted(path.name for path in directory.glob("*"))}


def _fit(callbacks: Any, plugin: Any, loaders: Any, directory: Path, path: str | None) -> Any:
    directory.mkdir(parents=True, exist_ok=True)
    options = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(
        max_epochs=_EPOCHS, callbacks=callbacks, plugins=[plugin], devices=1, default_root_dir=directory, **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of workers for the data, and that the directory is not empty
        trainer.fit(Net(), *loaders, ckpt_path=path)
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    importlib.import_module("torch._dynamo")  # as the first optimizer does
    report(_train, {"plugin": ("random",), "manager": ()})

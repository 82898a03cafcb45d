"""Read a dataset with worker processes of torchdata's StatefulDataLoader: its position is in the checkpoint.

    python examples/torch_dataloader.py    # trains; killed in the middle of an epoch, and run again, it goes on there

Each sample is used exactly once in each epoch, however often the run is killed: the position of the loader is saved in
the same checkpoint as what the samples were used for.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

import asyncckpt


class Numbers(Dataset[int]):
    """The samples: the numbers from 0 on."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        """Return how many there are."""
        return self.size

    def __getitem__(self, index: int) -> int:
        """Read one."""
        return index


class Training:
    """A loader, and what it has read: how often each sample was used, in each epoch."""

    def __init__(self, args: argparse.Namespace) -> None:
        generator = torch.Generator().manual_seed(args.seed)  # shuffles each epoch in another way
        self.loader = StatefulDataLoader(
            Numbers(args.samples), batch_size=args.batch, shuffle=True, num_workers=args.workers, generator=generator
        )
        self.used = torch.zeros(args.epochs, args.samples, dtype=torch.int64)
        self.epoch = self.step = 0

    def state(self) -> dict[str, Any]:
        """Return all of the state, uncopied: `save` copies it."""
        return {"loader": self.loader.state_dict(), "used": self.used, "epoch": self.epoch, "step": self.step}

    def load(self, state: dict[str, Any]) -> None:
        """Continue as the training that had this state."""
        self.loader.load_state_dict(state["loader"])
        self.used, self.epoch, self.step = state["used"], state["epoch"], state["step"]


async def train(args: argparse.Namespace) -> Training:
    """Read all epochs, starting from the newest checkpoint if there is one."""
    training = Training(args)
    async with asyncckpt.CheckpointManager(args.dir, save_period=args.save_period) as manager:
        if last := await manager.load("latest", missing_ok=True):
            print(f"resuming from {last.path}", flush=True)
            training.load(last.state)
        while training.epoch < args.epochs:
            batches = iter(training.loader)  # the rest of the epoch, after a load
            while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                training.used[training.epoch, batch] += 1
                training.step += 1
                if manager.should_save(training.step):
                    await manager.save(training.step, training.state())
                print(f"step {training.step}", flush=True)
            training.epoch += 1
    return training


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dir", type=Path, default=Path("runs/dataloader"), help="where the checkpoints go")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="processes that read samples")
    parser.add_argument("--save-period", type=int, default=5, help="steps between two saves")
    training = asyncio.run(train(parser.parse_args()))
    counts = training.used.unique().tolist()
    print(f"{training.epoch} epochs, each sample used {' or '.join(map(str, counts))} times in each")


if __name__ == "__main__":
    main()

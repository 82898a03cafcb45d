"""Train a small transformer with PyTorch: a run that is killed and started again ends with the same bits.

    python examples/torch_transformer.py    # trains; killed, and run again, it resumes from the last checkpoint

It ends with the same bits because whatever decides the next step is in `Training.state`: the weights and their average,
the optimizer, the learning rate, the loss scale, and every random generator that is used.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import asyncckpt

TOKENS, LENGTH, BATCH = 16, 16, 16


class Transformer(nn.Module):
    """Predicts the next token at each place of a sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.positions = nn.Parameter(torch.randn(LENGTH, width) / 10)
        layer = nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=2 * width, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers=2)
        self.head = nn.Linear(width, TOKENS, bias=False)
        self.head.weight = self.embedding.weight  # tied: saved once, and still tied after a load
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits, of shape (batch, length, tokens), for tokens of shape (batch, length)."""
        found: torch.Tensor = self.layers(self.embedding(tokens) + self.positions, mask=self.mask, is_causal=True)
        return self.head(found)


class Training:
    """A model and all that trains it."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)  # the weights at the beginning, and dropout
        self.data_rng = np.random.default_rng(args.seed)
        self.task_rng = random.Random(args.seed)  # noqa: S311 - not a secret
        self.model = Transformer(args.width).bfloat16()
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.95))
        kind = {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}[args.optimizer]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=0.01, **kind)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=0.003, total_steps=args.steps)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5)
        self.step, self.loss = 0, 0.0

    def advance(self) -> None:
        """Make one step."""
        stride = self.task_rng.choice((1, 3))
        starts = self.data_rng.integers(TOKENS, size=(BATCH, 1))
        tokens = torch.from_numpy((starts + stride * np.arange(LENGTH + 1)) % TOKENS)
        logits = self.model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.average.update_parameters(self.model)
        self.step, self.loss = self.step + 1, 0.95 * self.loss + 0.05 * loss.item()

    def state(self) -> dict[str, Any]:
        """Return all of the state, uncopied: `save` copies it."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "data_rng": self.data_rng,
            "task_rng": self.task_rng,
            "step": self.step,
            "loss": self.loss,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue as the training that had this state."""
        for name in ("model", "average", "optimizer", "schedule", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["torch_rng"])
        for name in ("data_rng", "task_rng", "step", "loss"):
            setattr(self, name, state[name])

    def digest(self) -> str:
        """Return a digest of the averaged weights."""
        weights = [parameter.view(torch.int16).numpy() for parameter in self.average.module.state_dict().values()]
        return hashlib.sha256(b"".join(each.tobytes() for each in weights)).hexdigest()[:16]


async def train(args: argparse.Namespace) -> Training:
    """Train until step `args.steps`, starting from the newest checkpoint if there is one."""
    torch.set_num_threads(1)  # sums are split the same way in every run
    torch.use_deterministic_algorithms(mode=True)
    training = Training(args)
    async with asyncckpt.CheckpointManager(args.dir, save_period=args.save_period, format=args.format) as manager:
        if last := await manager.load("latest", missing_ok=True):
            print(f"resuming from {last.path}")
            training.load(last.state)
        while training.step < args.steps:
            await asyncio.to_thread(training.advance)  # other tasks go on
            if manager.should_save(training.step):
                await manager.save(training.step, training.state())
    return training


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dir", type=Path, default=Path("runs/transformer"), help="where the checkpoints go")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--save-period", type=int, default=20, help="steps between two saves")
    parser.add_argument("--format", choices=["msgpack", "hdf5"], default="msgpack")
    parser.add_argument("--optimizer", choices=["default", "foreach", "fused"], default="default", help="kind of AdamW")
    training = asyncio.run(train(parser.parse_args()))
    print(f"loss {training.loss:.4f}, averaged weights {training.digest()}")


if __name__ == "__main__":
    main()

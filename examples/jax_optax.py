"""Train a small transformer with JAX and optax: a run that is killed and started again ends with the same bits.

    python examples/jax_optax.py    # trains; killed, and run again, it resumes from the last checkpoint

It ends with the same bits because whatever decides the next step is in `Training.state`: the weights and their average,
the optimizer, the number of steps, and every random generator that is used.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import asyncckpt

TOKENS, LENGTH, BATCH = 16, 16, 16
Weights = dict[str, Any]


def new_weights(rng: np.random.Generator, width: int) -> Weights:
    """Return the weights of a transformer with two layers, as bfloat16."""
    layers = {"attend": (2, width, 3 * width), "mix": (2, width, width), "up": (2, width, 64), "down": (2, 64, width)}
    shapes = {"embedding": (TOKENS, width), "positions": (LENGTH, width)} | layers
    scaled = {name: rng.standard_normal(shape) / np.sqrt(shape[-2]) for name, shape in shapes.items()}
    return {name: jnp.asarray(array.astype(jnp.bfloat16)) for name, array in scaled.items()}


def predict(weights: Weights, tokens: jax.Array, key: jax.Array) -> jax.Array:
    """Return logits, of shape (batch, length, tokens), for tokens of shape (batch, length)."""
    causal = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))

    def apply_layer(x: jax.Array, layer: tuple[Weights, jax.Array]) -> tuple[jax.Array, None]:
        weights, key = layer
        q, k, v = jnp.split(jax.nn.standardize(x) @ weights["attend"], 3, axis=-1)
        scores = jnp.where(causal, q @ k.mT / x.shape[-1] ** 0.5, -jnp.inf)
        x += jax.nn.softmax(scores) @ v @ weights["mix"]
        hidden = jax.nn.gelu(jax.nn.standardize(x) @ weights["up"])
        kept = jax.random.bernoulli(key, 0.9, hidden.shape)  # dropout
        return x + jnp.where(kept, hidden / 0.9, 0).astype(x.dtype) @ weights["down"], None

    layers = {name: weights[name] for name in ("attend", "mix", "up", "down")}
    x = weights["embedding"][tokens] + weights["positions"]
    x, _ = jax.lax.scan(apply_layer, x, (layers, jax.random.split(key)))
    return (jax.nn.standardize(x) @ weights["embedding"].T).astype(jnp.float32)


class Training:
    """A model and all that trains it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.data_rng = np.random.default_rng(args.seed)
        self.task_rng = random.Random(args.seed)  # noqa: S311 - not a secret
        self.key = jax.random.key(args.seed)
        self.weights = new_weights(self.data_rng, args.width)
        self.average = {name: jnp.copy(array) for name, array in self.weights.items()}
        schedule = optax.warmup_cosine_decay_schedule(0.0, 0.01, args.steps // 10, args.steps)
        self.optimizer = optax.adamw(schedule)
        self.moments = self.optimizer.init(self.weights)
        self.step, self.loss = 0, 0.0
        self.update = jax.jit(self.updated, donate_argnums=(0, 1, 2, 3))

    def updated(
        self, weights: Weights, average: Weights, moments: optax.OptState, key: jax.Array, tokens: jax.Array
    ) -> tuple[Weights, Weights, optax.OptState, jax.Array, jax.Array]:
        """Compute a step: return the new weights, averages, moments and key, and the loss."""
        key, dropout = jax.random.split(key)

        def loss_of(weights: Weights) -> jax.Array:
            logits = predict(weights, tokens[:, :-1], dropout)
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        loss, gradient = jax.value_and_grad(loss_of)(weights)
        change, moments = self.optimizer.update(gradient, moments, weights)
        weights = optax.apply_updates(weights, change)
        return weights, optax.incremental_update(weights, average, 0.05), moments, key, loss

    def advance(self) -> None:
        """Make one step."""
        stride = self.task_rng.choice((1, 3))
        starts = self.data_rng.integers(TOKENS, size=(BATCH, 1))
        tokens = (starts + stride * np.arange(LENGTH + 1)) % TOKENS
        self.weights, self.average, self.moments, self.key, loss = self.update(
            self.weights, self.average, self.moments, self.key, tokens.astype(np.int32)
        )
        self.step, self.loss = self.step + 1, 0.95 * self.loss + 0.05 * float(loss)

    def state(self) -> dict[str, Any]:
        """Return all of the state, uncopied: `save` copies it, and the next step may take its memory."""
        names = ("weights", "average", "moments", "key", "data_rng", "task_rng", "step", "loss")
        return {name: getattr(self, name) for name in names}

    def load(self, state: dict[str, Any]) -> None:
        """Continue as the training that had this state."""
        vars(self).update(state)


async def train(args: argparse.Namespace) -> Training:
    """Train until step `args.steps`, starting from the newest checkpoint if there is one."""
    training = Training(args)
    async with asyncckpt.CheckpointManager(args.dir, save_period=args.save_period, format=args.format) as manager:
        # The states of optax are namedtuples, which a template has.
        if last := await manager.load("latest", like=training.state(), missing_ok=True):
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
    parser.add_argument("--dir", type=Path, default=Path("runs/optax"), help="where the checkpoints go")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--save-period", type=int, default=20, help="steps between two saves")
    parser.add_argument("--format", choices=["msgpack", "hdf5"], default="msgpack")
    training = asyncio.run(train(parser.parse_args()))
    weights = b"".join(np.asarray(each).tobytes() for each in jax.tree.leaves(training.average))
    print(f"loss {training.loss:.4f}, averaged weights {hashlib.sha256(weights).hexdigest()[:16]}")


if __name__ == "__main__":
    main()

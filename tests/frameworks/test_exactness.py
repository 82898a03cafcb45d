"""A training that is killed and resumes ends with the bits of one that was never interrupted, in all of its objects.

The trainings are those of the examples: transformers of bfloat16 whose states have an optimizer, a schedule, an average
of the weights, and random generators; PyTorch's has a GradScaler, too.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from helpers.support import need
from helpers.trainer import Trainer

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.trainer import Bits


def assert_each_part_counts(trainer: Trainer, killed: Path, whole: Bits, parts: dict[str, str]) -> None:
    """Resumed without a part of its state, a run ends with other bits, among them those at the path beside the part."""
    runs = [{"dir": shutil.copytree(killed, killed.with_name(f"without-{part}")), "without": [part]} for part in parts]
    runs.append({"dir": shutil.copytree(killed, killed.with_name("with-all"))})  # behind those that went before
    *others, same = trainer.run_in_turn(runs)
    for (part, path), bits in zip(parts.items(), others, strict=True):
        assert bits[path] != whole[path], part
    assert same == whole


def test_pytorch(tmp_path: Path) -> None:
    """With each kind of AdamW, in both formats, by `load` and by `restore`."""
    need("torch")
    with Trainer("torch_transformer.py", {}) as trainer:
        for kind, formats in {"foreach": ["msgpack"], "fused": ["hdf5"], "default": ["hdf5", "msgpack"]}.items():
            whole = trainer.run(tmp_path / kind, optimizer=kind)
            for name in formats:
                options = {"optimizer": kind, "format": name}
                killed = tmp_path / f"{kind}-{name}"
                trainer.kill(killed, **options)
                loaded = shutil.copytree(killed, killed.with_suffix(".loaded"))
                restored = shutil.copytree(killed, killed.with_suffix(".restored"))
                assert trainer.run(loaded, **options) == whole
                # The weights themselves are filled, so their state dicts need not be loaded.
                assert trainer.run(restored, **options, by="restore", without=["model", "average"]) == whole
        weight = "/model/embedding.weight"
        counting = {
            **dict.fromkeys(("model", "optimizer", "schedule", "torch_rng", "data_rng", "task_rng"), weight),
            "average": "/average/module.embedding.weight",
            "scaler": "/scaler/_growth_tracker",
        }
        assert_each_part_counts(trainer, tmp_path / "default-msgpack", whole, counting)


def test_jax(tmp_path: Path) -> None:
    """Copied and frozen, in both formats, by `load` and by `restore`."""
    need("jax", "optax")
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),  # the first run compiles for all
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles in half the time
    }
    with Trainer("jax_optax.py", environment) as trainer:
        whole = trainer.run(tmp_path / "whole")
        for name, frozen in {"hdf5": True, "msgpack": False}.items():
            options = {"format": name, "frozen": frozen}
            killed = tmp_path / name
            trainer.kill(killed, **options)
            loaded = shutil.copytree(killed, killed.with_suffix(".loaded"))
            restored = shutil.copytree(killed, killed.with_suffix(".restored"))
            assert trainer.run(loaded, **options) == whole
            assert trainer.run(restored, **options, by="restore") == whole
        counting = {
            **dict.fromkeys(("weights", "moments", "key", "data_rng", "task_rng"), "/weights/embedding"),
            "average": "/average/embedding",
            "loss": "/loss",
        }
        assert_each_part_counts(trainer, tmp_path / "msgpack", whole, counting)

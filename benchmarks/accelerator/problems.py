"""What several stages compute with: settings, batches made up, and PyTorch where it can be used."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.accelerator.device import pytorch
from benchmarks.accelerator.sizes import Sizes
from benchmarks.speed import TOLERANCES
from benchmarks.speed_jax import JaxSide, Problem
from configs import train
from mbti_jax.commands.settings import from_config
from mbti_jax.training.settings import TrainSettings

# name -> (compiled, channels_last)
RIVALS = {"PyTorch eager": (False, True), "torch.compile": (True, True)}


def settings(sizes: Sizes, **fields: Any) -> TrainSettings:
    """The settings of `configs/train.py` at these sizes.

    Args:
        sizes: of everything.
        fields: that differ, by their names with "__" for dots.
    """
    config = train.get_config()
    # Everything is held in memory, unless that is what is measured.
    return changed(config, {**sizes.network, "batch_size": sizes.batch}, fields)


def changed(config: ConfigDict, *changes: dict[str, Any]) -> TrainSettings:
    """Settings of a config with fields changed, by their names with dots."""
    for change in changes:
        named = {name.replace("__", "."): value for name, value in change.items()}
        config.update_from_flattened_dict(named)
    return from_config(TrainSettings, config)


def tolerances(dtype: str) -> dict[str, float]:
    """Of results, by section: float32 on an accelerator is TF32."""
    exact = jax.default_backend() == "cpu" and dtype == "float32"
    return TOLERANCES["exact" if exact else "reduced"]


def sides(problem: Problem) -> dict[str, Any]:
    """JAX and, where there is PyTorch, its rivals."""
    torch, device = pytorch()
    both: dict[str, Any] = {"JAX": JaxSide(problem)}
    if torch is not None:
        from benchmarks.speed_torch import TorchSide

        for name, (compiled, channels_last) in RIVALS.items():
            both[name] = TorchSide(problem, device, compiled, channels_last)
    return both


def slices(of: TrainSettings, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch as the loader would read it: a round brain of noise with a round tumor of three parts."""
    rng, window = np.random.default_rng(seed), of.data.window
    batch, channels = of.batch_size, of.pipeline().model.out_channels
    y, x = np.ogrid[:window, :window]
    brain = np.hypot(y - window / 2, x - window / 2) < 0.45 * window
    depth = np.hypot(y - 0.4 * window, x - 0.4 * window) / (0.15 * window)
    labels = np.select([depth < 0.5, depth < 0.7, depth < 1], [1, 3, 2], 0).astype(np.uint8)
    codes = rng.integers(1, 2**16, (batch, window, window, channels), np.uint16)
    return {
        "codes": codes * brain[..., None].astype(np.uint16),
        "gain": np.full((batch, channels), 2 / 2**16, np.float32),
        "bias": np.full((batch, channels), -1, np.float32),
        "labels": np.broadcast_to(labels, (batch, window, window)).copy(),
        "weight": np.ones(batch, np.float32),
    }


def relative_l2(a: Any, b: Any) -> float:
    """Distance of two trees over the norm of the second."""
    squares = [
        (jnp.square(x - y).sum(), jnp.square(y).sum())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    distance, norm = np.sqrt(np.sum(jax.device_get(squares), axis=0))
    return float(distance / norm)

"""Validation: the loss on fixed examples with fixed noise, and a picture of samples."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from mbti_jax import sharding
from mbti_jax.data import loader
from mbti_jax.diffusion.sampler import Sampler, noise_for
from mbti_jax.diffusion.schedule import trailing_timesteps
from mbti_jax.io import pictures
from mbti_jax.models.pipeline import Pipeline, example_keys, losses
from mbti_jax.models.unet import Params
from mbti_jax.training.writer import MetricsWriter


def make_validation_step(method: Pipeline, key: jax.Array) -> Callable:
    """`step(params, batch, number) -> (sums [4], counts [4])`, with noise fixed by the number."""

    def step(params: Params, batch: loader.Batch, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = example_keys(key, number, len(batch["weight"]))
        prepare_keys, loss_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        inputs = method.prepare(batch, prepare_keys, augmented=False)
        return method.loss_terms(params, inputs, batch["weight"], loss_keys)[1]

    return step


class Validation:
    """Loss on fixed examples with fixed noise, and a picture of samples, with averaged parameters."""

    def __init__(
        self,
        config: ConfigDict,
        method: Pipeline,
        examples: loader.Examples,
        mesh: Mesh,
        key: jax.Array,
        x_0_bounds: tuple[float, float],
    ):
        """Takes the examples of the held-out split and the range to which samples are clipped."""
        self._config, self._method, self._mesh = config, method, mesh
        self._step = jax.jit(make_validation_step(method, key))
        self._batches = loader.fixed_batches(
            examples,
            config.validation_batches,
            config.batch_size,
            padded_size=sharding.padded_batch_size(config.batch_size, mesh, 1),
        )
        size = sharding.padded_batch_size(config.num_pictures, mesh, 1)
        (pictured,) = loader.fixed_batches(
            examples.with_tumor(), 1, config.num_pictures, padded_size=size
        )
        self._num_pictures = int(pictured["weight"].sum())
        keys = jax.random.split(jax.random.fold_in(key, 0), size)
        prepare = jax.jit(functools.partial(method.prepare, augmented=False))
        self._pictured = jax.device_get(prepare(pictured, keys))
        self._bounds = x_0_bounds
        schedule = method.process.schedule
        # Before training: what sampling will refuse is said at once.
        method.check_sampling([], config.guidance_weight)
        self._timesteps = trailing_timesteps(config.picture_steps, schedule.num_timesteps)
        self._sampler = Sampler(method.denoise, schedule)

    def run(self, step: int, params: Params, writer: MetricsWriter | None) -> None:
        sums, counts = 0.0, 0.0
        for number, batch in enumerate(self._batches):
            terms = self._step(params, self._put(batch), number)
            sums, counts = sums + terms[0], counts + terms[1]
        means = {f"validation/{name}": float(v) for name, v in losses(sums, counts).items()}
        samples = self._sample(params)
        if writer is not None:
            writer.scalars(step, means)
            shown = (*self._pictured[:2], samples)
            sheet = pictures.sheet(*(array[: self._num_pictures] for array in shown))
            writer.picture(step, "samples", sheet)
        tqdm.write(f"step {step}: validation loss {means['validation/loss']:.4f}")

    def _sample(self, params: Params) -> np.ndarray:
        inputs = self._pictured
        size = len(inputs.x_0)
        x_T, keys = noise_for(0, range(size), [0] * size, inputs.x_0.shape[1:])
        arrays = (x_T, *inputs, keys)
        samples = self._sampler(
            params,
            *self._put(arrays),
            timesteps=self._timesteps,
            weight=self._config.guidance_weight,
            clip=self._bounds,
        )
        return multihost_utils.process_allgather(samples, tiled=True)

    def _put(self, batch: Any) -> Any:
        """Splits what every process holds in full over the devices."""
        place = sharding.batch_sharding(self._mesh)
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, place, x.__getitem__), batch
        )

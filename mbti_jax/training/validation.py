"""Validation: the loss on fixed examples with fixed noise, and a picture of samples."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mbti_jax import sharding
from mbti_jax.data import loader
from mbti_jax.diffusion.noise import noise_for
from mbti_jax.diffusion.samplers.driver import Sampler, SamplingCancelled
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.io import pictures
from mbti_jax.models.losses import losses
from mbti_jax.models.parameters import Params
from mbti_jax.models.pipeline import Pipeline, example_keys
from mbti_jax.training.settings import TrainSettings
from mbti_jax.training.writer import MetricsWriter

logger = logging.getLogger(__name__)


def make_validation_step(pipeline: Pipeline, key: jax.Array) -> Callable:
    """`step(params, batch, number) -> Terms`, with noise fixed by the number."""

    def step(params: Params, batch: dict[str, jax.Array], number: jax.Array):
        keys = example_keys(key, number, len(batch["weight"]))
        prepare_keys, loss_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        inputs = pipeline.prepare(batch, prepare_keys, augmented=False)
        return pipeline.loss_terms(params, inputs, batch["weight"], loss_keys)[1]

    return step


class Validation:
    """Loss on fixed examples with fixed noise, and a picture of samples, with averaged parameters."""

    def __init__(
        self,
        settings: TrainSettings,
        pipeline: Pipeline,
        examples: loader.Examples,
        mesh: Mesh,
        key: jax.Array,
        x_0_bounds: tuple[float, float],
    ):
        """Reads the fixed examples.

        Args:
            settings: of the run.
            pipeline: network, process and tasks.
            examples: of the held-out split.
            mesh: the devices.
            key: of the noise.
            x_0_bounds: range that samples are clipped to.
        """
        self._mesh = mesh
        self._step = jax.jit(make_validation_step(pipeline, key))

        self._batches = loader.fixed_batches(
            examples,
            settings.validation_batches,
            settings.batch_size,
            sharding.padded_batch_size(settings.batch_size, mesh, 1),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        # Every process holds the few that are pictured.
        padded_size = sharding.padded_batch_size(settings.num_pictures, mesh, 1)
        (pictured,) = loader.fixed_batches(
            examples.with_tumor(), 1, settings.num_pictures, padded_size
        )
        self._num_pictures = int(pictured["weight"].sum())
        keys = jax.random.split(jax.random.fold_in(key, 0), len(pictured["weight"]))
        prepare = jax.jit(functools.partial(pipeline.prepare, augmented=False))
        inputs = jax.device_get(prepare(pictured, keys))
        # Samples of single slices: neighbors would have to be sampled too.
        alone = dataclasses.replace(inputs.condition, neighbors=None)
        self._pictured = inputs._replace(condition=alone)
        self._sampler = Sampler(pipeline.apply, pipeline.process)
        drawn = Sampling(settings.picture_steps, guidance=settings.guidance_weight)
        self._sampling = drawn.resolved(pipeline.process)
        self._bounds = x_0_bounds

    def compile(self, params: Params) -> None:
        """Compiles what `run` runs, which a signal would have to wait for later."""
        jax.block_until_ready(
            self._step(params, sharding.put_batch(self._batches[0], self._mesh), 0)
        )
        # The number of steps compiles nothing.
        last = self._sampler.process.num_timesteps - 1
        self._sample(params, dataclasses.replace(self._sampling, spacing=(last,)))

    def run(
        self,
        step: int,
        params: Params,
        writer: MetricsWriter | None,
        cancel: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Computes the loss and draws the picture; with a writer, writes and logs them.

        Args:
            step: of training.
            params: averaged.
            writer: None where another process writes.
            cancel: asked now and then; true ends it, and nothing is written.

        Returns:
            Whether it came to its end.
        """
        terms = []
        for number, batch in enumerate(self._batches):
            if cancel():
                return False
            terms.append(self._step(params, sharding.put_batch(batch, self._mesh), number))
            # One is computed while the next one is placed.
            jax.block_until_ready(terms[-2:-1])
        try:
            samples = self._sample(params, self._sampling, cancel)
        except SamplingCancelled:
            return False
        total = jax.tree.map(lambda *parts: sum(parts), *terms)
        means = {f"validation/{name}": float(v) for name, v in losses(total).items()}
        if writer is None:
            return True
        writer.scalars(step, means)
        if not np.isfinite(samples).all():
            # Not the end of a training: as weights grow, a picture may come out that way.
            logger.warning(
                "step %d: the picture's samples are not finite; lower guidance_weight", step
            )
        x_0, condition, _ = self._pictured
        shown = (x_0, condition.roi_masks, samples)
        sheet = pictures.sheet(*(array[: self._num_pictures] for array in shown))
        writer.picture(step, "samples", sheet)
        logger.info("step %d: validation loss %.4f", step, means["validation/loss"])
        return True

    def _sample(
        self, params: Params, sampling: Sampling, cancel: Callable[[], bool] = lambda: False
    ) -> np.ndarray:
        x_0, condition, _ = self._pictured
        numbers = range(len(x_0))
        x_T, keys = noise_for(sampling.seed, numbers, [0] * len(x_0), x_0.shape[1:])
        x_T, x_0, condition, keys = self._put((x_T, x_0, condition, keys))
        samples = self._sampler(
            params,
            x_T,
            x_0,
            condition,
            keys,
            sampling,
            clip=self._bounds,
            chunk=1,  # Of a large network on a CPU a step takes seconds.
            cancel=cancel,
        ).x_0
        return multihost_utils.process_allgather(samples, tiled=True)

    def _put(self, batch: Any) -> Any:
        """Splits what every process holds in full over the devices."""
        place = sharding.batch_sharding(self._mesh)
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, place, x.__getitem__), batch
        )

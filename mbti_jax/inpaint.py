"""The `Inpainter`: a trained model, ready to repaint regions of slices."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mbti_jax import sharding
from mbti_jax.checkpoint import load_for_inference
from mbti_jax.guidance import guided
from mbti_jax.method import Method
from mbti_jax.sampler import Sampler, noise_for
from mbti_jax.schedule import trailing_timesteps
from mbti_jax.state import Params


class Inpainter:
    """A trained model and its sampler.

    Attributes:
        method: network, process and tasks.
        metadata: what the checkpoint recorded (see `checkpoint`).
        image_size: height and width of the slices that `sample` takes.
        num_channels: C, how many sequences the model paints together.
    """

    def __init__(self, params: Params, metadata: dict[str, Any], batch_size: int = 32):
        """Wraps averaged parameters and metadata as `load_for_inference` returns them.

        Args:
            batch_size: slices sampled at once over all local devices. Every call is padded to it, so
                that one compiled program serves all.
        """
        self.metadata = metadata
        self.method = Method.from_config(metadata["contract"])
        self.image_size = self.method.image_size
        self.num_channels = self.method.model.out_channels
        self._mesh = sharding.make_mesh(jax.local_devices())
        self._batch_size = sharding.padded_batch_size(batch_size, self._mesh, 1)
        self._params = jax.device_put(params, sharding.replicated(self._mesh))
        self._sampler = Sampler(
            guided(self.method.apply, self.method.process), self.method.process.schedule
        )

    @classmethod
    def load(cls, path: str | os.PathLike, batch_size: int = 32) -> "Inpainter":
        """Loads the newest checkpoint of the training run in the folder `path`.

        Raises:
            ValueError: there is no readable checkpoint.
        """
        return cls(*load_for_inference(path), batch_size)

    def sample(
        self,
        images: np.ndarray,
        roi_masks: np.ndarray,
        class_vectors: np.ndarray,
        *,
        seed: int = 0,
        samples: Sequence[int] | None = None,
        slice_indices: Sequence[int] | None = None,
        num_steps: int = 50,
        guidance_weight: float = 0.4,
        eta: float = 0.0,
        progress: Callable[[int, int], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        """Repaints slices that are already in the model's size and intensity units.

        Args:
            images: float32 [N, S, S, C] with S = `image_size`, background -1.
            roi_masks: [N, S, S, 5], 0 / 1.
            class_vectors: float32 [N, 5].
            seed: an example's noise is a function of (seed, sample, slice index, position).
            samples: ints [N], which of several samples of its slice each example is; default 0.
            slice_indices: ints [N]; default 0.
            num_steps: DDIM steps, 1 to 1000.
            guidance_weight: w.
            eta: 0 (deterministic) to 1 (ancestral sampling).
            progress: called with (steps done, steps in all) over all batches.
            cancel: asked between chunks of steps; true raises `SamplingCancelled`.

        Returns:
            float32 [N, S, S, C], equal to `images` outside the ROI.

        Raises:
            ValueError: shapes do not fit the model, or an empty ROI.
        """
        count = len(images)
        expected = (count, self.image_size, self.image_size, self.num_channels)
        if images.shape != expected:
            raise ValueError(f"images have shape {images.shape}, the model wants {expected}")
        if not roi_masks.any(axis=(1, 2, 3)).all():
            raise ValueError("an example has an empty ROI: there is nothing to inpaint")
        samples = np.zeros(count, int) if samples is None else np.asarray(samples)
        slice_indices = np.zeros(count, int) if slice_indices is None else np.asarray(slice_indices)
        timesteps = trailing_timesteps(num_steps, self.method.process.schedule.num_timesteps)
        batches = -(-count // self._batch_size)
        out = np.empty(expected, np.float32)
        for number in range(batches):
            rows = np.arange(number * self._batch_size, min((number + 1) * self._batch_size, count))
            # The padding repeats the first row; what becomes of it is thrown away.
            padded = np.concatenate([rows, np.full(self._batch_size - len(rows), rows[0])])
            noise, keys = noise_for(seed, samples[padded], slice_indices[padded], expected[1:])
            batch = (noise, images[padded], roi_masks[padded], class_vectors[padded], keys)

            def report(done: int, total: int, number: int = number) -> None:
                if progress is not None:
                    progress(number * total + done, batches * total)

            result = self._sampler(
                self._params,
                *jax.device_put(batch, sharding.batch_sharding(self._mesh)),
                timesteps=timesteps,
                weight=guidance_weight,
                eta=eta,
                clip=tuple(self.metadata["inference"]["x_0_bounds"]),
                progress=report,
                cancel=cancel,
            )
            out[rows] = jax.device_get(result)[: len(rows)]
        return out

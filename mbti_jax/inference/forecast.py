"""What painting a volume will cost, before it starts."""

import dataclasses
import functools
import time
from typing import NamedTuple

import jax
import numpy as np

from mbti_jax.diffusion import samplers
from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.rois.kinds import NORMAL, NUM_KINDS, NUM_LABELS
from mbti_jax.rois.regions import Rois
from tfds_brats.scale import BACKGROUND

# Arrays of an image's size that lie on the devices besides what a method remembers: noise, context,
# x_t, and what the neighbors are shown of it; and masks, of the slices and as neighbors.
_IMAGES, _MASKS = 4, 2


class Forecast(NamedTuple):
    """The cost of a volume.

    Attributes:
        batches: that its images fill.
        evaluations: of the network for each of them.
        network_passes: of each of them, a guided evaluation taking two.
        seconds: it takes about so long.
        device_bytes: that its slices take on the devices, beside what the network needs for a batch.
    """

    batches: int
    evaluations: int
    network_passes: int
    seconds: float
    device_bytes: int

    def __str__(self) -> str:
        return (
            f"{work(self.batches, self.evaluations)}, about {duration(self.seconds)}; slices take "
            f"{self.device_bytes / 1e9:.2f} GB on the device"
        )


def work(batches: int, evaluations: int) -> str:
    """What the network does, in words."""
    return (
        f"{batches} batch{'es' * (batches > 1)} of {evaluations} evaluation"
        f"{'s' * (evaluations > 1)}"
    )


def duration(seconds: float) -> str:
    """A time that nobody knows to more than two digits, in words."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def forecast(
    inpainter: Inpainter, sampling: Sampling, num_images: int, slice_distance: float
) -> Forecast:
    """The cost of a volume. The first call runs two evaluations to measure it, and may compile.

    Args:
        inpainter: the model.
        sampling: how it is drawn.
        num_images: slices times samples, times sequences where the model paints them one by one.
        slice_distance: in millimeters.
    """
    batches = -(-num_images // inpainter.batch_size)
    passes = inpainter.passes(sampling)
    sampling = inpainter.resolve(sampling)
    together = inpainter.neighbors_at(slice_distance, sampling) > 0
    size = inpainter.image_size
    image = jax.ShapeDtypeStruct((1, size, size, inpainter.num_channels), np.float32)
    method = samplers.method(sampling.sampler)
    remembered = len(jax.tree.leaves(jax.eval_shape(method.start, image)))
    channels = (_IMAGES + remembered) * inpainter.num_channels + _MASKS * NUM_KINDS
    of_image = 4 * size**2 * (channels + NUM_LABELS * inpainter.has_labels)
    on_device = (batches if together else 1) * inpainter.batch_size * of_image
    # Apart from what a pass does not hang on, so that it is measured once for many seeds.
    drawn = dataclasses.replace(
        sampling,
        spacing=(inpainter.pipeline.process.num_timesteps - 1,),
        estimate="sample",
        mean_passes=None,
        blend=False,
        seed=0,
    )
    seconds = _seconds_per_pass(inpainter, drawn, slice_distance if together else None)
    evaluations, network_passes = passes["evaluations"], passes["network_passes"]
    total = batches * network_passes * seconds
    return Forecast(batches, evaluations, network_passes, total, on_device)


@functools.lru_cache(maxsize=1)
def _seconds_per_pass(
    inpainter: Inpainter, sampling: Sampling, slice_distance: float | None
) -> float:
    """Of a batch, measured on the one step of `sampling`, after another that compiles."""
    size, count = inpainter.image_size, inpainter.batch_size
    images = np.full((count, size, size, inpainter.num_channels), BACKGROUND, np.float32)
    masks = np.zeros((count, size, size, NUM_KINDS), bool)
    masks[:, size // 2, size // 2, NORMAL] = True
    condition = Condition.stack([Rois(mask).condition() for mask in masks])
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        inpainter.sample(
            images,
            condition,
            sampling,
            slice_indices=np.arange(count),
            slice_distance=slice_distance,
        )
        seconds = time.perf_counter() - start
    return seconds / inpainter.passes(sampling)["network_passes"]

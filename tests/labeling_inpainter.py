"""An inpainter whose network labels what it paints by its intensity, so that the labels are known."""

import dataclasses
import functools

import jax.numpy as jnp
from tiny_inpainter import tiny_metadata, tiny_params

from mbti_jax.diffusion.output import Output
from mbti_jax.diffusion.samplers.driver import Sampler
from mbti_jax.inference.inpainter import Inpainter

# In the model's units; below the first there is no tumor.
THRESHOLDS = (-0.4, 0.0, 0.4)


def painter(params, x_t, t, condition):
    """A network that paints what the noise says, and labels what it paints by its intensity.

    In the null pass it claims enhancement everywhere.
    """
    image = 0.9 * jnp.sin(7 * x_t)
    labels = sum((image[..., 0] > threshold).astype(jnp.int32) for threshold in THRESHOLDS)
    is_null = (condition.class_vector == 0).all(-1)
    labels = jnp.where(is_null[:, None, None], 3, labels)
    return Output(image, 10.0 * (labels[..., None] == jnp.arange(4)))


class _Painter:
    """`painter` in the place of a UNet."""

    label_head, out_channels, neighbors = True, 1, 0

    def apply(self, variables, x_t, t, condition):
        return painter(variables["params"], x_t, t, condition)


@functools.cache
def labeling_inpainter(batch_size: int = 4) -> Inpainter:
    """An inpainter whose network is `painter`, in windows of the network's own size."""
    metadata = tiny_metadata(label_head=True)
    metadata["contract"]["diffusion"]["prediction"] = "x_0"
    metadata["contract"]["data"]["window"] = metadata["contract"]["data"]["image_size"]
    inpainter = Inpainter(tiny_params(metadata), metadata, batch_size, "painter")
    inpainter.pipeline = dataclasses.replace(inpainter.pipeline, model=_Painter())
    inpainter._sampler = Sampler(painter, inpainter.pipeline.process)
    return inpainter

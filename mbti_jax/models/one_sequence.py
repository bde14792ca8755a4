"""From a network of several sequences to one of a single sequence."""

from typing import Any, cast

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mbti_jax.models.unet import UNet
from mbti_jax.rois.kinds import NUM_KINDS


def for_one_sequence(params: dict, model: UNet) -> tuple[dict, UNet]:
    """The network that sees one image in the place of all sequences, and answers with their mean.

    For f, a network of C sequences, it is the network x -> mean_c f(x, ..., x)_c with the label logits
    of f: filters of the input are summed over the sequences and those of the output averaged. It is
    exact, but f never saw one image C times: the result is meant to be trained on, from which it learns
    much faster than from random weights.

    Args:
        params: of `model`.
        model: with C = `model.out_channels`; learned variances are not known here.

    Returns:
        Parameters, as float32 NumPy arrays, and network, with C = 1.

    Raises:
        ValueError: the network does not have one output per sequence.
    """
    sequences = model.out_channels
    if model.in_channels != sequences + NUM_KINDS:
        raise ValueError(
            f"a network of {model.in_channels} input and {sequences} output channels does not have "
            f"one output for each sequence ({NUM_KINDS} input channels are ROI masks)"
        )
    pixels, images = model.patch_size**2, 1 + model.mirror
    groups: dict[tuple[str, ...], tuple[int, int]] = {
        ("input_blocks_0_0", "kernel"): (model.in_channels, pixels * images),
        # Image, masks and whether it is there, of each neighbor.
        ("neighbors_in", "kernel"): (model.in_channels + 1, pixels * 2 * model.neighbors),
        ("detail_out_2", "kernel"): (model.in_channels, images),
        ("label_out_2", "kernel"): (model.in_channels, images),
    }
    flat = {path: np.asarray(leaf, np.float32) for path, leaf in _flat(params).items()}
    for path, leaf in flat.items():
        if path in groups:
            flat[path] = _summed(leaf, sequences, *groups[path])
        elif path[0] in ("out_2", "detail_out_4"):
            flat[path] = leaf.reshape(*leaf.shape[:-1], -1, sequences).mean(-1)
    return unflatten_dict(flat), model.clone(in_channels=1 + NUM_KINDS, out_channels=1)


def _summed(kernel: np.ndarray, sequences: int, channels: int, count: int) -> np.ndarray:
    """A kernel [..., D, W] whose last features are `count` groups of `channels`, sequences first."""
    features, inputs = np.split(kernel, [kernel.shape[-2] - channels * count], axis=-2)
    inputs = inputs.reshape(*kernel.shape[:-2], count, channels, kernel.shape[-1])
    image, rest = np.split(inputs, [sequences], axis=-2)
    inputs = np.concatenate([image.sum(-2, keepdims=True), rest], axis=-2)
    inputs = inputs.reshape(*kernel.shape[:-2], -1, kernel.shape[-1])
    return np.concatenate([features, inputs], axis=-2)


def _flat(params: dict) -> dict[tuple[str, ...], Any]:
    return cast(dict[tuple[str, ...], Any], flatten_dict(params))

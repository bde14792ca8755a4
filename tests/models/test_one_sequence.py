"""A network of several sequences as one of a single sequence."""

import dataclasses

import jax
import numpy as np
import pytest
from unet_cases import quick_jit, random_params, small_unet

from mbti_jax.diffusion.condition import Condition, Neighbors
from mbti_jax.models.one_sequence import for_one_sequence
from mbti_jax.models.parameters import param_shapes
from mbti_jax.models.unet import UNet

SEQUENCES = 3
PLAIN = dict(in_channels=SEQUENCES + 5, out_channels=SEQUENCES)
EVERYTHING = dict(
    **PLAIN, patch_size=2, detail_channels=4, mirror=True, neighbors=1, label_head=True
)


def outputs_of(model: UNet, params: dict, sequences: int):
    """Of images that are the same in all sequences."""
    t, class_vector = np.array([30.0, 700.0]), np.float32([[0] * 5, [1, 2, 0, 1, 3]])
    image, *around = np.random.default_rng(1).standard_normal((3, 2, 16, 16, 1), np.float32)
    masks, *theirs = np.random.default_rng(2).integers(0, 2, (3, 2, 16, 16, 5)).astype(np.float32)
    condition = Condition(masks, class_vector)
    if model.neighbors:
        images = np.stack(around, 1).repeat(sequences, -1)
        seen = Neighbors(images, np.stack(theirs, 1), np.array([[1, 1], [1, 0]], np.float32))
        condition = dataclasses.replace(condition, neighbors=seen)
    apply = quick_jit(lambda params, *given: model.apply({"params": params}, *given))
    return apply(params, image.repeat(sequences, -1), t, condition)


@pytest.mark.parametrize("options", [PLAIN, EVERYTHING], ids=["published", "everything"])
def test_it_answers_as_for_one_image_in_all_sequences(options):
    model = small_unet(**options)
    params = random_params(model)
    image, logits = outputs_of(model, params, SEQUENCES)
    one, single = for_one_sequence(params, model)[::-1]
    shapes = jax.tree.map(lambda leaf: leaf.shape, param_shapes(one))
    assert jax.tree.map(np.shape, single) == shapes
    of_one, its_logits = outputs_of(one, single, 1)
    scale = float(np.abs(image).max())
    assert of_one.shape[-1] == 1 and image.shape[-1] == SEQUENCES
    np.testing.assert_allclose(of_one[..., 0], image.mean(-1), atol=1e-5 * scale)
    # The sequences themselves differ.
    assert np.abs(of_one - image).max() > 0.01 * scale
    assert (logits is None) == (its_logits is None) == (options is PLAIN)
    if logits is not None:
        np.testing.assert_allclose(its_logits, logits, atol=1e-5 * float(np.abs(logits).max()))


def test_networks_with_other_outputs_are_refused():
    model = small_unet(in_channels=6, out_channels=2)
    with pytest.raises(ValueError, match="6 input and 2 output channels does not have one output"):
        for_one_sequence(random_params(model), model)

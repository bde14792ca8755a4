"""Classifier-free guidance on the class vector (Ho & Salimans 2022, arXiv:2207.12598).

In training the class vector is now and then replaced by zeros, the null condition; at inference the
network runs with the class vector and with zeros, and the difference of the two is amplified:

    P = (1 + w) P(class_vector) - w P(0)            (Ho & Salimans, equation 6)

Image, masks and timestep are the same in both passes; w = 0 is the conditional network alone. The
inpainting paper (Rouzrokh et al. 2022) prints `(W + 1) P_initial - P_0` instead. The weights of
that form add up to W and not to 1, so at the paper's own W = 0.4 it would shrink the prediction to
two fifths wherever the two passes agree; at W = 1 both forms are the same. The form above is used.

P may be eps, v or x_0: each is an affine function of the others at a given x_t, and the weights add
up to 1, so the result is the same.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mbti_jax.diffusion.process import Diffusion, model_input

# apply(params, x [B, H, W, C + 5], t [B], class_vector [B, 5]) -> prediction [B, H, W, C]
Apply = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]

# denoise(params, x_t [B, H, W, C], t [B], roi_masks [B, H, W, 5], class_vector [B, 5], weight [B])
#   -> x_0 [B, H, W, C]
Denoise = Callable[[Any, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def null(class_vector: jax.Array) -> jax.Array:
    """The class vector of the null condition: zeros like `class_vector`."""
    return jnp.zeros_like(class_vector)


def drop_condition(keys: jax.Array, class_vector: jax.Array, rate: float) -> jax.Array:
    """Replaces the class vector of a random share of examples by the null condition.

    Args:
        keys: typed keys [B], one per example, so that an example's fate does not depend on its batch.
        class_vector: float32 [B, 5].
        rate: probability of a replacement, in [0, 1]; 0.1 in the paper.

    Returns:
        float32 [B, 5], each row either as it was or all zeros.
    """
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)
    return jnp.where(dropped[:, None], null(class_vector), class_vector)


def guided(apply: Apply, diffusion: Diffusion) -> Denoise:
    """A denoise function that runs the network with and without its condition and guides.

    Both passes go through the network in one batch of 2 B. The two passes of an example are
    neighbours in it, so a batch that is sharded over devices needs no communication.

    Args:
        apply: the network; its output is in the terms of `diffusion.prediction`.
        diffusion: converts the guided prediction to x_0.

    Returns:
        A function of (params, x_t, t, roi_masks, class_vector, weight) that returns x_0; `weight` is
        the w above, float32 [B].
    """

    def denoise(params, x_t, t, roi_masks, class_vector, weight):
        x = model_input(x_t, roi_masks)
        prediction = apply(
            params, _pairs(x, x), _pairs(t, t), _pairs(class_vector, null(class_vector))
        )
        prediction = prediction.astype(x_t.dtype).reshape(x_t.shape[0], 2, *x_t.shape[1:])
        w = weight.reshape(-1, *(1,) * (x_t.ndim - 1))
        guided_prediction = (1.0 + w) * prediction[:, 0] - w * prediction[:, 1]
        return diffusion.to_x_0(guided_prediction, x_t, t)

    return denoise


def _pairs(first: jax.Array, second: jax.Array) -> jax.Array:
    """[B, ...] and [B, ...] -> [2 B, ...] in the order first[0], second[0], first[1], ..."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])

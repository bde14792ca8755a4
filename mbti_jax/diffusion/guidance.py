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

A guidance is a frozen dataclass whose numbers are traced: changing them compiles nothing. Its `denoise`
turns a network that predicts into an estimate of x_0. Labels are not guided: their logits are those of
the conditional pass.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Key, Shaped

from mbti_jax.diffusion.arrays import AnyArray, Images, Numbers
from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.output import Denoised, Output
from mbti_jax.diffusion.processes import Process, like
from mbti_jax.fields import Interval

# Far beyond what anybody guides with: at 1e38 the two passes overflow and only their bounds would show.
GUIDANCE_WEIGHTS = Interval(-10_000, 10_000)

# apply(params, x_t [B, H, W, C], t [B], condition) -> Output
Apply = Callable[[Any, AnyArray, AnyArray, Condition], Output]
# The same, with the parameters given.
Predict = Callable[[AnyArray, AnyArray, Condition], Output]
# Times of a sampler's rows.
Times = Int[np.ndarray, " n"]


@runtime_checkable
class Guidance(Protocol):
    """What a guidance is."""

    def denoise(
        self, predict: Predict, process: Process, x_t: Images, t: Numbers, condition: Condition
    ) -> Denoised:
        """The estimate of x_0; every number of the guidance is float32 [B]."""
        ...

    def passes(self, process: Process, t: Times) -> Times:
        """How often an image goes through the network for its estimates at times t, int [n]."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unguided:
    """The conditional network alone: one pass."""

    def denoise(
        self, predict: Predict, process: Process, x_t: Images, t: Numbers, condition: Condition
    ) -> Denoised:
        output = predict(x_t, t, condition)
        x_0 = process.to_x_0(output.image.astype(x_t.dtype), x_t, t)
        return Denoised(x_0, output.label_logits)

    def passes(self, process: Process, t: Times) -> Times:
        return np.ones(len(t), int)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance, the formula above.

    Both passes go through the network in one batch of 2 B. The two passes of an example are neighbors in
    it, so a batch that is sharded over devices needs no communication.

    Attributes:
        weight: w.
    """

    weight: Any

    def denoise(
        self, predict: Predict, process: Process, x_t: Images, t: Numbers, condition: Condition
    ) -> Denoised:
        both = jax.tree.map(_pairs, condition, condition.null())
        output = predict(_pairs(x_t, x_t), _pairs(t, t), both)
        prediction = output.image.astype(x_t.dtype).reshape(x_t.shape[0], 2, *x_t.shape[1:])
        w = like(self.weight, x_t)
        guided = (1.0 + w) * prediction[:, 0] - w * prediction[:, 1]
        logits = output.label_logits
        return Denoised(process.to_x_0(guided, x_t, t), None if logits is None else logits[::2])

    def passes(self, process: Process, t: Times) -> Times:
        return np.full(len(t), 2)


def drop_condition(
    keys: Key[jax.Array, " B"], condition: Condition, rate: float | jax.Array
) -> Condition:
    """Replaces the class vector of a random share of examples by the null condition.

    Args:
        keys: typed keys [B], one per example, so that an example's fate does not depend on its batch.
        condition: of B examples.
        rate: probability of a replacement, in [0, 1]; 0.1 in the paper.
    """
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)
    given = condition.class_vector
    return dataclasses.replace(
        condition, class_vector=jnp.where(dropped[:, None], jnp.zeros_like(given), given)
    )


def _pairs(
    first: Shaped[AnyArray, "B ..."], second: Shaped[AnyArray, "B ..."]
) -> Shaped[jax.Array, "2*B ..."]:
    """[B, ...] and [B, ...] -> [2 B, ...] in the order first[0], second[0], first[1], ..."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])

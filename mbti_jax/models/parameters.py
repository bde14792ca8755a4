"""Parameters of a network: their shapes, and fresh ones."""

import dataclasses
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Key

from mbti_jax.diffusion.condition import Condition, Neighbors
from mbti_jax.models import blocks
from mbti_jax.models.unet import UNet

# Nested dicts of arrays.
Params = Any


def param_shapes(model: UNet) -> dict:
    """The parameter tree of `model` with `jax.ShapeDtypeStruct` leaves. Computes nothing."""

    def init(key: jax.Array) -> Any:
        x = jnp.zeros((1, model.image_size, model.image_size, model.in_channels))
        condition = Condition(x[..., :0], jnp.zeros((1, model.num_classes)))
        if model.neighbors:
            stack = jnp.zeros((1, 2 * model.neighbors, *x.shape[1:]))
            neighbors = Neighbors(stack, stack[..., :0], stack[..., 0, 0, 0])
            condition = dataclasses.replace(condition, neighbors=neighbors)
        return model.init(key, x, jnp.zeros(1), condition)

    return jax.eval_shape(init, jax.random.key(0))["params"]


def flat_shapes(model: UNet) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """`param_shapes` by path."""
    return cast(dict[tuple[str, ...], jax.ShapeDtypeStruct], flatten_dict(param_shapes(model)))


def init_params(model: UNet, key: Key[jax.Array, ""]) -> dict:
    """Freshly initialized parameters of `model`. Pure; jit it.

    The distribution is that of `model.init`, but all parameters come from one random draw: XLA
    compiles each draw for itself, which takes longer than to compile the network's gradient.

    Args:
        model: the network.
        key: typed PRNG key.

    Returns:
        Nested dict of float32 arrays.
    """
    flat = flat_shapes(model)
    drawn = [
        path for path in sorted(flat) if path[-1] == "kernel" and path[-2] not in blocks.ZERO_INIT
    ]
    ends = np.cumsum([flat[path].size for path in drawn])
    noise = jax.random.uniform(key, (ends[-1],), minval=-1.0, maxval=1.0)
    params = {
        path: (jnp.ones if path[-1] == "scale" else jnp.zeros)(leaf.shape)
        for path, leaf in flat.items()
    }
    for path, values in zip(drawn, jnp.split(noise, ends[:-1]), strict=True):
        shape = flat[path].shape
        params[path] = values.reshape(shape) / math.prod(shape[:-1]) ** 0.5
    return unflatten_dict(params)

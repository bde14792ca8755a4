"""What training carries from step to step."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from mbti_jax.models.parameters import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """State after `step` updates.

    Attributes:
        step: int32 scalar.
        params: parameters of the model, float32.
        ema: exponential moving average of the parameters, float32; what is used for inference.
        opt_state: optax's state.
    """

    step: jax.Array
    params: Params
    ema: Params
    opt_state: optax.OptState


def create_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first update. The average starts as a copy, never as the same buffers."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )


def apply_update(
    state: TrainState,
    grads: Params,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
) -> TrainState:
    """One optimizer update, then one update of the moving average.

    The decay warms up as min(ema_decay, (1 + n) / (10 + n)) at the n-th update (n from 0), as in
    TensorFlow's ExponentialMovingAverage, so that the random initial weights are soon forgotten.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    n = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1 + n) / (10 + n))
    ema = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), state.ema, params)
    return TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)

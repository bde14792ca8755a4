"""One update.

Randomness: the key of an example is folded out of (seed, step, position in the global batch), so an
update depends neither on the number of devices nor on how a batch is split into microbatches.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mbti_jax.data import loader
from mbti_jax.models.losses import losses
from mbti_jax.models.pipeline import Pipeline, example_keys
from mbti_jax.training.state import TrainState, apply_update

# (state, batch) -> (the next state, metrics)
Step = Callable[[TrainState, loader.Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    pipeline: Pipeline,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    ema_decay: float,
    accumulation: int = 1,
) -> Step:
    """`step(state, batch) -> (state, metrics)`, to be jitted.

    Squared errors and their number are summed over microbatches (and, by XLA, over devices) before the
    one division, so the update is that of the whole batch.

    Args:
        pipeline: network, process and tasks.
        optimizer: of the parameters.
        key: of everything that is drawn.
        ema_decay: of the moving average.
        accumulation: number of microbatches; the batch's length must be a multiple of it.

    Returns:
        The step. Its metrics are float32 scalars: `grad_norm`, and those of `losses.losses`.
    """

    def microbatch_grads(params, batch, keys, dropout_key, step):
        prepare_keys, loss_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        with jax.named_scope("preprocessing"):
            inputs = pipeline.prepare(batch, prepare_keys, augmented=True)
        loss_of = jax.value_and_grad(pipeline.loss_terms, has_aux=True)
        (_, terms), grads = loss_of(params, inputs, batch["weight"], loss_keys, dropout_key, step)
        return grads, terms

    def step(state: TrainState, batch: loader.Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        keys = example_keys(key, state.step, len(batch["weight"]))
        dropout_key = jax.random.fold_in(keys[0], 0) if pipeline.model.dropout else None
        if accumulation == 1:
            grads, terms = microbatch_grads(state.params, batch, keys, dropout_key, state.step)
        else:

            def split(x):
                """Microbatch m takes every A-th example: the devices keep the ones they hold."""
                return jnp.swapaxes(x.reshape(-1, accumulation, *x.shape[1:]), 0, 1)

            def add(total, part):
                m, part_batch, part_keys = part
                part_dropout = None if dropout_key is None else jax.random.fold_in(dropout_key, m)
                new = microbatch_grads(
                    state.params, part_batch, part_keys, part_dropout, state.step
                )
                return jax.tree.map(jnp.add, total, new), None

            parts = (jnp.arange(accumulation), *jax.tree.map(split, (batch, keys)))
            zeros = (jax.tree.map(jnp.zeros_like, state.params), pipeline.no_terms())
            (grads, terms), _ = jax.lax.scan(add, zeros, parts)
        grads = jax.tree.map(lambda g: g / terms.counts.sum(), grads)
        metrics = {**losses(terms), "grad_norm": optax.tree.norm(grads)}
        with jax.named_scope("optimizer"):
            return apply_update(state, grads, optimizer, ema_decay), metrics

    return step

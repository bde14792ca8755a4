"""How much the squared error counts at which time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from mbti_jax.commands.settings import from_config
from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.output import Output
from mbti_jax.models.pipeline import Inputs
from mbti_jax.training.settings import TrainSettings

_GUESS = 0.25
_INSIDE = np.s_[:, 1:3, :3]


class Recorder:
    """A network that says `_GUESS` of every pixel, and remembers x_t and t."""

    def apply(self, variables, x, t, condition, **kwargs):
        self.seen = x, t
        return Output(jnp.full_like(x, _GUESS))


@pytest.fixture(scope="module")
def seen():
    """What networks that say `_GUESS` of every pixel cost, by bound of the weight."""
    rng = np.random.default_rng(0)
    x_0 = rng.normal(size=(64, 4, 4, 1)).astype(np.float32)
    masks = np.zeros((64, 4, 4, 5), np.float32)
    masks[_INSIDE] = np.eye(5)[0]
    inputs = Inputs(x_0, Condition(masks, np.full((64, 5), 2, np.float32)))
    keys, found = jax.random.split(jax.random.key(1), 64), {}
    for bound in (1.0, 5.0, 1e6):
        config = tiny_config()
        config.diffusion.update(prediction="x_0", schedule="cosine", max_loss_weight=bound)
        pipeline = from_config(TrainSettings, config).pipeline()

        def cost(keys, pipeline=pipeline):
            network = Recorder()
            recording = dataclasses.replace(pipeline, model=network, drop_rate=0.0)
            return recording.loss_terms({}, inputs, np.ones(64, np.float32), keys), network.seen

        (total, terms), (x_t, t) = jax.device_get(jax.jit(cost)(keys))
        found[bound] = float(total), float(terms.sums.sum()), x_t, t
    return pipeline.process, x_0, found


def test_without_a_bound_it_is_the_loss_of_the_velocity(seen):
    """v = (alpha x_t - x_0) / sigma, so an error of x_0 is one of v times sigma."""
    process, x_0, found = seen
    total, _, x_t, t = found[1e6]
    alpha, sigma = (like(t)[:, None, None, None] for like in (process.alpha, process.sigma))
    eps = (x_t - alpha * x_0) / sigma
    v, guess = alpha * eps - sigma * x_0, (alpha * x_t - _GUESS) / sigma
    np.testing.assert_allclose(total, np.square(guess - v)[_INSIDE].sum(), rtol=1e-3)


def test_a_bound_bounds_it(seen):
    process, x_0, found = seen
    total, _, _, t = found[5.0]
    snr = np.square(process.alpha(t) / process.sigma(t))
    error = np.square(_GUESS - x_0)[_INSIDE].sum((1, 2, 3))
    weight = np.minimum(1 + snr, 5)
    assert 5 < (weight == 5).sum() < 59
    np.testing.assert_allclose(total, (weight * error).sum(), rtol=1e-4)
    np.testing.assert_allclose(found[1.0][0], error.sum(), rtol=1e-5)


def test_what_is_reported_does_not_depend_on_it(seen):
    sums = [reported for _, reported, *_ in seen[2].values()]
    np.testing.assert_allclose(sums, sums[0], rtol=1e-6)

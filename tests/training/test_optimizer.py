"""Muon against the polar decomposition that it approximates, and as a part of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import polar
from tiny import tiny_config

from mbti_jax import sharding
from mbti_jax.commands.settings import from_config
from mbti_jax.fields import FieldError
from mbti_jax.training.optimizer import OptimizerSettings
from mbti_jax.training.settings import TrainSettings
from mbti_jax.training.state import apply_update, create_state

RATE = 0.01


def weights_and_gradients() -> tuple[dict, dict]:
    """A convolution, a dense layer that widens, and a bias."""
    shapes = {"conv": (3, 3, 32, 256), "dense": (16, 48), "bias": (48,)}
    keys = jax.random.split(jax.random.key(0), 2)
    return tuple(
        {
            name: jax.random.normal(jax.random.fold_in(key, len(name)), shape)
            for name, shape in shapes.items()
        }
        for key in keys
    )


def test_the_first_update_of_a_kernel_points_along_its_polar_factor():
    params, grads = weights_and_gradients()
    optimizer = OptimizerSettings(RATE, "muon").make()
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    for name in ("conv", "dense"):
        gradient = np.asarray(grads[name], np.float64).reshape(-1, grads[name].shape[-1])
        update = np.asarray(updates[name], np.float64).reshape(gradient.shape)
        factor, _ = polar(gradient)
        cosine = (update * -factor).sum() / np.linalg.norm(update) / np.linalg.norm(factor)
        assert cosine > 0.98, name
        # Five steps of Newton and Schulz bring singular values to 0.7 to 1.2, on purpose no nearer.
        values = np.linalg.svd(update, compute_uv=False)
        scale = 0.2 * RATE * np.sqrt(max(gradient.shape))
        assert 0.6 < values.min() / scale < values.max() / scale < 1.3
    nadam = optax.nadam(RATE)
    expected, _ = nadam.update(grads, nadam.init(params))
    np.testing.assert_allclose(updates["bias"], expected["bias"], rtol=1e-5)


def test_the_default_is_adam():
    params, grads = weights_and_gradients()
    ours, theirs = OptimizerSettings(RATE).make(), optax.adam(RATE)
    jax.tree.map(
        np.testing.assert_array_equal,
        ours.update(grads, ours.init(params), params)[0],
        theirs.update(grads, theirs.init(params), params)[0],
    )
    with pytest.raises(FieldError, match="method"):
        OptimizerSettings(RATE, "sgd")  # ty: ignore


def test_a_kernel_that_is_split_over_devices_has_the_same_updates():
    params, grads = weights_and_gradients()
    optimizer = OptimizerSettings(RATE, "muon").make()
    state = create_state(params, optimizer)
    shardings = sharding.state_sharding(sharding.make_mesh(), state, fully_sharded=True)
    assert not shardings.params["conv"].is_fully_replicated

    def twice(state):
        return apply_update(apply_update(state, grads, optimizer, 0.9), grads, optimizer, 0.9)

    whole = jax.jit(twice)(state)
    split = jax.jit(twice, out_shardings=shardings)(jax.device_put(state, shardings))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        whole,
        jax.device_get(split),
    )


@pytest.mark.parametrize("method", ["adam", "muon"])
def test_the_rate_falls_linearly_to_a_tenth(method):
    """Of a constant gradient Adam's update of a bias has the size of the rate."""
    params, grads = {"bias": jnp.ones(3)}, {"bias": jnp.array([1.0, -2.0, 3.0])}
    constant = OptimizerSettings(RATE, method).make()
    falling = OptimizerSettings(RATE, method, (10, 20)).make()
    state = {"constant": constant.init(params), "falling": falling.init(params)}
    shares = []
    for _ in range(25):
        plain, state["constant"] = constant.update(grads, state["constant"], params)
        fallen, state["falling"] = falling.update(grads, state["falling"], params)
        shares.append(float(fallen["bias"][0] / plain["bias"][0]))
    expected = np.interp(np.arange(25), [10, 20], [1.0, 0.1])
    np.testing.assert_allclose(shares, expected, rtol=1e-5)


@pytest.mark.parametrize("decay", [(5,), (5, 5), (7, 5), (-1, 5), (1, 2, 3)])
def test_a_decay_that_is_none(decay):
    with pytest.raises(FieldError, match="decay must be "):
        OptimizerSettings(RATE, decay=decay)


def test_contracts_tell_the_methods_apart_and_old_ones_stay():
    config = tiny_config()
    reference = from_config(TrainSettings, config).contract("f00d")
    assert reference["optimizer"] == {"learning_rate": 1e-3}
    config.optimizer.update(method="muon", decay=(2, 5))
    changed = from_config(TrainSettings, config).contract("f00d")
    assert changed["optimizer"] == {"learning_rate": 1e-3, "method": "muon", "decay": [2, 5]}

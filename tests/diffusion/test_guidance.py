"""Condition dropout and classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from loose_arrays import guided

from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.guidance import drop_condition
from mbti_jax.diffusion.processes import Gaussian
from mbti_jax.diffusion.schedule import make_schedule


@pytest.fixture(autouse=True)
def strict_types():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def network(params, x, t, class_vector):
    """Not linear, and no example is like another: image, masks, time and class all matter."""
    image, masks = x[..., :2], x[..., 2:]
    class_part = jnp.sum(masks * class_vector[:, None, None, :], -1, keepdims=True)
    time_part = t.astype(jnp.float32)[:, None, None, None] / 1000
    return jnp.sin(params * image + time_part) + jnp.cos(class_part * image)


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    x_t = rng.standard_normal((8, 4, 4, 2)).astype(np.float32)
    t = np.array([0, 1, 10, 100, 300, 600, 900, 999], np.int32)
    roi_masks = (rng.random((8, 4, 4, 5)) < 0.3).astype(np.float32)
    class_vector = rng.integers(1, 4, (8, 5)).astype(np.float32)
    return x_t, t, roi_masks, class_vector


@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_guidance_is_the_formula(schedule, prediction, inputs):
    """(1 + w) P(c) - w P(0) from two separate passes, for another w in every example."""
    x_t, t, roi_masks, class_vector = inputs
    diffusion = Gaussian(make_schedule(schedule), prediction)
    weight = np.array([0, 0.4, 1, 3, 0, 0.4, 1, 40], np.float32)
    x_0 = guided(network, diffusion)(2.0, x_t, t, roi_masks, class_vector, weight)

    x = np.concatenate([x_t, roi_masks], axis=-1)
    conditional = np.asarray(network(2.0, x, t, class_vector), np.float64)
    unconditional = np.asarray(network(2.0, x, t, np.zeros_like(class_vector)), np.float64)
    w = weight.reshape(-1, 1, 1, 1)
    output = (1 + w) * conditional - w * unconditional
    alpha = diffusion.schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    a, s = np.sqrt(alpha), np.sqrt(1 - alpha)
    expected = {"eps": (x_t - s * output) / a, "v": a * x_t - s * output, "x_0": output}[prediction]
    for value, wanted in zip(np.asarray(x_0), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_no_weight_is_the_conditional_network(inputs):
    x_t, t, roi_masks, class_vector = inputs
    diffusion = Gaussian(make_schedule("cosine"), "v")
    x_0 = guided(network, diffusion)(2.0, x_t, t, roi_masks, class_vector, jnp.zeros(8))
    output = network(2.0, np.concatenate([x_t, roi_masks], axis=-1), t, class_vector)
    np.testing.assert_allclose(x_0, diffusion.to_x_0(output, x_t, t), rtol=1e-6, atol=1e-6)


def test_both_passes_are_one_batch_and_one_call(inputs):
    x_t, t, roi_masks, class_vector = inputs
    calls = []

    def recording(params, x, t, class_vector):
        calls.append((x, t, class_vector))
        return network(params, x, t, class_vector)

    denoise = guided(recording, Gaussian(make_schedule("linear")))
    denoise(2.0, x_t, t, roi_masks, class_vector, jnp.ones(8))
    ((x, times, classes),) = calls
    assert x.shape == (16, 4, 4, 7)
    np.testing.assert_array_equal(x[0::2], x[1::2])
    np.testing.assert_array_equal(times, np.repeat(t, 2))
    np.testing.assert_array_equal(classes[0::2], class_vector)
    np.testing.assert_array_equal(classes[1::2], 0)


def test_sharded_batch_needs_no_communication(inputs):
    if jax.device_count() < 2:
        pytest.skip("needs at least two devices")
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    arrays = jax.device_put((*inputs, jnp.ones(8)), sharding)
    denoise = guided(network, Gaussian(make_schedule("linear")))
    program = jax.jit(denoise).lower(2.0, *arrays).compile()
    for operation in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert operation not in program.as_text()
    x_0 = program(2.0, *arrays)
    assert x_0.sharding.is_equivalent_to(sharding, x_0.ndim)
    np.testing.assert_allclose(x_0, denoise(2.0, *inputs, jnp.ones(8)), rtol=1e-4, atol=1e-5)


def test_condition_is_dropped_whole_and_at_the_given_rate():
    count = 10_000
    keys = jax.random.split(jax.random.key(0), count)
    class_vector = np.tile(np.array([1, 2, 3, 1, 2], np.float32), (count, 1))
    condition = Condition(np.zeros((count, 1, 1, 5)), class_vector)
    kept = np.asarray(drop_condition(keys, condition, 0.1).class_vector)
    dropped = np.all(kept == 0, axis=1)
    np.testing.assert_array_equal(kept[~dropped], class_vector[~dropped])
    standard_error = np.sqrt(0.1 * 0.9 / count)
    assert abs(dropped.mean() - 0.1) < 4 * standard_error
    np.testing.assert_array_equal(drop_condition(keys, condition, 0.0).class_vector, class_vector)
    np.testing.assert_array_equal(drop_condition(keys, condition, 1.0).class_vector, 0)


def test_dropout_of_an_example_does_not_depend_on_its_batch():
    keys = jax.random.split(jax.random.key(3), 64)
    condition = Condition(np.zeros((64, 1, 1, 5)), np.ones((64, 5), np.float32))
    whole = drop_condition(keys, condition, 0.5).class_vector
    spans = [slice(i, i + 7) for i in range(0, 64, 7)]
    parts = [drop_condition(keys[span], condition[span], 0.5).class_vector for span in spans]
    np.testing.assert_array_equal(np.concatenate(parts), whole)

"""The state and its update, and how arrays lie on the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from mbti_jax import sharding
from mbti_jax.training.state import apply_update, create_state


def test_the_first_average_equals_the_parameters_but_shares_no_memory():
    params = {"a": jnp.arange(4.0), "b": {"c": jnp.ones((2, 3))}}
    state = create_state(params, optax.adam(1e-3))
    assert int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, state.ema, params)
    for ema, param in zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.params), strict=True):
        assert ema.unsafe_buffer_pointer() != param.unsafe_buffer_pointer()


def test_average_and_parameters_have_their_closed_form():
    """Constant gradients under plain SGD: parameters fall on a line, so the average is a known sum."""
    decay, rate, steps = 0.9, 0.5, 200
    optimizer = optax.sgd(rate)
    gradient = {"w": jnp.array([1.0, -2.0])}
    state = create_state({"w": jnp.array([3.0, 5.0])}, optimizer)
    update = jax.jit(lambda state: apply_update(state, gradient, optimizer, decay))
    averages = []
    for _ in range(steps):
        state = update(state)
        averages.append(np.asarray(state.ema["w"]))
    assert int(state.step) == steps

    # params after n updates: w_n = w_0 - n rate g. The average is the weighted mean of w_0 ... w_N with
    # weight (1 - d_n) d_{n+1} ... d_N for w_n and d_1 ... d_N for w_0; d_n = min(decay, n / (n + 9)).
    w = np.array([3.0, 5.0]) - np.arange(steps + 1)[:, None] * rate * np.array([1.0, -2.0])
    d = np.minimum(decay, np.arange(1, steps + 1) / (np.arange(1, steps + 1) + 9))
    for count in (1, 2, 10, 100, steps):
        later = np.append(np.cumprod(d[:count][::-1])[::-1], 1.0)
        weights = np.append(later[0], (1 - d[:count]) * later[1:])
        assert weights.sum() == pytest.approx(1)
        np.testing.assert_allclose(averages[count - 1], weights @ w[: count + 1], rtol=1e-4)
    np.testing.assert_allclose(state.params["w"], w[-1], rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((256, 512), PartitionSpec(None, "data")),
        ((1024, 256), PartitionSpec("data", None)),
        ((3, 3, 128, 130), PartitionSpec(None, None, "data", None)),  # 130 is not divisible by 4.
        ((255, 257, 3), PartitionSpec()),  # No axis is.
        ((65_532,), PartitionSpec()),  # Divisible, but below 65,536 elements.
        ((65_536,), PartitionSpec("data")),
        ((), PartitionSpec()),
    ],
)
def test_large_arrays_are_split_along_their_largest_axis(shape, spec):
    mesh = sharding.make_mesh()
    assert mesh.size == 4
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert sharding.state_sharding(mesh, {"x": leaf}, fully_sharded=True)["x"].spec == spec
    whole = sharding.state_sharding(mesh, {"x": leaf}, fully_sharded=False)["x"]
    assert whole.is_fully_replicated


@pytest.mark.parametrize(
    ("batch", "devices", "accumulation", "padded"),
    [
        (108, 8, 1, 112),
        (108, 4, 1, 108),
        (108, 4, 3, 108),
        (10, 3, 1, 12),
        (10, 3, 4, 12),
        (1, 4, 2, 8),
    ],
)
def test_batches_are_padded_to_what_devices_and_microbatches_divide(
    batch, devices, accumulation, padded
):
    class Mesh:  # Only its size counts, and there are no eight devices.
        size = devices

    assert sharding.padded_batch_size(batch, Mesh, accumulation) == padded


def test_a_batch_is_split_over_the_devices_in_order():
    mesh = sharding.make_mesh()
    batch = {"x": np.arange(24.0).reshape(8, 3), "w": np.arange(8)}
    placed = sharding.put_batch(batch, mesh)
    jax.tree.map(np.testing.assert_array_equal, placed, batch)
    for number, device in enumerate(mesh.devices):
        (shard,) = [s for s in placed["x"].addressable_shards if s.device == device]
        np.testing.assert_array_equal(shard.data, batch["x"][2 * number : 2 * number + 2])
    assert placed["w"].sharding.spec == PartitionSpec("data")

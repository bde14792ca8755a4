"""The training step: independent of devices, of microbatches and of what lies outside the ROI."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fake_slices import FakeSlices

from configs.train import get_config
from mbti_jax import data, sharding
from mbti_jax.method import Inputs, Method
from mbti_jax.models.unet import init_params
from mbti_jax.state import create_state
from mbti_jax.train import make_train_step

BATCH = 10  # Divided neither by 3 or 4 devices nor by an accumulation of 4.


@functools.cache
def tiny_config():
    config = get_config()
    config.data.window = 40
    config.data.image_size = 16
    config.model.model_channels = 8
    config.model.num_groups = 4
    config.model.channel_mult = (1, 2)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (2,)
    config.model.num_head_channels = 8
    config.model.dtype = "float32"
    config.batch_size = BATCH
    return config


@functools.cache
def method() -> Method:
    return Method.from_config(tiny_config())


def ten_losses(devices: int, accumulation: int) -> list[float]:
    mesh = sharding.make_mesh(jax.devices()[:devices])
    optimizer = optax.adam(1e-3)
    root = jax.random.key(3)
    examples = data.Examples(
        FakeSlices(), ("t1", "flair"), together=False, window=40, tumor_repeats=2
    )
    batches = data.training_batches(
        examples,
        seed=3,
        batch_size=BATCH,
        padded_size=sharding.padded_batch_size(BATCH, mesh, accumulation),
        num_threads=2,
    )
    init = jax.jit(
        lambda key: create_state(init_params(method().model, key), optimizer),
        out_shardings=sharding.replicated(mesh),
    )
    state = init(root)
    step = jax.jit(
        make_train_step(method(), optimizer, root, ema_decay=0.99, accumulation=accumulation)
    )
    losses = []
    for _ in range(10):
        state, metrics = step(state, sharding.put_batch(next(batches), mesh))
        losses.append(float(metrics["loss"]))
    return losses


@functools.cache
def reference_losses() -> list[float]:
    return ten_losses(devices=1, accumulation=1)


@pytest.mark.parametrize(("devices", "accumulation"), [(4, 1), (3, 1), (1, 2), (1, 4), (4, 2)])
def test_first_ten_losses_do_not_depend_on_devices_and_accumulation(devices, accumulation):
    losses = ten_losses(devices, accumulation)
    np.testing.assert_allclose(losses, reference_losses(), rtol=1e-4)
    assert np.ptp(losses) > 1e-3  # Something was learnt or at least changed.

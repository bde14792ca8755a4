"""configs/train.py for accelerators that this machine need not have.

Lowering stops before the accelerator's compiler, and finds operations that it would not be given.
"""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.train import get_config
from mbti_jax.diffusion.guidance import guided
from mbti_jax.diffusion.sampler import Sampler, step_table
from mbti_jax.diffusion.schedule import trailing_timesteps
from mbti_jax.models.pipeline import Pipeline
from mbti_jax.models.unet import param_shapes
from mbti_jax.training.loop import make_train_step
from mbti_jax.training.state import create_state

BATCH = 8


@functools.cache
def method() -> Pipeline:
    return Pipeline.from_contract(get_config())


def image_shape(channels: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    size = method().image_size
    return jax.ShapeDtypeStruct((BATCH, size, size, channels), dtype)


@functools.cache
def train_step():
    optimizer = optax.adam(get_config().optimizer.learning_rate)
    step = make_train_step(method(), optimizer, jax.random.key(0), ema_decay=0.9999)
    state = jax.eval_shape(lambda p: create_state(p, optimizer), param_shapes(method().model))
    per_example = jax.ShapeDtypeStruct((BATCH,), jnp.float32)
    batch = {
        "codes": image_shape(1, jnp.uint16),
        "gain": jax.ShapeDtypeStruct((BATCH, 1), jnp.float32),
        "bias": jax.ShapeDtypeStruct((BATCH, 1), jnp.float32),
        "labels": jax.ShapeDtypeStruct(image_shape(1).shape[:3], jnp.uint8),
        "weight": per_example,
    }
    return jax.jit(step), (state, batch)


@functools.cache
def sampler_steps():
    sampler = Sampler(guided(method().apply, method().process), method().process.schedule)
    class_vector = jax.ShapeDtypeStruct((BATCH, 5), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), BATCH))
    table = step_table(sampler.schedule, trailing_timesteps(50), eta=1.0)
    arguments = (
        param_shapes(method().model),
        *(image_shape(channels) for channels in (1, 1, 5)),
        class_vector,
        keys,
        np.ones(BATCH, np.float32),
        np.array([-1, 1], np.float32),
        table,
        np.array([0, 10], np.int32),
    )
    return sampler._steps, arguments


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("program", [train_step, sampler_steps], ids=["train_step", "sampler"])
def test_program_lowers(program, platform):
    function, arguments = program()
    exported = jax.export.export(function, platforms=[platform])(*arguments)
    assert exported.platforms == (platform,)
    assert "convolution" in exported.mlir_module()

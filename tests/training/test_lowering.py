"""configs/train.py for accelerators that this machine need not have.

Lowering stops before the accelerator's compiler, and finds operations that it would not be given.
"""

import functools

import jax
import jax.export
import jax.numpy as jnp
import pytest

from configs.train import get_config
from mbti_jax.commands.settings import from_config
from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.guidance import ClassifierFree
from mbti_jax.diffusion.samplers import ddim
from mbti_jax.diffusion.samplers.driver import Request, Sampler
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.models.parameters import param_shapes
from mbti_jax.models.pipeline import Pipeline
from mbti_jax.training.settings import TrainSettings
from mbti_jax.training.state import create_state
from mbti_jax.training.step import make_train_step

BATCH = 8


@functools.cache
def settings() -> TrainSettings:
    return from_config(TrainSettings, get_config())


@functools.cache
def pipeline() -> Pipeline:
    return settings().pipeline()


def image_shape(channels: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    size = pipeline().image_size
    return jax.ShapeDtypeStruct((BATCH, size, size, channels), dtype)


@functools.cache
def train_step():
    optimizer = settings().optimizer.make()
    step = make_train_step(pipeline(), optimizer, jax.random.key(0), ema_decay=0.9999)
    state = jax.eval_shape(lambda p: create_state(p, optimizer), param_shapes(pipeline().model))
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
    sampler = Sampler(pipeline().apply, pipeline().process)
    process = pipeline().process
    sampling = Sampling(50, eta=1.0).resolved(process)
    per_example = jax.ShapeDtypeStruct((BATCH,), jnp.float32)
    request = Request(
        params=param_shapes(pipeline().model),
        context=image_shape(1),
        condition=Condition(image_shape(5), jax.ShapeDtypeStruct((BATCH, 5), jnp.float32)),
        keys=jax.eval_shape(lambda: jax.random.split(jax.random.key(0), BATCH)),
        guidance=ClassifierFree(per_example),
        bounds=jax.ShapeDtypeStruct((2,), jnp.float32),
        table=ddim.table(process, sampling.timesteps(process.num_timesteps), sampling.eta),
    )
    span = jax.ShapeDtypeStruct((2,), jnp.int32)
    steps = functools.partial(sampler._steps, method=ddim)
    return jax.jit(steps), (request, (), image_shape(1), span)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("program", [train_step, sampler_steps], ids=["train_step", "sampler"])
def test_program_lowers(program, platform):
    function, arguments = program()
    exported = jax.export.export(function, platforms=[platform])(*arguments)
    assert exported.platforms == (platform,)
    assert "convolution" in exported.mlir_module()

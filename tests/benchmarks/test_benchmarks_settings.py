"""The settings that benchmarks measure, at their real sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import speed_jax
from benchmarks.accelerator.problems import settings
from benchmarks.accelerator.sizes import SIZES
from benchmarks.settings import load_settings
from configs import accelerator_model, quickstart, train
from mbti_jax.diffusion.samplers import ddim


@pytest.mark.parametrize("config", [train, quickstart, accelerator_model])
def test_settings_are_those_of_the_config(config):
    written, settings = config.get_config(), load_settings(config.__name__.split(".")[1])
    assert settings.batch_size == written.batch_size
    assert settings.num_steps == written.num_steps
    assert settings.pipeline().model.model_channels == written.model.model_channels
    assert settings.data.window == written.data.window


@pytest.mark.parametrize("steps", SIZES["full"].sampler_steps)
def test_the_sampler_is_measured_as_the_config_has_it(steps, monkeypatch):
    """At full size, with weights of one layer in place of 150 million."""

    def init_params(model, key):
        return {"params": {"out_2": {"kernel": jnp.zeros((3, 3, model.model_channels, 1))}}}

    monkeypatch.setattr(speed_jax, "init_params", init_params)
    problem = speed_jax.Problem.from_settings(settings(SIZES["full"], batch_size=1), steps)
    # Layers that start at zero are given weights.
    (kernel,) = jax.tree.leaves(problem.params)
    assert kernel.std() > 0
    assert problem.inputs.x_0.shape == (1, 256, 256, 1)
    # Trailing steps of 1000, and both sides' guidance is the config's.
    num_timesteps = problem.pipeline.process.num_timesteps
    t = problem.sampling.timesteps(num_timesteps)
    np.testing.assert_array_equal(t, np.arange(999, 0, -1000 // steps))
    assert len(ddim.table(problem.pipeline.process, t, problem.sampling.eta).t) == steps
    assert problem.sampling.guidance.weight == train.get_config().guidance_weight

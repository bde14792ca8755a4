"""A regressor in the place of the diffusion process: what it sees, what it learns, what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config, tiny_examples
from tiny_inpainter import make_mask, make_slice, tiny_metadata, tiny_params

from configs import baseline
from configs import train as paper
from mbti_jax import Inpainter, Sampling
from mbti_jax.commands.settings import from_config
from mbti_jax.data import loader
from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.output import Output
from mbti_jax.diffusion.process_settings import ProcessSettings
from mbti_jax.diffusion.processes import Regression
from mbti_jax.models.losses import losses
from mbti_jax.models.pipeline import Inputs, Pipeline
from mbti_jax.training.settings import TrainSettings

# All that makes a training run one of a regressor.
FIELDS = {"process": "regression", "prediction": "x_0", "num_timesteps": 1, "drop_condition": 0.0}


def regressor_config():
    config = tiny_config()
    config.diffusion.update(FIELDS)
    config.tasks.prob_tumor = 0.0
    config.picture_steps = 1
    config.guidance_weight = 0.0
    return config


@functools.cache
def pipeline() -> Pipeline:
    return from_config(TrainSettings, regressor_config()).pipeline()


@functools.cache
def inpainter() -> Inpainter:
    metadata = tiny_metadata()
    metadata["contract"]["diffusion"] = FIELDS
    metadata["inference"]["guidance_weight"] = 0.0
    return Inpainter(tiny_params(metadata), metadata, 4, "runs/regressor")


def some_inputs(inside: float = 0.0) -> Inputs:
    """Random images with one ROI each, whose x_0 is moved by `inside`."""
    rng = np.random.default_rng(0)
    x_0 = rng.normal(size=(3, 16, 16, 1)).astype(np.float32)
    masks = np.zeros((3, 16, 16, 5), np.float32)
    masks[:, 4:9, 5:12, 0] = 1
    x_0 += inside * masks[..., :1]
    return Inputs(x_0, Condition(masks, np.array([[2.0, 1, 1, 1, 1]] * 3, np.float32)))


def recorded_loss(inputs: Inputs):
    """Loss of a network that returns 0.25, and what the network was called with."""
    calls = []

    class Recorder:
        def apply(self, variables, x, t, condition, **kwargs):
            calls.append((x, t, condition))
            return Output(jnp.full((*x.shape[:-1], 1), 0.25))

    recording = pipeline().__class__(Recorder(), pipeline().process, pipeline().tasks, 16, 0.0)
    keys = jax.random.split(jax.random.key(1), 3)
    _, terms = recording.loss_terms({}, inputs, np.ones(3, np.float32), keys)
    return losses(terms), calls[0]


def test_the_loss_is_the_mean_squared_error_inside_the_roi():
    inputs = some_inputs()
    loss, _ = recorded_loss(inputs)
    expected = np.mean((inputs.x_0[:, 4:9, 5:12] - 0.25) ** 2)
    np.testing.assert_allclose(loss["loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(loss["loss_q1"], expected, rtol=1e-6)


def test_the_network_sees_no_time_no_noise_and_nothing_of_the_truth():
    inputs = some_inputs()
    x, t, condition = recorded_loss(inputs)[1]
    np.testing.assert_array_equal(t, [0, 0, 0])
    jax.tree.map(np.testing.assert_array_equal, condition, inputs.condition)
    roi = inputs.condition.roi_masks[..., :1] > 0
    np.testing.assert_array_equal(x, np.where(roi, 0, inputs.x_0))
    moved = recorded_loss(some_inputs(inside=7.0))[1]
    jax.tree.map(np.testing.assert_array_equal, moved, (x, t, condition))


def test_what_the_inpainter_returns_is_what_the_network_returns():
    """In training the network saw these inputs, so that is what inference has to give it, too."""
    inputs = some_inputs()
    model = inpainter()
    sampling = Sampling(num_steps=1, seed=5, guidance=0.0)
    (painted,) = model.sample(inputs.x_0, inputs.condition, sampling).images
    metadata = tiny_metadata()
    roi = inputs.condition.roi_masks[..., :1] > 0
    x = np.where(roi, 0, inputs.x_0).astype(np.float32)
    arguments = (tiny_params(metadata), x, jnp.zeros(3, int), inputs.condition)
    expected = pipeline().apply(*arguments).image
    low, high = metadata["inference"]["x_0_bounds"]
    np.testing.assert_allclose(
        painted, np.where(roi, np.clip(expected, low, high), inputs.x_0), atol=1e-5
    )
    np.testing.assert_array_equal(np.where(roi, 0, painted), np.where(roi, 0, inputs.x_0))
    assert np.ptp(painted[roi]) > 0.1


def test_neither_seed_nor_truth_changes_the_result():
    image, mask = make_slice(), make_mask()
    options = {"intensity_range": (0, 900)}
    first = inpainter().inpaint(image, {"normal": mask}, Sampling(1, seed=1), **options)
    hidden = np.where(mask, 17, image)
    other = inpainter().inpaint(hidden, {"normal": mask}, Sampling(1, seed=2), **options)
    np.testing.assert_array_equal(first.images, other.images)
    assert (first.images[0] != image).any()


def test_a_second_sample_and_guidance_are_refused():
    image, rois = make_slice(), {"normal": make_mask()}
    with pytest.raises(ValueError, match="regressor, which has one result"):
        inpainter().inpaint(image, rois, Sampling(1), num_samples=2)
    with pytest.raises(ValueError, match="a guidance weight of 0"):
        inpainter().inpaint(image, rois, Sampling(1, guidance=0.4))
    with pytest.raises(ValueError, match="ask for one sample, not for a mean"):
        inpainter().inpaint(image, rois, Sampling(estimate="mean", mean_passes=1))
    with pytest.raises(ValueError, match="num_steps must be between 1 and 1, got 8"):
        inpainter().inpaint(image, rois, Sampling(8))


def test_a_regressor_with_timesteps_or_a_null_condition_is_refused():
    with pytest.raises(ValueError, match="num_timesteps is 1 for a regressor, not 1000"):
        ProcessSettings(process="regression", prediction="x_0", drop_condition=0.0)
    with pytest.raises(ValueError, match="drop_condition is 0 for a regressor"):
        ProcessSettings(process="regression", prediction="x_0", num_timesteps=1)


def test_the_shipped_config_trains_it_on_healthy_tissue_only():
    config = baseline.get_config()
    assert {name: config.diffusion[name] for name in FIELDS} == FIELDS
    # The same network, data and number of images as the diffusion model.
    for name in ("data", "model", "optimizer", "batch_size", "num_steps", "seed", "ema_decay"):
        assert config[name] == paper.get_config()[name]
    assert config.tasks.prob_tumor == 0
    examples = tiny_examples()
    batch = loader.stack([examples[i] for i in range(len(examples))])
    keys = jax.random.split(jax.random.key(0), len(examples))
    inputs = pipeline().prepare(batch, keys, augmented=False)
    assert (batch["labels"] > 0).any((1, 2)).sum() > 5
    assert not inputs.condition.roi_masks[..., 1:].any()
    assert inputs.condition.roi_masks[..., 0].any((1, 2)).all()


def test_its_checkpoint_says_what_it_is():
    contract = from_config(TrainSettings, regressor_config()).contract("fingerprint")
    assert FIELDS.items() <= contract["diffusion"].items()
    assert isinstance(Pipeline.from_contract(contract).process, Regression)

"""A rectified flow in training and inference: the loss by hand, and what the inpainter asks for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config
from tiny_inpainter import make_mask, make_slice, tiny_metadata, tiny_params

from configs import flow, train
from mbti_jax.commands.settings import from_config
from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.output import Output
from mbti_jax.diffusion.processes import RectifiedFlow
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.fields import FieldError
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.models.losses import losses
from mbti_jax.models.pipeline import Inputs, Pipeline
from mbti_jax.training.settings import TrainSettings

FIELDS = {"process": "flow", "prediction": "v", "time_sampling": "logit_normal"}


@functools.cache
def pipeline() -> Pipeline:
    config = tiny_config()
    config.diffusion.update(FIELDS)
    return from_config(TrainSettings, config).pipeline()


@functools.cache
def inpainter() -> Inpainter:
    metadata = tiny_metadata()
    metadata["contract"]["diffusion"] = FIELDS
    return Inpainter(tiny_params(metadata), metadata, 4, "runs/flow")


def test_the_loss_is_that_of_the_velocity_by_quarter_of_the_time():
    rng = np.random.default_rng(0)
    x_0 = rng.normal(size=(64, 4, 4, 1)).astype(np.float32)
    masks = np.zeros((64, 4, 4, 5), np.float32)
    masks[:, 1:3, :3, 0] = 1
    inputs = Inputs(x_0, Condition(masks, np.full((64, 5), 2, np.float32)))

    @jax.jit
    def loss_of_a_constant(keys):
        seen = []

        class Recorder:
            def apply(self, variables, x, t, condition, **kwargs):
                seen.append((x, t))
                return Output(jnp.full_like(x, 0.25))

        recording = dataclasses.replace(pipeline(), model=Recorder(), drop_rate=0.0)
        return recording.loss_terms({}, inputs, np.ones(64, np.float32), keys)[1], *seen

    terms, (x_t, t) = jax.device_get(loss_of_a_constant(jax.random.split(jax.random.key(1), 64)))
    assert len(np.unique(t)) == 64
    tau = (t.astype(np.float64) + 1) / 1000
    inside = np.s_[:, 1:3, :3]
    # v = eps - x_0 = (x_t - x_0) / tau.
    v = (x_t - x_0)[inside] / tau[:, None, None, None]
    error = np.mean((0.25 - v) ** 2, axis=(1, 2, 3))
    found = losses(terms)
    np.testing.assert_allclose(found["loss"], error.mean(), rtol=1e-4)
    for quarter in range(4):
        members = np.clip(t // 250, 0, 3) == quarter
        np.testing.assert_allclose(found[f"loss_q{quarter + 1}"], error[members].mean(), rtol=1e-4)


def test_a_flow_samples_with_its_methods_and_says_what_that_took():
    image, rois = make_slice(), {"edema": make_mask()}
    results = {}
    for name in ("heun", "unipc"):
        sampling = Sampling(3, sampler=name, seed=1, guidance=0.0)
        result = inpainter().inpaint(image, rois, sampling, intensity_range=(0, 900))
        results[name] = result.images
        evaluations = 5 if name == "heun" else 3
        drawn = result.provenance["sampling"]
        assert (drawn["sampler"], drawn["num_steps"]) == (name, 3)
        assert drawn["evaluations"] == evaluations
        assert drawn["network_passes"] == evaluations
        np.testing.assert_array_equal(result.images[0][~make_mask()], image[~make_mask()])
    assert (results["unipc"] != results["heun"]).any()


def test_another_sampler_is_refused():
    class Picky(RectifiedFlow):
        samplers = ("ddim",)

    model = Inpainter(tiny_params(tiny_metadata()), tiny_metadata(), 4, "")
    model.pipeline = dataclasses.replace(model.pipeline, process=Picky())
    with pytest.raises(FieldError, match="'unipc' does not fit this model; ddim does"):
        model.inpaint(make_slice(), {"edema": make_mask()}, Sampling(2, sampler="unipc"))


def test_the_shipped_config_says_in_what_it_differs():
    ours, paper = flow.get_config(), train.get_config()
    assert isinstance(from_config(TrainSettings, ours).pipeline().process, RectifiedFlow)
    differing = {"diffusion", "workdir", "picture_steps"}
    assert {name for name in paper if ours[name] != paper[name]} == differing
    changed = {name for name in paper.diffusion if ours.diffusion[name] != paper.diffusion[name]}
    assert changed == {"process", "prediction", "time_sampling"}


def test_its_checkpoint_restores_it():
    config = tiny_config()
    config.diffusion.update(FIELDS)
    contract = from_config(TrainSettings, config).contract("fingerprint")
    assert FIELDS.items() <= contract["diffusion"].items()
    assert Pipeline.from_contract(contract).process == RectifiedFlow("v", "logit_normal")

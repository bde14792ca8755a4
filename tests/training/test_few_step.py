"""Tuning towards few steps: what a run takes from the model that it continues, and what it writes."""

import dataclasses
import functools
import json
import shutil
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from fake_slices import FakeSlices
from ml_collections import ConfigDict
from tiny import tiny_examples
from tiny_inpainter import make_mask, make_slice, tiny_metadata, tiny_params

from configs import few_step as shipped
from mbti_jax.commands import few_step
from mbti_jax.commands.settings import from_config
from mbti_jax.data import loader
from mbti_jax.diffusion.consistency import Consistency
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.fields import FieldError
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.interop.inference_checkpoint import write_export
from mbti_jax.training import loop
from mbti_jax.training.checkpoint import CheckpointMismatchError, load_for_inference
from mbti_jax.training.state import create_state
from mbti_jax.training.step import make_train_step
from mbti_jax.training.writer import read_metrics

CARD = "A model for tests."


def settings(**changes) -> few_step.FewStepSettings:
    return from_config(few_step.FewStepSettings, tiny_config(**changes))


def tiny_config(**changes) -> ConfigDict:
    config = shipped.get_config()
    config.update(
        batch_size=4, num_threads=0, num_steps=2, log_every=1, checkpoint_every=1, num_pictures=1
    )
    config.update(validation_batches=1, validate_every=1000, halve_every=1)
    config.update(changes)
    return config


def test_network_process_and_tasks_are_those_of_the_model():
    metadata = tiny_metadata()
    weighted = {**metadata["contract"]["diffusion"], "prediction": "x_0", "max_loss_weight": 20.0}
    of_weighted = {**metadata, "contract": {**metadata["contract"], "diffusion": weighted}}
    tuned = settings(learning_rate=0.5, sampling_steps=3).of_model(of_weighted, "f00d")
    assert tuned.diffusion.prediction == "x_0" and tuned.pipeline().max_loss_weight == 1
    # Slices are moved as the model saw them, and seen whole.
    moved = {"augmentation": {"max_angle": 4.0, "crop_height": 8}}
    of_moved = {**metadata, "contract": {**metadata["contract"], **moved}}
    seen = settings().of_model(of_moved, "f00d").augmentation
    assert (seen.max_angle, seen.crop_height) == (4.0, 0)
    made = settings(learning_rate=0.5, sampling_steps=3).of_model(metadata, "f00d")
    pipeline = made.pipeline()
    assert isinstance(pipeline.process, Consistency)
    assert pipeline.process.process.prediction == "v"
    assert pipeline.process.halve_every == 1
    contract = made.contract("f1ee")
    for name, value in metadata["contract"]["model"].items():
        if name != "remat":
            assert contract["model"].get(name, 0) == json.loads(json.dumps(value))
    assert contract["tasks"] == json.loads(json.dumps(dataclasses.asdict(made.tasks)))
    assert contract["started_from"] == "f00d"
    assert made.optimizer.learning_rate == 0.5
    assert made.recommended() == {"num_steps": 3, "spacing": "trailing"}
    assert made.guidance_weight == metadata["inference"]["guidance_weight"]


@pytest.mark.parametrize(
    ("diffusion", "message"),
    [
        (
            {"process": "regression", "prediction": "x_0", "num_timesteps": 1},
            "init_from is a regressor",
        ),
        (
            {"objective": "consistency", "halve_every": 2},
            "init_from is tuned for few steps already",
        ),
        ({"num_timesteps": 1}, "sampling_steps must be at most 1"),
    ],
)
def test_models_that_cannot_be_tuned_are_refused(diffusion, message):
    metadata = tiny_metadata()
    metadata["contract"]["diffusion"] |= diffusion
    with pytest.raises(FieldError, match=message):
        settings().of_model(metadata, "f00d")


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FieldError, match="init_from cannot be read"):
        few_step.main(tiny_config(init_from=str(tmp_path / "nowhere")), str(tmp_path / "run"))


def test_the_objective_alone_is_refused_in_a_training_config():
    made = settings().of_model(tiny_metadata(), "f00d")
    with pytest.raises(FieldError, match=r"use configs/few_step\.py"):
        dataclasses.replace(made, started_from="")


def test_the_gap_follows_the_number_of_updates():
    """The same state but for its step has the same prediction, and another target."""
    pipeline = settings(halve_every=10).of_model(tiny_metadata(), "f00d").pipeline()
    examples = tiny_examples()
    batch = loader.stack([examples[i] for i in range(4)]) | {"weight": np.ones(4, np.float32)}
    key, optimizer = jax.random.key(0), optax.sgd(0.0)
    step = jax.jit(
        make_train_step(pipeline, optimizer, key, ema_decay=0.9),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    state = create_state(jax.tree.map(jnp.asarray, tiny_params(tiny_metadata())), optimizer)
    # What is drawn depends on the step as well, but losses at the least gap are far lower than at the
    # largest: there the two times are nearly the same.
    losses = [
        float(step(dataclasses.replace(state, step=jnp.int32(n)), batch)[1]["loss"])
        for n in (*range(8), *range(1000, 1008))
    ]
    assert np.mean(losses[8:]) < 0.3 * np.mean(losses[:8])


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """tuned(shift) starts a run from the tiny model moved by `shift`, saved before its first update."""

    def save(settings, state, train_step, batches, parts, *others):
        checkpointer = parts[0]
        checkpointer.save(state)
        checkpointer.wait()
        return True

    monkeypatch.setattr(loop, "_loop", save)
    monkeypatch.setattr(loop, "Validation", lambda *arguments: Mock())
    monkeypatch.setattr(loop, "SliceSource", lambda *arguments: FakeSlices())

    def start(shift=0.0):
        params = jax.tree.map(lambda x: x + np.float32(shift), tiny_params(tiny_metadata()))
        write_export(tmp_path / f"model {shift}", params, tiny_metadata(), CARD)
        config = tiny_config(init_from=str(tmp_path / f"model {shift}"))
        assert few_step.main(config, str(tmp_path / "run"))
        return params, load_for_inference(tmp_path / "run")

    return start


def test_a_run_starts_from_the_model_and_its_checkpoint_says_what_it_is_for(tuned):
    params, (saved, metadata) = tuned()
    jax.tree.map(np.testing.assert_array_equal, saved, params)
    assert metadata["contract"]["diffusion"]["objective"] == "consistency"
    inpainter = Inpainter(saved, metadata, 4, "run")
    drawn = inpainter.resolve(Sampling())
    assert (drawn.sampler, drawn.num_steps, drawn.spacing) == ("consistency", 2, "trailing")
    assert inpainter.resolve(Sampling(4)).num_steps == 4
    with pytest.raises(FieldError, match="'ddim' does not fit this model; consistency does"):
        inpainter.inpaint(make_slice(), {"edema": make_mask()}, Sampling(sampler="ddim"))


def test_the_weights_of_another_model_are_another_run(tuned):
    tuned()
    # The same again resumes.
    tuned()
    with pytest.raises(CheckpointMismatchError, match="started_from is"):
        tuned(shift=1.0)


def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path, monkeypatch):
    """Each update halves the gap, so one that resumes must go on from the right number of updates."""
    monkeypatch.setattr(loop, "Validation", lambda *arguments: Mock())
    monkeypatch.setattr(loop, "SliceSource", lambda *arguments: FakeSlices())
    # One program for both runs.
    parts = []
    program = functools.cache(lambda: make_train_step(*parts[0], **parts[1]))
    monkeypatch.setattr(
        loop,
        "make_train_step",
        lambda *values, **options: parts.extend([values, options]) or program(),
    )
    write_export(tmp_path / "model", tiny_params(tiny_metadata()), tiny_metadata(), CARD)
    config = tiny_config(init_from=str(tmp_path / "model"), num_steps=4, max_to_keep=4)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert few_step.main(config, str(whole))
    # Killed after the second update.
    shutil.copytree(whole, killed)
    for step in ("3", "4"):
        shutil.rmtree(killed / "checkpoints" / step)
    assert few_step.main(config, str(killed))

    def states(run):
        with ocp.StandardCheckpointer() as reader:
            folder = run / "checkpoints" / "4"
            return {name: reader.restore(folder / name) for name in ("train", "ema")}

    jax.tree.map(np.testing.assert_array_equal, states(killed), states(whole))
    losses = [
        [line["train/loss"] for line in read_metrics(run / "metrics.jsonl")]
        for run in (whole, killed)
    ]
    assert losses[0] == losses[1] and len(set(losses[0])) == 4

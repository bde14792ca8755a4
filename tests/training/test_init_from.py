"""Training that starts from a trained model: its weights, what is recorded, which models are refused."""

from unittest.mock import Mock

import jax
import numpy as np
import pytest
from fake_slices import FakeSlices
from ml_collections import ConfigDict
from tiny_inpainter import tiny_metadata, tiny_params

from configs import train as shipped
from mbti_jax.commands import train
from mbti_jax.fields import FieldError
from mbti_jax.inference.provenance import weights_digest
from mbti_jax.interop.inference_checkpoint import write_export
from mbti_jax.models.one_sequence import for_one_sequence
from mbti_jax.models.pipeline import Pipeline
from mbti_jax.training import loop
from mbti_jax.training.checkpoint import CheckpointMismatchError, load_for_inference
from mbti_jax.training.loop import train as train_in


def config_of(model, **changes) -> ConfigDict:
    """The config of a run that continues the tiny model."""
    config, contract = shipped.get_config(), tiny_metadata()["contract"]
    for group in ("model", "diffusion", "tasks"):
        config[group].update(contract[group])
    config.data.update({k: v for k, v in contract["data"].items() if k in config.data})
    config.label_weight = contract.get("label_weight", 0.0)
    config.update(init_from=str(model), batch_size=4, num_pictures=1)
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture
def model(tmp_path):
    write_export(
        tmp_path / "model", tiny_params(tiny_metadata()), tiny_metadata(), "A model for tests."
    )
    return tmp_path / "model"


@pytest.fixture
def unmoved(monkeypatch):
    """Runs are saved before their first update."""

    def save(settings, state, train_step, batches, parts, *others):
        parts[0].save(state)
        parts[0].wait()
        return True

    monkeypatch.setattr(loop, "_loop", save)
    monkeypatch.setattr(loop, "Validation", lambda *arguments: Mock())
    monkeypatch.setattr(loop, "SliceSource", lambda *arguments: FakeSlices())


@pytest.mark.usefixtures("unmoved")
def test_a_run_starts_from_the_weights_and_says_which_they_are(model, tmp_path):
    # Other noise levels, tasks and rates are what continuing is for.
    config = config_of(model, **{"optimizer.learning_rate": 1e-5, "tasks.prob_box": 0.1})
    assert train.main(config, str(tmp_path / "run"))
    params, metadata = load_for_inference(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, params, tiny_params(tiny_metadata()))
    assert metadata["contract"]["started_from"] == weights_digest(params)
    # The same again resumes; other weights are another run, and so are random ones.
    assert train.main(config, str(tmp_path / "run"))
    moved = jax.tree.map(lambda x: x + np.float32(1), params)
    write_export(tmp_path / "moved", moved, tiny_metadata(), "A model for tests.")
    for other in (str(tmp_path / "moved"), ""):
        with pytest.raises(CheckpointMismatchError, match="started_from is"):
            train.main(config_of(other, **{"optimizer.learning_rate": 1e-5}), str(tmp_path / "run"))


@pytest.mark.usefixtures("unmoved")
def test_a_model_of_several_sequences_starts_one_of_single_ones(tmp_path):
    metadata = tiny_metadata(joint=True)
    params = tiny_params(metadata)
    write_export(tmp_path / "joint", params, metadata, "A model for tests.")
    config = config_of(tmp_path / "joint", **{"data.joint": False})
    assert train.main(config, str(tmp_path / "run"))
    single, theirs = load_for_inference(tmp_path / "run")
    model = Pipeline.from_contract(metadata["contract"]).model
    jax.tree.map(np.testing.assert_array_equal, single, for_one_sequence(params, model)[0])
    assert theirs["contract"]["data"]["joint"] is False
    # The other way round nothing says what the sequences have in common.
    write_export(tmp_path / "single", single, theirs, "A model for tests.")
    with pytest.raises(FieldError, match=r"model\.in_channels is 6 there and 9 here"):
        train.main(config_of(tmp_path / "single", **{"data.joint": True}), str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model.model_channels", 16),
        ("model.neighbors", 1),
        ("diffusion.prediction", "eps"),
        ("diffusion.process", "flow"),
    ],
)
def test_models_of_another_kind_are_refused(model, tmp_path, field, value):
    with pytest.raises(FieldError, match=f"init_from is another kind of model: {field} is .* here"):
        train.main(config_of(model, **{field: value}), str(tmp_path / "run"))


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FieldError, match="init_from cannot be read"):
        train.main(config_of(tmp_path / "nowhere"), str(tmp_path / "run"))


def test_weights_that_are_named_must_be_given(model, tmp_path):
    settings = train.from_config(train.TrainSettings, config_of(model))
    with pytest.raises(ValueError, match="are to be given as `initial`"):
        train_in(settings, tmp_path / "run")

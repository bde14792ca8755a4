"""The trained model that a run starts from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mbti_jax.fields import FieldError
from mbti_jax.inference.load import load_model
from mbti_jax.models.one_sequence import for_one_sequence
from mbti_jax.models.pipeline import Pipeline
from mbti_jax.models.unet import UNet
from mbti_jax.training.settings import TrainSettings


def read_initial(init_from: str) -> tuple[dict, dict[str, Any]]:
    """The model that a run starts from, see `load_model`.

    Raises:
        FieldError: there is nothing readable.
    """
    try:
        return load_model(init_from)
    except ValueError as error:
        raise FieldError("init_from", f"cannot be read: {error}") from error


def first_params(settings: TrainSettings, params: dict, contract: Mapping[str, Any]) -> dict:
    """The parameters of a model as the first ones of a run.

    They are the model's, except that a model of several sequences can start a run of one at a time; see
    `models.one_sequence`.

    Args:
        settings: of the run.
        params: of the model.
        contract: of the model, see `training.checkpoint`.

    Raises:
        FieldError: its network, or what its network predicts, is not the run's.
    """
    theirs, ours = Pipeline.from_contract(contract).model, settings.pipeline().model
    if theirs.out_channels > ours.out_channels == 1:
        params, theirs = for_one_sequence(params, theirs)
    # How the function is computed and on which images, not which function it is.
    free = {"image_size", "dtype", "remat", "dropout", "parent", "name"}
    for name in (field.name for field in dataclasses.fields(UNet) if field.name not in free):
        _same(f"model.{name}", getattr(theirs, name), getattr(ours, name))
    process, data = settings.diffusion, contract["data"]
    _same("diffusion.process", contract["diffusion"].get("process", "gaussian"), process.process)
    _same(
        "diffusion.prediction", contract["diffusion"].get("prediction", "eps"), process.prediction
    )
    if settings.data.joint:
        _same("data.sequences", tuple(data["sequences"]), settings.data.sequences)
    return params


def _same(name: str, there: Any, here: Any) -> None:
    if there != here:
        problem = f"is another kind of model: {name} is {there} there and {here} here"
        raise FieldError("init_from", problem)

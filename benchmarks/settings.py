"""Which settings are measured."""

import dataclasses
import importlib

from mbti_jax.commands.settings import from_config
from mbti_jax.training.settings import TrainSettings


def load_settings(name: str) -> TrainSettings:
    """The training settings of `configs/NAME.py`: train, quickstart, or accelerator_model."""
    config = importlib.import_module(f"configs.{name}").get_config()
    # A quickstart also has settings of what comes before and after its training, and no config sets
    # those fields of a run that say what it continues.
    names = [field.name for field in dataclasses.fields(TrainSettings)]
    return from_config(TrainSettings, {name: config[name] for name in names if name in config})

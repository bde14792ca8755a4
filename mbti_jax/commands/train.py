"""Command `train`."""

from ml_collections import ConfigDict

from mbti_jax.commands.settings import from_config
from mbti_jax.training.loop import train
from mbti_jax.training.settings import TrainSettings


def main(config: ConfigDict, workdir: str) -> bool:
    """Trains in `workdir`; see `training.loop.train`."""
    return train(from_config(TrainSettings, config), workdir)

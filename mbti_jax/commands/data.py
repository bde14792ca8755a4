"""Command `data`: case folders as a dataset of slices."""

import dataclasses
from typing import Annotated

from ml_collections import ConfigDict

from mbti_jax.commands.settings import from_config
from mbti_jax.fields import Interval, Name
from tfds_brats.builder import build


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the command.

    Attributes:
        source, convention: the cases.
        data_dir: folder of the dataset.
        num_workers: processes that read and encode; 0 for one per core.
    """

    source: str
    convention: str
    data_dir: Name
    num_workers: Annotated[int, Interval(0, 1024)]


def main(config: ConfigDict, workdir: str) -> None:
    """The task of `configs/data.py`; everything goes to `config.data_dir`."""
    del workdir
    settings = from_config(Settings, config)
    if not settings.source or not settings.convention:
        raise ValueError("give --config.source=DIR and --config.convention=NAME")
    build(settings.source, settings.convention, settings.data_dir, settings.num_workers or None)

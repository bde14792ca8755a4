"""Command `data`: case folders as a dataset of slices."""

import dataclasses
from typing import Annotated

from ml_collections import ConfigDict

from mbti_jax.commands.settings import from_config
from mbti_jax.fields import FieldError, Interval
from tfds_brats.builder import build


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the command.

    Attributes:
        source, convention: the cases.
        data_dir: folder of the dataset, if it is not the workdir.
        num_workers: processes that read and encode; 0 for one per core.
    """

    source: str
    convention: str
    data_dir: str
    num_workers: Annotated[int, Interval(0, 1024)]


def main(config: ConfigDict, workdir: str) -> None:
    """Builds the dataset in `workdir`, see `configs/data.py`.

    Raises:
        ValueError, OSError: see `build`, or two folders are given.
    """
    settings = from_config(Settings, config)
    if not settings.source:
        raise ValueError("give the folder of the cases, --config.source=DIR")
    if settings.data_dir and workdir not in (config.workdir, settings.data_dir):
        raise FieldError("data_dir", f"and workdir name two folders, here also {workdir}; give one")
    folder = settings.data_dir or workdir
    build(settings.source, settings.convention, folder, settings.num_workers or None)

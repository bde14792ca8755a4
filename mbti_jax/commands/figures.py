"""Command `figures`: the paper's figures on slices of the test split."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from mbti_jax.commands.settings import from_config
from mbti_jax.evaluation.figures import FigureSettings, draw_figures
from mbti_jax.fields import Count, Name
from mbti_jax.inference.inpainter import Inpainter
from tfds_brats.builder import build_or_make_phantoms
from tfds_brats.locking import only_process_in
from tfds_brats.phantom import PhantomSettings
from tfds_brats.reading import SliceSource


@dataclasses.dataclass(frozen=True)
class Settings(FigureSettings):
    """Settings of the command.

    Attributes:
        checkpoint: the model, see `load_model`.
        batch_size: slices sampled at once over all devices.
        data_dir: folder of the dataset; empty for one of phantoms made in the workdir.
        phantom: which phantoms.
    """

    checkpoint: Name
    batch_size: Count
    data_dir: str
    phantom: PhantomSettings


def main(config: ConfigDict, workdir: str) -> None:
    """Draws the figures that `config.figures` names; those of the same request are kept.

    Raises:
        ValueError, OSError: a setting or a dataset that cannot be used, or a figure that exists and
            belongs to another request.
    """
    settings, folder = from_config(Settings, config), Path(workdir)
    with only_process_in(folder):
        inpainter = Inpainter.load(settings.checkpoint, settings.batch_size)
        dataset = settings.data_dir
        if not dataset:
            # Of these phantoms all are drawn, so that none is made in vain.
            made = build_or_make_phantoms(folder, settings.phantom, only=settings.split)
            dataset = made.path
        draw_figures(inpainter, SliceSource(dataset, settings.split), settings, folder)

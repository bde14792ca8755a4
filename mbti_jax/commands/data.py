"""Command `data`: case folders as a dataset of slices."""

from ml_collections import ConfigDict

from tfds_brats.builder import build


def main(config: ConfigDict, workdir: str) -> None:
    """The task of `configs/data.py`; everything goes to `config.data_dir`."""
    del workdir
    if not config.source or not config.convention:
        raise ValueError("give --config.source=DIR and --config.convention=NAME")
    build(config.source, config.convention, config.data_dir, config.num_workers or None)

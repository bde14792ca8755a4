"""Command `train`."""

from ml_collections import ConfigDict

from mbti_jax.training import loop


def main(config: ConfigDict, workdir: str) -> bool:
    """Trains in `workdir`; see `training.loop.main`."""
    return loop.main(config, workdir)

"""Command `train`."""

import dataclasses

from ml_collections import ConfigDict

from mbti_jax.commands.initial import first_params, read_initial
from mbti_jax.commands.settings import from_config
from mbti_jax.inference.provenance import weights_digest
from mbti_jax.training.cluster import join_cluster
from mbti_jax.training.loop import train
from mbti_jax.training.settings import TrainSettings


def main(config: ConfigDict, workdir: str) -> bool:
    """Trains in `workdir`; see `training.loop.train`."""
    settings = from_config(TrainSettings, config)
    if not settings.init_from:
        return train(settings, workdir)
    join_cluster(settings.multihost)
    params, metadata = read_initial(settings.init_from)
    params = first_params(settings, params, metadata["contract"])
    settings = dataclasses.replace(settings, started_from=weights_digest(params))
    return train(settings, workdir, params)

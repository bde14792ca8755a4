"""Builds the dataset of slices from a folder of cases.

    mbti data -i DIR -c brats2021 -o data/slices

Prints the space needed, builds with every core (about 0.9 s of a core and 10 MB a subject),
and prints how many slices and images each split has. The same command again finds it there; after a
build that was stopped it does what is left.

On several machines that see the same folders, by Ray or by the tasks of a SLURM array; the dataset is
the same to the byte:

    mbti data -i DIR -c brats2021 -o data/slices --engine ray --ray.address HOST:6379
    mbti data -i DIR -c brats2021 -o data/slices --piece auto
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "data"
    # Folder of the dataset.
    config.workdir = "data/slices"

    # Folder with the case folders, at any depth.
    config.source = ""
    # How their files are named and labeled: brats2018, brats2019, brats2020, brats2021, brats2023,
    # brats2024, msd or phantom.
    config.convention = ""
    # The same, as earlier versions called it.
    config.data_dir = ""
    # Processes that read and encode subjects on this machine; 0 takes every core.
    config.num_workers = 0

    # local: processes of this machine. ray: a Ray cluster (pip install "mbti-jax[ray]"), whose machines
    # see source and workdir under the same paths.
    config.engine = "local"
    config.ray = ConfigDict()
    # The cluster's head, HOST:PORT, or "auto"; empty for RAY_ADDRESS, or else this machine alone.
    config.ray.address = ""
    # Processes that write shards; 0 for as many as the cluster has cores.
    config.ray.workers = 0
    # Cores that Ray reserves for each; more of them leave it more of a machine's memory.
    config.ray.cpus = 1
    # How often a shard whose worker died is tried again by another one.
    config.ray.retries = 2
    # One of several jobs that build the dataset together: its number from 0, or "auto" to take that
    # from SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX. The job that ends last makes the dataset of the
    # shards, and so does "merge" or the command without a piece.
    config.piece = ""
    # How many such jobs there are; 0 with "auto" for the size of the SLURM array.
    config.pieces = 0
    return config

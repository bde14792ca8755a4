"""Builds the dataset of slices from a folder of cases.

    mbti data -i DIR -c brats2021 -o data/slices

Prints the space needed, builds with every core (about 0.9 s of a core and 10 MB a subject),
and prints how many slices and images each split has. The same command again finds it there.
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
    # Processes that read and encode subjects; 0 takes every core.
    config.num_workers = 0
    return config

"""The dummy cases, of which the fixtures `one_subject_in_a_shard` and `whole` make five shards."""

import hashlib
from pathlib import Path

from tfds_brats import builder

DUMMY_DATA = Path(builder.__file__).parent / "dummy_data"
NUM_SHARDS = 5


def digests(dataset_dir: Path) -> dict[str, str]:
    """Name -> digest of every file of a dataset."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in dataset_dir.iterdir()}

"""Shards that wait to be written, in worker processes, which find this under its name."""

import os
import time

import ray

from tfds_brats import dataset, shards


def write_shard(shard: shards.Shard) -> list[str]:
    """Says where it is; all but the first of each split wait for the file `go` in the data_dir."""
    data_dir = shard.folder.parents[1]
    # Under its name only when it is whole.
    partial = data_dir / f".{shard.split}-{shard.index}.{os.getpid()}"
    partial.write_text(ray.get_runtime_context().get_node_id())
    partial.replace(data_dir / f"at.{shard.split}-{shard.index}.{os.getpid()}")
    while shard.index and not (data_dir / "go").exists():
        time.sleep(0.05)
    return shards.write_shard(shard)


def main() -> None:
    """The command line, with these shards, one subject in each."""
    from mbti_jax import cli

    dataset.write_shard = write_shard
    shards._SUBJECTS_PER_SHARD = 1
    cli.run()


if __name__ == "__main__":
    main()

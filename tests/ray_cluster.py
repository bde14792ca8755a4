"""A Ray cluster of several nodes on this machine."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from conftest import ROOT


@contextlib.contextmanager
def cluster_of(nodes: int, folder: Path) -> Iterator:
    """A head without cores, which the driver may lose none of, and nodes of one core each.

    Yields:
        `ray.cluster_utils.Cluster`.
    """
    from ray.cluster_utils import Cluster

    variables = {
        # Workers have it from the nodes, and find the package and what is in this folder there.
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        # Not behind all else on a machine that is busy.
        "RAY_worker_niceness": "0",
    }
    options = {"include_dashboard": False, "object_store_memory": 100 * 10**6}
    with mock.patch.dict(os.environ, variables):
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=0, **options)
            for _ in range(nodes):
                cluster.add_node(num_cpus=1, **options)
            yield cluster
        finally:
            cluster.shutdown()

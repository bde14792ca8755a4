"""A Ray cluster of several nodes on this machine, and commands on it that lose something.

The fixture `cluster` of conftest.py has one of two nodes.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
from conftest import ROOT

NODE = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 10**6}
# Where processes that a test starts find the package and what is in this folder.
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "tests")])


@contextlib.contextmanager
def cluster_of(nodes: int) -> Iterator:
    """A head without cores, which the driver may lose none of, and nodes of one core each.

    Yields:
        `ray.cluster_utils.Cluster`.
    """
    from ray.cluster_utils import Cluster

    # Sockets lie in it, whose paths are short.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        variables = {
            # Workers have it from the nodes.
            "PYTHONPATH": PATHS,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": folder,
            # Not behind all else on a machine that is busy.
            "RAY_worker_niceness": "0",
        }
        with mock.patch.dict(os.environ, variables):
            cluster = Cluster()
            try:
                cluster.add_node(**{**NODE, "num_cpus": 0})
                for _ in range(nodes):
                    cluster.add_node(**NODE)
                yield cluster
            finally:
                cluster.shutdown()


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen | None = None, seconds: float = 200
) -> None:
    """Waits until something is the case, and fails where a process ends before."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.02)


def kill_driver(
    config: str, fields: Mapping[str, Any], workdir: Path, when: Callable[[], object], *run: str
) -> None:
    """Starts a command as a user does, and kills it as soon as something is the case.

    Args:
        config: file in configs/.
        fields: of the config.
        workdir: of the command.
        when: is the case.
        run: arguments of Python that start the command line; empty for `run.py`.
    """
    options = [f"--config={ROOT / 'configs' / config}", f"--workdir={workdir}"]
    options += [f"--config.{name}={value}" for name, value in fields.items()]
    with tempfile.TemporaryFile("w+") as output:
        driver = subprocess.Popen(
            [sys.executable, *(run or (str(ROOT / "run.py"),)), *options],
            env={**os.environ, "PYTHONPATH": PATHS},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(when, driver)
        except AssertionError:
            output.seek(0)
            pytest.fail(output.read())
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait()


def gone(markers: list[Path]) -> None:
    """Waits until the processes are gone that made these files, which end with their numbers."""
    numbers = [int(path.suffix[1:]) for path in markers]
    wait_until(lambda: not any(psutil.pid_exists(number) for number in numbers))


def lose_node_of(cluster: Any, marker: Path) -> None:
    """Takes the node away on which a process waits, and waits until that is gone.

    Args:
        cluster: `ray.cluster_utils.Cluster`.
        marker: a file that the process made, named as for `gone`, with its node's identity in it.
    """
    (node,) = (node for node in cluster.worker_nodes if node.node_id == marker.read_text())
    cluster.remove_node(node, allow_graceful=False)
    # It would still give its result to the driver until it hears of it.
    gone([marker])

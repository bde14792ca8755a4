"""Several processes of one machine as those of several hosts, each with two simulated devices."""

import contextlib
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from synthetic_cases import write_case

from mbti_jax.commands import train
from mbti_jax.fields import FieldError
from mbti_jax.training import cluster
from mbti_jax.training.validation import Validation
from mbti_jax.training.writer import read_metrics
from tfds_brats.builder import build

WORKER = Path(__file__).parent / "one_of_several.py"
# Of the limit in `one_of_several`, and time for a busy machine.
ENDS_WITHIN = 60


def free_port(low: int = 20_000, high: int = 60_000) -> int:
    rng = np.random.default_rng()
    while True:
        port = int(rng.integers(low, high))
        with socket.socket() as place, contextlib.suppress(OSError):
            place.bind(("localhost", port))
            return port


def plain(count: int) -> list[dict[str, str]]:
    """What says to each of `count` processes on plain machines which one it is."""
    address = f"localhost:{free_port()}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    return [shared | {"JAX_PROCESS_ID": str(number)} for number in range(count)]


def slurm(count: int) -> list[dict[str, str]]:
    """What `srun` sets; JAX takes the port from the number of the job."""
    job = free_port(65_535 - 2**12 + 1, 65_535) - (65_535 - 2**12 + 1)
    shared = {"SLURM_JOB_ID": str(2**12 + job), "SLURM_STEP_NODELIST": "localhost"}
    shared |= {"SLURM_NTASKS": str(count), "SLURM_STEP_NUM_NODES": "1"}
    return [shared | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(count)]


def start(
    environments: list[dict[str, str]], *arguments: str, **more: str
) -> list[subprocess.Popen]:
    base = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    base |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2",
        **more,
    }
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), *arguments],
            cwd=ROOT,
            env=base | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for environment in environments
    ]


@contextlib.contextmanager
def running(*args, **kwargs) -> Iterator[list[subprocess.Popen]]:
    """Processes, of which none is left behind, however the test ends."""
    started = start(*args, **kwargs)
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def outputs(started: list[subprocess.Popen], seconds: float = 400) -> list[str]:
    return [process.communicate(timeout=seconds)[0] for process in started]


def test_processes_agree_or_all_say_what_differs():
    with running(plain(2), "agree") as started:
        first, second = (text.splitlines()[-4:] for text in outputs(started))
    problem = "integer division or modulo by zero"
    # What fails in one fails in all.
    assert first[:3] == ["0", f"ElsewhereError: in process 1: ZeroDivisionError: {problem}", "7"]
    assert second[:3] == ["0", f"ZeroDivisionError: {problem}", "8"]
    host = socket.gethostname()
    assert first[3] == second[3]
    assert first[3] == (
        "the processes of this run do not have the same: "
        f"batch_size is 11 in process 1 on {host} and 10 in process 0; "
        f"the data's fingerprint is '111' in process 1 on {host} and '000' in process 0"
    )


@pytest.mark.parametrize(
    ("how", "which", "sentence"),
    [
        (
            "killed",
            1,
            r"^process 1 has not been heard of for \d+ s: killed, or its host is gone\. ",
        ),
        ("raised", 1, r"^process 1 on .* ended with OSError: no space left\. This process ends"),
        # With process 0 goes the store, and JAX itself ends the others.
        ("killed", 0, r"Terminating process because the JAX distributed service detected fatal"),
    ],
)
def test_no_process_waits_for_one_that_has_ended(how, which, sentence):
    with running(plain(2), "end", how, str(which)) as started:
        began = time.monotonic()
        other = outputs([started[1 - which]], ENDS_WITHIN)[0]
        started[which].communicate(timeout=ENDS_WITHIN)
        assert time.monotonic() - began < ENDS_WITHIN
        assert all(process.returncode for process in started)
    assert re.search(sentence, other, re.MULTILINE), other


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"JAX_PROCESS_ID": "0"}, "JAX_PROCESS_ID is set, but not JAX_COORDINATOR_ADDRESS and"),
        (
            {"JAX_COORDINATOR_ADDRESS": "a", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            "JAX_COORDINATOR_ADDRESS is 'a', not HOST:PORT",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "x", "JAX_PROCESS_ID": "0"},
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID must be whole numbers",
        ),
    ],
)
def test_an_environment_that_does_not_say_it_all_is_refused(monkeypatch, environment, problem):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        FieldError, match=f"^multihost is True, but no cluster was found: {problem}"
    ):
        cluster.join_cluster(True)


@pytest.mark.parametrize("there", [None, SimpleNamespace(key_value_set=None)])
def test_a_jax_that_has_moved_the_store_is_refused_at_once(monkeypatch, there):
    """Whether the private name is gone or has become something else."""
    monkeypatch.setattr("jax.distributed.initialize", lambda **_: None)
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: False)
    monkeypatch.setattr("jax._src.distributed.global_state.client", there)
    with pytest.raises(
        FieldError, match=r"^multihost cannot be True with jax \S+, .*it lacks .*_get"
    ):
        cluster.join_cluster(True)
    monkeypatch.setattr("jax._src.distributed.global_state", None)
    with pytest.raises(FieldError, match=r"install the jax of constraints\.txt"):
        cluster.join_cluster(True)


def test_open_mpi_needs_only_the_address():
    mpi = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
    mpi["OMPI_COMM_WORLD_LOCAL_RANK"] = "1"
    assert cluster._given(mpi) == {}  # JAX finds version 4 by itself.
    assert cluster._given({**mpi, "JAX_COORDINATOR_ADDRESS": "node1:8476"}) == {
        "coordinator_address": "node1:8476",
        "num_processes": 4,
        "process_id": 3,
        "local_device_ids": 1,
        "cluster_detection_method": "deactivate",
    }


CONFIG = """
from tiny import tiny_config


def get_config():
    config = tiny_config()
    config.data.dataset = "{dataset}"
    config.data.window = 28
    config.multihost = {multihost}
    config.num_steps = {num_steps}
    config.log_every = 1
    config.checkpoint_every = 2
    config.validate_every = {validate_every}
    config.validation_batches = 1
    config.num_pictures = 2
    config.picture_steps = 2
    return config
"""


def losses(workdir: Path) -> dict[int, float]:
    """Step -> training loss; each step must appear once, in order."""
    records = [r for r in read_metrics(workdir / "metrics.jsonl") if "train/loss" in r]
    steps = [record["step"] for record in records]
    assert steps == list(range(1, len(steps) + 1))
    return {record["step"]: record["train/loss"] for record in records}


def saved(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def wait_for(condition: Callable[[], bool], started: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        if any(p.poll() is not None for p in started) or time.monotonic() > deadline:
            for process in started:
                process.kill()
            pytest.fail("\n".join(outputs(started)))
        time.sleep(0.002)


def test_two_processes_and_then_four_train_as_one_does(tmp_path, monkeypatch):
    """Two processes of SLURM until one is killed, and then four until one is told to stop.

    One of the four cannot read the newest checkpoint.
    """
    for i in range(4):
        write_case(tmp_path / "cases", f"BraTS2021_{i:05d}", seed=i)
    dataset = build(tmp_path / "cases", "brats2021", tmp_path / "slices", num_workers=1)
    config, workdir = tmp_path / "config.py", tmp_path / "run"
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def write_config(processes: int, **fields: int) -> None:
        text = CONFIG.format(dataset=dataset, multihost=processes > 1, **fields)
        config.write_text(text)

    def trains(
        environments: list[dict[str, str]], cannot_read: str, validate_every: int
    ) -> contextlib.AbstractContextManager[list[subprocess.Popen]]:
        write_config(len(environments), num_steps=10_000, validate_every=validate_every)
        return running(environments, "train", str(config), str(workdir), cannot_read, **cache)

    with trains(slurm(2), "-1", 2) as started:
        wait_for(lambda: len(saved(workdir)) >= 2, started)
        started[1].send_signal(signal.SIGKILL)
        output = outputs(started)[0]
        assert started[0].returncode == 1, output
    assert "4 cpu device(s), starting at step 0" in output
    assert "process 1 has not been heard of for" in output
    newest = saved(workdir)
    assert len(newest) >= 2

    with trains(plain(4), "3", 1000) as started:
        wait_for(lambda: saved(workdir)[-1] > newest[-1], started)
        started[2].send_signal(signal.SIGTERM)
        texts = outputs(started)
        assert [process.returncode for process in started] == [0] * 4, texts
    stopped = saved(workdir)[-1]
    assert f"8 cpu device(s), resuming at step {newest[-2]}" in texts[0]
    assert f"stopped at step {stopped}, saved" in texts[0]
    assert max(losses(workdir)) == stopped
    for text in texts[:3]:
        assert f"checkpoints/{newest[-1]} cannot be read in process 3: OSError" in text
    assert (workdir / "checkpoints" / f"{newest[-1]}.unreadable").is_dir()

    # One process does the same updates.
    write_config(1, num_steps=stopped, validate_every=2)
    monkeypatch.setattr(Validation, "_sample", lambda self, params, *_: self._pictured.x_0)
    train.main(runpy.run_path(str(config))["get_config"](), str(tmp_path / "alone"))
    # What was validated is fixed, and so is its noise.
    pictures = [path.name for path in (workdir / "pictures").iterdir()]
    assert "samples_00000002.png" in pictures
    (found, *_), (expected, *_) = (
        [
            r["validation/loss"]
            for r in read_metrics(folder / "metrics.jsonl")
            if "validation/loss" in r
        ]
        for folder in (workdir, tmp_path / "alone")
    )
    assert found == pytest.approx(expected, rel=1e-4)
    found, expected = losses(workdir), losses(tmp_path / "alone")
    assert list(found) == list(expected) == list(range(1, stopped + 1))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)

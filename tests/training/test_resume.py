"""Training that is killed resumes as if nothing had happened.

Each run is a process of its own, started with `run.py` as a user starts it. All share a compilation
cache, so that only the first one compiles.
"""

import dataclasses
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import ROOT
from synthetic_cases import write_case

from mbti_jax.commands import train
from mbti_jax.fields import FieldError
from mbti_jax.training.writer import read_metrics
from tfds_brats.builder import build

NUM_STEPS = 80
CHECKPOINT_EVERY = 4
# A suite that was started in the background has the signal ignored, and hands that on.
HEEDING = "signal.signal(signal.SIGINT, signal.default_int_handler);"
CONFIG = f"""
from tiny import tiny_config


def get_config():
    config = tiny_config()
    config.data.dataset = "{{dataset}}"
    config.data.window = 28
    config.model.neighbors = 1
    config.label_weight = 0.5
    config.num_steps = {NUM_STEPS}
    config.log_every = 1
    config.checkpoint_every = {CHECKPOINT_EVERY}
    config.validate_every = {NUM_STEPS}
    config.validation_batches = 1
    config.num_pictures = 2
    config.picture_steps = 2
    return config
"""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the runs of this file take place."""

    folder: Path
    environment: dict[str, str]

    @property
    def config(self) -> Path:
        return self.folder / "config.py"

    def command(self, workdir: Path) -> list[str]:
        run = [sys.executable, str(ROOT / "run.py"), f"--config={self.config}"]
        return [*run, f"--workdir={workdir}"]

    def start(self, command: list[str]) -> subprocess.Popen:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, workdir: Path) -> str:
        process = self.start(self.command(workdir))
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    folder = tmp_path_factory.mktemp("resume")
    for i in range(4):
        write_case(folder / "cases", f"BraTS2021_{i:05d}", seed=i)
    dataset = build(folder / "cases", "brats2021", folder / "slices", num_workers=1)
    (folder / "config.py").write_text(CONFIG.format(dataset=dataset))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return Place(folder, environment)


@pytest.fixture(scope="module")
def uninterrupted(place) -> Path:
    workdir = place.folder / "uninterrupted"
    place.run(workdir)
    return workdir


def steps_saved(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def steps_written(workdir: Path) -> int:
    """Number of lines; every step has one."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Step, parameters, optimizer state and average of the newest checkpoint."""
    checkpoint = workdir / "checkpoints" / str(steps_saved(workdir)[-1])
    with ocp.StandardCheckpointer() as checkpointer:
        items = {name: checkpointer.restore(checkpoint / name) for name in ("train", "ema")}
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(items)}


def losses(workdir: Path) -> dict[int, float]:
    """Step -> training loss; each step must appear once, in order."""
    records = [r for r in read_metrics(workdir / "metrics.jsonl") if "train/loss" in r]
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps))
    return {record["step"]: record["train/loss"] for record in records}


def signal_when(process: subprocess.Popen, condition: Callable[[], bool], number: int) -> str:
    """Sends the signal as soon as the condition holds; returns what the process printed."""
    deadline = time.monotonic() + 200
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"it ended before the signal: {process.communicate()[0]}")
        time.sleep(0.0005)
    process.send_signal(number)
    return process.communicate(timeout=200)[0]


def test_killed_five_times_and_stopped_once_it_ends_bit_for_bit_the_same(place, uninterrupted):
    rng = np.random.default_rng(0)
    workdir = place.folder / "killed"

    def soon_after(event: Callable[[], bool], most_seconds: float) -> Callable[[], bool]:
        """A condition that holds from a random moment on after the event."""
        delay, happened = rng.uniform(0, most_seconds), []

        def condition():
            if not happened and event():
                happened.append(time.monotonic())
            return bool(happened) and time.monotonic() >= happened[0] + delay

        return condition

    def makes_progress() -> Callable[[], bool]:
        written = steps_written(workdir)
        return lambda: steps_written(workdir) > written

    def has_saved() -> Callable[[], bool]:
        saved = steps_saved(workdir)
        return lambda: steps_saved(workdir)[-1:] > saved[-1:]

    def saves_again() -> Callable[[], bool]:
        saved = has_saved()
        return lambda: saved() and any("tmp" in name for name in os.listdir(checkpoints))

    checkpoints = workdir / "checkpoints"
    # Before there is anything, before the first checkpoint, between two, and within the next one.
    for make_event, most_seconds in [
        (lambda: lambda: True, 5),
        (makes_progress, 0.05),
        (has_saved, 0.2),
        (saves_again, 0),
        (has_saved, 0.2),
    ]:
        condition = soon_after(make_event(), most_seconds)
        process = place.start(place.command(workdir))
        signal_when(process, condition, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    assert 0 < steps_saved(workdir)[-1] < steps_written(workdir) < NUM_STEPS

    # SIGTERM saves and ends without an error, wherever it comes.
    process = place.start(place.command(workdir))
    written = steps_written(workdir)
    output = signal_when(process, makes_progress(), signal.SIGTERM)
    assert process.returncode == 0, output
    stopped = steps_saved(workdir)[-1]
    assert written < stopped < NUM_STEPS
    assert f"stopped at step {stopped}, saved" in output
    assert max(losses(workdir)) == stopped

    # The same command resumes and finishes.
    assert f"resuming at step {stopped} of {NUM_STEPS}" in place.run(workdir)
    expected, found = arrays(uninterrupted), arrays(workdir)
    assert expected.keys() == found.keys()
    assert int(expected["['train']['step']"]) == NUM_STEPS
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert losses(workdir) == losses(uninterrupted)
    assert list(losses(workdir)) == list(range(1, NUM_STEPS + 1))


def test_ctrl_c_in_a_validation_does_not_wait_for_its_end(place):
    """The validation of 1000 steps would take minutes; a step of it does not."""
    workdir = place.folder / "validating"
    changes = ("validate_every=3", "picture_steps=1000", "num_pictures=16", "checkpoint_every=1000")
    command = [*place.command(workdir), *(f"--config.{change}" for change in changes)]
    program = f"import runpy, signal, sys; {HEEDING} sys.argv = {command[1:]!r}; " + (
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    process = place.start([sys.executable, "-c", program])
    # The line of the third step is written before the validation begins.
    output = signal_when(process, lambda: steps_written(workdir) == 3, signal.SIGINT)
    assert process.returncode == 0, output
    assert steps_saved(workdir) == [3]
    assert "stopped at step 3, saved but not validated" in output
    assert "Traceback" not in output
    assert not any("validation/loss" in r for r in read_metrics(workdir / "metrics.jsonl"))


def test_a_second_run_in_the_same_folder_is_refused_and_harms_nothing(place, uninterrupted):
    workdir = place.folder / "twice"
    first = place.start(place.command(workdir))
    deadline = time.monotonic() + 200
    while not steps_saved(workdir):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.0005)
    first.send_signal(signal.SIGSTOP)  # So that it still runs when the second one comes.
    second = place.start(place.command(workdir))
    refused = second.communicate(timeout=200)[0]
    first.send_signal(signal.SIGCONT)
    output = first.communicate(timeout=200)[0]
    assert second.returncode == 1
    (line, _) = refused.splitlines()
    assert f"another run is writing to {workdir} (process {first.pid} on " in line
    assert first.returncode == 0, output
    assert losses(workdir) == losses(uninterrupted)
    jax.tree.map(np.testing.assert_array_equal, arrays(workdir), arrays(uninterrupted))


def test_a_disk_without_room_is_refused_before_training(place, monkeypatch):
    config = runpy.run_path(str(place.config))["get_config"]()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"full has 0.00 GB free, but about .* for its checkpoints"):
        train.main(config, str(place.folder / "full"))
    assert not steps_saved(place.folder / "full")


def test_batches_that_the_machine_cannot_hold_are_refused(place):
    config = runpy.run_path(str(place.config))["get_config"]()
    config.batch_size = 2**31 - 1
    with pytest.raises(FieldError, match=r"^batch_size takes about .* GB of memory"):
        train.main(config, str(place.folder / "heavy"))


def test_a_finished_run_changes_nothing(place, uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes(), arrays(uninterrupted)
    assert f"at step {NUM_STEPS} of {NUM_STEPS}" in place.run(uninterrupted)
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before[0]
    jax.tree.map(np.testing.assert_array_equal, arrays(uninterrupted), before[1])


def test_a_run_leaves_metrics_pictures_and_checkpoints(uninterrupted):
    records = read_metrics(uninterrupted / "metrics.jsonl")
    assert {"step", "train/loss", "train/grad_norm", "train/images_per_second"} <= records[0].keys()
    (validation,) = (r for r in records if "validation/loss" in r)
    assert validation["step"] == NUM_STEPS
    pictures = [path.name for path in (uninterrupted / "pictures").iterdir()]
    assert pictures == [f"samples_{NUM_STEPS:08d}.png"]
    assert any((uninterrupted / "tensorboard").iterdir())
    # The loss of a network that starts at zero is the mean square of the noise.
    first, *_, last = losses(uninterrupted).values()
    assert abs(first - 1) < 0.3
    assert last < first

"""The stages in order of worth, and running each in a process of its own within its share of the time.

Nothing here imports JAX: a stage that crashes, hangs, or takes all memory takes nothing else with it.
"""

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator.processes import Process, spawn
from benchmarks.accelerator.record import read_record, write_record
from benchmarks.accelerator.report import stage_line
from benchmarks.accelerator.sizes import SIZES

# Less is not worth a start.
_LEAST_SECONDS = 5
# From SIGTERM to SIGKILL: a compiler does not listen.
_GRACE_SECONDS = 20
_ENVIRONMENT = {
    # PyTorch needs some of the memory, too.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "PYTHONUNBUFFERED": "1",
}


Start = Callable[[Sequence[str], Mapping[str, str], Path], Process]


class UnusableError(ValueError):
    """The command cannot run like this; the message says why."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        name: of its module and its results.
        minutes: its share: what it may take in all, over several calls of the command.
        gpu_flags: of XLA, that its process gets in addition on a GPU.
        takes_the_rest: it may go on for as long as there is time.
    """

    name: str
    minutes: float
    gpu_flags: str = ""
    takes_the_rest: bool = False


# Kernels inside a command buffer are not told apart.
_NO_COMMAND_BUFFER = "--xla_gpu_enable_command_buffer="
STAGES = (
    Stage("machine", 1),
    Stage("train_step", 6),
    Stage("implementations", 6),
    Stage("kernels", 1.5, gpu_flags=_NO_COMMAND_BUFFER),
    Stage("sampling", 2.5),
    Stage("resume", 2),
    # The program of `kernels`, which is compiled already.
    Stage("loading", 1.5, gpu_flags=_NO_COMMAND_BUFFER),
    Stage("model", 4.5, takes_the_rest=True),
)


@dataclasses.dataclass(frozen=True)
class Ended:
    """A stage that ended, in one way or another; `line` says how, in Markdown."""

    name: str
    line: str


def run_stages(
    stages: Sequence[Stage], folder: Path, config: str, deadline: float, start: Start = spawn
) -> Iterator[Ended]:
    """Runs what is not finished, one stage after the other, and yields each as it ends.

    Args:
        stages: in order.
        folder: for results.
        config: a key of `SIZES`.
        deadline: of `time.monotonic`.
        start: what starts a stage's process.

    Raises:
        UnusableError: the folder holds results of other sizes or another card; or the first stage found
            no accelerator, and the sizes need one.
    """
    where = f"--config={config}{card_and_driver()}"
    for stage in stages:
        record = read_record(folder, stage.name)
        if record["where"] not in (None, where):
            raise UnusableError(
                f"{folder} holds results of {record['where']}, and this is {where}: choose "
                "another --output"
            )
        seconds = _time_for(stage, record, deadline - time.monotonic())
        if record["state"] != "finished" and seconds >= _LEAST_SECONDS:
            print(f"{stage.name}: at most {seconds:.0f} s", flush=True)
            write_record(folder, stage.name, {**record, "where": where})
            record = _run(stage, folder, config, seconds, start)
        _check_machine(record, config, folder)
        yield Ended(stage.name, stage_line(stage.name, read_record(folder, stage.name), folder))


def card_and_driver() -> str:
    """ ", NAME, driver VERSION" of an NVIDIA card; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    name, _, version = done.stdout.partition("\n")[0].partition(", ")
    return f", {name}, driver {version}"


def _time_for(stage: Stage, record: Mapping[str, Any], left: float) -> float:
    if stage.takes_the_rest:
        return left
    return min(left, 60 * stage.minutes - record["seconds"])


def _check_machine(record: Mapping[str, Any], config: str, folder: Path) -> None:
    machine = record["units"].get("machine", {})
    if SIZES[config].needs_accelerator and machine.get("platform") == "cpu":
        # What it says would be in the way of a later call that has one.
        (folder / "machine.json").unlink()
        raise UnusableError(
            "JAX finds no accelerator here, and at these sizes a CPU would take days; "
            "--config=tiny tries the command on a CPU"
        )


def _run(stage: Stage, folder: Path, config: str, seconds: float, start: Start) -> dict[str, Any]:
    """Runs a stage's process to its end or the end of its time, and returns its record."""
    log = folder / "work" / f"{stage.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [stage.name, str(folder), config, str(seconds), str(60 * stage.minutes)]
    began = time.monotonic()
    process = start(arguments, _environment(stage, folder, config), log)
    try:
        code = _wait(process, seconds)
    except BaseException:
        _end(process)
        raise
    record = read_record(folder, stage.name)
    if record["state"] not in ("finished", "cut off", "failed"):
        # It did not come to say so itself.
        how = "cut off" if code is None else "failed"
        record |= {"state": how, "seconds": record["seconds_before"] + time.monotonic() - began}
        if how == "failed":
            record["error"] = f"exit code {code}: {_last_line(log)}"
        write_record(folder, stage.name, record)
    return record


def _wait(process: Process, seconds: float) -> int | None:
    """The exit code; None for a process that had to be killed."""
    for wait, number in ((seconds, signal.SIGTERM), (_GRACE_SECONDS, signal.SIGKILL)):
        try:
            return process.wait(wait)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, number)
    process.wait()
    return None


def _end(process: Process) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        _wait(process, 2)


def _environment(stage: Stage, folder: Path, config: str) -> dict[str, str]:
    work = folder.resolve() / "work"
    caches = {
        "JAX_COMPILATION_CACHE_DIR": str(work / "xla"),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        "TRITON_CACHE_DIR": str(work / "triton"),
    }
    environment = {**_ENVIRONMENT, **SIZES[config].environment, **caches, **os.environ}
    machine = read_record(folder, "machine")["units"].get("machine", {})
    if machine.get("platform") != "gpu":
        return environment
    flags = f"{environment.get('XLA_FLAGS', '')} {stage.gpu_flags}".strip()
    return {**environment, "XLA_FLAGS": flags} if flags else environment


def _last_line(log: Path) -> str:
    lines = log.read_bytes()[-4000:].decode(errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "no output")

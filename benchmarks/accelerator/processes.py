"""The process of a stage: a new one, or a copy of this one that has imported everything already."""

import contextlib
import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.accelerator.report import TITLES

# To which a stage's name, the folder, the sizes, its seconds, and its share of all calls are given.
CHILD = (sys.executable, "-m", "benchmarks.accelerator.child")


class Process(Protocol):
    """What `subprocess.Popen` has of it; in a process group of its own, with its children."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


def spawn(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
    """A new process, to which nothing that happened here can matter.

    Args:
        arguments: for `CHILD`.
        environment: of the process.
        log: file to which its output is appended.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [*CHILD, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own, to be ended with the processes that it starts.
            start_new_session=True,
        )


def fork(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
    """A copy of this process, where the first call imports the modules of all stages.

    At tiny sizes imports would be a third of the work. JAX may be imported before a fork, but not have
    started a backend: nothing here computes.

    Args:
        arguments: as `child.run` takes them.
        environment: of the process; what JAX reads when it is imported is that of the first call.
        log: file to which its output is appended.
    """
    if "jax" not in sys.modules:
        os.environ.update(environment)
    for name in ("child", *TITLES):
        importlib.import_module(f"benchmarks.accelerator.{name}")
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_run_copy, args=(arguments, environment, log))
    process.start()
    return _Copy(process)


def _run_copy(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    _lead_group(0)
    os.environ.update(environment)
    with log.open("ab") as output, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    importlib.import_module("benchmarks.accelerator.child").run(*arguments)


class _Copy:
    def __init__(self, process: Any):
        self._process, self.pid = process, process.pid
        # Here, too: whoever comes first, the group is there before anybody ends it.
        _lead_group(self.pid)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a stage", timeout or 0)
        return self._process.exitcode


def _lead_group(pid: int) -> None:
    # It does so already, or has ended.
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)

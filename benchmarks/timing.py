"""Timing of rivals in one process, in turn, and a description of the machine they ran on."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

Range = tuple[float, float]


@dataclass(frozen=True)
class Timing:
    """What one rival took, as medians over the rounds.

    Attributes:
        cpu_seconds: CPU time a unit of all threads of this process; the figure to trust where other
            processes share the cores. It knows nothing of an accelerator's work.
        wall_seconds: elapsed time a unit.
        cpu_ratio, wall_ratio: the same over that of the first rival in the same round.
        cpu_range, wall_range, cpu_ratio_range, wall_ratio_range: the least and the largest over rounds.
    """

    cpu_seconds: float
    wall_seconds: float
    cpu_ratio: float
    wall_ratio: float
    cpu_range: Range
    wall_range: Range
    cpu_ratio_range: Range
    wall_ratio_range: Range

    def to_json(self) -> dict[str, Any]:
        """The fields, and units a second of CPU and of elapsed time."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return {
            **fields,
            "per_cpu_second": 1 / self.cpu_seconds,
            "per_second": 1 / self.wall_seconds,
        }


def interleaved(rivals: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, Timing]:
    """Times rivals in turn, A B C A B C ..., so that a machine that slows down slows all of them.

    One round before the first is not timed: it fills the caches.

    Args:
        rivals: name -> function that does its work to the end and returns the number of units done
            (subjects, images). The first is what the others are compared with.
        rounds: how often each is timed.

    Returns:
        Name -> timing, in the order given.
    """
    samples = {name: [] for name in rivals}
    for timed_round in range(rounds + 1):
        for name, run in rivals.items():
            cpu, wall = time.process_time(), time.perf_counter()
            units = run()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if timed_round:
                samples[name].append((cpu / units, wall / units))
    reference = next(iter(samples.values()))
    return {name: _summarize(taken, reference) for name, taken in samples.items()}


def _summarize(
    taken: Sequence[tuple[float, float]], reference: Sequence[tuple[float, float]]
) -> Timing:
    ratios = [
        (cpu / reference_cpu, wall / reference_wall)
        for (cpu, wall), (reference_cpu, reference_wall) in zip(taken, reference, strict=True)
    ]
    columns = (*zip(*taken, strict=True), *zip(*ratios, strict=True))
    ranges = [(min(column), max(column)) for column in columns]
    return Timing(*map(statistics.median, columns), *ranges)


def describe_machine(packages: Sequence[str]) -> dict[str, Any]:
    """Hardware, the load on it, and versions, as plain JSON values."""
    device = jax.devices()[0]
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "jax_device": f"{device.platform} ({device.device_kind})",
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
    }


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

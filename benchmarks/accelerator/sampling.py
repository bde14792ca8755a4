"""Stage 5: guided sampling, one slice and full batches, beside the PyTorch twin."""

from typing import Any

from benchmarks.accelerator.device import clock, free_pytorch
from benchmarks.accelerator.problems import settings, sides, tolerances
from benchmarks.accelerator.record import Record
from benchmarks.accelerator.sizes import Sizes
from benchmarks.speed import compare
from benchmarks.speed_jax import Problem

_SECTION = "sampler"


def run(sizes: Sizes, record: Record) -> None:
    """Times the sampler for each batch and each number of steps."""
    for batch in sorted(set(sizes.sampler_batches), reverse=True):
        for steps in dict.fromkeys(sizes.sampler_steps):
            record.unit(
                f"{steps} steps, batch {batch}", lambda b=batch, n=steps: _measure(sizes, b, n)
            )
            free_pytorch()


def _measure(sizes: Sizes, batch: int, steps: int) -> dict[str, Any]:
    problem = Problem.from_settings(settings(sizes, batch_size=batch), steps)
    failures: dict[str, str] = {}
    timings, programs, distances = compare(
        problem,
        sides(problem),
        _SECTION,
        tolerances(problem.pipeline.model.dtype)[_SECTION],
        rounds=sizes.rounds,
        failures=failures,
    )
    return {
        "batch": batch,
        "steps": steps,
        "clock": clock(),
        "flops": problem.flops(_SECTION)[_SECTION] / batch,
        "rows": {
            name: {
                **timing.to_json(),
                "relative_l2": distances[name],
                "compile_seconds": programs[name].compile_seconds,
                "peak_bytes": programs[name].peak_bytes,
            }
            for name, timing in timings.items()
        },
        "failures": failures,
    }

"""Stage 2: the train step over batch sizes, beside the PyTorch twin."""

from typing import Any

import jax

from benchmarks.accelerator.device import (
    clock,
    free_pytorch,
    is_out_of_memory,
    memory_in_use,
    pytorch,
)
from benchmarks.accelerator.problems import settings, sides, tolerances
from benchmarks.accelerator.record import Record
from benchmarks.accelerator.sizes import Sizes
from benchmarks.speed import compare, timed
from benchmarks.speed_jax import Problem
from benchmarks.timing import interleaved

SECTION = "train_step"
_CALLS = 5


def run(sizes: Sizes, record: Record) -> None:
    """All rivals in turn at one batch size, then alone up to what memory holds."""
    record.unit("network", lambda: _network(sizes))
    record.unit("in turn", lambda: _in_turn(sizes))
    free_pytorch()
    torch, why = pytorch()
    if torch is None:
        record.add("PyTorch", {"absent": why})
    # JAX last, since it keeps what memory it once had. torch.compile's compilation would take the time.
    if torch is not None:
        _doubling("PyTorch eager", sizes, record)
    _doubling("JAX", sizes, record)


def _problem(sizes: Sizes, batch: int) -> Problem:
    return Problem.from_settings(settings(sizes, batch_size=batch), sizes.sampler_steps[0])


def _network(sizes: Sizes) -> dict[str, Any]:
    problem = _problem(sizes, 1)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(problem.params)),
        "image_size": problem.pipeline.image_size,
        "dtype": problem.pipeline.model.dtype,
        "flops": problem.flops(SECTION),
    }


def _in_turn(sizes: Sizes) -> dict[str, Any]:
    batch = sizes.batch
    while True:
        try:
            found = _compared(sizes, batch)
            # PyTorch has what memory JAX leaves.
            if batch == 1 or not any(map(is_out_of_memory, found["failures"].values())):
                return found
        except Exception as error:
            if batch == 1 or not is_out_of_memory(str(error)):
                raise
        free_pytorch()
        batch //= 2


def _compared(sizes: Sizes, batch: int) -> dict[str, Any]:
    problem = _problem(sizes, batch)
    failures: dict[str, str] = {}
    timings, programs, distances = compare(
        problem,
        sides(problem),
        SECTION,
        tolerances(problem.pipeline.model.dtype)[SECTION],
        rounds=sizes.rounds,
        failures=failures,
    )
    rows = {
        name: {
            **timing.to_json(),
            "clock": clock(),
            "relative_l2": distances[name],
            "compile_seconds": programs[name].compile_seconds,
            "peak_bytes": programs[name].peak_bytes,
            "peak_bytes_in_use": memory_in_use() if name == "JAX" else None,
        }
        for name, timing in timings.items()
    }
    return {"batch": batch, "rows": rows, "failures": failures}


def _doubling(name: str, sizes: Sizes, record: Record) -> None:
    batch = 2 * sizes.batch
    while batch <= sizes.max_batch:
        result = record.unit(f"{name} alone, batch {batch}", lambda b=batch: _alone(name, sizes, b))
        free_pytorch()
        if "error" in result:
            return
        batch *= 2


def _alone(name: str, sizes: Sizes, batch: int) -> dict[str, Any]:
    problem = _problem(sizes, batch)
    program = sides(problem)[name].prepare(SECTION)
    timing = interleaved({name: timed(program, _CALLS, batch)}, sizes.rounds)[name]
    return {
        "batch": batch,
        "clock": clock(),
        **timing.to_json(),
        "compile_seconds": program.compile_seconds,
        "peak_bytes": program.peak_bytes,
        "peak_bytes_in_use": memory_in_use() if name == "JAX" else None,
    }

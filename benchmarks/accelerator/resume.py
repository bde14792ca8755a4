"""Stage 6: does training resume bit for bit, what do deterministic operations cost, and accumulation.

The interrupted run goes on in a process of its own, as a resumed one does.
"""

import functools
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.accelerator.device import clock
from benchmarks.accelerator.problems import relative_l2, settings, slices
from benchmarks.accelerator.record import Record
from benchmarks.accelerator.sizes import SIZES, Sizes
from benchmarks.speed_jax import Problem, jax_train_step
from benchmarks.timing import interleaved
from mbti_jax.models.parameters import init_params
from mbti_jax.training.state import create_state
from mbti_jax.training.step import make_train_step

DETERMINISTIC = {"xla_gpu_deterministic_ops": True}
_CALLS = 3


def run(sizes: Sizes, record: Record) -> None:
    """Digests of interrupted and uninterrupted runs, times with and without, and microbatches."""
    name = next(name for name, known in SIZES.items() if known is sizes)
    runs = {"deterministic": Run(sizes, DETERMINISTIC), "default": Run(sizes, {})}
    halfway = record.work / "resume.npz"
    record.unit("deterministic", lambda: _resumed(name, runs["deterministic"], halfway))
    record.unit("cost", lambda: _cost(sizes, runs))
    if sizes.resume_all:
        record.unit("default", lambda: _resumed(name, runs["default"], halfway))
        record.unit("accumulation", lambda: _accumulation(sizes))


class Run:
    """A training run: the train step of stage 2, with some options of XLA."""

    def __init__(self, sizes: Sizes, options: dict[str, bool]):
        self.sizes, self.options = sizes, options

    @functools.cached_property
    def _program(self) -> tuple[Any, Any, Any]:
        """(function that makes the first state, inputs, compiled step)."""
        problem = Problem.from_settings(settings(self.sizes), 1)
        step, first = jax_train_step(problem)
        inputs = jax.device_put(problem.inputs)
        compiled = step.lower(jax.eval_shape(first), inputs).compile(self.options or None)
        return first, inputs, compiled

    def digest(self, start: Path | None = None, save: Path | None = None) -> str:
        """Trains and returns a digest of the last state.

        Args:
            start: file with the state halfway, from which to go on; None to begin anew.
            save: where to put the state halfway.
        """
        first, inputs, step = self._program
        half = self.sizes.resume_steps
        state = first() if start is None else _read(start, jax.eval_shape(first))
        for number in range(half if start else 2 * half):
            if save is not None and number == half:
                _save(save, state)
            state, _ = step(state, inputs)
        digest = hashlib.sha256()
        for leaf in jax.device_get(jax.tree.leaves(state)):
            digest.update(np.ascontiguousarray(leaf))
        return digest.hexdigest()

    def timed(self) -> Callable[[], int]:
        """A function that does some steps and returns the number of examples."""
        first, inputs, step = self._program
        state = first()

        def work() -> int:
            nonlocal state
            for _ in range(_CALLS):
                state, loss = step(state, inputs)
            jax.block_until_ready(loss)
            return _CALLS * self.sizes.batch

        return work


def _save(path: Path, state: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    leaves = jax.device_get(jax.tree.leaves(state))
    np.savez(path, **{str(i): leaf for i, leaf in enumerate(leaves)})


def _read(path: Path, shapes: Any) -> Any:
    leaves, tree = jax.tree.flatten(shapes)
    with np.load(path) as file:
        return jax.tree.unflatten(tree, [jnp.asarray(file[str(i)]) for i in range(len(leaves))])


def _resumed(name: str, run: Run, path: Path) -> dict[str, Any]:
    whole, again = run.digest(save=path), run.digest()
    command = [sys.executable, "-m", "benchmarks.accelerator.resume"]
    done = subprocess.run(
        [*command, name, json.dumps(run.options), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    path.unlink()
    return {
        "steps": 2 * run.sizes.resume_steps,
        "repeated_is_identical": whole == again,
        "resumed_is_identical": whole == done.stdout.split()[-1],
    }


def _cost(sizes: Sizes, runs: Mapping[str, Run]) -> dict[str, Any]:
    rivals = {name: runs[name].timed() for name in ("default", "deterministic")}
    timings = interleaved(rivals, sizes.rounds)
    return {
        "batch": sizes.batch,
        "clock": clock(),
        "rows": {name: timing.to_json() for name, timing in timings.items()},
    }


def _accumulation(sizes: Sizes) -> dict[str, Any]:
    """The gradient of a batch at once, against that summed over two microbatches."""
    of = settings(sizes)
    pipeline, batch = of.pipeline(), jax.device_put(slices(of))
    params = jax.jit(lambda key: init_params(pipeline.model, key))(jax.random.key(0))
    # An optimizer that keeps the gradient as its state and moves nothing.
    keep = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads),
    )
    grads, losses, seconds = [], [], []
    for accumulation in (1, 2):
        step = make_train_step(
            pipeline, keep, jax.random.key(1), ema_decay=0.0, accumulation=accumulation
        )
        start = time.perf_counter()
        state, metrics = jax.jit(step)(create_state(params, keep), batch)
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - start)
        grads.append(state.opt_state)
    return {
        "batch": of.batch_size,
        "gradient_relative_l2": relative_l2(grads[1], grads[0]),
        "losses": losses,
        "dtype": pipeline.model.dtype,
        "first_call_seconds": seconds,
    }


if __name__ == "__main__":
    size_name, given, halfway_path = sys.argv[1:]
    print(Run(SIZES[size_name], json.loads(given)).digest(start=Path(halfway_path)))

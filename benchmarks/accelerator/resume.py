"""Stage 6: does training resume bit for bit, what do deterministic operations cost, and accumulation.

The interrupted run goes on in a process of its own, as a resumed one does.
"""

import hashlib
import json
import subprocess
import sys
import time
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
from mbti_jax.models.unet import init_params
from mbti_jax.training.loop import make_train_step
from mbti_jax.training.state import create_state

DETERMINISTIC = {"xla_gpu_deterministic_ops": True}
_CALLS = 3


def run(sizes: Sizes, record: Record) -> None:
    """Digests of interrupted and uninterrupted runs, times with and without, and microbatches."""
    name = next(name for name, known in SIZES.items() if known is sizes)
    for title, options in (("deterministic", DETERMINISTIC), ("default", {})):
        record.unit(title, lambda o=options: _resumed(name, o, record.work / "resume.npz"))
    record.unit("cost", lambda: _cost(sizes))
    if sizes.accumulation:
        record.unit("accumulation", lambda: _accumulation(sizes))


def _resumed(name: str, options: dict[str, bool], path: Path) -> dict[str, Any]:
    whole, again = (steps_and_digest(SIZES[name], options, None, path) for _ in range(2))
    command = [sys.executable, "-m", "benchmarks.accelerator.resume"]
    done = subprocess.run(
        [*command, name, json.dumps(options), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    path.unlink()
    return {
        "steps": 2 * SIZES[name].resume_steps,
        "repeated_is_identical": whole == again,
        "resumed_is_identical": whole == done.stdout.split()[-1],
    }


def steps_and_digest(
    sizes: Sizes, options: dict[str, bool], start: Path | None, save: Path | None = None
) -> str:
    """Trains and returns a digest of the last state.

    Args:
        sizes: of everything.
        options: of XLA.
        start: file with the state halfway, from which to go on; None to begin anew.
        save: where to put the state halfway.
    """
    state, inputs, step = _compiled(sizes, options)
    leaves, tree = jax.tree.flatten(state)
    if start is not None:
        with np.load(start) as file:
            state = jax.tree.unflatten(
                tree, [jnp.asarray(file[str(i)]) for i in range(len(leaves))]
            )
    for number in range(sizes.resume_steps * (2 if start is None else 1)):
        if save is not None and number == sizes.resume_steps:
            save.parent.mkdir(parents=True, exist_ok=True)
            halfway = jax.device_get(jax.tree.leaves(state))
            np.savez(save, **{str(i): leaf for i, leaf in enumerate(halfway)})
        state, _ = step(state, inputs)
    digest = hashlib.sha256()
    for leaf in jax.device_get(jax.tree.leaves(state)):
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()


def _compiled(sizes: Sizes, options: dict[str, bool]) -> tuple[Any, Any, Any]:
    """(first state, inputs, compiled train step): that of stage 2, without preprocessing."""
    problem = Problem.from_settings(settings(sizes), 1)
    step, state = jax_train_step(problem)
    state, inputs = state(), jax.device_put(problem.inputs)
    return state, inputs, step.lower(state, inputs).compile(options or None)


def _cost(sizes: Sizes) -> dict[str, Any]:
    rivals = {"default": _Steps(sizes, {}), "deterministic": _Steps(sizes, DETERMINISTIC)}
    timings = interleaved(rivals, sizes.rounds)
    return {
        "batch": sizes.batch,
        "clock": clock(),
        "rows": {name: timing.to_json() for name, timing in timings.items()},
    }


class _Steps:
    """Some steps at a call."""

    def __init__(self, sizes: Sizes, options: dict[str, bool]):
        self._state, self._inputs, self._step = _compiled(sizes, options)
        self._examples = _CALLS * sizes.batch

    def __call__(self) -> int:
        for _ in range(_CALLS):
            self._state, loss = self._step(self._state, self._inputs)
        jax.block_until_ready(loss)
        return self._examples


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
    print(steps_and_digest(SIZES[size_name], json.loads(given), Path(halfway_path)))

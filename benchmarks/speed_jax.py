"""What `benchmarks.speed` times, and the JAX side of it.

Written as a user would write it, with this package's functions; `benchmarks.speed_torch` is the rival.
"""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.memory import count_flops, peak_bytes
from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.guidance import ClassifierFree
from mbti_jax.diffusion.processes import squared_error_terms
from mbti_jax.diffusion.samplers import ddim
from mbti_jax.diffusion.samplers.driver import Request, Sampler
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.models import choices
from mbti_jax.models.blocks import ZERO_INIT
from mbti_jax.models.parameters import Params, init_params
from mbti_jax.models.pipeline import Pipeline
from mbti_jax.training.settings import TrainSettings
from mbti_jax.training.state import TrainState, apply_update, create_state

CLIP = (-1.0, 1.0)


class Inputs(NamedTuple):
    """A batch as numpy arrays: images float32 [B, H, W, C], t int32 [B]."""

    x_0: np.ndarray
    eps: np.ndarray
    t: np.ndarray
    condition: Condition


@dataclass(frozen=True)
class Problem:
    """What both sides compute with: settings, weights (numpy) and inputs."""

    settings: TrainSettings
    pipeline: Pipeline
    params: Params
    inputs: Inputs
    sampling: Sampling

    @classmethod
    def from_settings(cls, settings: TrainSettings, num_steps: int) -> "Problem":
        """Random weights and inputs of `settings.batch_size` examples, from `settings.seed`.

        The layers that start at zero get random weights as well: with zeros the network's output is 0.
        """
        pipeline = settings.pipeline()
        rng = np.random.default_rng(settings.seed)
        init = jax.jit(functools.partial(init_params, pipeline.model))
        initial = init(jax.random.key(settings.seed))
        params = {}
        for path, value in flatten_dict(jax.device_get(initial)).items():
            if path[-2] in ZERO_INIT and path[-1] == "kernel":
                bound = np.prod(value.shape[:-1]) ** -0.5
                value = rng.uniform(-bound, bound, value.shape).astype(np.float32)
            params[path] = value
        return cls(
            settings,
            pipeline,
            unflatten_dict(params),
            _random_inputs(pipeline, settings.batch_size, rng),
            Sampling(num_steps, "ddim", "trailing", guidance=settings.guidance_weight),
        )

    @property
    def batch_size(self) -> int:
        return len(self.inputs.t)

    def flops(self, *sections: str) -> dict[str, float]:
        """FLOPs of one call of each piece of work, from XLA's count of the JAX program.

        Args:
            sections: "forward", "sampler" or "train_step"; all of them by default.
        """
        x_0, _, t, condition = self.inputs
        pipeline = self.pipeline
        guidance = ClassifierFree(np.zeros(self.batch_size, np.float32))

        @jax.jit
        def denoise(params, x_t, t, condition):
            predict = functools.partial(pipeline.apply, params)
            return guidance.denoise(predict, pipeline.process, x_t, t, condition)

        arguments = self.params, x_0, t, condition
        step, state = jax_train_step(self)
        counts = {
            "forward": lambda: count_flops(jax.jit(pipeline.apply), *arguments),
            "sampler": lambda: self.sampling.num_steps * count_flops(denoise, *arguments),
            "train_step": lambda: count_flops(step, jax.eval_shape(state), self.inputs),
        }
        return {section: counts[section]() for section in sections or counts}


def _random_inputs(pipeline: Pipeline, batch_size: int, rng: np.random.Generator) -> Inputs:
    """Noise as images, and in each example a disc of half the width as the only ROI."""
    size, model = pipeline.image_size, pipeline.model
    shape = (batch_size, size, size, model.out_channels)
    channels = rng.integers(0, model.num_classes, batch_size)
    class_vector = np.ones((batch_size, model.num_classes), np.float32)
    class_vector[np.arange(batch_size), channels] = 2
    y, x = np.ogrid[:size, :size]
    disc = np.hypot(y - size / 2, x - size / 2) < size / 4
    roi_masks = disc[None, ..., None] & (class_vector == 2)[:, None, None]
    return Inputs(
        x_0=rng.uniform(-1, 1, shape).astype(np.float32),
        eps=rng.standard_normal(shape, np.float32),
        t=rng.integers(0, pipeline.process.num_timesteps, batch_size).astype(np.int32),
        condition=Condition(roi_masks.astype(np.float32), class_vector),
    )


@dataclass(frozen=True)
class Program:
    """A piece of work that is ready to run.

    Attributes:
        run: does it once and returns the output, perhaps before it has been computed.
        wait: waits until an output has been computed.
        compile_seconds: elapsed time of the preparations and of what the first call took beyond the
            second.
        peak_bytes: device memory, or None where nobody counts it.
        first_outputs: of the first two calls: float32 [2, B, H, W, C], or losses [2].
    """

    run: Callable[[], Any]
    wait: Callable[[Any], None]
    compile_seconds: float
    peak_bytes: int | None
    first_outputs: np.ndarray


@dataclass(frozen=True)
class JaxSide:
    """This package's functions, each compiled for the batch.

    Attributes:
        problem: what is computed.
        choices: fields of `mbti_jax.models.choices.Choices` that differ from the defaults.
        compiler_options: of XLA, such as {"xla_allow_excess_precision": False}.
    """

    problem: Problem
    choices: Mapping[str, str] = field(default_factory=dict)
    compiler_options: Mapping[str, Any] = field(default_factory=dict)

    def prepare(self, section: str) -> Program:
        """Compiles and runs twice the work called 'forward', 'sampler' or 'train_step'."""
        start = time.perf_counter()
        with choices.override(**self.choices):
            run, peak = getattr(self, f"_{section}")()
        outputs, extra = run_twice(run, jax.block_until_ready, start)
        return Program(run, jax.block_until_ready, extra, peak, np.stack(outputs))

    @property
    def _options(self):
        return dict(self.compiler_options) or None

    def _forward(self):
        problem = self.problem
        x_0, eps, t, condition = jax.device_put(problem.inputs)
        x_t = problem.pipeline.process.corrupt(x_0, eps, t, condition.roi)
        arguments = jax.device_put(problem.params), x_t, t, condition
        compiled = jax.jit(problem.pipeline.apply).lower(*arguments).compile(self._options)
        return lambda: compiled(*arguments).image, peak_bytes(compiled)

    def _sampler(self):
        problem, process = self.problem, self.problem.pipeline.process
        params = jax.device_put(problem.params)
        x_0, eps, _, condition = jax.device_put(problem.inputs)
        keys = jax.random.split(jax.random.key(0), problem.batch_size)
        sampler = Sampler(problem.pipeline.apply, process)
        t = problem.sampling.timesteps(process.num_timesteps)
        table = ddim.table(process, t, problem.sampling.eta)
        unused = process.num_timesteps - len(table.t)
        # The program inside the sampler; its memory does not depend on the values given here.
        request = Request(
            params=params,
            context=x_0,
            condition=condition,
            keys=keys,
            guidance=ClassifierFree(np.zeros(problem.batch_size, np.float32)),
            bounds=np.array(CLIP, np.float32),
            table=jax.tree.map(lambda column: np.pad(column, (0, unused)), table),
        )
        span = np.zeros(2, np.int32)
        compiled = sampler._steps.lower(request, (), eps, span, method=ddim).compile(self._options)

        def run():
            return sampler(params, eps, x_0, condition, keys, problem.sampling, clip=CLIP).x_0

        return run, peak_bytes(compiled)

    def _train_step(self):
        step, state = jax_train_step(self.problem)
        state, inputs = state(), jax.device_put(self.problem.inputs)
        compiled = step.lower(state, inputs).compile(self._options)

        def run():
            nonlocal state
            state, loss = compiled(state, inputs)
            return loss

        return run, peak_bytes(compiled)


def jax_train_step(problem: Problem) -> tuple[Any, Callable[[], TrainState]]:
    """The body of the training step between the preparation of the data and the metrics.

    Timesteps and noise are given, so that the losses of both sides can be compared.

    Returns:
        (jitted step(state, inputs) -> (state, loss), function that makes the first state).
    """
    pipeline, settings = problem.pipeline, problem.settings
    optimizer = settings.optimizer.make()

    def loss_of(params, inputs):
        x_0, eps, t, condition = inputs
        x_t = pipeline.process.corrupt(x_0, eps, t, condition.roi)
        prediction = pipeline.apply(params, x_t, t, condition).image
        target = pipeline.process.target(x_0, eps, t)
        sums, counts = squared_error_terms(prediction, target, condition.roi, jnp.ones(len(t)))
        return sums.sum() / counts.sum()

    def step(state, inputs):
        loss, grads = jax.value_and_grad(loss_of)(state.params, inputs)
        return apply_update(state, grads, optimizer, settings.ema_decay), loss

    def first_state():
        return create_state(jax.tree.map(jnp.array, problem.params), optimizer)

    return jax.jit(step, donate_argnums=0), first_state


def run_twice(run, wait, start, before_second=lambda: None):
    """(outputs of two calls, seconds from `start` to the end of the first less those of the second)."""
    first = run()
    wait(first)
    middle = time.perf_counter()
    before_second()
    second = run()
    wait(second)
    return [first, second], (middle - start) - (time.perf_counter() - middle)

"""Runs a sampling method inside a region of interest.

The sampler knows neither the network nor what it predicts: a guidance gives it x_0. Each row of a
method's table is

    x_0      = clip(denoise(x_t, t), low, high)
    x_t_prev = step(x_t, x_0, row) + noise z

inside the roi, and the context outside.

One compiled program serves any number of steps, spacing, eta, guidance weight and clip range: they
are arguments. The program gets the table of all rows, padded to that of T steps, and the range of
rows to run now. Its loop has a traced trip count, so rows outside the range cost nothing, where a
scan of fixed length would evaluate the network for masked rows too; the price is that the loop cannot
be unrolled or differentiated, which sampling does not need. Python only splits the rows into chunks,
so that it can report progress or stop between them; the image stays on its devices.
Label logits are those of the last row.

Where the first estimate stands for the mean (`Sampling.starts_at_mean`), the network sees zeros inside
the roi for it, not x_T: at the last timestep x_T is noise alone, so that what an estimate makes of it is
error, which zeros, the mean of all noise, do not bring in. The step from there is that from x_T.

Networks that see neighboring slices sample the slices of a volume together: row by row of the table, and
in each row batch by batch, every slice being shown its neighbors as they were before that row. So what a
slice becomes does not depend on how the slices are put into batches.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbti_jax.diffusion import samplers
from mbti_jax.diffusion.arrays import AnyArray
from mbti_jax.diffusion.condition import Condition, Neighbors
from mbti_jax.diffusion.guidance import Apply, Guidance, Unguided
from mbti_jax.diffusion.output import Denoised
from mbti_jax.diffusion.processes import Process
from mbti_jax.diffusion.sampling import Sampling

Progress = Callable[[int, int], None]
Cancel = Callable[[], bool]


class SamplingCancelled(Exception):
    """The caller's `cancel` function returned true."""


class Request(NamedTuple):
    """What stays the same over all rows: the arguments of `Sampler.__call__` on their devices.

    Attributes:
        params, context, condition, keys: as there.
        guidance: with float32 [B] numbers.
        bounds: float32 [2], lowest and highest x_0.
        table: the method's rows, padded to the most that it may have.
        from_zeros: bool, whether the first row's estimate is that of zeros instead of x_T.
    """

    params: Any
    context: AnyArray
    condition: Condition
    keys: jax.Array
    guidance: Guidance
    bounds: np.ndarray
    table: Any
    from_zeros: AnyArray | np.bool_ = np.False_


class Batch(NamedTuple):
    """Examples on their devices: x_T, context, condition and keys of `Sampler.__call__`."""

    x_T: AnyArray
    context: AnyArray
    condition: Condition
    keys: jax.Array


class Surroundings(NamedTuple):
    """What lies around the examples of several batches.

    Attributes:
        around: int [examples of all batches, 2 K], the neighbors of each, bottom to top, by number:
            examples are counted through the batches, then come those that are `still`; -1 is none.
        still: float32 [M, H, W, C], slices that are not sampled.
    """

    around: np.ndarray
    still: np.ndarray


class Sampler:
    """Guided sampling, compiled once per method, kind of guidance, shape and batch.

    The batch may be sharded over devices: the arrays then come in with the same `NamedSharding`
    over their first axis (`jax.device_put` what `noise.start_noise` returns, too), and so has the
    result.
    """

    def __init__(self, apply: Apply, process: Process):
        """Takes the network, apply(params, x_t, t, condition) -> Output, and its process."""
        self.process = process
        self._start = jax.jit(process.start)
        self._steps = jax.jit(
            functools.partial(_steps, apply, process),
            static_argnames="method",
            donate_argnames=("carry", "x_t"),
        )

    def __call__(
        self,
        params: Any,
        x_T: AnyArray,
        context: AnyArray,
        condition: Condition,
        keys: jax.Array,
        sampling: Sampling,
        *,
        clip: tuple[float, float] = (-math.inf, math.inf),
        chunk: int = 10,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> Denoised:
        """Makes the image inside the roi.

        Args:
            params: the network's parameters.
            x_T: float32 [B, H, W, C], standard normal noise; used inside the roi only. Not donated.
            context: float32 [B, H, W, C], the image; used outside the roi only.
            condition: of B examples.
            keys: typed keys [B]. The noise of a step (eta > 0) is a function of the example's key and
                the timestep, not of the batch or the chunks.
            sampling: its seed and z_sigma_mm have no effect here; its guidance must be given, with
                numbers that are scalars or float [B].
            clip: lowest and highest x_0, in the units of the image; infinite for no clipping.
            chunk: number of rows between two reports. The result does not depend on it.
            progress: called with (rows done, rows in all) after each chunk has been computed.
            cancel: asked before each chunk; true ends the sampling.

        Returns:
            The image, outside the roi equal to `context` bit for bit, and the label logits of the last
            row's evaluation.

        Raises:
            ValueError: an argument's shape or value is not as above.
            SamplingCancelled: `cancel` returned true.
        """
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}.")
        batch = Batch(x_T, context, condition, keys)
        method, total, request = self._request(params, batch, sampling, clip)
        # Not compiled, so that what it makes of x_T lies where x_T lies.
        carry = method.start(x_T)
        x_t = self._start(x_T, context, condition.roi)
        running = label_logits = None
        for first in range(0, total, chunk):
            if cancel is not None and cancel():
                raise SamplingCancelled(f"Cancelled before step {first + 1} of {total}.")
            span = np.array([first, min(first + chunk, total)], np.int32)
            carry, x_t, label_logits, done = self._steps(request, carry, x_t, span, method=method)
            # Wait for the chunk before this one, so that the device always has work queued.
            if running is not None:
                _report(progress, running, total)
            running = done
        _report(progress, running, total)
        return Denoised(x_t, label_logits)

    def together(
        self,
        params: Any,
        batches: Sequence[Batch],
        surroundings: Surroundings,
        sampling: Sampling,
        *,
        clip: tuple[float, float] = (-math.inf, math.inf),
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> list[Denoised]:
        """Makes the images of several batches of one size, which show each other how far they are.

        On the devices lie x_t of all batches twice, what the method carries, and what the batches hold.

        Args:
            params, sampling, clip: as in `__call__`.
            batches: the examples.
            surroundings: which of them are neighbors.
            progress: called with (evaluations done, evaluations in all), counting those of each batch.
            cancel: asked before each evaluation of a batch; true ends the sampling.

        Returns:
            As `__call__`, of each batch.

        Raises:
            ValueError, SamplingCancelled: as there.
        """
        made = [self._request(params, batch, sampling, clip) for batch in batches]
        method, num_rows, _ = made[0]
        requests = [request for *_, request in made]
        carries = [method.start(batch.x_T) for batch in batches]
        x_ts = [self._start(b.x_T, b.context, b.condition.roi) for b in batches]
        masks = [batch.condition.roi_masks for batch in batches]
        empty = np.zeros((*surroundings.still.shape[:-1], masks[0].shape[-1]), np.float32)
        masks = _concatenate(masks, empty)
        around = np.split(surroundings.around, len(batches))
        outputs: list[Any] = [None] * len(batches)
        total = num_rows * len(batches)
        shown = running = None
        for number in range(total):
            row, b = divmod(number, len(batches))
            if cancel is not None and cancel():
                raise SamplingCancelled(f"Cancelled before step {row + 1} of {num_rows}.")
            if b == 0:
                shown = _concatenate(x_ts, surroundings.still)
                if row == 0 and requests[0].from_zeros:
                    shown = _zeros_inside(shown, masks)
            neighbors = _neighbors(shown, masks, around[b], batches[b].context)
            condition = dataclasses.replace(batches[b].condition, neighbors=neighbors)
            carries[b], x_ts[b], outputs[b], done = self._steps(
                requests[b]._replace(condition=condition),
                carries[b],
                x_ts[b],
                np.array([row, row + 1], np.int32),
                method=method,
            )
            # Wait for the evaluation before this one, so that the device always has work queued.
            if number:
                jax.block_until_ready(running)
                _report(progress, number, total)
            running = done
        jax.block_until_ready(running)
        _report(progress, total, total)
        return [Denoised(*ended) for ended in zip(x_ts, outputs, strict=True)]

    def _request(
        self, params: Any, batch: Batch, sampling: Sampling, clip: tuple[float, float]
    ) -> tuple[ModuleType, int, Request]:
        """The method, how many rows it has, and what stays the same over all of them."""
        method, table = self._method(sampling)
        total, low, high = len(table.t), *clip
        _check(*batch)
        if not low < high:
            raise ValueError(f"clip must be (low, high) with low < high, got {clip}.")
        guidance = jax.tree.map(
            lambda x: np.broadcast_to(np.asarray(x, np.float32), (len(batch.context),)),
            self._guidance(sampling),
        )
        bounds = np.array([low, high], np.float32)
        # Always as many rows, so that the number of steps compiles nothing.
        rows = max(method.EVALUATIONS * self.process.num_timesteps, total)
        table = jax.tree.map(lambda column: np.pad(column, (0, rows - total)), table)
        _, context, condition, keys = batch
        at_end = table.t[0] == self.process.num_timesteps - 1
        from_zeros = np.array(sampling.starts_at_mean and at_end)
        request = Request(params, context, condition, keys, guidance, bounds, table, from_zeros)
        return method, total, request

    def passes(self, sampling: Sampling) -> dict[str, int]:
        """What a sample of one image costs.

        Returns:
            `evaluations`: estimates of x_0, one a row. `network_passes`: passes of the image through the
            network, of which a guided estimate takes two.
        """
        _, table = self._method(sampling)
        guidance = self._guidance(sampling)
        passes = int(guidance.passes(self.process, table.t).sum())
        return {"evaluations": len(table.t), "network_passes": passes}

    def _method(self, sampling: Sampling) -> tuple[ModuleType, Any]:
        """The method and its rows."""
        sampling = sampling.resolved(self.process)
        self.process.check_sampler(sampling.sampler)
        method = samplers.method(sampling.sampler)
        t = sampling.timesteps(self.process.num_timesteps)
        return method, method.table(self.process, t, sampling.eta)

    def _guidance(self, sampling: Sampling) -> Guidance:
        guidance = sampling.guidance if self.process.is_stochastic else Unguided()
        if not isinstance(guidance, Guidance) or any(x is None for x in vars(guidance).values()):
            raise ValueError("sampling.guidance must be given, with its weight")
        # With w = 0 the null pass has no effect.
        return Unguided() if _is_unguided(guidance) else guidance


def _neighbors(shown, masks, around, context):
    """What the examples of a batch see around them, on the batch's devices."""
    numbers = np.maximum(around, 0)
    present = (around >= 0).astype(np.float32)
    neighbors = Neighbors(_take(shown, numbers), _take(masks, numbers), present)
    return jax.device_put(neighbors, getattr(context, "sharding", None))


@jax.jit
def _concatenate(parts, still):
    return jnp.concatenate([*parts, still])


@functools.partial(jax.jit, donate_argnums=0)
def _zeros_inside(images, masks):
    return jnp.where((masks > 0).any(axis=-1, keepdims=True), 0.0, images)


@jax.jit
def _take(array, numbers):
    return array[numbers]


def _is_unguided(guidance):
    """Whether its weight is 0 in all examples."""
    guidance = getattr(guidance, "guidance", guidance)
    return not np.any(getattr(guidance, "weight", 1.0))


def _report(progress, done, total):
    done = int(done)  # waits until the chunk has been computed
    if progress is not None:
        progress(done, total)


def _steps(apply, process, request, carry, x_t, span, method):
    """Runs the rows from `span[0]` to before `span[1]`; returns carry, x_t, the last row's label
    logits and the rows done."""
    params, context, condition, keys, guidance, bounds, table, from_zeros = request
    roi = condition.roi

    def denoise(x_t, row):
        t = jnp.full(len(x_t), row.t)
        return guidance.denoise(functools.partial(apply, params), process, x_t, t, condition)

    def step(number, state):
        carry, x_t, _, done = state
        row = jax.tree.map(lambda column: column[number], table)
        seen = jnp.where(from_zeros & (number == 0) & roi, 0.0, x_t)
        x_0, label_logits = denoise(seen, row)
        x_0 = jnp.clip(x_0, bounds[0], bounds[1])
        keys_t = jax.vmap(jax.random.fold_in, (0, None))(keys, row.t.astype(jnp.int32))
        z = jax.vmap(lambda key: jax.random.normal(key, x_t.shape[1:]))(keys_t)
        carry, x_t_prev = method.step(carry, x_t, x_0, row)
        x_t = jnp.where(roi, x_t_prev + row.noise * z, context)
        return carry, x_t, label_logits, done + 1

    first = jax.tree.map(lambda column: column[0], table)
    shape = jax.eval_shape(denoise, x_t, first).label_logits
    label_logits = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
    return jax.lax.fori_loop(span[0], span[1], step, (carry, x_t, label_logits, span[0]))


def _check(x_T, context, condition, keys):
    batch, *size, _ = context.shape
    masks, classes = condition.roi_masks, condition.class_vector
    for name, array, shape in (
        ("x_T", x_T, context.shape),
        ("roi_masks", masks, (batch, *size, masks.shape[-1])),
        ("class_vector", classes, (batch, classes.shape[-1])),
        ("keys", keys, (batch,)),
    ):
        if array.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} to go with a context of {context.shape}, "
                f"got {array.shape}."
            )

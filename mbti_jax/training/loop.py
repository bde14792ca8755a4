"""Training: the loop that decides the order of work.

A run that is started again resumes from its newest checkpoint and computes what it would have computed.
"""

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import mbti_jax
from mbti_jax import sharding
from mbti_jax.data import loader
from mbti_jax.data.augment import Augmentation
from mbti_jax.fields import FieldError
from mbti_jax.io.progress import ticking, waiting
from mbti_jax.models.parameters import Params, init_params
from mbti_jax.training.checkpoint import Checkpointer
from mbti_jax.training.cluster import Together, agree, compiled_by_all, join_cluster
from mbti_jax.training.settings import TrainSettings
from mbti_jax.training.state import TrainState, create_state
from mbti_jax.training.step import Step, make_train_step
from mbti_jax.training.stopping import Stopping
from mbti_jax.training.validation import Validation
from mbti_jax.training.writer import MetricsWriter
from tfds_brats.locking import only_process_in
from tfds_brats.reading import SliceSource
from tfds_brats.space import check_space

# Streams of random numbers folded out of the run's seed.
_INIT, _TRAIN, _VALIDATE = range(3)

logger = logging.getLogger(__name__)


class NonFiniteLossError(ValueError):
    """The loss or its gradient became NaN or infinite."""


def train(
    settings: TrainSettings,
    workdir: str | os.PathLike,
    initial: Params | None = None,
    seconds: float = math.inf,
) -> bool:
    """Trains in `workdir` until `settings.num_steps`, resuming from the newest checkpoint.

    Args:
        settings: of the run.
        workdir: the run's folder.
        initial: parameters to start from, those that `settings.started_from` names; None for random.
        seconds: after which the run ends with the step that it is at, validated and saved, as if that
            were the last one. For one process; which step that is depends on the machine, but what it
            has learnt by then does not.

    Returns:
        Whether the last step, or the end of the time, was reached; False when a signal stopped the run,
        which was saved.

    Raises:
        NonFiniteLossError: the loss or its gradient is not finite; the last good checkpoint is kept.
        CheckpointMismatchError: `workdir` holds another run.
        LockedError: another process trains there.
        ValueError, OSError: settings or data cannot be used, or there is too little space; the message
            says what to change.
    """
    if settings.init_from and initial is None:
        raise ValueError(f"the weights of {settings.init_from} are to be given as `initial`")
    join_cluster(settings.multihost)
    if seconds < math.inf and jax.process_count() > 1:
        raise ValueError(
            "several processes would not end with the same step: give no time to train"
        )
    # Before anything is opened there: opening checkpoints clears away what is half-written.
    locked = only_process_in(workdir) if jax.process_index() == 0 else contextlib.nullcontext()
    with Together() as together, locked:
        return _train(settings, workdir, initial, time.perf_counter() + seconds, together)


def _train(
    settings: TrainSettings,
    workdir: str | os.PathLike,
    initial: Params | None,
    end: float,
    together: Together,
) -> bool:
    mesh = sharding.make_mesh()
    data = settings.data
    pipeline = settings.pipeline()
    neighbors = pipeline.model.neighbors
    examples = data.examples(SliceSource(data.dataset, data.train_split), neighbors)
    held_out = data.examples(SliceSource(data.dataset, data.validation_split), neighbors)
    agree(_shared(settings, examples, held_out))
    root = jax.random.key(settings.seed)

    optimizer = settings.optimizer.make()

    def init(source: Any) -> TrainState:
        params = init_params(pipeline.model, source) if initial is None else source
        return create_state(params, optimizer)

    source = jax.random.fold_in(root, _INIT) if initial is None else jax.device_get(initial)
    shardings = sharding.state_sharding(
        mesh, jax.eval_shape(init, source), fully_sharded=settings.fully_sharded
    )
    init = jax.jit(init, out_shardings=shardings)
    x_0_bounds = loader.intensity_bounds(examples)
    metadata = {
        "contract": settings.contract(
            examples.fingerprint,
            data.pixel_size_mm(),
            data.slice_distance_mm(neighbors),
            examples.phantoms,
        ),
        "inference": {
            "x_0_bounds": list(x_0_bounds),
            "guidance_weight": settings.guidance_weight,
            "version": mbti_jax.__version__,
            **settings.recommended(),
        },
    }
    checkpointer = Checkpointer(workdir, metadata, settings.max_to_keep)
    state = checkpointer.restore(init.eval_shape(source)) or init(source)
    start = int(state.step)
    if jax.process_index() == 0 and start < settings.num_steps:
        # The one that is written is complete before an older one is deleted.
        bytes_of_one = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        kept = len(checkpointer.steps())
        check_space(workdir, bytes_of_one * (settings.max_to_keep + 1 - kept), "its checkpoints")
    _say(
        f"{sum(leaf.size for leaf in jax.tree.leaves(state.params)):,} parameters, "
        f"{len(examples):,} training examples, {mesh.size} {jax.devices()[0].device_kind} device(s), "
        f"{'resuming' if start else 'starting'} at step {start} of {settings.num_steps}"
    )

    def compiled(augmentation: Augmentation) -> Step:
        step = make_train_step(
            dataclasses.replace(pipeline, augmentation=augmentation),
            optimizer,
            jax.random.fold_in(root, _TRAIN),
            accumulation=settings.accumulation,
            ema_decay=settings.ema_decay,
        )
        out_shardings = (shardings, sharding.replicated(mesh))
        return compiled_by_all(jax.jit(step, donate_argnums=0, out_shardings=out_shardings))

    how = settings.augmentation
    train_steps = {0: compiled(how)}
    if how.crop_updates:
        train_steps[how.crop_updates] = compiled(how.of_whole_slices)
    padded_size = sharding.padded_batch_size(settings.batch_size, mesh, settings.accumulation)
    images = padded_size // jax.process_count() * examples.num_channels * (1 + 2 * neighbors)
    _check_memory(settings, images)
    batches = loader.training_batches(
        examples,
        seed=settings.seed,
        batch_size=settings.batch_size,
        padded_size=padded_size,
        start_step=start,
        num_threads=data.num_threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    validation = Validation(
        settings,
        pipeline,
        held_out,
        mesh,
        jax.random.fold_in(root, _VALIDATE),
        x_0_bounds,
    )
    has_time = start == 0 or time.perf_counter() < end
    if jax.process_count() == 1 and start < settings.num_steps and has_time:
        # While there is nothing to save, and an interrupt need not wait for it.
        with waiting("compiling the validation, which takes up to a minute"):
            validation.compile(state.ema)
    with contextlib.ExitStack() as stack:
        stack.callback(checkpointer.close)
        writer = None
        if jax.process_index() == 0:
            # The line of step n is written before the checkpoint of step n.
            writer = MetricsWriter(workdir, start + 1)
            stack.callback(writer.close)
        stopping = Stopping()
        stack.callback(stopping.close)
        # The first thing after an error: closing checkpoints may wait for the other processes.
        stack.push(together.tell)
        placed = (sharding.put_batch(batch, mesh) for batch in batches)
        parts = (checkpointer, validation, writer)
        return _loop(settings, state, train_steps, placed, parts, stopping, end)


def _shared(
    settings: TrainSettings, examples: loader.Examples, held_out: loader.Examples
) -> dict[str, Any]:
    """What all processes of a run must have alike, by name."""
    fields = dataclasses.asdict(settings)
    # Every host may have the dataset in a place of its own, and as many threads as it has cores.
    for name in ("dataset", "num_threads"):
        del fields["data"][name]
    # Likewise the model that it starts from, of which the digest is compared.
    del fields["init_from"]
    flat = {
        f"{group}.{name}" if name else group: value
        for group, held in fields.items()
        for name, value in (held.items() if isinstance(held, dict) else [("", held)])
    }
    return flat | {
        "the training data's fingerprint": [examples.fingerprint, len(examples)],
        "the validation data's fingerprint": [held_out.fingerprint, len(held_out)],
        "the version of mbti-jax": mbti_jax.__version__,
        "the version of jax": jax.__version__,
        "the number of devices": jax.local_device_count(),
        "the kind of device": jax.local_devices()[0].device_kind,
    }


def _check_memory(settings: TrainSettings, images_per_batch: int) -> None:
    """Raises a FieldError if this machine can never hold the batches that are read ahead."""
    window = settings.data.window
    # Codes of two bytes and, at most, a label each; four batches are read ahead, two are stacked.
    needed = 6 * images_per_batch * window**2 * 3
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise FieldError(
            "batch_size",
            f"takes about {needed / 1e9:.0f} GB of memory for batches of {window} x {window} pixels, "
            f"and this machine has {there / 1e9:.0f} GB",
        )


def _loop(
    settings: TrainSettings,
    state: TrainState,
    train_steps: Mapping[int, Step],
    batches: Iterator[loader.Batch],
    parts: tuple[Checkpointer, Validation, MetricsWriter | None],
    stopping: "Stopping",
    end: float,
) -> bool:
    """One update after another. The metrics of a step are read while the next one is computed.

    Args:
        train_steps: update from which it is used -> the step.
        batches: of the updates from the state's on.
        parts: checkpoints, validation, and where metrics are written.
        stopping: whether to stop after so many updates, or in a validation.
        end: time by `perf_counter` at which to stop.

    Returns:
        Whether the last step, or the end of the time, was reached.
    """
    checkpointer, validation, writer = parts
    start = int(state.step)
    total, quiet = settings.num_steps, writer is None
    bar = tqdm(desc="training", unit="step", total=total, initial=start, disable=quiet)
    log = _Log(writer, bar, settings.batch_size, settings.log_every)
    # Whatever the time, a run that is new makes a step, so that there is a model.
    pending, is_cut = None, False
    last = start >= total or (start > 0 and time.perf_counter() >= end)
    for step in range(start, start if last else total):
        began = time.perf_counter()
        is_new = step == start or step in train_steps
        if is_new:
            train_step = train_steps[max(first for first in train_steps if first <= step)]
        with contextlib.ExitStack() as compiling:
            if is_new:
                compiling.enter_context(ticking(bar, "compiling, which takes a minute or more"))
            if is_new and step > start:
                # An interrupt need not wait for it when nothing is lost.
                if pending is not None:
                    log.read(step - 1, pending)
                    pending = None
                checkpointer.save(state)
                checkpointer.wait()
                compiling.enter_context(stopping.left_to_others())
            state, metrics = train_step(state, next(batches))
            if is_new:
                jax.block_until_ready(metrics)
        if is_new:
            _say(f"compilation and first step: {time.perf_counter() - began:.0f} s")
            log.restart_clock()
        if pending is not None:
            log.read(step - 1, pending)
        pending = metrics
        done = step + 1
        last = done == total or time.perf_counter() >= end
        stop = stopping(done) and not last
        saves = last or stop or done % settings.checkpoint_every == 0
        # A validation may take longer than a stopped process is given.
        validates = last or (done % settings.validate_every == 0 and not stop)
        if saves or validates:
            # Read first: a state after a step that was not finite is neither saved nor validated.
            log.read(step, pending)
            pending = None
        if validates:
            # Before saving: a run killed in between does both again.
            with log.paused(), ticking(bar, "validating"):
                is_cut = not validation.run(done, state.ema, writer, stopping.is_asked)
            if is_cut:
                saves, stop, last = True, True, False
        if saves:
            checkpointer.save(state)
        if stop or last:
            break
    checkpointer.wait()
    bar.close()
    done = int(state.step)
    if not last:
        without = " but not validated" * is_cut
        _say(f"stopped at step {done}, saved{without}; the same command resumes from there")
    elif done < total:
        _say(f"the time is over at step {done} of {total}")
    return last


class _Log:
    """Reads metrics off the device, checks them, and writes their means every so many steps."""

    def __init__(self, writer: MetricsWriter | None, bar: tqdm, batch_size: int, every: int):
        self._writer, self._bar, self._batch_size, self._every = writer, bar, batch_size, every
        self._values: list[dict[str, float]] = []
        self._since = time.perf_counter()

    def read(self, step: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not np.isfinite([values["loss"], values["grad_norm"]]).all():
            raise NonFiniteLossError(
                f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}. The last "
                "checkpoint is from before. Check the data, lower optimizer.learning_rate, or set "
                "model.dtype to float32."
            )
        self._values.append(values)
        self._bar.update()
        self._bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
        if (step + 1) % self._every:
            return
        seconds = time.perf_counter() - self._since
        means = {
            # A batch may hold no timestep of some quarter; the mean is over those that do.
            name: float(np.nanmean([v[name] for v in self._values]))
            for name in values
            if not all(np.isnan(v[name]) for v in self._values)
        }
        means["images_per_second"] = len(self._values) * self._batch_size / seconds
        if self._writer is not None:
            self._writer.scalars(step + 1, {f"train/{name}": v for name, v in means.items()})
        self._values.clear()
        self._since = time.perf_counter()

    def restart_clock(self) -> None:
        """Forgets the time so far: neither images per second nor the time left include compilation."""
        self._bar.unpause()
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock of images per second."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start


def _say(text: str) -> None:
    if jax.process_index() == 0:
        logger.info(text)

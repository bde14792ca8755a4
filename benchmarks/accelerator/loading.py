"""Stage 7: can the loader feed the train step? Of `configs/train.py`, one sequence an example."""

import time
from typing import Any

import jax

from benchmarks.accelerator.data import dataset
from benchmarks.accelerator.kernels import compiled_step
from benchmarks.accelerator.problems import settings
from benchmarks.accelerator.record import Record
from benchmarks.accelerator.sizes import Sizes
from mbti_jax.data import loader
from mbti_jax.training.settings import TrainSettings
from tfds_brats.reading import SliceSource
from tfds_brats.workers import default_num_workers

_WARM_UP = 3


def run(sizes: Sizes, record: Record) -> None:
    """Times the loader alone, the step alone, and the step fed by the loader."""
    start = time.perf_counter()
    built = dataset(sizes, record)
    of = settings(sizes, data__dataset=str(built.path))
    if "dataset" not in record.units:
        slices = len(SliceSource(built.path, "train"))
        seconds = time.perf_counter() - start
        record.add("dataset", {"subjects": sizes.phantoms, "slices": slices, "seconds": seconds})
    first, *others = sizes.loader_threads
    _time_loader(first, of, sizes, record)
    record.unit("step", lambda: _steps(of, sizes))
    for threads in others:
        _time_loader(threads, of, sizes, record)


def _time_loader(threads: int, of: TrainSettings, sizes: Sizes, record: Record) -> None:
    record.unit(f"loader, {threads} threads", lambda: _loader(of, threads, sizes.loader_seconds))


def _batches(of: TrainSettings, threads: int) -> Any:
    examples = of.data.examples(SliceSource(of.data.dataset, of.data.train_split))
    return loader.training_batches(
        examples, seed=of.seed, batch_size=of.batch_size, num_threads=threads
    )


def _loader(of: TrainSettings, threads: int, seconds: float) -> dict[str, Any]:
    batches = _batches(of, threads)
    rate = _rate(lambda: next(batches), of.batch_size, seconds)
    batches.close()
    return {"threads": threads, "cores": default_num_workers(), "images_per_second": rate}


def _rate(work: Any, images: int, seconds: float, wait: Any = lambda: None) -> float:
    """Images a second of `work()`, each call of which is so many, over so many seconds."""
    for _ in range(_WARM_UP):
        work()
    wait()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or not calls:
        work()
        calls += 1
    wait()
    return calls * images / (time.perf_counter() - start)


def _steps(of: TrainSettings, sizes: Sizes) -> dict[str, Any]:
    """The same program on one batch over and over, and on what the loader reads."""
    state, batch, step = compiled_step(of)
    metrics: Any = None

    def advance(given: Any) -> None:
        nonlocal state, metrics
        before = metrics
        state, metrics = step(state, given)
        # As the loop of training does: a step is waited for while the next is computed.
        jax.block_until_ready(before)

    def wait() -> None:
        jax.block_until_ready(metrics)

    alone = _rate(lambda: advance(batch), of.batch_size, sizes.loader_seconds, wait)
    rates = {}
    for threads in sizes.loader_threads[:1]:
        batches = _batches(of, threads)
        placed = (jax.device_put(read) for read in batches)
        rates[f"fed by {threads} threads"] = _rate(
            lambda source=placed: advance(next(source)), of.batch_size, sizes.loader_seconds, wait
        )
        batches.close()
    return {"batch": of.batch_size, "images_per_second": {"one batch again": alone, **rates}}

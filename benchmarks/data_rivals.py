"""What `benchmarks.data` times: dataset build, loader and preprocessing, each with its floor."""

import contextlib
import dataclasses
import functools
import gzip
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import tensorflow_datasets as tfds

from mbti_jax.data import loader
from mbti_jax.data.augment import augment
from mbti_jax.models.parameters import init_params
from mbti_jax.models.pipeline import Pipeline
from mbti_jax.rois.tasks import sample_task
from mbti_jax.training.settings import TrainSettings
from mbti_jax.training.state import create_state
from mbti_jax.training.step import make_train_step
from tfds_brats.builder import build
from tfds_brats.cases import CaseFiles
from tfds_brats.conventions import SEQUENCES
from tfds_brats.reading import SliceSource
from tfds_brats.records import encode_png, encode_subject
from tfds_brats.workers import default_num_workers

BATCH_SIZE = 16
# Batches that the device works through in a round.
_DEVICE_BATCHES = 2
_SPLIT = "train"


def build_rivals(source: Path, cases: Sequence[CaseFiles]) -> dict[str, Callable[[], int]]:
    """Floor: gunzip every file and encode the planes that end up in the records, nothing else."""
    paths = all_files(cases)
    planes = [
        _decode(record[name])
        for files in cases
        for record in encode_subject(files).records
        for name in (*SEQUENCES, "labels")
    ]

    def floor() -> int:
        for path in paths:
            content = path.read_bytes()
            if path.suffix == ".gz":
                gzip.decompress(content)
        for plane in planes:
            encode_png(plane)
        return len(cases)

    def encode() -> int:
        for files in cases:
            encode_subject(files)
        return len(cases)

    def whole_build() -> int:
        with tempfile.TemporaryDirectory() as data_dir:
            quiet_build(source, cases, data_dir)
        return len(cases)

    return {"floor": floor, "encode_subject": encode, "whole build": whole_build}


class LoaderRivals:
    """The paper's single-sequence examples, read by the loader and by its floor.

    The floor reads the same records at random and decodes the same two PNGs of each, which it holds
    ready: no record is parsed, nothing cut, stacked or shuffled. The loader is timed with the slice on
    either side of each example, too.
    """

    def __init__(self, settings: TrainSettings, dataset_dir: Path, batches: int):
        self._batches = batches
        self._source = SliceSource(dataset_dir, _SPLIT)
        self._examples = settings.data.examples(self._source)
        self._stacks = settings.data.examples(self._source, neighbors=1)
        builder = tfds.builder_from_directory(dataset_dir)
        self._raw = builder.as_data_source(
            _SPLIT, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        skip = {name: tfds.decode.SkipDecoding() for name in (*SEQUENCES, "labels")}
        encoded = builder.as_data_source(_SPLIT, decoders=skip)
        # Drawn as the loader draws: every example once an epoch, in random order.
        rng = np.random.default_rng(0)
        count = batches * BATCH_SIZE
        epochs = -(-count // len(self._examples))
        order = np.concatenate([rng.permutation(len(self._examples)) for _ in range(epochs)])
        self._items = []
        for number in order[:count]:
            record, (sequence,) = self._examples.locate(number)
            content = encoded[record]
            self._items.append((record, sequence, content[sequence], content["labels"]))
        self.sizes = {
            "slices_in_split": len(self._source),
            "mean_record_bytes": float(np.mean([len(record) for record in self._raw])),
            "mean_png_bytes": float(np.mean([len(png) for _, _, png, _ in self._items])),
            "mean_labels_png_bytes": float(np.mean([len(png) for *_, png in self._items])),
        }

    def rivals(self) -> dict[str, Callable[[], int]]:
        threads = default_num_workers()
        return {
            "floor": self.floor,
            "SliceSource.read": self._read,
            "training_batches, 0 threads": lambda: self._load(self._examples, 0),
            f"training_batches, {threads} threads": lambda: self._load(self._examples, threads),
            "neighbors=1, 0 threads": lambda: self._load(self._stacks, 0),
            f"neighbors=1, {threads} threads": lambda: self._load(self._stacks, threads),
        }

    def floor(self) -> int:
        for record, _, png, labels_png in self._items:
            self._raw[record]
            _decode(png)
            _decode(labels_png)
        return len(self._items)

    def _read(self) -> int:
        for record, sequence, _, _ in self._items:
            self._source.read(record, (sequence,))
        return len(self._items)

    def _load(self, examples: loader.Examples, num_threads: int) -> int:
        batches = loader.training_batches(
            examples, seed=0, batch_size=BATCH_SIZE, num_threads=num_threads
        )
        for _ in range(self._batches):
            next(batches)
        # What the threads have read ahead of the last batch counts too: a few per cent at most.
        batches.close()
        return len(self._items)


def device_rivals(
    settings: TrainSettings, dataset_dir: Path, *, with_step: bool = False
) -> tuple[dict[str, Callable[[], int]], dict[str, float]]:
    """The train step if asked for, all of the preprocessing, and each of its parts, on the device.

    Returns:
        (rivals, seconds that compiling each took).
    """
    pipeline, batch_size = settings.pipeline(), settings.batch_size
    source = SliceSource(dataset_dir, _SPLIT)
    (batch,) = jax.device_put(loader.fixed_batches(settings.data.examples(source), 1, batch_size))
    keys = jax.random.split(jax.random.key(settings.seed), batch_size)
    # The same slices, with one neighbor on either side.
    model = {**settings.model, "neighbors": 1}
    seeing = dataclasses.replace(settings, model=model).pipeline()
    (stacks,) = jax.device_put(
        loader.fixed_batches(settings.data.examples(source, neighbors=1), 1, batch_size)
    )
    resized = jax.jit(pipeline.resized)(batch)
    functions = {
        "prepare": (functools.partial(pipeline.prepare, augmented=True), batch, keys),
        "prepare, 1 neighbor each side": (
            functools.partial(seeing.prepare, augmented=True),
            stacks,
            keys,
        ),
        "decode and resize": (pipeline.resized, batch),
        "augment": (jax.vmap(augment), keys, *resized),
        "sample_task": (
            jax.vmap(functools.partial(sample_task, config=pipeline.tasks)),
            keys,
            *resized,
        ),
    }
    rivals, compile_seconds = {}, {}
    if with_step:
        rivals["train step"], compile_seconds["train step"] = _train_step(pipeline, settings, batch)
    for name, (function, *arguments) in functions.items():
        compiled, compile_seconds[name] = _compile(jax.jit(function), *arguments)

        # Each loop's function and arguments are bound as defaults.
        def run(compiled=compiled, arguments=arguments) -> int:
            for _ in range(_DEVICE_BATCHES):
                jax.block_until_ready(compiled(*arguments))
            return _DEVICE_BATCHES * batch_size

        rivals[name] = run
    return rivals, compile_seconds


def _train_step(
    pipeline: Pipeline, settings: TrainSettings, batch: loader.Batch
) -> tuple[Callable[[], int], float]:
    optimizer = settings.optimizer.make()
    key = jax.random.key(settings.seed)
    state = jax.jit(lambda: create_state(init_params(pipeline.model, key), optimizer))()
    step, seconds = _compile(
        jax.jit(
            make_train_step(pipeline, optimizer, key, ema_decay=settings.ema_decay),
            donate_argnums=0,
        ),
        state,
        batch,
    )

    def run() -> int:
        nonlocal state
        for _ in range(_DEVICE_BATCHES):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        return _DEVICE_BATCHES * settings.batch_size

    return run, seconds


def _compile(function: Any, *arguments: Any) -> tuple[Callable, float]:
    """A jitted function compiled for these arguments, and the seconds that took."""
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    return compiled, time.perf_counter() - start


def link_cases(cases: Sequence[CaseFiles], folder: Path) -> Path:
    """A folder with these cases and no others, each file in a folder named like its own."""
    for path in all_files(cases):
        link = folder / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    return folder


def all_files(cases: Sequence[CaseFiles]) -> list[Path]:
    return sorted({path for files in cases for path in (*files.images.values(), files.labels)})


def quiet_build(source: Path, cases: Sequence[CaseFiles], data_dir: str | Path) -> Path:
    """A build in this process, without its progress bars."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return build(source, cases[0].convention.name, data_dir, num_workers=1)


def _decode(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)

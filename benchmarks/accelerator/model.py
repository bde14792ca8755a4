"""Stage 8: trains configs/accelerator_model.py on phantoms for as long as there is time, and shows it.

Stopped by the clock, the training is saved, and the next call of the command goes on with it. Each call
exports, draws and evaluates what has been trained by then.
"""

import contextlib
import dataclasses
import os
import shutil
import signal
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.accelerator.data import dataset
from benchmarks.accelerator.problems import changed
from benchmarks.accelerator.record import OutOfTime, Record
from benchmarks.accelerator.sizes import Sizes
from configs import accelerator_model
from configs import evaluate as evaluate_config
from configs import figures as figures_config
from mbti_jax.commands.settings import from_config
from mbti_jax.evaluation import healthy
from mbti_jax.evaluation.figures import FigureSettings, draw_figures
from mbti_jax.evaluation.healthy import HealthySettings
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.fields import field_types
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.load import load_model
from mbti_jax.interop.inference_checkpoint import write_export
from mbti_jax.io.files import new_folder
from mbti_jax.training.loop import train
from mbti_jax.training.settings import TrainSettings
from mbti_jax.training.writer import read_metrics
from tfds_brats.builder import BuiltDataset
from tfds_brats.reading import SliceSource

MAX_BYTES = 10_000_000
_DATA = (
    "Digital phantoms (`tfds_brats.phantom`, seed 0): deformed copies of one averaged brain with "
    "artificial gliomas. No image of a patient, so it knows phantoms only."
)
_NOTE = "This model knows digital phantoms only; it was never trained on images of patients."
_EVALUATION_SEED = 0
# Less is not worth compiling the step for.
_LEAST_TRAINING_SECONDS = 15


def run(sizes: Sizes, record: Record) -> None:
    """Trains in the time that is left, exports, draws, evaluates."""
    start = time.monotonic()
    built = dataset(sizes, record)
    record.add("data", {"subjects": sizes.phantoms, "seconds": time.monotonic() - start})
    config = accelerator_model.get_config()
    of = changed(config, {**sizes.training, "data.dataset": str(built.path)})
    run_folder, before = record.work / "model", record.units.get("training", {})
    complete = before.get("complete", False)
    seconds = record.left() - sizes.training_end_seconds
    if not complete and seconds >= min(_LEAST_TRAINING_SECONDS, sizes.training_end_seconds):
        complete = _train(of, run_folder, seconds)
        record.add("training", _curve(of, run_folder, complete, before))
    if "training" not in record.units:
        raise OutOfTime
    # Of what has been trained by now, in place of what an earlier call left.
    record.add("export", _export(run_folder, record.folder / "model"))
    _again(record, "figures", lambda: _figures(record, built, sizes))
    _again(record, "evaluation", lambda: _evaluate(record, built, sizes))
    if not complete and record.used() < record.share:
        raise OutOfTime


def _train(of: TrainSettings, folder: Path, seconds: float) -> bool:
    """Trains until the end or until the seconds are over; whether it is the end."""
    with _signal_after(seconds):
        try:
            return train(of, folder)
        except OutOfTime:
            # Before the first step, or after the last.
            return False


@contextlib.contextmanager
def _signal_after(seconds: float) -> Iterator[None]:
    """SIGTERM, on which training saves and stops, unless it ended before."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _curve(
    of: TrainSettings, folder: Path, complete: bool, before: Mapping[str, Any]
) -> dict[str, Any]:
    """Steps, speed and losses, out of the metrics that training wrote."""
    rows = read_metrics(folder / "metrics.jsonl")

    def column(name: str) -> list[float]:
        return [row[name] for row in rows if isinstance(row.get(name), float)]

    rates, training = column("train/images_per_second"), column("train/loss")
    step = load_model(folder)[1]["step"]
    return {
        "step": step,
        "examples": step * of.batch_size,
        "complete": complete,
        "images_per_second": statistics.median(rates) if rates else None,
        "train_loss": training[-1] if training else None,
        "validation_losses": column("validation/loss"),
        "calls": before.get("calls", 0) + 1,
    }


def _export(run_folder: Path, folder: Path) -> dict[str, Any]:
    params, metadata = load_model(run_folder)
    metadata = {key: metadata[key] for key in ("contract", "inference", "step")}
    metadata["inference"] = {**metadata["inference"], "note": _NOTE}
    card = {"title": "The accelerator model of mbti-jax", "data": _DATA, "license": "Apache-2.0"}
    write_export(folder, params, metadata, card, dtype="float16")
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {"bytes": size, "at_most": MAX_BYTES, "step": metadata["step"]}


def _again(record: Record, name: str, work: Any) -> None:
    """A unit that is done in each call; what goes wrong in it is its result."""
    start = time.monotonic()
    try:
        result = work()
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"[:300]}
    record.add(name, {**result, "seconds": time.monotonic() - start})


def _figures(record: Record, built: BuiltDataset, sizes: Sizes) -> dict[str, Any]:
    config = figures_config.get_config()
    config.update(dict(sizes.figures))
    fields = {name: config[name] for name in field_types(FigureSettings)}
    settings = from_config(FigureSettings, fields)
    inpainter = Inpainter.load(record.folder / "model", config.batch_size)
    folder = record.folder / "pictures"
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder) as fresh:
        draw_figures(inpainter, SliceSource(built.path, settings.split), settings, fresh)
    return {"files": sorted(path.name for path in folder.glob("*.png"))}


def _evaluate(record: Record, built: BuiltDataset, sizes: Sizes) -> dict[str, Any]:
    config = evaluate_config.get_config().healthy
    config.update(dict(sizes.evaluation))
    settings = from_config(HealthySettings, config)
    inpainter = Inpainter.load(record.folder / "model", sizes.figures.get("batch_size", 4))
    workbench = Workbench(inpainter, built, record.work / "samples", _EVALUATION_SEED)
    folder = record.folder / "evaluation"
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder) as fresh:
        result = healthy.run(workbench, settings, fresh)
        (fresh / "report.md").write_text(healthy.tables(result) + "\n")
    return {
        "settings": dataclasses.asdict(settings),
        "volumes": _means(result["values"]["official_3d"]),
        "slices": _means(result["values"]["axial_2d"]),
    }


def _means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean of each measure by method."""
    values = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float):
                values[row["method"]][name].append(value)
    return {
        method: {name: statistics.fmean(numbers) for name, numbers in measures.items()}
        for method, measures in values.items()
    }

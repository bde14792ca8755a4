"""The whole path at a small size: phantoms, dataset, training, inpainted slices and their errors."""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mbti_jax.commands.first_picture import draw_first_picture
from mbti_jax.commands.settings import from_config
from mbti_jax.data import loader
from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation import baselines
from mbti_jax.evaluation.slices import SliceReader, component_areas
from mbti_jax.fields import Count, FieldError, Positive, check_fields
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io import pictures
from mbti_jax.io.files import write_json
from mbti_jax.io.progress import progress_bar
from mbti_jax.rois.tasks import sample_task
from mbti_jax.rois.tumors import own_tumor
from mbti_jax.training.loop import train
from mbti_jax.training.settings import TrainSettings
from mbti_jax.web.examples import make_phantom
from tfds_brats.builder import build_or_make_phantoms
from tfds_brats.locking import only_process_in
from tfds_brats.phantom import PhantomSettings
from tfds_brats.reading import SliceSource
from tfds_brats.scale import BACKGROUND

# Of the minutes, training has at least so much, however long its data took.
_LEAST_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How the trained model is tried.

    Attributes:
        num_rois: held-out ROIs of healthy tissue whose errors are measured.
        num_samples: samples per ROI.
        num_steps: of the sampler, for these.
        figure_steps: of the sampler, for the figure.
        batch_size: slices sampled at once.

    Raises:
        FieldError: a number below 1.
    """

    num_rois: Count
    num_samples: Count
    num_steps: Count
    figure_steps: Count
    batch_size: Count

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuickstartSettings(TrainSettings):
    """A training run, the cases it starts from, and what comes after it.

    Attributes:
        source: folder of cases, empty for phantoms.
        convention: of the cases.
        phantom: which phantoms.
        minutes: until training ends, over all runs in a folder; `num_steps` is the most.
        evaluation: how the model is tried.
    """

    source: str
    convention: str
    phantom: PhantomSettings
    minutes: Positive
    evaluation: EvaluationSettings

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_steps", "figure_steps"):
            steps = getattr(self.evaluation, name)
            if steps > self.diffusion.num_timesteps:
                raise FieldError(
                    f"evaluation.{name}",
                    f"must be at most diffusion.num_timesteps, {self.diffusion.num_timesteps}, "
                    f"not {steps}",
                )


def main(config: ConfigDict, workdir: str) -> None:
    """Runs all stages in `workdir`, reusing what earlier runs left there.

    Raises:
        ValueError, OSError: as the stages do.
    """
    settings = from_config(QuickstartSettings, config)
    with only_process_in(workdir):
        _run(settings, Path(workdir))


def _run(settings: QuickstartSettings, folder: Path) -> None:
    began, seconds = time.perf_counter(), dict[str, float]()
    if not settings.source:
        with _stage("a first picture, by the bundled model", seconds):
            print(f"First picture: {_first_picture(folder)}")
    with _stage("data: subjects and slices", seconds):
        dataset = build_or_make_phantoms(
            folder, settings.phantom, settings.source, settings.convention, settings.data.dataset
        )
        data = dataclasses.replace(settings.data, dataset=str(dataset.path))
        settings = dataclasses.replace(settings, data=data)
        source = SliceSource(dataset.path, "test")
        if not (source.index.tumor_area > 0).any():
            raise ValueError(
                f"no slice of the test split in {dataset.path} holds tumor, so there is nothing to "
                "show; use more subjects"
            )
    with _stage("training", seconds):
        if not _train(settings, folder, began):
            return
    with _stage("sampling", seconds):
        inpainter = Inpainter.load(folder / "run", batch_size=settings.evaluation.batch_size)
        figure = draw_figure(inpainter, source, settings, folder / "figure.png")
        errors = healthy_tissue_errors(inpainter, source, settings)
    write_json(folder / "report.json", {"seconds": seconds, "mean_absolute_error": errors})
    num_rois = settings.evaluation.num_rois
    print(f"\nMean absolute error in {num_rois} held-out ROIs of healthy tissue,")
    print("as a share of the intensity range:")
    for name, error in errors.items():
        print(f"  {name:22s} {error:.4f}")
    stages = ", ".join(f"{name.partition(':')[0]} {s:.0f} s" for name, s in seconds.items())
    print(f"\n{stages}, {sum(seconds.values()):.0f} s in all")
    print(f"\nFigure: {figure}")
    print(f"Training curves: tensorboard --logdir {folder / 'run' / 'tensorboard'}")
    if settings.source:
        print(
            "Next, a model of full size on these cases: python run.py --config=configs/train.py "
            f"--config.data.dataset={dataset.path} (docs/tutorials/brats.md)"
        )
    else:
        print(
            "Next, your own BraTS cases: "
            "python run.py --config=configs/data.py --config.source=DIR --config.convention=brats2021, "
            "then python run.py --config=configs/train.py (docs/tutorials/brats.md)"
        )


def _first_picture(folder: Path) -> Path:
    """Draws it unless it is there."""
    path = folder / "first.png"
    if not path.exists():
        case = make_phantom(folder / "example")
        draw_first_picture(Inpainter.load("phantom", batch_size=1), case, path)
    return path


def _train(settings: QuickstartSettings, folder: Path, began: float) -> bool:
    """Trains for what is left of the minutes; returns whether the run or its time came to an end.

    What was used so far lies in its folder, so that the same command again has nothing left to do, and
    one with more minutes goes on.

    Args:
        settings: of the quickstart.
        folder: its folder.
        began: time by `perf_counter` at which this run of it began.
    """
    path, start = folder / "run" / "time.json", time.perf_counter()
    used, trained = _seconds_in(path) if path.exists() else (0.0, 0.0)
    most = 60 * settings.minutes
    left = max(most - used - (start - began), _LEAST_SHARE * most - trained)
    try:
        return train(settings, folder / "run", seconds=left)
    finally:
        now = time.perf_counter()
        record = {"seconds": used + now - began, "seconds_of_training": trained + now - start}
        write_json(path, record)


def _seconds_in(path: Path) -> tuple[float, float]:
    """What was used in all, and of that by training."""
    try:
        record = json.loads(path.read_text())
        return float(record["seconds"]), float(record["seconds_of_training"])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged, or was written by another version of this program: delete it, and the "
            "training has all its minutes again"
        ) from error


@contextlib.contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"\n== {name}", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
    print(f"== {name}: {seconds[name]:.0f} s", flush=True)


def draw_figure(
    inpainter: Inpainter, source: SliceSource, settings: QuickstartSettings, path: Path
) -> Path:
    """One held-out slice in every sequence: normal tissue, components and a whole tumor painted in.

    The slice is the one with the largest tumor that shows all three components.
    """
    slices = SliceReader(inpainter, source).read([_record_that_shows_most(source)])
    conditions = [
        own_tumor(slices.labels, slices.brain, mode, box).condition()
        for mode, box in (("remove", ("normal",)), ("replace", ()), ("random", ("tumor",)))
    ]
    with progress_bar("sampling") as progress:
        painted = inpainter.sample(
            np.repeat(slices.images, len(conditions), axis=0),
            Condition.concatenate(conditions),
            Sampling(settings.evaluation.figure_steps, guidance=settings.guidance_weight),
            progress=progress,
        ).images[0]
    window = pictures.around(slices.brain[0], margin=2)
    marks = np.maximum(*(task.roi_masks[0] for task in conditions[1:]))
    marks = pictures.enlarge(marks[window])
    cells = []
    for channel in range(len(inpainter.sequences)):
        images = (slices.images[0], *painted)
        shown = [pictures.gray(image[window][..., channel]) for image in images]
        before, *after = map(pictures.enlarge, shown)
        cells.append([before, pictures.with_rois(before, marks, fill=0.15), *after])
    return pictures.figure(
        path,
        cells,
        rows=[name.upper() for name in inpainter.sequences],
        columns=["input", "ROIs", "normal tissue", "components", "whole tumor"],
        title=f"Held-out slice {slices.slice_indices[0]} of {slices.subjects[0]}, inpainted",
        footnote="synthetic, not for diagnosis",
        marks=pictures.Marks(pictures.kinds_in(marks), ["RL"] * 5),
    )


def _record_that_shows_most(source: SliceSource) -> int:
    """The record that shows all components best."""
    largest = np.argsort(-source.index.tumor_area)[:32].tolist()
    areas = {record: component_areas(source, record) for record in largest}
    return max(areas, key=lambda record: min(areas[record]) + 0.01 * sum(areas[record]))


def healthy_tissue_errors(
    inpainter: Inpainter, source: SliceSource, settings: QuickstartSettings
) -> dict[str, float]:
    """Mean absolute error inside healthy ROIs of held-out slices, as a share of the range [-1, 1].

    The truth is the image that was there. Every ROI counts by its pixels.
    """
    (batch,) = loader.fixed_batches(settings.data.examples(source), 1, settings.evaluation.num_rois)
    images, labels = jax.jit(inpainter.pipeline.resized)(batch)
    only_normal = dataclasses.replace(settings.tasks, prob_tumor=0.0, prob_normal=1.0)
    keys = jax.random.split(jax.random.key(settings.seed), len(images))
    draw = jax.vmap(functools.partial(sample_task, config=only_normal))
    images, condition = jax.device_get((images, jax.jit(draw)(keys, images, labels)))
    # Left out for all methods alike: padding, and a brain so small that the ROI swallows it.
    brains, rois = (images != BACKGROUND).any(-1), condition.roi[..., 0]
    kept = (batch["weight"] > 0) & (brains & ~rois).any((1, 2))
    images, brains, rois, condition = images[kept], brains[kept], rois[kept], condition[kept]

    repeats = settings.evaluation.num_samples
    with progress_bar("sampling held-out slices") as progress:
        painted = inpainter.sample(
            images,
            condition,
            Sampling(settings.evaluation.num_steps, guidance=settings.guidance_weight),
            samples=range(repeats),
            slice_indices=range(len(images)),
            progress=progress,
        ).images
    candidates = {"one sample": painted[0], f"mean of {repeats}": painted.mean(0)}
    fills = {"surrounding mean": baselines.surrounding_mean, "Telea (OpenCV)": baselines.telea}
    for name, fill in fills.items():
        candidates[name] = np.empty_like(images)
        for n, channel in np.ndindex(len(images), images.shape[-1]):
            candidates[name][n, ..., channel] = fill(images[n, ..., channel], rois[n], brains[n])
    return {name: float(np.abs(x - images)[rois].mean() / 2) for name, x in candidates.items()}

"""The whole path at a small size: phantom, dataset, training, inpainted slices and their errors."""

import contextlib
import functools
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mbti_jax.data import loader
from mbti_jax.evaluation import baselines, showcase
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.runs import progress_bar
from mbti_jax.io import pictures
from mbti_jax.io.files import write_json
from mbti_jax.rois.tasks import TaskConfig, sample_task
from mbti_jax.training import loop
from tfds_brats import builder, phantom
from tfds_brats.reading import SliceSource
from tfds_brats.scale import BACKGROUND


def main(config: ConfigDict, workdir: str) -> None:
    """Runs all stages in `workdir`; what a stage finds there, it reuses.

    Raises:
        ValueError, OSError: as the stages do.
    """
    folder = Path(workdir)
    seconds: dict[str, float] = {}
    config.data.dataset = config.data.dataset or str(folder / "slices")
    with _stage("data: subjects and slices", seconds):
        source, convention = config.source, config.convention
        if not source:
            source, convention = folder / "phantom", "phantom"
            phantom.write_phantoms(source, config.phantom.num_subjects, config.phantom.seed)
        builder.build(source, convention, config.data.dataset)
        test_slices = SliceSource(config.data.dataset, "test")
        if not (test_slices.index.tumor_area > 0).any():
            raise ValueError(
                f"no slice of the test split in {config.data.dataset} holds tumour, so there is "
                "nothing to show; use more subjects"
            )
    with _stage("training", seconds):
        if not loop.main(config, str(folder / "run")):
            return
    with _stage("sampling", seconds):
        inpainter = Inpainter.load(folder / "run", batch_size=config.evaluation.batch_size)
        figure = draw_figure(inpainter, test_slices, config, folder / "figure.png")
        errors = healthy_tissue_errors(inpainter, test_slices, config)
    total = sum(seconds.values())
    write_json(folder / "report.json", {"seconds": seconds, "mean_absolute_error": errors})
    print(f"\nMean absolute error in {config.evaluation.num_rois} held-out ROIs of healthy tissue,")
    print("as a share of the intensity range:")
    for name, error in errors.items():
        print(f"  {name:22s} {error:.4f}")
    print(
        "\n" + ", ".join(f"{name.split(':')[0]} {s:.0f} s" for name, s in seconds.items()), end=""
    )
    print(f", together {total:.0f} s")
    print(f"\nThe figure: {figure}")
    print(f"Training curves: tensorboard --logdir {folder / 'run' / 'tensorboard'}")
    print(
        "What next: your own BraTS cases - "
        "python run.py --config=configs/data.py --config.source=DIR --config.convention=brats2021, "
        "then python run.py --config=configs/train.py (README.md, 'With the BraTS 2021 archive')"
    )


@contextlib.contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"\n== {name}", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
    print(f"== {name}: {seconds[name]:.0f} s", flush=True)


def draw_figure(inpainter: Inpainter, source: SliceSource, config: ConfigDict, path: Path) -> Path:
    """One held-out slice in every sequence: healthy tissue, components and a mixed tumour painted in.

    The slice is the one with the largest tumour that shows all three components.
    """
    shown = showcase.SliceReader(inpainter, source)(_record_that_shows_most(source))
    tasks = [
        showcase.own_tumor_task(shown, "remove", box=("normal",)),
        showcase.own_tumor_task(shown, "replace"),
        showcase.own_tumor_task(shown, "random", box=("tumor",)),
    ]
    count = len(shown.images)
    with progress_bar("sampling") as progress:
        painted = inpainter.sample(
            np.concatenate([shown.images] * len(tasks)),
            np.concatenate([np.repeat(t.roi_masks[None], count, 0) for t in tasks]),
            np.concatenate([np.repeat(t.class_vector[None], count, 0) for t in tasks]),
            slice_indices=np.tile(np.arange(count), len(tasks)),
            num_steps=config.evaluation.figure_steps,
            guidance_weight=config.guidance_weight,
            progress=progress,
        ).reshape(len(tasks), *shown.images.shape)
    cells = []
    marks = np.maximum(*(pictures.enlarge(t.roi_masks) for t in tasks[1:]))
    for before, *after in zip(*map(shown.by_sequence, (shown.images, *painted)), strict=True):
        before, *after = (pictures.enlarge(pictures.gray(image)) for image in (before, *after))
        cells.append([before, pictures.with_rois(before, marks, fill=0.15), *after])
    return pictures.figure(
        path,
        cells,
        rows=[name.upper() for name in config.data.sequences],
        columns=["input", "ROIs", "healthy tissue", "components", "mixed tumour"],
        title=f"Held-out slice of {shown.subject}, inpainted",
        footnote="synthetic, not for diagnosis",
    )


def _record_that_shows_most(source: SliceSource) -> int:
    """The record that shows all components best."""
    best, best_score = 0, -1.0
    for record in np.argsort(-source.index.tumor_area)[:32]:
        areas = showcase.component_areas(source, int(record))
        score = min(areas) + 0.01 * sum(areas)
        if score > best_score:
            best, best_score = int(record), score
    return best


def healthy_tissue_errors(
    inpainter: Inpainter, source: SliceSource, config: ConfigDict
) -> dict[str, float]:
    """Mean absolute error inside healthy ROIs of held-out slices, as a share of the range [-1, 1].

    The truth is the image that was there. Every ROI counts by its pixels.
    """
    settings = config.evaluation
    examples = loop.make_examples(source, config)
    (batch,) = loader.fixed_batches(examples, 1, settings.num_rois)
    images, labels = jax.jit(inpainter.method.resized)(batch)
    only_normal = TaskConfig(**{**config.tasks, "prob_tumor": 0.0, "prob_normal": 1.0})
    keys = jax.random.split(jax.random.key(config.seed), len(images))
    draw = jax.vmap(functools.partial(sample_task, config=only_normal))
    tasks = jax.device_get(jax.jit(draw)(keys, images, labels))
    images = jax.device_get(images)
    # Left out for all methods alike: padding, and a brain so small that the ROI swallows it.
    brains, rois = (images != BACKGROUND).any(-1), tasks.roi_masks.any(-1)
    kept = (batch["weight"] > 0) & (brains & ~rois).any((1, 2))
    images, brains, rois = images[kept], brains[kept], rois[kept]
    tasks = jax.tree.map(lambda array: array[kept], tasks)

    count, repeats = len(images), settings.num_samples
    with progress_bar("sampling held-out slices") as progress:
        painted = inpainter.sample(
            np.repeat(images, repeats, 0),
            np.repeat(tasks.roi_masks, repeats, 0),
            np.repeat(tasks.class_vector, repeats, 0),
            samples=np.tile(np.arange(repeats), count),
            slice_indices=np.repeat(np.arange(count), repeats),
            num_steps=settings.num_steps,
            guidance_weight=config.guidance_weight,
            progress=progress,
        ).reshape(count, repeats, *images.shape[1:])
    candidates = {"one sample": painted[:, 0], f"mean of {repeats}": painted.mean(1)}
    for name, fill in {
        "surrounding mean": baselines.surrounding_mean,
        "Telea (OpenCV)": baselines.telea,
    }.items():
        candidates[name] = np.stack(
            [
                np.stack([fill(channel, roi, brain) for channel in np.moveaxis(image, -1, 0)], -1)
                for image, roi, brain in zip(images, rois, brains, strict=True)
            ]
        )
    return {
        name: float(np.abs(result - images)[rois].mean() / 2) for name, result in candidates.items()
    }

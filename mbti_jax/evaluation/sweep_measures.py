"""What a row of a sweep is measured by, on the same slices, requests and noise in every row."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import wasserstein_distance

from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation import control_tasks, resynthesis, segmenter, statistics
from mbti_jax.evaluation.coherence import roughness
from mbti_jax.evaluation.control_tasks import ControlTask
from mbti_jax.evaluation.slices import LabeledSlices
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io.quantize import standard_deviation
from mbti_jax.rois import kinds

# Measure -> (its title, digits in tables).
MEASURES = {
    "dice": ("Dice of components", 2),
    "iou": ("IoU of boxes", 2),
    "mae": ("MAE of healthy tissue", 4),
    "texture": ("texture of healthy tissue", 2),
    "spread": ("SD over samples", 4),
    "saturation": ("saturated pixels", 4),
    "intensities": ("distance of intensities", 3),
}
# What has an upper end; none can be negative.
_WITHIN: dict[str, tuple[float, float]] = {
    "dice": statistics.SHARE,
    "iou": statistics.SHARE,
    "saturation": statistics.SHARE,
}
# The time of more evaluations is extrapolated: each costs the same.
MAX_TIMED_STEPS = 10


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a row of a table is drawn with.

    Attributes:
        group: the curve that it belongs to.
        value: where it lies on the curve.
        sampling: how its samples are drawn.
    """

    group: str
    value: float
    sampling: Sampling


def measure(workbench: Workbench, settings: Any, compared: Sequence[Setting]) -> dict[str, Any]:
    """Scores and seconds of every setting.

    Args:
        workbench: model and slices.
        settings: slices, segmenters, and number of samples.
        compared: the settings.

    Returns:
        `sizes`, `scored` (see `visible_components`), `batch_size`, `real_intensities` (of the real
        slices), and `rows` with `group`, `value`, `evaluations`, `network_passes`, each of `MEASURES`
        (see `mean_with_interval`), `seconds` and `extrapolated`.
    """
    segmenters = segmenter.real_segmenters(workbench, settings.segmenter)
    slices, hosts = settings.slices(workbench)
    placed = control_tasks.transplant(slices.labels, hosts, workbench.seed)
    tasks = [
        control_tasks.make_control_task(kind, *placed, settings.min_area)
        for kind in ("components", "tumor_box")
    ]
    inpainter = workbench.inpainter
    healthy = resynthesis.own_condition(
        hosts, "normal", False, inpainter.pipeline.tasks, workbench.seed
    )
    scored = visible_components(segmenters, slices, settings.min_area)
    # All in one call, since each call is padded to whole batches.
    parts = [*(task.slices for task in tasks), hosts]
    condition = Condition.concatenate([*(task.condition for task in tasks), healthy])
    together = (LabeledSlices.concatenate(parts), condition)
    numbers = np.concatenate([np.arange(len(part)) for part in parts])
    ends = np.flatnonzero(numbers == 0)[1:]
    bounds = inpainter.metadata["inference"]["x_0_bounds"]
    rows = []
    for setting in compared:
        samples = workbench.repaint(
            *together,
            setting.sampling,
            name=f"{setting.group}, {setting.value:g}",
            num_samples=settings.num_samples,
            noise_numbers=numbers,
        )
        scores = [spread_score(hosts, healthy, np.split(samples, ends, axis=1)[-1])]
        for painted in samples:
            *of_tasks, of_healthy = np.split(painted, ends)
            scores.append(healthy_scores(hosts, healthy, of_healthy))
            scores.append(saturation_score(*together, painted, bounds))
            scores.append(intensity_score(tasks[0], of_tasks[0], slices))
            for task, images in zip(tasks, of_tasks, strict=True):
                segmented = control_tasks.segment(segmenters, images)
                scores.append(control_scores(task, segmented, scored))
        means: dict[str, Any] = dict.fromkeys(MEASURES)
        for name in MEASURES:
            if found := [score[name] for score in scores if name in score]:
                values, patients = (np.concatenate(column) for column in zip(*found, strict=True))
                means[name] = statistics.mean_with_interval(
                    values, patients, workbench.seed, _WITHIN.get(name, (0.0, np.inf))
                )
        rows.append(
            {"group": setting.group, "value": setting.value}
            | inpainter.passes(setting.sampling)
            | means
            | seconds_per_image(inpainter, hosts, healthy, setting.sampling)
        )
    own = control_tasks.make_control_task("components", slices, slices.labels, settings.min_area)
    values, patients = intensity_score(own, own.slices.images, slices)["intensities"]
    return {
        "sizes": {**hosts.sizes, "requested_tumors": len(placed[0])},
        "scored": scored,
        "batch_size": inpainter.batch_size,
        "real_intensities": statistics.mean_with_interval(values, patients, workbench.seed),
        "rows": rows,
    }


def visible_components(
    segmenters: Mapping[str, segmenter.Segmenter], slices: LabeledSlices, min_area: int
) -> dict[str, list]:
    """What segmenters see in real slices well enough to be scored in repainted ones.

    Returns:
        `dice`: [sequence, component] pairs, and `iou`: sequences, with a mean of at least
        `control_tasks.MIN_REAL_SCORE` in the real slices; for `iou` also of the Dice of all tumor, since
        the box around everything overlaps with any large box.
    """
    components, boxes = (
        control_tasks.make_control_task(kind, slices, slices.labels, min_area)
        for kind in ("components", "tumor_box")
    )
    out: dict[str, list] = {"dice": [], "iou": []}
    for sequence, labels in control_tasks.segment(segmenters, components.slices.images).items():
        for name, values in components.score(labels).items():
            if np.isfinite(values).any() and np.nanmean(values) >= control_tasks.MIN_REAL_SCORE:
                out["dice"].append([sequence, name])
        means = (boxes.score(labels)["iou"].mean(), boxes.tumor_dice(labels).mean())
        if min(means) >= control_tasks.MIN_REAL_SCORE:
            out["iou"].append(sequence)
    return out


def control_scores(
    task: ControlTask, segmented: Mapping[str, np.ndarray], scored: Mapping[str, Sequence]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`dice` of a task of components, or `iou` of one of boxes.

    Args:
        task: N slices.
        segmented: uint8 [N, S, S] by sequence.
        scored: what counts, see `visible_components`.

    Returns:
        (values, patients), one for each slice, sequence and component that is scored.
    """
    name = "dice" if task.kind == "components" else "iou"
    pairs = scored["dice"] if name == "dice" else [(sequence, "iou") for sequence in scored["iou"]]
    values = np.array([task.score(segmented[sequence])[key] for sequence, key in pairs])
    return {name: (values.ravel(), np.tile(task.slices.patients, len(values)))}


def healthy_scores(
    slices: LabeledSlices, condition: Condition, painted: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """How far repainted healthy tissue is from the original.

    Args:
        slices: N.
        condition: their ROIs.
        painted: float32 [N, S, S, Q].

    Returns:
        (values, patients) for each slice and sequence: `mae`, the mean absolute error inside the ROI as
        a share of the range [-1, 1], and `texture`, the mean absolute Laplacian of the painted slice
        divided by that of the real one, where the Laplacian sees nothing but ROI; NaN without any there.
    """
    errors, textures = [], []
    for real, after, roi in zip(slices.images, painted, condition.roi[..., 0], strict=True):
        for before, now in zip(np.moveaxis(real, -1, 0), np.moveaxis(after, -1, 0), strict=True):
            errors.append(np.abs(now - before)[roi].mean(dtype=np.float64) / 2)
            rough, now_rough = (roughness(image[None], roi[None]) for image in (before, now))
            textures.append(now_rough.mean() / rough.mean() if rough.any() else np.nan)
    patients = np.repeat(slices.patients, slices.images.shape[-1])
    return {"mae": (np.array(errors), patients), "texture": (np.array(textures), patients)}


def spread_score(
    slices: LabeledSlices, condition: Condition, samples: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`spread`: the standard deviation over samples, mean over the ROI, as a share of [-1, 1].

    Args:
        slices: N.
        condition: their ROIs.
        samples: float32 [R, N, S, S, Q].

    Returns:
        (values, patients) for each slice and sequence; nothing for a single sample.
    """
    if len(samples) < 2:
        return {}
    inside = condition.roi[..., 0] > 0
    spread = standard_deviation(samples, np.broadcast_to(inside[..., None], samples.shape[1:]))
    means = [spread[n][roi].mean(0, dtype=np.float64) / 2 for n, roi in enumerate(inside)]
    return {"spread": (np.ravel(means), np.repeat(slices.patients, samples.shape[-1]))}


def saturation_score(
    slices: LabeledSlices, condition: Condition, painted: np.ndarray, bounds: Sequence[float]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`saturation`: share of the ROI's brain pixels that lie at the ends of the training data's range.

    Nothing lies beyond them, since the sampler clips x_0 there.

    Args:
        slices: N.
        condition: their ROIs.
        painted: float32 [N, S, S, Q].
        bounds: (low, high) of the training data.

    Returns:
        (values, patients) for each slice and sequence; NaN where the ROI has no brain.
    """
    low, high = np.asarray(bounds, np.float32)
    inside = (condition.roi[..., 0] > 0) & slices.brain
    saturated = ((painted <= low) | (painted >= high)) & inside[..., None]
    with np.errstate(invalid="ignore"):
        shares = saturated.sum((1, 2)) / inside.sum((1, 2))[:, None]
    return {"saturation": (shares.ravel(), np.repeat(slices.patients, painted.shape[-1]))}


def intensity_score(
    task: ControlTask, painted: np.ndarray, real: LabeledSlices
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`intensities`: how far intensities of painted tumors are from those of real ones.

    Args:
        task: N slices with free-form components.
        painted: float32 [N, S, S, Q].
        real: slices with tumor.

    Returns:
        (values, patients) for each slice, sequence and component that it has: the Wasserstein distance
        of its intensities there to those of all real slices, as a share of [-1, 1].
    """
    values, patients = [], []
    for channel in kinds.COMPONENT_CHANNELS:
        pool = real.images[real.labels == kinds.KINDS[channel].label]
        for n, patient in enumerate(task.slices.patients):
            inside = task.condition.roi_masks[n, ..., channel] > 0
            if inside.any() and len(pool):
                for own, others in zip(painted[n][inside].T, pool.T, strict=True):
                    values.append(wasserstein_distance(own, others) / 2)
                    patients.append(patient)
    return {"intensities": (np.array(values, np.float64), np.array(patients, str))}


def seconds_per_image(
    inpainter: Inpainter, slices: LabeledSlices, condition: Condition, sampling: Sampling
) -> dict[str, Any]:
    """How long one image takes in a full batch, once all is compiled.

    Returns:
        `seconds`, and `extrapolated`: whether they follow from the time of `MAX_TIMED_STEPS`.
    """
    rows = np.resize(np.arange(len(slices)), inpainter.batch_size)
    images = slices.images[rows, ..., : inpainter.num_channels]
    steps, timed = sampling.num_steps, min(sampling.num_steps, MAX_TIMED_STEPS)
    inpainter.sample(images, condition[rows], dataclasses.replace(sampling, num_steps=1))
    start = time.perf_counter()
    inpainter.sample(images, condition[rows], dataclasses.replace(sampling, num_steps=timed))
    seconds = (time.perf_counter() - start) / len(rows)
    return {"seconds": seconds * steps / timed, "extrapolated": steps > timed}

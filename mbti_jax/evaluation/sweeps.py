"""One setting of the sampler varied: its effect on control of tumors, on healthy tissue, on time.

The same slices, requests and noise at every value, so that nothing else differs. `guidance_sweep` and
`steps_sweep` say what is varied.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.ndimage import binary_erosion, laplace

from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation.control import MIN_REAL_SCORE
from mbti_jax.evaluation.control_tasks import (
    ControlTask,
    ControlTaskSettings,
    make_control_task,
    score,
    segment,
    transplant,
)
from mbti_jax.evaluation.report import table
from mbti_jax.evaluation.resynthesis import own_condition
from mbti_jax.evaluation.segmenter import Segmenter, real_segmenters
from mbti_jax.evaluation.slices import LabeledSlices
from mbti_jax.evaluation.statistics import cell, mean_with_interval
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io.files import replacing
from mbti_jax.rois.kinds import COMPONENTS

MEASURES = {
    "dice": "Dice of components",
    "iou": "IoU of boxes",
    "mae": "MAE of healthy tissue",
    "texture": "texture of healthy tissue",
}
# The time of more steps is extrapolated: each costs the same.
MAX_TIMED_STEPS = 100


def measure(
    workbench: Workbench, settings: ControlTaskSettings, samplings: Mapping[float, Sampling]
) -> dict[str, Any]:
    """Scores and seconds of every sampling.

    Args:
        workbench: model and slices.
        settings: slices and segmenters.
        samplings: by the value that is varied.

    Returns:
        `sizes`, `scored` (see `visible_components`), `batch_size`, and `rows` with `value`, each of
        `MEASURES` (see `mean_with_interval`), `seconds` and `extrapolated`.
    """
    segmenters = real_segmenters(workbench, settings.segmenter)
    slices, hosts = settings.slices(workbench)
    placed = transplant(slices.labels, hosts, workbench.seed)
    tasks = [
        make_control_task(kind, *placed, settings.min_area) for kind in ("components", "tumor_box")
    ]
    pipeline = workbench.inpainter.pipeline
    healthy = own_condition(hosts, "normal", False, pipeline.tasks, workbench.seed)
    scored = visible_components(segmenters, slices, settings.min_area)
    # All in one call, since each call is padded to whole batches.
    all_slices = LabeledSlices.concatenate([*(task.slices for task in tasks), hosts])
    condition = Condition.concatenate([*(task.condition for task in tasks), healthy])
    sizes = [*(len(task.slices) for task in tasks), len(hosts)]
    noise_numbers = np.concatenate([np.arange(size) for size in sizes])
    rows = []
    for value, sampling in samplings.items():
        (painted,) = workbench.repaint(
            all_slices, condition, sampling, name=f"at {value:g}", noise_numbers=noise_numbers
        )
        *painted, painted_healthy = np.split(painted, np.cumsum(sizes)[:-1])
        values = healthy_scores(hosts, healthy, painted_healthy)
        for task, images in zip(tasks, painted, strict=True):
            segmented = segment(segmenters, images)
            values |= control_scores(task, segmented, scored, settings.min_area)
        rows.append(
            {"value": value}
            | {name: mean_with_interval(*values[name], workbench.seed) for name in MEASURES}
            | seconds_per_image(workbench.inpainter, hosts, healthy, sampling)
        )
    return {
        "sizes": {
            "slices": len(hosts),
            "subjects": len(np.unique(hosts.subjects)),
            "requested_tumors": len(placed[0]),
        },
        "scored": scored,
        "batch_size": workbench.inpainter.batch_size,
        "rows": rows,
    }


def section(result: Mapping[str, Any], title: str, fixed: str, column: str, advice: str) -> str:
    """A sweep's section of the report, in Markdown.

    Args:
        result: see `measure`.
        title: of the section.
        fixed: what all rows have in common.
        column: name of the value that is varied.
        advice: which value to choose, and the picture of the curves.
    """
    sizes, scored = result["sizes"], result["scored"]
    pairs = ", ".join(f"{q} {name.replace('_', ' ')}" for q, name in scored["dice"]) or "none"
    rows = []
    for row in result["rows"]:
        means = [cell(row[name], 4 if name == "mae" else 2) for name in MEASURES]
        seconds = f"{'about ' if row['extrapolated'] else ''}{row['seconds']:.2g}"
        rows.append([f"{row['value']:g}", *means, seconds])
    columns = [column, "Dice", "IoU", "MAE", "texture", "seconds per image"]
    return f"""## {title}

At {fixed}, the same {sizes["slices"]} test slices without tumor (of {sizes["subjects"]} subjects)
and the same noise for every row. Dice: free-form components of tumors transplanted from other
slices ({sizes["requested_tumors"]} slices), mean over what segmenters see in real slices ({pairs}).
IoU: mixed tumor in a box. MAE: mean absolute error in circles of healthy tissue, as a share of the
intensity range. Texture: mean absolute Laplacian there, painted / real; below 1 is too smooth,
above 1 too rough. Seconds: for one image of one sequence (or of all, if the model paints them
jointly), in batches of {result["batch_size"]}, compilation not counted.

{table(columns, rows)}

{advice}

MAE alone misleads: a blurred average of all answers has the least. Few slices, so small differences
between neighboring rows mean nothing."""


def visible_components(
    segmenters: Mapping[str, Segmenter], slices: LabeledSlices, min_area: int
) -> dict[str, list]:
    """What segmenters see in real slices well enough to be scored in repainted ones.

    Returns:
        `dice`: [sequence, component] pairs, and `iou`: sequences, with a mean of at least
        `control.MIN_REAL_SCORE` in the real slices.
    """
    components = make_control_task("components", slices, slices.labels, min_area)
    boxes = make_control_task("tumor_box", slices, slices.labels, min_area)
    out: dict[str, list] = {"dice": [], "iou": []}
    for sequence, labels in segment(segmenters, components.slices.images).items():
        dice = score(components, labels, min_area)
        for name in COMPONENTS:
            values = dice[name][np.isfinite(dice[name])]
            if len(values) and values.mean() >= MIN_REAL_SCORE:
                out["dice"].append([sequence, name])
        if score(boxes, labels, min_area)["iou"].mean() >= MIN_REAL_SCORE:
            out["iou"].append(sequence)
    return out


def control_scores(
    task: ControlTask,
    segmented: Mapping[str, np.ndarray],
    scored: Mapping[str, Sequence],
    min_area: int,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`dice` of a task of components, or `iou` of one of boxes.

    Args:
        task: N slices.
        segmented: uint8 [N, S, S] by sequence.
        scored: what counts, see `visible_components`.
        min_area: see `score`.

    Returns:
        (values, subjects), one for each slice, sequence and component that is scored.
    """
    name = "dice" if task.kind == "components" else "iou"
    pairs = scored["dice"] if name == "dice" else [(sequence, "iou") for sequence in scored["iou"]]
    values = [score(task, segmented[sequence], min_area)[key] for sequence, key in pairs]
    subjects = np.tile(task.slices.subjects, len(values))
    return {name: (np.concatenate(values) if values else np.zeros(0), subjects)}


def healthy_scores(
    slices: LabeledSlices, condition: Condition, painted: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """How far repainted healthy tissue is from the original.

    Args:
        slices: N.
        condition: their ROIs.
        painted: float32 [N, S, S, Q].

    Returns:
        (values, subjects) for each slice and sequence: `mae`, the mean absolute error inside the ROI as
        a share of the range [-1, 1], and `texture`, the mean absolute Laplacian of the painted slice
        divided by that of the real one, where the Laplacian sees nothing but ROI.
    """
    errors, textures, error_subjects, texture_subjects = [], [], [], []
    for real, after, roi, subject in zip(
        slices.images, painted, condition.roi[..., 0], slices.subjects, strict=True
    ):
        inner = binary_erosion(roi)
        for channel in range(real.shape[-1]):
            before, now = real[..., channel], after[..., channel]
            errors.append(np.abs(now - before)[roi].mean(dtype=np.float64) / 2)
            error_subjects.append(subject)
            rough = np.abs(laplace(before))[inner]
            if rough.any():
                textures.append(np.abs(laplace(now))[inner].mean() / rough.mean())
                texture_subjects.append(subject)
    return {
        "mae": (np.array(errors), np.array(error_subjects)),
        "texture": (np.array(textures), np.array(texture_subjects)),
    }


def seconds_per_image(
    inpainter: Inpainter, slices: LabeledSlices, condition: Condition, sampling: Sampling
) -> dict[str, Any]:
    """How long one image takes in a full batch, once all is compiled.

    Returns:
        `seconds`, and `extrapolated`: whether they follow from the time of `MAX_TIMED_STEPS`.
    """
    rows = np.resize(np.arange(len(slices)), inpainter.batch_size)
    images = slices.images[rows, ..., : inpainter.num_channels]
    inpainter.sample(images, condition[rows], dataclasses.replace(sampling, num_steps=1))
    timed = min(sampling.num_steps, MAX_TIMED_STEPS)
    start = time.perf_counter()
    inpainter.sample(images, condition[rows], dataclasses.replace(sampling, num_steps=timed))
    seconds = (time.perf_counter() - start) / len(rows)
    return {
        "seconds": seconds * sampling.num_steps / timed,
        "extrapolated": sampling.num_steps > timed,
    }


def draw(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    label: str,
    scale: Callable[[Sequence[Axes]], None],
) -> None:
    """A curve with its intervals for each measure, and the time.

    Args:
        path: file to write.
        rows: see `measure`.
        label: of the value that is varied.
        scale: sets the scales of the axes, of which the last one shows the time.
    """
    fig = Figure(figsize=(13, 3.2), facecolor="white", layout="constrained")
    axes = fig.subplots(1, len(MEASURES) + 1)
    values = [row["value"] for row in rows]
    for axis, (name, title) in zip(axes, MEASURES.items(), strict=False):
        axis.set_title(title, fontsize=10)
        known = [row for row in rows if row[name]]
        means = [row[name]["mean"] for row in known]
        axis.plot([row["value"] for row in known], means, "o-", color="tab:blue")
        for row in known:
            low, high = row[name]["low"], row[name]["high"]
            if low is not None:
                axis.plot([row["value"]] * 2, [low, high], color="tab:blue", alpha=0.4)
    axes[-1].set_title("seconds per image", fontsize=10)
    axes[-1].plot(values, [row["seconds"] for row in rows], "o-", color="tab:gray")
    scale(axes)
    for axis in axes:
        axis.set_xlabel(label)
        axis.set_xticks(values, [f"{value:g}" for value in values], fontsize=7, rotation=60)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[list(MEASURES).index("texture")].axhline(1, color="black", linewidth=0.8, linestyle=":")
    FigureCanvasAgg(fig)
    with replacing(path) as partial:
        fig.savefig(partial, format="png", dpi=110)

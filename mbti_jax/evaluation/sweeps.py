"""One setting of the sampler varied: its effect on control of tumors, on healthy tissue, on time.

The same slices, requests and noise at every value, so that nothing else differs. `GUIDANCE` and `STEPS`
are the parts of the evaluation.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import binary_erosion, laplace

from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation import control_tasks, report, resynthesis, segmenter, statistics
from mbti_jax.evaluation.control_tasks import ControlTask, ControlTaskSettings
from mbti_jax.evaluation.slices import LabeledSlices
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.fields import Count, Interval
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io.files import replacing

MEASURES = {
    "dice": "Dice of components",
    "iou": "IoU of boxes",
    "mae": "MAE of healthy tissue",
    "texture": "texture of healthy tissue",
}
# The time of more steps is extrapolated: each costs the same.
MAX_TIMED_STEPS = 100


# How far below the Dice, and from the texture, at the most steps a choice of steps may be.
DICE_MARGIN, TEXTURE_MARGIN = 0.02, 0.05


@dataclasses.dataclass(frozen=True)
class GuidanceSettings(ControlTaskSettings):
    """Settings of the part `GUIDANCE`.

    Attributes:
        weights: to compare.
        num_steps: of the sampler.
    """

    weights: Annotated[tuple[float, ...], Interval(1)]
    num_steps: Count

    def samplings(self, seed: int) -> dict[float, Sampling]:
        """By weight."""
        return {w: Sampling(self.num_steps, guidance=float(w), seed=seed) for w in self.weights}


@dataclasses.dataclass(frozen=True)
class StepsSettings(ControlTaskSettings):
    """Settings of the part `STEPS`.

    Attributes:
        steps: numbers of steps to compare.
        guidance_weight: w.
    """

    steps: Annotated[tuple[Count, ...], Interval(1)]
    guidance_weight: float

    def samplings(self, seed: int) -> dict[float, Sampling]:
        """By number of steps."""
        return {n: Sampling(n, guidance=self.guidance_weight, seed=seed) for n in self.steps}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A part that compares values of one setting.

    Attributes:
        name: of the part; the texts `NAME.md` are its recommendation.
        title: of its section in the report.
        column: name of the varied setting in tables.
        label: its name in pictures.
        fixed: name of the setting that all values have in common.
        fixed_text: that setting in words.
        scale: of the varied setting in pictures, arguments of `Axes.set_xscale`; where it is
            logarithmic, seconds are drawn so as well.
        choose: makes the recommendation from the `rows` of `measure`.
    """

    name: str
    title: str
    column: str
    label: str
    fixed: str
    fixed_text: str
    scale: Mapping[str, Any]
    choose: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]

    def run(self, workbench: Workbench, settings: Any, folder: Path) -> dict[str, Any]:
        """Measures every value and draws the curves."""
        result = measure(workbench, settings, settings.samplings(workbench.seed))
        self.draw(folder / "curves.png", result["rows"])
        fixed = {self.fixed: getattr(settings, self.fixed)}
        return {"fixed": fixed, **result, "choice": self.choose(result["rows"])}

    def draw(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """A curve with its intervals for each measure, and the time."""
        fig = Figure(figsize=(13, 3.2), facecolor="white", layout="constrained")
        axes = fig.subplots(1, len(MEASURES) + 1)
        values = [row["value"] for row in rows]
        for axis, (name, title) in zip(axes, MEASURES.items(), strict=False):
            axis.set_title(title, fontsize=10)
            known = [(row["value"], row[name]) for row in rows if row[name]]
            x, y = [value for value, _ in known], [found["mean"] for _, found in known]
            axis.plot(x, y, "o-", color="tab:blue")
            for value, found in known:
                if found["low"] is not None:
                    interval = [found["low"], found["high"]]
                    axis.plot([value] * 2, interval, color="tab:blue", alpha=0.4)
        axes[-1].set_title("seconds per image", fontsize=10)
        axes[-1].plot(values, [row["seconds"] for row in rows], "o-", color="tab:gray")
        for axis in axes:
            axis.set_xscale(**self.scale)
        if self.scale["value"] == "log":
            axes[-1].set_yscale("log")
        else:
            axes[-1].set_ylim(bottom=0)
        for axis in axes:
            axis.set_xlabel(self.label)
            axis.set_xticks(values, [f"{value:g}" for value in values], fontsize=7, rotation=60)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[list(MEASURES).index("texture")].axhline(
            1, color="black", linewidth=0.8, linestyle=":"
        )
        with replacing(path) as partial:
            fig.savefig(partial, format="png", dpi=110)

    def tables(self, result: Mapping[str, Any]) -> str:
        """The part's section of the report, in Markdown."""
        dice = result["scored"]["dice"]
        pairs = ", ".join(f"{q} {name.replace('_', ' ')}" for q, name in dice) or "none"
        rows = []
        for row in result["rows"]:
            means = [statistics.cell(row[name], 4 if name == "mae" else 2) for name in MEASURES]
            seconds = f"{'about ' if row['extrapolated'] else ''}{row['seconds']:.2g}"
            rows.append([f"{row['value']:g}", *means, seconds])
        choice = result["choice"]
        shown = {name: "-" if value is None else f"{value:g}" for name, value in choice.items()}
        columns = [self.column, "Dice", "IoU", "MAE", "texture", "seconds per image"]
        return report.section(
            "sweep",
            title=self.title,
            fixed=self.fixed_text.format(result["fixed"][self.fixed]),
            pairs=pairs,
            result=result,
            table=report.table(columns, rows),
            advice=report.section(self.name, dice=DICE_MARGIN, texture=TEXTURE_MARGIN, **shown),
        )


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
    segmenters = segmenter.real_segmenters(workbench, settings.segmenter)
    slices, hosts = settings.slices(workbench)
    placed = control_tasks.transplant(slices.labels, hosts, workbench.seed)
    tasks = [
        control_tasks.make_control_task(kind, *placed, settings.min_area)
        for kind in ("components", "tumor_box")
    ]
    rois = workbench.inpainter.pipeline.tasks
    healthy = resynthesis.own_condition(hosts, "normal", False, rois, workbench.seed)
    scored = visible_components(segmenters, slices, settings.min_area)
    # All in one call, since each call is padded to whole batches.
    parts = [*(task.slices for task in tasks), hosts]
    condition = Condition.concatenate([*(task.condition for task in tasks), healthy])
    together = (LabeledSlices.concatenate(parts), condition)
    numbers = np.concatenate([np.arange(len(part)) for part in parts])
    rows = []
    for value, sampling in samplings.items():
        name = f"at {value:g}"
        (painted,) = workbench.repaint(*together, sampling, name=name, noise_numbers=numbers)
        *painted, painted_healthy = np.split(painted, np.flatnonzero(numbers == 0)[1:])
        values = healthy_scores(hosts, healthy, painted_healthy)
        for task, images in zip(tasks, painted, strict=True):
            values |= control_scores(task, control_tasks.segment(segmenters, images), scored)
        interval = functools.partial(statistics.mean_with_interval, seed=workbench.seed)
        rows.append(
            {"value": value}
            | {name: interval(*values[name]) for name in MEASURES}
            | seconds_per_image(workbench.inpainter, hosts, healthy, sampling)
        )
    return {
        "sizes": {**hosts.sizes, "requested_tumors": len(placed[0])},
        "scored": scored,
        "batch_size": workbench.inpainter.batch_size,
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
        inner = np.asarray(binary_erosion(roi), bool)
        for before, now in zip(np.moveaxis(real, -1, 0), np.moveaxis(after, -1, 0), strict=True):
            errors.append(np.abs(now - before)[roi].mean(dtype=np.float64) / 2)
            rough, now_rough = (np.abs(laplace(image))[inner] for image in (before, now))
            textures.append(now_rough.mean() / rough.mean() if rough.any() else np.nan)
    patients = np.repeat(slices.patients, slices.images.shape[-1])
    return {"mae": (np.array(errors), patients), "texture": (np.array(textures), patients)}


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


def choose_weight(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The weights with the best control of tumors, and with the least error of healthy tissue."""

    def control(row):
        return np.mean([row[name]["mean"] for name in ("dice", "iou") if row[name]])

    scored = [row for row in rows if row["dice"] or row["iou"]]
    return {
        "tumor": max(scored, key=control)["value"] if scored else None,
        "healthy": min(rows, key=lambda row: row["mae"]["mean"])["value"],
    }


def choose_steps(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fewest steps that are as good as the most; see `STEPS`.

    The most steps and not the best Dice, which in a few slices can be another row's by chance.
    """
    most = max(rows, key=lambda row: row["value"])
    good = [
        row["value"]
        for row in rows
        if abs(row["texture"]["mean"] - most["texture"]["mean"]) <= TEXTURE_MARGIN
        and (not most["dice"] or row["dice"]["mean"] >= most["dice"]["mean"] - DICE_MARGIN)
    ]
    return {"steps": min(good)}


GUIDANCE = Sweep(
    name="guidance",
    title="Guidance weight",
    column="w",
    label="guidance weight w",
    fixed="num_steps",
    fixed_text="{} steps",
    scale={"value": "symlog", "linthresh": 1},
    choose=choose_weight,
)
STEPS = Sweep(
    name="steps",
    title="Number of steps",
    column="steps",
    label="steps",
    fixed="guidance_weight",
    fixed_text="w = {:g}",
    scale={"value": "log"},
    choose=choose_steps,
)

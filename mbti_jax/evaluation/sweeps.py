"""What guidance weight and number of steps do: to the control of tumours, to healthy tissue, to time.

The same slices, requests and noise at every setting, so that settings differ in nothing else.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from scipy.ndimage import binary_erosion, laplace

from mbti_jax.evaluation import own_anatomy, segmenter
from mbti_jax.evaluation.control import LEAST_REAL_SCORE
from mbti_jax.evaluation.requests import Request, borrow, make_request, measure, segment
from mbti_jax.evaluation.segmenter import Segmenter
from mbti_jax.evaluation.setting import LabelledSlices, Setting, Tasks
from mbti_jax.evaluation.statistics import cell, mean_with_interval
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io.files import replacing
from mbti_jax.rois.kinds import COMPONENTS

MEASURES = {
    "dice": "Dice of components",
    "iou": "IoU of boxes",
    "mae": "MAE of healthy tissue",
    "texture": "texture of healthy tissue",
}
# More steps are not timed but computed: each costs the same.
MOST_TIMED_STEPS = 100
# How far below the Dice, and from the texture, at the most steps a choice of steps may be.
_DICE_MARGIN, _TEXTURE_MARGIN = 0.02, 0.05


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A part of `evaluate`: `name` is "guidance" or "steps"."""

    name: str

    def run(self, setting: Setting, settings: ConfigDict, folder: Path) -> dict[str, Any]:
        """Measures every setting.

        Args:
            settings: of guidance `weights` to try and `num_steps`, of steps `steps` to try and
                `guidance_weight`; `num_slices`, `least_area`, `least_brain` and `segmenter` as in
                `control`.
            folder: gets the plot.
        """
        segmenters = segmenter.of_real_slices(setting, settings.segmenter)
        slices = setting.slices("test", settings.num_slices, with_tumor=True)
        hosts = setting.slices(
            "test", settings.num_slices, with_tumor=False, least_area=settings.least_brain
        )
        placed = borrow(slices.labels, hosts, setting.seed)
        requests = [
            make_request(kind, *placed, settings.least_area) for kind in ("components", "tumor_box")
        ]
        healthy = own_anatomy.own_tasks(
            hosts, "normal", False, setting.inpainter.method.tasks, setting.seed
        )
        shown = shown_scores(segmenters, slices, settings.least_area)
        # All in one call, since each call is filled up to whole batches.
        parts = [(r.slices, r.tasks) for r in requests] + [(hosts, healthy)]
        all_slices = LabelledSlices.joined(*(slices for slices, _ in parts))
        all_tasks = Tasks.joined(*(tasks for _, tasks in parts))
        sizes = [len(slices) for slices, _ in parts]
        noise_numbers = np.concatenate([np.arange(size) for size in sizes])
        rows = []
        for value in settings.weights if self.name == "guidance" else settings.steps:
            sampling = (
                {"num_steps": settings.num_steps, "guidance_weight": float(value)}
                if self.name == "guidance"
                else {"num_steps": value, "guidance_weight": settings.guidance_weight}
            )
            (painted,) = setting.repaint(
                all_slices,
                all_tasks,
                name=f"{self.name} {value:g}",
                noise_numbers=noise_numbers,
                **sampling,
            )
            *painted, painted_healthy = np.split(painted, np.cumsum(sizes)[:-1])
            values = healthy_scores(hosts, healthy, painted_healthy)
            for request, images in zip(requests, painted, strict=True):
                found = segment(segmenters, images)
                values |= control_scores(request, found, shown, settings.least_area)
            rows.append(
                {"value": value}
                | {m: mean_with_interval(*values[m], setting.seed) for m in MEASURES}
                | seconds_per_image(setting.inpainter, hosts, healthy, **sampling)
            )
        fixed = "num_steps" if self.name == "guidance" else "guidance_weight"
        _draw(folder / "curves.png", rows, self.name)
        return {
            "name": self.name,
            "fixed": {fixed: settings[fixed]},
            "sizes": {
                "slices": len(hosts),
                "subjects": len(np.unique(hosts.subjects)),
                "requested_tumors": len(placed[0]),
            },
            "scored": shown,
            "batch_size": setting.inpainter.batch_size,
            "rows": rows,
            "choice": choose_weight(rows) if self.name == "guidance" else choose_steps(rows),
        }

    def tables(self, result: Mapping[str, Any]) -> str:
        """The part's section of the report, in Markdown."""
        sizes, scored = result["sizes"], result["scored"]
        if self.name == "guidance":
            title, first = "Guidance weight", "w"
            fixed = f"{result['fixed']['num_steps']} steps"
        else:
            title, first = "Number of steps", "steps"
            fixed = f"w = {result['fixed']['guidance_weight']:g}"
        pairs = ", ".join(f"{q} {name.replace('_', ' ')}" for q, name in scored["dice"]) or "none"
        lines = [
            f"## {title}",
            "",
            f"At {fixed}, the same {sizes['slices']} test slices without tumour (of "
            f"{sizes['subjects']} subjects) and the same noise for every row. Dice: free-form "
            f"components of tumours borrowed from other slices ({sizes['requested_tumors']} slices), "
            f"mean over what segmenters see in real slices ({pairs}). IoU: mixed tumour in a box. MAE: "
            "mean absolute error in circles of healthy tissue, as a share of the intensity range. "
            "Texture: mean absolute Laplacian there, painted / real; below 1 is too smooth, above 1 too "
            "rough. Seconds: for one image of one sequence (or of all, if the model paints them "
            f"together), in batches of {result['batch_size']}, compilation not counted.",
            "",
            f"| {first} | Dice | IoU | MAE | texture | seconds an image |",
            "|---|---|---|---|---|---|",
        ]
        for row in result["rows"]:
            cells = [f"{row['value']:g}"]
            cells += [cell(row[m], 4 if m == "mae" else 2) for m in MEASURES]
            cells.append(f"{'about ' if row['computed'] else ''}{row['seconds']:.2g}")
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", f"![Curves]({self.name}/curves.png)", "", self._advice(result["choice"])]
        lines += [
            "",
            "MAE alone misleads: a blurred average of all answers has the least. Few slices, so small "
            "differences between neighbouring rows mean nothing.",
        ]
        return "\n".join(lines)

    def _advice(self, choice: Mapping[str, Any]) -> str:
        if self.name == "steps":
            return (
                f"**Choose {choice['steps']} steps**: the fewest with a Dice at most "
                f"{_DICE_MARGIN:g} below, and a texture within {_TEXTURE_MARGIN:g} of, that at the most "
                "steps."
            )
        tumor = "-" if choice["tumor"] is None else f"{choice['tumor']:g}"
        return (
            f"**For tumours w = {tumor}** (highest mean of Dice and IoU), **for healthy tissue w = "
            f"{choice['healthy']:g}** (least MAE)."
        )


guidance = Sweep("guidance")
steps = Sweep("steps")


def shown_scores(
    segmenters: Mapping[str, Segmenter], slices: LabelledSlices, least_area: int
) -> dict[str, list]:
    """What segmenters see in real slices well enough to be scored in repainted ones.

    Returns:
        `dice`: [sequence, component] pairs, and `iou`: sequences, with a mean of at least
        `control.LEAST_REAL_SCORE` in the real slices.
    """
    components = make_request("components", slices, slices.labels, least_area)
    boxes = make_request("tumor_box", slices, slices.labels, least_area)
    out: dict[str, list] = {"dice": [], "iou": []}
    for sequence, labels in segment(segmenters, components.slices.images).items():
        dice = measure(components, labels, least_area)
        for name in COMPONENTS:
            values = dice[name][np.isfinite(dice[name])]
            if len(values) and values.mean() >= LEAST_REAL_SCORE:
                out["dice"].append([sequence, name])
        if measure(boxes, labels, least_area)["iou"].mean() >= LEAST_REAL_SCORE:
            out["iou"].append(sequence)
    return out


def control_scores(
    request: Request,
    found: Mapping[str, np.ndarray],
    shown: Mapping[str, Sequence],
    least_area: int,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`dice` of a request for components, or `iou` of one for boxes.

    Args:
        request: N slices.
        found: uint8 [N, S, S] by sequence.
        shown: as of `shown_scores`; what else there is does not count.
        least_area: see `measure`.

    Returns:
        (values, subjects), one for each slice, sequence and component that is scored.
    """
    name = "dice" if request.kind == "components" else "iou"
    wanted = shown["dice"] if name == "dice" else [(sequence, "iou") for sequence in shown["iou"]]
    values = [measure(request, found[q], least_area)[score] for q, score in wanted]
    subjects = np.tile(request.slices.subjects, len(values))
    return {name: (np.concatenate(values) if values else np.zeros(0), subjects)}


def healthy_scores(
    slices: LabelledSlices, tasks: Tasks, painted: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """How far repainted healthy tissue is from what was there.

    Args:
        slices: N.
        tasks: their ROIs.
        painted: float32 [N, S, S, Q].

    Returns:
        (values, subjects) for each slice and sequence: `mae`, the mean absolute error inside the ROI as
        a share of the range [-1, 1], and `texture`, the mean absolute Laplacian of the painted slice
        divided by that of the real one, where the Laplacian sees nothing but ROI.
    """
    errors, textures, error_subjects, texture_subjects = [], [], [], []
    for real, after, roi, subject in zip(
        slices.images, painted, tasks.roi, slices.subjects, strict=True
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
    inpainter: Inpainter,
    slices: LabelledSlices,
    tasks: Tasks,
    num_steps: int,
    guidance_weight: float,
) -> dict[str, Any]:
    """How long one image takes in a full batch, once all is compiled.

    Returns:
        `seconds`, and `computed`: whether they follow from those of `MOST_TIMED_STEPS`, in proportion.
    """
    rows = np.resize(np.arange(len(slices)), inpainter.batch_size)
    images = slices.images[rows]
    if inpainter.num_channels == 1:
        images = images[..., :1]
    arguments = (images, tasks.roi_masks[rows].astype(np.float32), tasks.class_vectors[rows])
    inpainter.sample(*arguments, num_steps=1, guidance_weight=guidance_weight)
    timed = min(num_steps, MOST_TIMED_STEPS)
    start = time.perf_counter()
    inpainter.sample(*arguments, num_steps=timed, guidance_weight=guidance_weight)
    seconds = (time.perf_counter() - start) / len(rows)
    return {"seconds": seconds * num_steps / timed, "computed": num_steps > timed}


def choose_steps(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fewest steps that are as good as the most; see `Sweep.tables`.

    The most steps and not the best Dice, which in a few slices can be another row's by chance.
    """
    most = max(rows, key=lambda row: row["value"])
    good = [
        row["value"]
        for row in rows
        if abs(row["texture"]["mean"] - most["texture"]["mean"]) <= _TEXTURE_MARGIN
        and (not most["dice"] or row["dice"]["mean"] >= most["dice"]["mean"] - _DICE_MARGIN)
    ]
    return {"steps": min(good)}


def choose_weight(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The weights with the best control of tumours, and with the least error of healthy tissue."""

    def control(row):
        return np.mean([row[m]["mean"] for m in ("dice", "iou") if row[m]])

    scored = [row for row in rows if row["dice"] or row["iou"]]
    return {
        "tumor": max(scored, key=control)["value"] if scored else None,
        "healthy": min(rows, key=lambda row: row["mae"]["mean"])["value"],
    }


def _draw(path: Path, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """A curve with its intervals for each measure, and the time."""
    fig = Figure(figsize=(13, 3.2), facecolor="white", layout="constrained")
    axes = fig.subplots(1, len(MEASURES) + 1)
    values = [row["value"] for row in rows]
    for axis, (measure_name, title) in zip(axes, MEASURES.items(), strict=False):
        axis.set_title(title, fontsize=10)
        known = [row for row in rows if row[measure_name]]
        means = [row[measure_name]["mean"] for row in known]
        axis.plot([row["value"] for row in known], means, "o-", color="tab:blue")
        for row in known:
            low, high = row[measure_name]["low"], row[measure_name]["high"]
            if low is not None:
                axis.plot([row["value"]] * 2, [low, high], color="tab:blue", alpha=0.4)
    axes[-1].set_title("seconds an image", fontsize=10)
    axes[-1].plot(values, [row["seconds"] for row in rows], "o-", color="tab:gray")
    for axis in axes:
        if name == "steps":
            axis.set_xscale("log")
            axis.set_xlabel("steps")
        else:
            axis.set_xscale("symlog", linthresh=1)
            axis.set_xlabel("guidance weight w")
        axis.set_xticks(values, [f"{value:g}" for value in values], fontsize=7, rotation=60)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[3].axhline(1, color="black", linewidth=0.8, linestyle=":")
    if name == "steps":
        axes[-1].set_yscale("log")
    else:
        axes[-1].set_ylim(bottom=0)
    FigureCanvasAgg(fig)
    with replacing(path) as beside:
        fig.savefig(beside, format="png", dpi=110)

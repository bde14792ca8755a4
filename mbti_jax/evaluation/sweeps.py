"""Settings of the sampler compared: control of tumors, healthy tissue, diversity, saturation, time.

The same slices, requests and noise at every setting, so that nothing else differs. `GUIDANCE` compares
kinds of guidance by weight, `STEPS` samplers by what they cost; both are parts of the evaluation.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import wasserstein_distance

from mbti_jax.diffusion import samplers
from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.guidance import KINDS, Guidance, make_guidance
from mbti_jax.diffusion.processes import Process
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation import control_tasks, report, resynthesis, segmenter, statistics
from mbti_jax.evaluation.coherence import roughness
from mbti_jax.evaluation.control_tasks import ControlTask, ControlTaskSettings
from mbti_jax.evaluation.slices import LabeledSlices
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.fields import Count, FieldError, Interval, increasing_numbers, one_of
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io.files import replacing
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
# The time of more evaluations is extrapolated: each costs the same.
MAX_TIMED_STEPS = 10
# A sampler and a spacing that suits it.
_REFERENCE = ("ddim", "trailing")


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


@dataclasses.dataclass(frozen=True)
class GuidanceSettings(ControlTaskSettings):
    """Settings of the part `GUIDANCE`.

    Attributes:
        kinds: of guidance, to compare: those of `guidance.KINDS`, and "interval", plain guidance in the
            interval of noise shares.
        interval: noise shares (low, high).
        weights: to compare.
        num_steps: of the sampler.
    """

    kinds: Annotated[tuple[str, ...], Interval(1)]
    interval: tuple[float, ...]
    weights: Annotated[tuple[float, ...], Interval(1)]
    num_steps: Count

    num_samples = 1

    def __post_init__(self):
        super().__post_init__()
        for kind in self.kinds:
            one_of("kinds", kind, [*KINDS, "interval"])
        increasing_numbers("interval", self.interval)
        self.settings(0)

    def guidance(self, kind: str, weight: float) -> Guidance:
        """Guidance of a kind and weight."""
        if kind == "interval":
            return make_guidance("plain", weight, self.interval)
        return make_guidance(kind, weight)

    def settings(self, seed: int) -> list[Setting]:
        """By kind, then weight."""
        return [
            Setting(kind, w, Sampling(self.num_steps, guidance=self.guidance(kind, w), seed=seed))
            for kind, w in itertools.product(self.kinds, self.weights)
        ]


@dataclasses.dataclass(frozen=True)
class StepsSettings(ControlTaskSettings):
    """Settings of the part `STEPS`.

    Attributes:
        samplers: (sampler, spacing) of those to compare.
        evaluations: of the network, that a sample may take.
        reference: how many DDIM takes for the reference.
        num_samples: per slice.
        guidance_weight: w.
    """

    samplers: Annotated[tuple[tuple[str, ...], ...], Interval(1)]
    evaluations: Annotated[tuple[Count, ...], Interval(1)]
    reference: Count
    num_samples: Count
    guidance_weight: float

    def __post_init__(self):
        super().__post_init__()
        if any(len(pair) != 2 for pair in self.samplers):
            raise FieldError("samplers", f"must be pairs (sampler, spacing), not {self.samplers}")
        try:
            self.settings(0)
        except FieldError as error:
            raise FieldError("samplers", f"name one that cannot be: {error}") from error

    def check_model(self, process: Process) -> None:
        super().check_model(process)
        for name, _ in self.samplers:
            process.check_sampler(name)

    def settings(self, seed: int) -> list[Setting]:
        """By sampler, then evaluations; the reference at the end."""
        common = {"guidance": self.guidance_weight, "seed": seed}
        out = []
        for (name, spacing), count in itertools.product(self.samplers, self.evaluations):
            # Where a step takes two evaluations, the last one still takes one.
            per_step = samplers.method(name).EVALUATIONS
            steps = (count + per_step - 1) // per_step
            if per_step * steps - (per_step - 1) == count:
                sampling = Sampling(steps, sampler=name, spacing=spacing, **common)
                out.append(Setting(f"{name}, {spacing}", count, sampling))
        name, spacing = _REFERENCE
        sampling = Sampling(self.reference, sampler=name, spacing=spacing, **common)
        return [*out, Setting(f"{name}, {spacing}", self.reference, sampling)]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A part that compares settings.

    Attributes:
        name: of the part; the texts `NAME.md` are its recommendation.
        title: of its section in the report.
        columns: names of group and value in tables.
        measures: those of `MEASURES` that it shows.
        fixed: names of the settings that all rows have in common.
        scale: of the value in pictures, arguments of `Axes.set_xscale`; where it is logarithmic, seconds
            are drawn so as well.
        choose: makes the recommendation from the `rows` of `measure`.
    """

    name: str
    title: str
    columns: tuple[str, str]
    measures: tuple[str, ...]
    fixed: tuple[str, ...]
    scale: Mapping[str, Any]
    choose: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]

    def run(self, workbench: Workbench, settings: Any, folder: Path) -> dict[str, Any]:
        """Measures every setting and draws the curves."""
        result = measure(workbench, settings, settings.settings(workbench.seed))
        self.draw(folder / "curves.png", result["rows"])
        fixed = {name: getattr(settings, name) for name in self.fixed}
        return {"fixed": fixed, **result, "choice": self.choose(result["rows"])}

    def draw(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """A curve with its intervals for each group and measure, and the time."""
        fig = Figure(figsize=(2.6 * (len(self.measures) + 1), 3.5), layout="constrained")
        fig.set_facecolor("white")
        axes = fig.subplots(1, len(self.measures) + 1)
        values = sorted({row["value"] for row in rows})
        for number, group in enumerate(dict.fromkeys(row["group"] for row in rows)):
            of_group, color = [row for row in rows if row["group"] == group], f"C{number}"
            for axis, name in zip(axes, self.measures, strict=False):
                known = [(row["value"], row[name]) for row in of_group if row[name]]
                x, y = [value for value, _ in known], [found["mean"] for _, found in known]
                axis.plot(x, y, "o-", color=color, markersize=3)
                for value, found in known:
                    if found["low"] is not None:
                        interval = [found["low"], found["high"]]
                        axis.plot([value] * 2, interval, color=color, alpha=0.3)
            seconds = [(row["value"], row["seconds"]) for row in of_group]
            axes[-1].plot(*zip(*seconds, strict=True), "o-", color=color, markersize=3, label=group)
        titles = [MEASURES[name][0] for name in self.measures]
        for axis, title in zip(axes, [*titles, "seconds per image"], strict=True):
            axis.set_title(title, fontsize=9)
            axis.set_xscale(**self.scale)
            axis.set_xlabel(self.columns[1])
            axis.set_xticks(values, [f"{value:g}" for value in values], fontsize=7, rotation=60)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        if self.scale["value"] == "log":
            axes[-1].set_yscale("log")
        else:
            axes[-1].set_ylim(bottom=0)
        axes[self.measures.index("texture")].axhline(1, color="black", linewidth=0.8, linestyle=":")
        fig.legend(loc="outside lower center", ncols=4, fontsize=8)
        with replacing(path) as partial:
            fig.savefig(partial, format="png", dpi=110)

    def tables(self, result: Mapping[str, Any]) -> str:
        """The part's section of the report, in Markdown."""
        dice = result["scored"]["dice"]
        pairs = ", ".join(f"{q} {name.replace('_', ' ')}" for q, name in dice) or "none"
        rows = []
        for row in result["rows"]:
            means = [statistics.cell(row[name], MEASURES[name][1]) for name in self.measures]
            seconds = f"{'about ' if row['extrapolated'] else ''}{row['seconds']:.2g}"
            rows.append([row["group"], f"{row['value']:g}", row["network_passes"], *means, seconds])
        columns = [*self.columns, "passes", *self.measures, "seconds"]
        fixed = ", ".join(f"{name} {value}" for name, value in result["fixed"].items())
        return report.section(
            "sweep",
            title=self.title,
            fixed=fixed.replace("_", " "),
            pairs=pairs,
            result=result,
            table=report.table(columns, rows, num_text=2),
            advice=report.section(
                self.name, real=statistics.cell(result["real_intensities"], 3), **result["choice"]
            ),
        )


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
                means[name] = statistics.mean_with_interval(values, patients, workbench.seed)
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


def choose_weight(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The guidance with the best control of tumors, and with the least error of healthy tissue."""

    def control(row):
        return np.mean([row[name]["mean"] for name in ("dice", "iou") if row[name]])

    def shown(row):
        return f"{row['group']} guidance with w = {row['value']:g}"

    scored = [row for row in rows if row["dice"] or row["iou"]]
    return {
        "tumor": shown(max(scored, key=control)) if scored else "none can be told",
        "healthy": shown(min(rows, key=lambda row: row["mae"]["mean"])),
    }


def choose_steps(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The cheapest row that is as good as the last one, the reference, with half of its steps, too.

    A row is as good if each measure lies within its interval at the reference. Few subjects have wide
    intervals, so the row of the same sampler with at most half as many evaluations has to be as good,
    too: what is recommended is then no setting that has just got there. Where a measure has no interval,
    only the reference itself is within it. Of several rows at the same cost the one nearest to the
    reference is chosen, by its largest distance in lengths of the intervals.
    """
    *others, reference = rows

    def is_within(row, name):
        low, high = reference[name]["low"], reference[name]["high"]
        return low is not None and row[name] is not None and low <= row[name]["mean"] <= high

    def distance(row):
        lengths = {name: reference[name]["high"] - reference[name]["low"] for name in measures}
        return max(
            abs(row[name]["mean"] - reference[name]["mean"]) / (lengths[name] or 1.0)
            for name in measures
        )

    def is_good(row):
        return all(is_within(row, name) for name in measures)

    def half_is_good(row):
        halves = [
            other
            for other in others
            if other["group"] == row["group"] and 2 * other["evaluations"] <= row["evaluations"]
        ]
        return bool(halves) and is_good(max(halves, key=lambda other: other["evaluations"]))

    measures = [name for name in STEPS.measures if reference[name]]
    good = [row for row in others if is_good(row) and half_is_good(row)]
    best = min(good, key=lambda row: (row["network_passes"], distance(row)), default=reference)
    # A dearer row is no gain over the reference.
    best = min(best, reference, key=lambda row: row["network_passes"])
    return {
        "sampler": best["group"],
        "evaluations": best["evaluations"],
        "passes": best["network_passes"],
        "reference": f"{reference['evaluations']} evaluations of {reference['group']}",
    }


GUIDANCE = Sweep(
    name="guidance",
    title="Guidance",
    columns=("guidance", "w"),
    measures=("dice", "iou", "mae", "texture", "saturation", "intensities"),
    fixed=("num_steps", "interval"),
    scale={"value": "symlog", "linthresh": 1},
    choose=choose_weight,
)
STEPS = Sweep(
    name="steps",
    title="Samplers and number of steps",
    columns=("sampler", "evaluations"),
    measures=("dice", "iou", "mae", "texture", "spread"),
    fixed=("guidance_weight", "num_samples"),
    scale={"value": "log"},
    choose=choose_steps,
)

"""Settings of the sampler compared: control of tumors, healthy tissue, diversity, saturation, time.

The same slices, requests and noise at every setting, so that nothing else differs. `GUIDANCE` compares
kinds of guidance by weight, `STEPS` samplers by what they cost; both are parts of the evaluation.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from matplotlib.figure import Figure

from mbti_jax.diffusion import samplers
from mbti_jax.diffusion.guidance import KINDS, Guidance, make_guidance
from mbti_jax.diffusion.processes import Process
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation import report, statistics
from mbti_jax.evaluation.control_tasks import ControlTaskSettings
from mbti_jax.evaluation.sweep_measures import MEASURES, Setting, measure
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.fields import Count, FieldError, Interval, increasing_numbers, one_of
from mbti_jax.io.files import replacing

# A sampler and a spacing that suits it.
_REFERENCE = ("ddim", "trailing")


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

"""What the guidance weight does."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation import sweeps
from mbti_jax.evaluation.control_tasks import ControlTaskSettings
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.fields import FieldError, finite_number


@dataclasses.dataclass(frozen=True)
class GuidanceSweepSettings(ControlTaskSettings):
    """Settings of the part.

    Attributes:
        weights: to compare.
        num_steps: of the sampler.
    """

    weights: tuple[float, ...]
    num_steps: int

    def __post_init__(self):
        super().__post_init__()
        if not self.weights:
            raise FieldError("weights", "must not be empty")
        for weight in self.weights:
            finite_number("weights", weight)


def run(workbench: Workbench, settings: GuidanceSweepSettings, folder: Path) -> dict[str, Any]:
    """Measures every weight and draws the curves."""
    samplings = {
        weight: Sampling(settings.num_steps, guidance=float(weight), seed=workbench.seed)
        for weight in settings.weights
    }
    result = sweeps.measure(workbench, settings, samplings)
    sweeps.draw(folder / "curves.png", result["rows"], "guidance weight w", _scale)
    choice = choose_weight(result["rows"])
    return {"fixed": {"num_steps": settings.num_steps}, **result, "choice": choice}


def _scale(axes: Sequence[Axes]) -> None:
    for axis in axes:
        axis.set_xscale("symlog", linthresh=1)
    axes[-1].set_ylim(bottom=0)


def choose_weight(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The weights with the best control of tumors, and with the least error of healthy tissue."""

    def control(row):
        return np.mean([row[name]["mean"] for name in ("dice", "iou") if row[name]])

    scored = [row for row in rows if row["dice"] or row["iou"]]
    return {
        "tumor": max(scored, key=control)["value"] if scored else None,
        "healthy": min(rows, key=lambda row: row["mae"]["mean"])["value"],
    }


def tables(result: Mapping[str, Any]) -> str:
    """The part's section of the report, in Markdown."""
    choice = result["choice"]
    tumor = "-" if choice["tumor"] is None else f"{choice['tumor']:g}"
    advice = f"""![Curves](guidance/curves.png)

**For tumors w = {tumor}** (highest mean of Dice and IoU), **for healthy tissue w =
{choice["healthy"]:g}**
(least MAE)."""
    fixed = f"{result['fixed']['num_steps']} steps"
    return sweeps.section(result, "Guidance weight", fixed, "w", advice)

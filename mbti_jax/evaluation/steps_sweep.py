"""What the number of sampling steps does."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation import sweeps
from mbti_jax.evaluation.control_tasks import ControlTaskSettings
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.fields import FieldError, finite_number, whole_number

# How far below the Dice, and from the texture, at the most steps a choice of steps may be.
_DICE_MARGIN, _TEXTURE_MARGIN = 0.02, 0.05


@dataclasses.dataclass(frozen=True)
class StepsSweepSettings(ControlTaskSettings):
    """Settings of the part.

    Attributes:
        steps: numbers of steps to compare.
        guidance_weight: w.
    """

    steps: tuple[int, ...]
    guidance_weight: float

    def __post_init__(self):
        super().__post_init__()
        finite_number("guidance_weight", self.guidance_weight)
        if not self.steps:
            raise FieldError("steps", "must not be empty")
        for number in self.steps:
            whole_number("steps", number, least=1)


def run(workbench: Workbench, settings: StepsSweepSettings, folder: Path) -> dict[str, Any]:
    """Measures every number of steps and draws the curves."""
    samplings = {
        number: Sampling(number, guidance=settings.guidance_weight, seed=workbench.seed)
        for number in settings.steps
    }
    result = sweeps.measure(workbench, settings, samplings)
    sweeps.draw(folder / "curves.png", result["rows"], "steps", _scale)
    choice = choose_steps(result["rows"])
    return {"fixed": {"guidance_weight": settings.guidance_weight}, **result, "choice": choice}


def _scale(axes: Sequence[Axes]) -> None:
    for axis in axes:
        axis.set_xscale("log")
    axes[-1].set_yscale("log")


def choose_steps(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fewest steps that are as good as the most; see `tables`.

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


def tables(result: Mapping[str, Any]) -> str:
    """The part's section of the report, in Markdown."""
    advice = f"""![Curves](steps/curves.png)

**{result["choice"]["steps"]} steps** are the fewest with a Dice at most {_DICE_MARGIN:g} below, and
a texture
within {_TEXTURE_MARGIN:g} of, that at the most steps."""
    fixed = f"w = {result['fixed']['guidance_weight']:g}"
    return sweeps.section(result, "Number of steps", fixed, "steps", advice)

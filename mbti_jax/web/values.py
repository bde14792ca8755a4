"""Values of the form, as the browser sends them."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from mbti_jax.diffusion.processes import Process
from mbti_jax.diffusion.sampling import has_mean
from mbti_jax.rois.kinds import ROI_LABELS

# What a run may make -> `Sampling.estimate`.
ESTIMATES: dict[str, Literal["sample", "near_mean", "mean"]] = {
    "samples": "sample",
    "samples near the mean": "near_mean",
    "mean": "mean",
    "mean in one pass": "mean",
}

# More than any setting of the page.
_LARGEST = 1e30


def whole(name: str, value: Any) -> int:
    """A number of the page as an integer; the browser sends 25 as 25.0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:
        raise ValueError(f"{name} must be a whole number, not {value!r:.40}")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """A tick."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {value!r:.40}")
    return value


def number(name: str, value: Any) -> float:
    """A number of the page, neither NaN nor huge."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise ValueError(f"{name} must be a number, not {value!r:.40}")
    return float(value)


def estimate_for(painted: Iterable[np.ndarray], process: Process) -> str:
    """Which of `ESTIMATES` suits label maps: samples near the mean, if they hold normal tissue alone."""
    found = {int(label) for labels in painted for label in np.unique(labels)} - {0}
    fills = {ROI_LABELS[label] for label in found} == {"normal"}
    return "samples near the mean" if fills and has_mean(process) else "samples"

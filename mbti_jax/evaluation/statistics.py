"""Summaries of an evaluation's numbers, with intervals over subjects.

Slices of one subject are alike, so the numbers of an evaluation are not independent draws. Intervals
therefore resample whole subjects with all of their numbers (cluster bootstrap, Davison & Hinkley 1997,
section 3.8). With few subjects such an interval is too narrow, and it says nothing about how the model
would differ if it were trained again.

A mean over numbers weights a subject by how many numbers it has, in the interval as in the mean.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

Number = float | None
Sample = tuple[np.ndarray, np.ndarray]  # Numbers and the subject of each.


def known(sample: Sample) -> Sample:
    """Without missing numbers, which are NaN."""
    values, subjects = sample
    return values[~np.isnan(values)], subjects[~np.isnan(values)]


def summary(values: np.ndarray) -> dict[str, float | int | None]:
    """Mean, median and standard deviation of numbers.

    Args:
        values: float [N], N of at least 1.

    Returns:
        `mean`, `median`, `sd` (N - 1 in the denominator; None where N is 1), `count`.

    Raises:
        ValueError: no numbers, or some that are not finite.
    """
    values = _numbers(values)
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        "count": len(values),
    }


def bootstrap_interval(
    values: np.ndarray,
    subjects: np.ndarray,
    seed: int,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> tuple[Number, Number]:
    """Percentile interval of the mean over numbers, resampling subjects.

    Args:
        values: float [N].
        subjects: [N], the subject of each number.
        seed: of the resampling.
        num_resamples: how often the subjects are drawn anew.
        level: share of the resampled means between the two ends.

    Returns:
        (low, high); (None, None) for fewer than two subjects, which do not show how subjects differ.

    Raises:
        ValueError: no numbers, some that are not finite, or not as many subjects as numbers.
    """
    values, subjects = _sample(values, subjects)
    names, group = np.unique(subjects, return_inverse=True)
    if len(names) < 2:
        return None, None

    def mean(sums, counts, axis):
        return sums.sum(axis) / counts.sum(axis)

    # A subject is one pair (sum, count), and pairs are drawn.
    interval = stats.bootstrap(
        (np.bincount(group, values), np.bincount(group)),
        mean,
        paired=True,
        vectorized=True,
        n_resamples=num_resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def mean_with_interval(
    values: np.ndarray, subjects: np.ndarray, seed: int
) -> dict[str, Any] | None:
    """The mean over numbers with its interval over subjects.

    Args:
        values: float [N], NaN for a missing number.
        subjects: [N], the subject of each number.
        seed: of the resampling.

    Returns:
        `mean`, `low`, `high` (see `bootstrap_interval`) and `count` of the numbers; None without any.
    """
    values, subjects = known((values, subjects))
    if not len(values):
        return None
    low, high = bootstrap_interval(values, subjects, seed)
    return {"mean": float(values.mean()), "low": low, "high": high, "count": len(values)}


def paired_difference(
    a: np.ndarray, b: np.ndarray, subjects: np.ndarray, seed: int
) -> dict[str, Number]:
    """Mean of a - b, two measurements of the same things, with its interval over subjects.

    Args:
        a: float [N].
        b: float [N].
        subjects: [N], the subject of each pair.
        seed: of the resampling.

    Returns:
        `mean`, `low`, `high`; for the last two see `bootstrap_interval`.

    Raises:
        ValueError: a and b differ in length; see also `bootstrap_interval`.
    """
    a, b = _numbers(a), _numbers(b)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    low, high = bootstrap_interval(a - b, subjects, seed)
    return {"mean": float((a - b).mean()), "low": low, "high": high}


def ratio_of_means(
    a: Sample, b: Sample, seed: int, num_resamples: int = 2000, level: float = 0.95
) -> dict[str, Number]:
    """Mean of a / mean of b, two measurements in the same subjects, with its interval over subjects.

    Args:
        a: numbers and their subjects.
        b: the same, with a mean above 0.
        seed, num_resamples, level: see `bootstrap_interval`.

    Returns:
        `mean`, `low`, `high`; the last two None for fewer than two subjects. Resamples in which no
        subject has a number on one of the sides, or whose b are all 0, do not count.

    Raises:
        ValueError: the mean of b is not above 0; see also `bootstrap_interval`.
    """
    a, b = _sample(*a), _sample(*b)
    if b[0].mean() <= 0:
        raise ValueError(f"a ratio needs a mean above 0 to divide by, not {b[0].mean():g}")
    ratio = float(a[0].mean() / b[0].mean())
    names = np.union1d(a[1], b[1])
    if len(names) < 2:
        return {"mean": ratio, "low": None, "high": None}
    # How often each subject is drawn, [resamples, subjects].
    chances = np.full(len(names), 1 / len(names))
    drawn = np.random.default_rng(seed).multinomial(len(names), chances, num_resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = []
        for values, subjects in (a, b):
            group = np.searchsorted(names, subjects)
            sums, counts = (np.bincount(group, w, len(names)) for w in (values, None))
            means.append(drawn @ sums / (drawn @ counts))
        ratios = means[0] / means[1]
    low, high = np.quantile(ratios[np.isfinite(ratios)], [(1 - level) / 2, (1 + level) / 2])
    return {"mean": ratio, "low": float(low), "high": float(high)}


def interval_text(mean: float, low: Number, high: Number, digits: int = 3) -> str:
    """`0.812 (0.790 to 0.833)`, or the mean alone if there is no interval."""
    text = f"{mean:.{digits}f}"
    return text if low is None else f"{text} ({low:.{digits}f} to {high:.{digits}f})"


def cell(value: Mapping[str, Any] | Number, digits: int = 2) -> str:
    """`interval_text` of `mean`, `low` and `high`, a number rounded, and `-` for None."""
    if isinstance(value, Mapping):
        return interval_text(value["mean"], value["low"], value["high"], digits)
    return "-" if value is None else f"{value:.{digits}f}"


def _sample(values: np.ndarray, subjects: np.ndarray) -> Sample:
    values, subjects = _numbers(values), np.asarray(subjects)
    if subjects.shape != values.shape:
        raise ValueError(f"{len(values)} values need as many subjects, not {subjects.shape}")
    return values, subjects


def _numbers(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"a row of numbers is needed, not an array of shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} values are not finite")
    return values

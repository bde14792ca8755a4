"""Summaries of an evaluation's numbers, with intervals over subjects.

Slices of one subject are alike, so that the numbers of an evaluation are no independent draws. What is
resampled for an interval is therefore whole subjects with all of their numbers (cluster bootstrap,
Davison & Hinkley 1997, section 3.8). With few subjects such an interval is too narrow, and it says
nothing about how the model would differ if it were trained again.

A mean over numbers counts a subject by how many numbers it has, in the interval as in the mean.
"""

import numpy as np
from scipy import stats

Number = float | None


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
        subjects: [N], whose number each is.
        seed: of the resampling.
        num_resamples: how often the subjects are drawn anew.
        level: share of the resampled means between the two ends.

    Returns:
        (low, high); (None, None) where there are fewer than two subjects, which tell nothing of how
        subjects differ.

    Raises:
        ValueError: no numbers, some that are not finite, or not as many subjects as numbers.
    """
    values, subjects = _numbers(values), np.asarray(subjects)
    if subjects.shape != values.shape:
        raise ValueError(f"{len(values)} values need as many subjects, not {subjects.shape}")
    names, group = np.unique(subjects, return_inverse=True)
    if len(names) < 2:
        return None, None

    def mean(sums, counts, axis):
        return sums.sum(axis) / counts.sum(axis)

    # A subject is one pair (sum, count), and pairs are what is drawn.
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


def paired_difference(
    a: np.ndarray, b: np.ndarray, subjects: np.ndarray, seed: int
) -> dict[str, Number]:
    """Mean of a - b, two measurements of the same things, with its interval over subjects.

    Args:
        a: float [N].
        b: float [N].
        subjects: [N], whose both are.
        seed: of the resampling.

    Returns:
        `mean`, `low`, `high`; the last two as of `bootstrap_interval`.

    Raises:
        ValueError: a and b differ in length, or as `bootstrap_interval`.
    """
    a, b = _numbers(a), _numbers(b)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    low, high = bootstrap_interval(a - b, subjects, seed)
    return {"mean": float((a - b).mean()), "low": low, "high": high}


def interval_text(mean: float, low: Number, high: Number, digits: int = 3) -> str:
    """`0.812 (0.790 to 0.833)`, and without an interval where there is none, as reports print it."""
    text = f"{mean:.{digits}f}"
    return text if low is None else f"{text} ({low:.{digits}f} to {high:.{digits}f})"


def _numbers(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"a row of numbers is needed, not an array of shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} values are not finite")
    return values

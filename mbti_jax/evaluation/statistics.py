"""Summaries of an evaluation's numbers, with intervals over patients.

Slices and timepoints of one patient are alike, so the numbers of an evaluation are not independent
draws. Intervals therefore resample whole patients with all of their numbers (cluster bootstrap, Davison
& Hinkley 1997, section 3.8), and they are studentized (bootstrap-t, section 5.2): their ends follow from
the resampled distribution of (estimate - truth) / standard error. An evaluation has few patients, and
its numbers are skewed; percentiles of resampled means cover far less than they claim then, and so do
Student's quantiles for skewed numbers. `tests/evaluation/test_statistics.py` simulates the coverage.

There is no interval below `MIN_PATIENTS`, or where so many patients have the same number that the
resamples do not bound the mean; where all have the same, its ends are that number. An interval says
nothing about how the model would differ if it were trained again.

A mean over numbers weights a patient by how many numbers it has, in the interval as in the mean.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# Of three patients, one in nine resamples is a single patient, which has no standard error: more than
# the 2.5% beyond each end of a 95% interval. Of four, it is one in 64.
MIN_PATIENTS = 4
# Standard errors below this share of the estimate are those of a constant.
_ROUNDING = 1e-12
# Of Dice, IoU and shares.
SHARE = (0.0, 1.0)

Number = float | None
Sample = tuple[np.ndarray, np.ndarray]  # Numbers and the patient of each.


def known(sample: Sample) -> Sample:
    """Without missing numbers, which are NaN."""
    values, patients = sample
    return values[~np.isnan(values)], patients[~np.isnan(values)]


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
    patients: np.ndarray,
    seed: int,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> tuple[Number, Number]:
    """Bootstrap-t interval of the mean over numbers, resampling patients.

    Args:
        values: float [N].
        patients: [N], the patient of each number.
        seed: of the resampling.
        num_resamples: how often the patients are drawn anew.
        level: how often such an interval holds the mean of all patients there are.

    Returns:
        (low, high); (None, None) for fewer than `MIN_PATIENTS`, or where resampling gives no bound.

    Raises:
        ValueError: no numbers, some that are not finite, or not as many patients as numbers.
    """
    # The ratio to a mean that is 1 in every patient.
    sample = _sample(values, patients)
    return _interval(sample, (np.ones(len(sample[0])), sample[1]), seed, num_resamples, level)


def mean_with_interval(
    values: np.ndarray,
    patients: np.ndarray,
    seed: int,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> dict[str, Any] | None:
    """The mean over numbers with its interval over patients.

    Args:
        values: float [N], NaN for a missing number.
        patients: [N], the patient of each number.
        seed: of the resampling.
        within: (low, high), the values that such numbers can have; `SHARE` for Dice and its like. The
            interval ends there, which takes nothing from its coverage.

    Returns:
        `mean`, `low`, `high` (see `bootstrap_interval`) and `count` of the numbers; None without any.

    Raises:
        ValueError: a number lies outside; see also `bootstrap_interval`.
    """
    values, patients = known((values, patients))
    if not len(values):
        return None
    if values.min() < within[0] or values.max() > within[1]:
        raise ValueError(f"{values.min():g} to {values.max():g} cannot be: outside {within}")
    low, high = bootstrap_interval(values, patients, seed)
    if low is not None and high is not None:
        low, high = max(low, within[0]), min(high, within[1])
    return {"mean": float(values.mean()), "low": low, "high": high, "count": len(values)}


def paired_difference(
    a: np.ndarray, b: np.ndarray, patients: np.ndarray, seed: int
) -> dict[str, Number]:
    """Mean of a - b, two measurements of the same things, with its interval over patients.

    Args:
        a: float [N].
        b: float [N].
        patients: [N], the patient of each pair.
        seed: of the resampling.

    Returns:
        `mean`, `low`, `high`; for the last two see `bootstrap_interval`.

    Raises:
        ValueError: a and b differ in length; see also `bootstrap_interval`.
    """
    a, b = _numbers(a), _numbers(b)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    low, high = bootstrap_interval(a - b, patients, seed)
    return {"mean": float((a - b).mean()), "low": low, "high": high}


def ratio_of_means(
    a: Sample, b: Sample, seed: int, num_resamples: int = 2000, level: float = 0.95
) -> dict[str, Number]:
    """Mean of a / mean of b, two measurements in the same patients, with its interval over patients.

    Args:
        a: numbers and their patients.
        b: the same, with a mean above 0.
        seed, num_resamples, level: see `bootstrap_interval`.

    Returns:
        `mean`, `low`, `high`; for the last two see `bootstrap_interval`. Resamples in which no patient
        has a number on one of the sides, or whose b are all 0, do not count.

    Raises:
        ValueError: the mean of b is not above 0; see also `bootstrap_interval`.
    """
    a, b = _sample(*a), _sample(*b)
    if b[0].mean() <= 0:
        raise ValueError(f"a ratio needs a mean above 0 to divide by, not {b[0].mean():g}")
    low, high = _interval(a, b, seed, num_resamples, level)
    return {"mean": float(a[0].mean() / b[0].mean()), "low": low, "high": high}


def mean_over_pairs(values: np.ndarray, pairs: np.ndarray, seed: int) -> dict[str, Any]:
    """The mean over numbers that belong to two patients each, with its interval over patients.

    A patient is in several pairs, so neither the pairs nor their means by patient are independent; the
    interval is that of the mean's jackknife pseudo-values (Arvesen 1969).

    Args:
        values: float [N].
        pairs: int [N, 2], the numbers of both patients, from 0; all are in equally many pairs.
        seed: of the resampling.

    Returns:
        As `mean_with_interval`, with the `count` of patients.
    """
    values, count = _numbers(values), int(pairs.max()) + 1
    mean, low, high = float(values.mean()), None, None
    if count >= MIN_PATIENTS:
        without = [values[(pairs != patient).all(1)].mean() for patient in range(count)]
        pseudo = count * mean - (count - 1) * np.array(without)
        low, high = bootstrap_interval(pseudo, np.arange(count), seed)
    return {"mean": mean, "low": low, "high": high, "count": count}


def interval_text(mean: float, low: Number, high: Number, digits: int = 3) -> str:
    """`0.812 (0.790 to 0.833)`, or the mean alone if there is no interval."""
    text = f"{mean:.{digits}f}"
    return text if low is None else f"{text} ({low:.{digits}f} to {high:.{digits}f})"


def cell(value: Mapping[str, Any] | Number, digits: int = 2) -> str:
    """`interval_text` of `mean`, `low` and `high`, a number rounded, and `-` for None."""
    if isinstance(value, Mapping):
        return interval_text(value["mean"], value["low"], value["high"], digits)
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(
    a: Sample, b: Sample, seed: int, num_resamples: int, level: float
) -> tuple[Number, Number]:
    """Bootstrap-t interval of mean of a / mean of b; its standard errors are linearized."""
    names = np.union1d(a[1], b[1])
    count = len(names)
    if count < MIN_PATIENTS:
        return None, None
    # How often each patient is drawn, [1 + resamples, patients]; in the first row once, as it is.
    chances = np.full(count, 1 / count)
    drawn = np.random.default_rng(seed).multinomial(count, chances, num_resamples)
    drawn = np.concatenate([np.ones((1, count)), drawn])
    means, influences = [], []
    with np.errstate(invalid="ignore", divide="ignore"):
        for values, patients in (a, b):
            group = np.searchsorted(names, patients)
            sums, counts = (np.bincount(group, w, count) for w in (values, None))
            size = (drawn @ counts)[:, None]
            means.append(drawn @ sums / size[:, 0])
            influences.append((sums - means[-1][:, None] * counts) / size)
        ratio = means[0] / means[1]
        influence = (influences[0] - ratio[:, None] * influences[1]) / means[1][:, None]
        error = np.sqrt(count / (count - 1) * (drawn * influence**2).sum(1))
        # A resample without any spread says that the error is unbounded, unless it lies on the estimate.
        t = np.nan_to_num((ratio - ratio[0]) / error, nan=0.0, posinf=np.inf, neginf=-np.inf)
    t = t[1:][np.isfinite(ratio[1:])]
    if error[0] <= _ROUNDING * np.abs(ratio[0]):
        return float(ratio[0]), float(ratio[0])
    ends = [(1 + level) / 2, (1 - level) / 2]
    low, high = ratio[0] - error[0] * np.quantile(t, ends, method="inverted_cdf")
    return (float(low), float(high)) if np.isfinite([low, high]).all() else (None, None)


def _sample(values: np.ndarray, patients: np.ndarray) -> Sample:
    values, patients = _numbers(values), np.asarray(patients)
    if patients.shape != values.shape:
        raise ValueError(f"{len(values)} values need as many subjects, not {patients.shape}")
    return values, patients


def _numbers(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"a row of numbers is needed, not an array of shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} values are not finite")
    return values

"""Summaries and intervals over subjects, against closed forms and constructed cases."""

import itertools
import statistics as standard_library

import numpy as np
import pytest
from scipy import stats

from mbti_jax.evaluation.statistics import (
    MIN_PATIENTS,
    SHARE,
    bootstrap_interval,
    cell,
    interval_text,
    mean_over_pairs,
    mean_with_interval,
    paired_difference,
    ratio_of_means,
    summary,
)


def test_summary_is_what_the_standard_library_says():
    values = [3.0, -1.5, 8.25, 0.5, 2.0]
    assert summary(np.array(values)) == pytest.approx(
        {
            "mean": standard_library.mean(values),
            "median": standard_library.median(values),
            "sd": standard_library.stdev(values),
            "count": 5,
        }
    )


def test_one_number_has_no_spread():
    assert summary(np.array([2.0])) == {"mean": 2.0, "median": 2.0, "sd": None, "count": 1}


def test_all_resamples_of_four_subjects():
    """Four subjects have 256 resamples; scipy's standard error studentizes each."""
    values = np.array([0.0, 1.0, 2.5, 7.0])
    resamples = np.array(list(itertools.product(values, repeat=4)))
    with np.errstate(divide="ignore"):
        t = (resamples.mean(1) - values.mean()) / stats.sem(resamples, axis=1)
    for level in (0.5, 0.9):
        interval = bootstrap_interval(values, np.arange(4), 0, num_resamples=20_000, level=level)
        # Each end lies between neighbors of the exact quantile among the 256.
        steps = np.unique(t)
        for end, share in zip(interval, ((1 + level) / 2, (1 - level) / 2), strict=True):
            exact = np.searchsorted(steps, np.quantile(t, share, method="inverted_cdf"))
            around = steps[[max(exact - 1, 0), min(exact + 1, len(steps) - 1)]]
            high, low = values.mean() - stats.sem(values) * around
            assert low <= end <= high


# Draws for n subjects, and their mean: what an evaluation finds is bounded, and often skewed.
POPULATIONS = {
    "normal": (lambda rng, n: rng.normal(3, 2, n), 3),
    "differences of Dice": (lambda rng, n: rng.beta(6, 3, n) - rng.beta(5, 3, n), 6 / 9 - 5 / 8),
    "high Dice": (lambda rng, n: rng.beta(5, 1.2, n), 5 / 6.2),
    "low Dice": (lambda rng, n: rng.beta(0.5, 2, n), 0.2),
    "errors": (lambda rng, n: rng.gamma(1.5, 1, n), 1.5),
}
COUNTS = (3, 4, 5, 6, 9, 15, 30)


def num_resamples(count: int) -> int:
    """Fewer where that saves time and ties are rare."""
    return 2000 if count < 8 else 400


def coverage(found, truth) -> float:
    """Share of intervals, as (low, high), that hold the truth."""
    return float(np.mean([low <= truth <= high for low, high in found]))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", POPULATIONS)
def test_intervals_cover_what_they_claim(name, count):
    """Of percentile intervals over 4 subjects of low Dice, 72% hold the mean; of Student's, 87%."""
    draw, truth = POPULATIONS[name]
    rng = np.random.default_rng(count)
    found = [
        bootstrap_interval(draw(rng, count), np.arange(count), seed, num_resamples(count))
        for seed in range(300)
    ]
    if count < MIN_PATIENTS:
        assert set(found) == {(None, None)}
    else:
        # With 300 repetitions three standard errors of 95% are 4%.
        assert coverage(found, truth) >= 0.905


@pytest.mark.parametrize("count", COUNTS[1:])
def test_intervals_of_clusters_and_ratios_cover_what_they_claim(count):
    rng = np.random.default_rng(count)
    means, ratios = [], []
    for seed in range(300):
        subjects = np.repeat(np.arange(count), rng.integers(1, 7, count))
        level = rng.beta(5, 2, count)[subjects]
        real, painted = (level * rng.beta(8, a, len(level)) for a in (1, 3))
        means.append(bootstrap_interval(painted, subjects, seed, num_resamples(count)))
        pair = ((painted, subjects), (real, subjects))
        ratio = ratio_of_means(*pair, seed, num_resamples(count))
        ratios.append((ratio["low"], ratio["high"]))
    assert coverage(means, 5 / 7 * 8 / 11) >= 0.9
    assert coverage(ratios, 9 / 11) >= 0.9


@pytest.mark.parametrize("count", [5, 8, 20])
def test_intervals_of_pairs_cover_what_they_claim(count):
    """Mean distances of each patient to the others, taken for independent, cover 70 to 80%."""
    rng = np.random.default_rng(count)
    steps = range(1, 1 + min(8, count - 1))
    pairs = np.array([(n, (n + step) % count) for n in range(count) for step in steps])
    found = []
    for seed in range(300):
        values = rng.normal(size=count)
        distances = np.abs(values[pairs[:, 0]] - values[pairs[:, 1]])
        interval = mean_over_pairs(distances, pairs, seed)
        assert interval["mean"] == pytest.approx(distances.mean())
        found.append((interval["low"], interval["high"]))
    assert coverage(found, 2 / np.sqrt(np.pi)) >= 0.9
    few = mean_over_pairs(np.array([1.0, 3.0]), np.array([[0, 1], [1, 0]]), 0)
    assert few == {"mean": 2.0, "low": None, "high": None, "count": 2}


def test_no_interval_where_resamples_give_no_bound():
    """Of 4 subjects three have no tumor left: in a third of the resamples nobody differs."""
    values = np.array([0.0, 0.0, 0.0, 0.4])
    assert bootstrap_interval(values, np.arange(4), 0) == (None, None)
    found = mean_with_interval(values, np.arange(4), 0)
    assert cell(found) == "0.10"
    low, high = bootstrap_interval(np.tile(values, 10), np.arange(40), 0)
    assert 0 < low < 0.1 < high


def test_many_subjects_give_the_normal_interval():
    rng = np.random.default_rng(1)
    values = rng.normal(3, 2, 400)
    low, high = bootstrap_interval(values, np.arange(400), seed=2)
    half = stats.norm.ppf(0.975) * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_repeating_the_numbers_of_subjects_adds_no_certainty():
    """Were numbers resampled and not subjects, a tenfold copy would narrow the interval by 3.2."""
    values = np.random.default_rng(3).normal(size=20)
    once = bootstrap_interval(values, np.arange(20), seed=4)
    tenfold = bootstrap_interval(np.repeat(values, 10), np.repeat(np.arange(20), 10), seed=4)
    assert tenfold == pytest.approx(once)


def test_the_interval_does_not_depend_on_the_order_of_the_numbers():
    rng = np.random.default_rng(5)
    values, subjects = rng.normal(size=60), rng.integers(0, 9, 60)
    order = rng.permutation(60)
    expected = bootstrap_interval(values, subjects, seed=6)
    assert bootstrap_interval(values[order], subjects[order], seed=6) == pytest.approx(expected)


def test_the_same_seed_gives_the_same_interval_and_another_one_another():
    values, subjects = np.random.default_rng(7).normal(size=30), np.arange(30) // 2
    assert bootstrap_interval(values, subjects, 1) == bootstrap_interval(values, subjects, 1)
    assert bootstrap_interval(values, subjects, 1) != bootstrap_interval(values, subjects, 2)


def test_pairing_takes_out_what_both_share():
    """b is a shifted by 2, whatever a is: the difference is exact though both vary by 50."""
    a = np.random.default_rng(8).normal(0, 50, 40)
    found = paired_difference(a, a + 2, np.arange(40) // 4, seed=0)
    assert found == pytest.approx({"mean": -2.0, "low": -2.0, "high": -2.0})


def test_few_subjects_have_no_interval():
    for subjects in ("aaaa", "abab", "abca"):
        values = np.array([1.0, 2.0, 4.0, 3.0])
        assert bootstrap_interval(values, np.array(list(subjects)), 0) == (None, None)
    assert interval_text(0.12345, None, None) == "0.123"
    assert interval_text(0.12345, 0.1, 0.2, digits=1) == "0.1 (0.1 to 0.2)"


@pytest.mark.parametrize(
    ("values", "subjects", "message"),
    [
        ([], [], "row of numbers"),
        ([1.0, np.nan], [0, 1], "1 of 2 values are not finite"),
        ([1.0, 2.0], [0], "as many subjects"),
    ],
)
def test_what_cannot_be_averaged_is_refused(values, subjects, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(np.array(values), np.array(subjects), 0)


def test_different_lengths_cannot_be_paired():
    with pytest.raises(ValueError, match="paired"):
        paired_difference(np.zeros(3), np.zeros(2), np.arange(3), 0)


def test_a_mean_leaves_out_what_has_no_number():
    values = np.array([np.nan, 0.25, 0.5, np.nan, 1.0, 0.1, 0.3])
    subjects = np.array(["a", "a", "b", "c", "b", "d", "e"])
    found = mean_with_interval(values, subjects, seed=0)
    kept = np.array([1, 2, 4, 5, 6])
    assert (found["low"], found["high"]) == bootstrap_interval(values[kept], subjects[kept], 0)
    assert found["low"] < found["mean"] < found["high"]
    assert found["mean"] == pytest.approx(2.15 / 5)
    assert found["count"] == 5
    assert mean_with_interval(values[[0, 3]], subjects[[0, 3]], seed=0) is None
    assert cell(found, 1) == interval_text(found["mean"], found["low"], found["high"], 1)
    assert cell(None) == "-"


def test_the_interval_of_a_ratio_to_a_constant_is_that_of_the_mean():
    rng = np.random.default_rng(1)
    a, subjects = rng.uniform(0.4, 1, 40), np.arange(40) // 3
    found = ratio_of_means((a, subjects), (np.full(40, 0.5), subjects), seed=3)
    expected = mean_with_interval(2 * a, subjects, seed=3)
    assert found == pytest.approx({name: expected[name] for name in ("mean", "low", "high")})


def test_the_interval_of_a_ratio_of_many_subjects_is_fiellers():
    rng = np.random.default_rng(2)
    b = rng.uniform(0.5, 1, 400)
    a, subjects = b * rng.uniform(0.4, 1, 400), np.arange(400)
    found = ratio_of_means((a, subjects), (b, subjects), seed=0)
    # The truths r that a - r b, with mean 0 at the truth, does not contradict (Fieller 1954).
    r = np.linspace(0.6, 0.8, 20001)
    t = (a.mean() - r * b.mean()) / stats.sem(a[:, None] - r * b[:, None])
    inside = r[np.abs(t) <= stats.t.ppf(0.975, 399)]
    assert found["mean"] == pytest.approx(a.sum() / b.sum())
    half = (inside[-1] - inside[0]) / 2
    assert found["low"] == pytest.approx(inside[0], abs=0.15 * half)
    assert found["high"] == pytest.approx(inside[-1], abs=0.15 * half)


def test_a_ratio_that_every_subject_shares_is_certain():
    b = np.array([0.2, 0.8, 0.5, 0.9, 0.7])
    subjects = np.array(["a", "a", "b", "c", "d"])
    found = ratio_of_means((b / 2, subjects), (b, subjects), 0)
    assert found == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
    alone = ratio_of_means((b, np.repeat("a", 5)), (b, np.repeat("a", 5)), 0)
    assert alone == {"mean": 1.0, "low": None, "high": None}


def test_what_has_no_ratio_is_refused():
    one = np.ones(2)
    with pytest.raises(ValueError, match="above 0"):
        ratio_of_means((one, np.arange(2)), (0 * one, np.arange(2)), 0)
    with pytest.raises(ValueError, match="as many subjects"):
        ratio_of_means((one, np.arange(2)), (one, np.arange(3)), 0)


def test_an_interval_ends_where_the_numbers_do():
    """Dice near 1 with one patient that failed: the bootstrap-t alone ends above 1."""
    values, patients = np.array([0.99, 0.98, 1.0, 0.97, 0.3]), np.arange(5)
    free = mean_with_interval(values, patients, 0)
    within = mean_with_interval(values, patients, 0, SHARE)
    assert free and within and free["high"] > 1
    assert within == free | {"high": 1.0, "low": max(free["low"], 0.0)}
    with pytest.raises(ValueError, match=r"0.3 to 1.2 cannot be"):
        mean_with_interval(np.array([0.3, 1.2]), np.arange(2), 0, SHARE)

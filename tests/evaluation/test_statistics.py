"""Summaries and intervals over subjects, against closed forms and constructed cases."""

import itertools
import statistics as standard_library

import numpy as np
import pytest
from scipy import stats

from mbti_jax.evaluation.statistics import (
    bootstrap_interval,
    cell,
    interval_text,
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


def test_all_resamples_of_three_subjects():
    """Three subjects have 27 resamples; the interval's ends are percentiles of their means."""
    groups = {"a": [0.0, 1.0, 2.0, 7.0], "b": [5.0], "c": [9.0, 4.0]}
    means = [
        np.concatenate([groups[name] for name in names]).mean()
        for names in itertools.product(groups, repeat=3)
    ]
    values = np.concatenate(list(groups.values()))
    subjects = np.array([name for name, group in groups.items() for _ in group])
    for level in (0.5, 0.9):
        low, high = bootstrap_interval(values, subjects, 0, num_resamples=20_000, level=level)
        # Each end lies between neighbors of the exact percentile among the 27 means.
        steps = np.unique(means)
        for end, share in ((low, (1 - level) / 2), (high, (1 + level) / 2)):
            exact = np.quantile(means, share, method="inverted_cdf")
            position = np.searchsorted(steps, exact)
            assert steps[max(position - 1, 0)] <= end <= steps[min(position + 1, len(steps) - 1)]


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


def test_one_subject_has_no_interval():
    assert bootstrap_interval(np.array([1.0, 2.0]), np.array(["a", "a"]), 0) == (None, None)
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
    values, subjects = (
        np.array([np.nan, 0.25, 0.5, np.nan, 1.0]),
        np.array(["a", "a", "b", "c", "b"]),
    )
    found = mean_with_interval(values, subjects, seed=0)
    kept = np.array([1, 2, 4])
    assert (found["low"], found["high"]) == bootstrap_interval(values[kept], subjects[kept], 0)
    assert found["mean"] == pytest.approx(1.75 / 3)
    assert found["count"] == 3
    assert mean_with_interval(values[[0, 3]], subjects[[0, 3]], seed=0) is None
    assert cell(found, 1) == interval_text(found["mean"], found["low"], found["high"], 1)
    assert cell(None) == "-"


def test_the_interval_of_a_ratio_is_scipys_where_each_subject_has_one_pair():
    rng = np.random.default_rng(1)
    b = rng.uniform(0.5, 1, 30)
    a, subjects = b * rng.uniform(0.4, 1, 30), np.arange(30)
    found = ratio_of_means((a, subjects), (b, subjects), seed=0, num_resamples=20000)
    expected = stats.bootstrap(
        (a, b),
        lambda x, y, axis: x.mean(axis) / y.mean(axis),
        paired=True,
        n_resamples=20000,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert found["mean"] == pytest.approx(a.sum() / b.sum())
    assert found["low"] == pytest.approx(expected.low, abs=0.005)
    assert found["high"] == pytest.approx(expected.high, abs=0.005)


def test_a_ratio_that_every_subject_shares_is_certain():
    b = np.array([0.2, 0.8, 0.5, 0.9])
    subjects = np.array(["a", "a", "b", "c"])
    found = ratio_of_means((b / 2, subjects), (b, subjects), 0)
    assert found == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
    alone = ratio_of_means((b, np.repeat("a", 4)), (b, np.repeat("a", 4)), 0)
    assert alone == {"mean": 1.0, "low": None, "high": None}


def test_what_has_no_ratio_is_refused():
    one = np.ones(2)
    with pytest.raises(ValueError, match="above 0"):
        ratio_of_means((one, np.arange(2)), (0 * one, np.arange(2)), 0)
    with pytest.raises(ValueError, match="as many subjects"):
        ratio_of_means((one, np.arange(2)), (one, np.arange(3)), 0)

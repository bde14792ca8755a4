"""Exchanged sequences of real cases are found, and nothing is said of the right order."""

import itertools

import numpy as np
import pytest

from tfds_brats.cases import read_case
from tfds_brats.conventions import SEQUENCES
from tfds_brats.plausible_order import likely_order, order_warning
from tfds_brats.search import find_cases


@pytest.mark.parametrize("subject", ["Brats18_TCIA01_378_1", "Brats18_TCIA10_639_1"])
def test_orders_of_real_cases(subject, real_cases):
    """Of the two that were nearest to a mistake."""
    (files,) = find_cases(real_cases / subject, "brats2018", labels=False)
    case = read_case(files, labels=False)
    assert not any("exchanged" in text for text in case.warnings)
    every = (slice(None, None, 3),) * 3
    values = {name: case.values(name)[every] for name in SEQUENCES}
    brain = case.brain[every]
    assert likely_order(values, brain) == {}
    for order in itertools.permutations(SEQUENCES):
        given = {name: values[other] for name, other in zip(SEQUENCES, order, strict=True)}
        wrong = {a: b for a, b in zip(SEQUENCES, order, strict=True) if a != b}
        assert likely_order(given, brain) == wrong, order


def test_nothing_is_said_where_nothing_is_certain():
    rng = np.random.default_rng(0)
    brain = np.ones((20, 20, 20), bool)
    noise = {name: rng.normal(size=brain.shape) for name in SEQUENCES}
    assert likely_order(noise, brain) == {}
    del noise["flair"]
    assert likely_order(noise, brain) == {}
    # Of one value in most of the brain nothing has a spread.
    flat = dict.fromkeys(SEQUENCES, np.ones(brain.shape))
    assert likely_order(flat, brain) == {}


def test_what_is_said():
    text = order_warning({"t2": "flair", "flair": "t2"})
    assert "t2 looks like flair, flair looks like t2" in text

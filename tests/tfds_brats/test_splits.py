"""Properties of the split, for any patients."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfds_brats.cases import CaseFiles
from tfds_brats.conventions import CONVENTIONS
from tfds_brats.splits import SPLITS, split_cases, split_patients

patients = st.dictionaries(
    st.text(min_size=1, max_size=12), st.floats(0, 1e4), min_size=3, max_size=150
)


@settings(max_examples=100, deadline=None)
@given(patients, st.randoms())
def test_independent_of_input_order(area, order):
    names = list(area)
    order.shuffle(names)
    assert split_patients({name: area[name] for name in names}) == split_patients(area)


@settings(max_examples=100, deadline=None)
@given(patients)
def test_every_patient_is_in_one_split_at_8_1_1(area):
    splits = split_patients(area)
    assert splits.keys() == area.keys()
    counts = Counter(splits.values())
    assert set(counts) == set(SPLITS)
    assert counts["validation"] == counts["test"]
    assert abs(counts["test"] - max(1, len(area) / 10)) <= 0.5


@settings(max_examples=100, deadline=None)
@given(patients)
def test_stratified_by_area(area):
    """The k-th smallest tumor of validation and of test lies in the k-th of as many quantiles."""
    splits = split_patients(area)
    rank = {name: i for i, name in enumerate(sorted(area, key=lambda name: (area[name], name)))}
    for split in ("validation", "test"):
        ranks = np.sort([rank[name] for name in area if splits[name] == split])
        quantile = len(area) / len(ranks)
        for k, position in enumerate(ranks):
            assert k * quantile - 1 <= position <= (k + 1) * quantile


@settings(max_examples=50, deadline=None)
@given(patients)
def test_only_the_order_of_the_areas_matters(area):
    assert split_patients({name: 2 * value for name, value in area.items()}) == split_patients(area)


# Patient -> mean tumor areas of its timepoints.
timepoints = st.dictionaries(
    st.integers(0, 99999), st.lists(st.floats(0, 1e4), min_size=1, max_size=4), min_size=3
)


@settings(max_examples=100, deadline=None)
@given(timepoints, st.randoms())
def test_timepoints_of_a_patient_share_a_split(patients, order):
    scans = [
        (f"BraTS-GLI-{patient:05d}", timepoint, area)
        for patient, areas in patients.items()
        for timepoint, area in enumerate(areas)
    ]
    order.shuffle(scans)
    cases = [
        CaseFiles(f"{patient}-{timepoint:03d}", patient, CONVENTIONS["brats2023"], {}, None)
        for patient, timepoint, _ in scans
    ]
    splits = split_cases(cases, [area for *_, area in scans])
    assert tuple(splits) == SPLITS
    assert sorted(c.subject for s in splits.values() for c in s) == sorted(c.subject for c in cases)
    held_by = [{files.patient for files in split} for split in splits.values()]
    assert all(held_by)
    assert sum(map(len, held_by)) == len(patients)
    for split in splits.values():
        assert split == [files for files in cases if files in split]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_patients_are_an_error(count):
    with pytest.raises(ValueError, match="at least 3"):
        split_patients({str(i): 1.0 for i in range(count)})


def test_who_is_held_out_is_unrelated_to_the_name():
    """Names in order of size must not put the same end of every quantile into a split."""
    area = {f"BraTS2021_{i:05d}": float(i) for i in range(1000)}
    splits = split_patients(area)
    held_out = [int(name[-5:]) % 10 for name in area if splits[name] == "test"]
    assert len(set(held_out)) == 10
    assert Counter(splits.values()) == {"train": 800, "validation": 100, "test": 100}
    random.seed(0)
    shuffled = list(area.items())
    random.shuffle(shuffled)
    assert split_patients(dict(shuffled)) == splits

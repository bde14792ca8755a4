"""Which patient is in which split: 8:1:1, stratified by tumor area."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from tfds_brats.cases import CaseFiles
from tfds_brats.conventions import CaseError

SPLITS = ("train", "validation", "test")
_MIN_PATIENTS = 3


def split_patients(tumor_area: Mapping[str, float]) -> dict[str, str]:
    """Assigns patients to train, validation and test at 8:1:1.

    The patients, sorted by tumor area, are cut into as many quantiles as a split of a tenth has
    members (about ten patients each); every quantile gives one patient to validation and one to
    test. They are chosen by a hash of the patient's name, so the choice depends neither on the order
    of the input nor on a seed. Fewer than 15 patients form one quantile, so that no split is empty.

    Args:
        tumor_area: patient -> mean tumor area, in any unit.

    Returns:
        patient -> "train", "validation" or "test".

    Raises:
        ValueError: fewer than 3 patients.
    """
    if len(tumor_area) < _MIN_PATIENTS:
        raise ValueError(
            f"{len(tumor_area)} patient(s) cannot be split into train, validation and test; "
            f"at least {_MIN_PATIENTS} are needed"
        )
    ordered = sorted(tumor_area, key=lambda patient: (tumor_area[patient], patient))
    quantiles = max(1, round(len(ordered) / 10))
    splits = {}
    for quantile in range(quantiles):
        first = quantile * len(ordered) // quantiles
        last = (quantile + 1) * len(ordered) // quantiles
        by_hash = sorted(ordered[first:last], key=_hash)
        splits |= dict.fromkeys(by_hash, "train")
        splits |= {by_hash[0]: "validation", by_hash[1]: "test"}
    return splits


def _hash(patient: str) -> str:
    return hashlib.sha256(patient.encode()).hexdigest()


def split_cases(
    cases: Sequence[CaseFiles], tumor_areas: Sequence[float]
) -> dict[str, list[CaseFiles]]:
    """Split -> its cases, in the given order; all timepoints of a patient fall into the same split.

    Args:
        cases: all cases.
        tumor_areas: mean tumor area of each; patients are stratified by the mean over their
            timepoints.

    Raises:
        CaseError: fewer than 3 patients.
    """
    areas_of_patient = defaultdict(list)
    for files, area in zip(cases, tumor_areas, strict=True):
        areas_of_patient[files.patient].append(area)
    try:
        split_of = split_patients(
            {name: float(np.mean(areas)) for name, areas in areas_of_patient.items()}
        )
    except ValueError as error:
        raise CaseError(f"{len(cases)} case(s) found: {error}") from error
    subjects = {split: [] for split in SPLITS}
    for files in cases:
        subjects[split_of[files.patient]].append(files)
    return subjects

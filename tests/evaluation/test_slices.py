"""Slices of a dataset: whose they are."""

import numpy as np
import pytest
from fake_slices import FakeSlices
from resynthesized_slices import make_slices
from tiny_inpainter import tiny_inpainter, tiny_metadata, tiny_params

from mbti_jax.evaluation.slices import LabeledSlices, SliceReader
from mbti_jax.inference.inpainter import Inpainter


def test_timepoints_of_a_patient_are_subjects_of_one_patient():
    source = FakeSlices()
    source.index.patient = np.repeat(["p", "q"], [8, 4])
    slices = SliceReader(tiny_inpainter(), source).read([0, 5, 9])
    assert slices.subjects.tolist() == ["subject_0", "subject_1", "subject_2"]
    assert slices.patients.tolist() == ["p", "p", "q"]
    assert slices[np.array([2, 0])].patients.tolist() == ["q", "p"]
    both = LabeledSlices.concatenate([slices, slices])
    assert both.patients.tolist() == 2 * ["p", "p", "q"]


@pytest.mark.parametrize(
    ("spacing", "trained", "fits"),
    [
        ([1.0, 1.0], None, True),  # Models that do not say were trained with 1 mm.
        ([1.005, 1.0], 1.0, True),
        ([2.0, 2.0], 2.0, True),
        ([2.0, 2.0], None, False),
        ([1.0, 1.0], 2.0, False),
        ([1.0, 1.1], 1.0, False),
        (None, 1.0, False),
    ],
)
def test_a_dataset_of_other_pixels_than_the_model_knows_is_refused(spacing, trained, fits):
    source = FakeSlices()
    source.summary = {"spacing_mm": spacing}
    metadata = tiny_metadata()
    metadata["contract"]["data"]["pixel_size_mm"] = trained
    inpainter = Inpainter(tiny_params(metadata), metadata, 4, "runs/tiny")
    if fits:
        assert len(SliceReader(inpainter, source).read([0])) == 1
    else:
        with pytest.raises(ValueError, match="trained with pixels of"):
            SliceReader(inpainter, source)


def test_without_patients_every_subject_is_one():
    slices = make_slices(np.zeros((2, 4, 4, 1)), np.zeros((2, 4, 4), np.uint8))
    assert slices.patients.tolist() == slices.subjects.tolist() == ["subject_0", "subject_1"]

"""Slices of a dataset: whose they are."""

import numpy as np
from fake_slices import FakeSlices
from resynthesized_slices import make_slices
from tiny_inpainter import tiny_inpainter

from mbti_jax.evaluation.slices import LabeledSlices, SliceReader


def test_timepoints_of_a_patient_are_subjects_of_one_patient():
    source = FakeSlices()
    source.index.patient = np.repeat(["p", "q"], [8, 4])
    slices = SliceReader(tiny_inpainter(), source).read([0, 5, 9])
    assert slices.subjects.tolist() == ["subject_0", "subject_1", "subject_2"]
    assert slices.patients.tolist() == ["p", "p", "q"]
    assert slices[np.array([2, 0])].patients.tolist() == ["q", "p"]
    both = LabeledSlices.concatenate([slices, slices])
    assert both.patients.tolist() == 2 * ["p", "p", "q"]


def test_without_patients_every_subject_is_one():
    slices = make_slices(np.zeros((2, 4, 4, 1)), np.zeros((2, 4, 4), np.uint8))
    assert slices.patients.tolist() == slices.subjects.tolist() == ["subject_0", "subject_1"]

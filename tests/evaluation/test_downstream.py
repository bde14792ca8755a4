"""Downstream use: the synthetic training set, its labels, and the summary of seeds and slices."""

import json
import re

import numpy as np
import pytest
from evaluation_workbench import make_workbench

from mbti_jax.evaluation import downstream
from mbti_jax.evaluation.downstream import SETS, DownstreamSettings, summarize
from mbti_jax.evaluation.segmenter import SegmenterSettings
from mbti_jax.evaluation.statistics import bootstrap_interval
from mbti_jax.rois.kinds import COMPONENTS

SETTINGS = DownstreamSettings(
    num_slices=6,
    num_steps=1,
    num_seeds=2,
    num_test_slices=3,
    min_area=2,
    min_brain_area=50,
    segmenter=SegmenterSettings(model_channels=8, num_steps=1, batch_size=2, learning_rate=1e-3),
)


@pytest.fixture(scope="module")
def workbench(tmp_path_factory):
    return make_workbench(tmp_path_factory.mktemp("workbench"), label_head=True)


def test_synthetic_slices_are_training_slices_painted_after_their_labels(workbench):
    found = downstream.synthetic_slices(workbench, SETTINGS)
    assert set(found.subjects) <= set(workbench.patients("train"))
    with_tumor = workbench.slices("train", 2, with_tumor=True)
    own, removed = found[:2], found[-2:]
    for part in (own, removed):
        changed = (part.images != with_tumor.images).any(-1)
        np.testing.assert_array_equal(changed, with_tumor.labels > 0)
    np.testing.assert_array_equal(own.labels, with_tumor.labels)
    assert not removed.labels.any()
    transplanted = found[2:-2]
    hosts = workbench.slices("train", 2, with_tumor=False, min_area=50)
    for n, image in enumerate(transplanted.images):
        host = hosts.images[hosts.slice_indices == transplanted.slice_indices[n]]
        differs = (image != host).any(-1)
        assert (differs == (transplanted.labels[n] > 0)).all((-1, -2)).any()


def test_means_over_seeds_and_slices():
    patients = np.array(["a", "a", "b", "c", "d"])
    real = np.array([[0.4, np.nan, 0.6, 0.8, 0.8], [0.6, np.nan, 0.8, 1.0, 0.8]])
    found = summarize({"real": real, "synthetic": real - 0.2, "mixed": real}, patients, seed=0)
    assert found["real"]["mean"] == pytest.approx(0.725)
    expected = bootstrap_interval(np.array([0.5, 0.7, 0.9, 0.8]), np.array(list("abcd")), 0)
    assert (found["real"]["low"], found["real"]["high"]) == pytest.approx(expected)
    assert expected[0] < 0.725 < expected[1]
    assert found["real"]["seed_sd"] == pytest.approx(np.std([0.65, 0.8], ddof=1))
    for end in ("mean", "low", "high"):
        assert found["synthetic - real"][end] == pytest.approx(-0.2)
        assert found["mixed - real"][end] == 0


def test_one_seed_has_no_spread_and_no_slice_no_mean():
    dice = {name: np.array([[0.5, 0.7]]) for name in SETS}
    assert summarize(dice, np.array(["a", "b"]), seed=0)["mixed"]["seed_sd"] is None
    none = {name: np.array([[np.nan, np.nan]]) for name in SETS}
    assert set(summarize(none, np.array(["a", "b"]), seed=0).values()) == {None}


def test_the_part_trains_on_every_set(workbench, tmp_path):
    result = downstream.run(workbench, SETTINGS, tmp_path)
    result = json.loads(json.dumps(result, allow_nan=False))
    sizes = {name: size["slices"] for name, size in result["training_slices"].items()}
    assert sizes["real"] == 6
    assert sizes["mixed"] == sizes["real"] + sizes["synthetic"]
    assert [*sizes] == [*SETS, "boxes"]
    text = downstream.tables(result)
    assert "boxes - synthetic" in text
    for sequence in workbench.sequences:
        assert len(re.findall(rf"^\| {sequence} ", text, re.MULTILINE)) == len(COMPONENTS)
    # Four sets, four sequences, two seeds.
    assert len(list(workbench.folder.glob("segmenter-*"))) == 32


def test_overlapping_splits_are_refused(workbench, tmp_path, monkeypatch):
    patients = workbench.patients
    monkeypatch.setattr(workbench, "patients", lambda split: patients("test"))
    with pytest.raises(ValueError, match="trained on them"):
        downstream.run(workbench, SETTINGS, tmp_path)


def test_sets_of_boxes_are_labeled_by_what_the_model_returns(workbench):
    plain = downstream.synthetic_slices(workbench, SETTINGS)
    boxes = downstream.synthetic_slices(workbench, SETTINGS, boxes=True)
    # A third each; of the first the tumor's box is repainted, and labeled by the network.
    with_tumor = workbench.slices("train", 2, with_tumor=True)
    changed = (boxes.images[:2] != with_tumor.images).any(-1)
    assert changed.any()
    np.testing.assert_array_equal(boxes.labels[:2][~changed], with_tumor.labels[~changed])
    assert (boxes.labels[:2] != with_tumor.labels).any()
    np.testing.assert_array_equal(plain.labels[:2], with_tumor.labels)
    dice = {name: np.array([[0.5, 0.7]]) for name in (*SETS, "boxes")}
    dice["boxes"] = dice["boxes"] + 0.1
    found = summarize(dice, np.array(["a", "b"]), seed=0)
    assert found["boxes - synthetic"]["mean"] == pytest.approx(0.1)

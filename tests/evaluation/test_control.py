"""Tumor control: tasks, their scores on constructed label maps, and the part as a whole."""

import dataclasses
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_workbench import TINY_SEGMENTER, make_workbench
from matplotlib.image import imread
from resynthesized_slices import make_slices
from scipy import ndimage

from mbti_jax.evaluation import control
from mbti_jax.evaluation.control import ControlSettings, compare
from mbti_jax.evaluation.control_tasks import (
    KINDS,
    false_positives,
    make_control_task,
    transplant,
)
from mbti_jax.rois.kinds import COMPONENTS
from mbti_jax.rois.regions import CLASS_BOX, CLASS_EMPTY, CLASS_FREE_FORM

SIZE = 32
SETTINGS = ControlSettings(
    num_slices=4, num_steps=2, min_area=2, min_brain_area=100, segmenter=TINY_SEGMENTER
)


def _labels():
    """A tumor in rows 8 to 15 and columns 6 to 17: edema around enhancement around core."""
    labels = np.zeros((1, SIZE, SIZE), np.uint8)
    labels[0, 8:16, 6:18] = 2
    labels[0, 10:14, 8:14] = 3
    labels[0, 11:13, 9:12] = 1
    return labels


def _slices(labels):
    images = np.full((*labels.shape, 2), -1, np.float32)
    images[:, 2:-2, 2:-2] = 0
    return make_slices(images, labels)


def _task(kind, min_area=1):
    labels = _labels()
    return make_control_task(kind, _slices(labels), labels, min_area)


def test_tasks_ask_for_the_tumor():
    labels = _labels()[0]
    masks = {kind: _task(kind).condition.roi_masks[0] for kind in KINDS}
    for channel in (1, 2, 3):
        np.testing.assert_array_equal(masks["components"][..., channel], labels == channel)
    np.testing.assert_array_equal(masks["removal"][..., 0], labels > 0)
    assert masks["tumor_box"][..., 4].sum() == masks["edema_box"][..., 2].sum() == 8 * 12
    empty, free, box = CLASS_EMPTY, CLASS_FREE_FORM, CLASS_BOX
    vectors = {kind: _task(kind).condition.class_vector[0].tolist() for kind in KINDS}
    assert vectors == {
        "components": [empty, free, free, free, empty],
        "tumor_box": [empty, empty, empty, empty, box],
        "edema_box": [empty, free, box, free, empty],
        "removal": [free, empty, empty, empty, empty],
    }


def test_slices_without_what_is_needed_are_left_out():
    labels = np.concatenate([_labels(), np.where(_labels() == 2, 1, 0).astype(np.uint8)])
    labels = np.concatenate([labels, np.full_like(labels[:1], 4)])  # A cavity is no tumor.
    assert len(make_control_task("components", _slices(labels), labels, 1).slices) == 2
    assert len(make_control_task("edema_box", _slices(labels), labels, 1).slices) == 1
    # The core has 6 pixels, the edema 72.
    assert len(make_control_task("components", _slices(labels), labels, 72).slices) == 2
    with pytest.raises(ValueError, match="no slice holds"):
        make_control_task("edema_box", _slices(labels), labels, 73)
    with pytest.raises(ValueError, match="use more slices"):
        make_control_task("removal", _slices(labels[2:]), labels[2:], 1)
    with pytest.raises(ValueError, match="unknown kind"):
        make_control_task("enlarge", _slices(labels), labels, 1)


def test_a_perfect_painter():
    found = _labels()
    for name, value in _task("components").score(found).items():
        assert value == 1, name
    for kind in ("tumor_box", "edema_box"):
        assert _task(kind).score(found) == {"iou": 1, "share": 1}
    assert _task("removal").score(np.zeros_like(found))["share"] == 0
    assert _task("removal").score(found)["share"] == 1


def test_a_removal_with_a_margin_is_scored_where_the_tumor_was():
    task = _task("removal").with_margin(1.5)
    # 3 mm around the tumor, in the brain: two pixels along the axes, and one diagonally (2.1 mm).
    roi = ndimage.distance_transform_edt(_labels()[0] == 0) * 1.5 <= 3
    np.testing.assert_array_equal(task.condition.roi_masks[0, ..., 0], roi)
    assert roi.sum() > (_labels() > 0).sum()
    rim = (roi & (_labels()[0] == 0))[None].astype(np.uint8)
    assert task.score(rim)["share"] == 0
    assert task.score(_labels())["share"] == 1


def test_a_painter_that_is_off_by_two_columns():
    found = np.roll(_labels(), 2, axis=2)
    scores = _task("components").score(found)
    # Core 2 x 3; enhancement 4 x 6 without it; edema 8 x 12 without 4 x 6. Shared: core 2 x 1;
    # enhancement 4 x 4 without the 2 x 4 of either core; edema 8 x 10 without both rectangles' 4 x 8.
    assert scores["necrotic_core"] == pytest.approx(2 * 2 / 12)
    assert scores["enhancement"] == pytest.approx(2 * (16 - 8) / 36)
    assert scores["edema"] == pytest.approx(2 * (80 - 32) / 144)
    for kind in ("tumor_box", "edema_box"):
        # 8 x 10 shared of 8 x 14; of the requested 8 x 12, 8 x 10 are tumor.
        scores = _task(kind).score(found)
        assert scores["iou"] == pytest.approx(80 / 112)
        assert scores["share"] == pytest.approx(80 / 96)


def test_a_painter_that_paints_nothing():
    nothing = np.zeros_like(_labels())
    for name in COMPONENTS:
        assert _task("components").score(nothing)[name] == 0
    assert _task("tumor_box").score(nothing) == {"iou": 0, "share": 0}


def test_the_edemas_box_is_that_of_edema():
    only_core = np.where(_labels() > 0, 1, 0).astype(np.uint8)
    assert _task("edema_box").score(only_core) == {"iou": 0, "share": 1}
    assert _task("tumor_box").score(only_core) == {"iou": 1, "share": 1}


def test_small_components_are_not_scored():
    scores = _task("components", 7).score(_labels())
    assert np.isnan(scores["necrotic_core"])  # Of 6 pixels.
    assert scores["enhancement"] == 1


def test_transplanted_tumors_lie_in_the_brain():
    labels = np.repeat(_labels(), 2, 0)
    labels[1] = 0
    hosts = _slices(np.zeros((3, SIZE, SIZE), np.uint8))
    hosts.images[1, :, 8:] = -1  # Too narrow for the tumor.
    found, transplanted = transplant(labels, hosts, seed=0)
    assert found.slice_indices.tolist() == [0, 2]
    for n, label_map in enumerate(transplanted):
        assert not label_map[~found.brain[n]].any()
        assert np.count_nonzero(label_map) >= 0.9 * 96
    again = transplant(labels, hosts, seed=0)[1]
    np.testing.assert_array_equal(transplanted, again)
    with pytest.raises(ValueError, match="no tumor fits"):
        transplant(labels[1:], hosts, seed=0)


def test_scores_compared_with_real_ones():
    patients = np.array(["a", "a", "b", "b", "c", "d"])
    painted = np.array([0.2, np.nan, 0.4, 0.6, 0.5, 0.3])
    real = np.array([0.8, 0.6, np.nan, 1.0, 0.9, 0.7])
    found = compare((painted, patients), (real, patients), seed=0)
    assert found["painted"]["mean"] == pytest.approx(0.4) and found["painted"]["count"] == 5
    assert found["real"]["mean"] == pytest.approx(0.8)
    assert found["ratio"]["mean"] == pytest.approx(0.5)
    assert found["ratio"]["low"] < 0.5 < found["ratio"]["high"]
    # Two patients show too little for an interval, and still a ratio.
    found = compare((painted[:4], patients[:4]), (real[:4], patients[:4]), seed=0)
    assert found["ratio"] == pytest.approx({"mean": 0.5, "low": None, "high": None})


def test_no_ratio_to_what_a_sequence_does_not_show():
    subjects, low = np.array(["a", "b"]), np.array([0.1, 0.2])
    assert compare((np.array([0.9, 0.9]), subjects), (low, subjects), seed=0)["ratio"] is None
    found = compare((np.array([np.nan, np.nan]), subjects), (low, subjects), seed=0)
    assert found["painted"] is None and found["ratio"] is None


def test_a_segmenter_that_marks_everything_controls_nothing(tmp_path, monkeypatch):
    """Every share is 1, before and after: no ratio says so, and its false positives are shown."""
    workbench = make_workbench(tmp_path)
    (tmp_path / "control").mkdir()
    everything = SimpleNamespace(labels=lambda images: np.ones(images.shape, np.uint8))
    monkeypatch.setattr(
        control.segmenter,
        "real_segmenters",
        lambda *_: dict.fromkeys(workbench.sequences, everything),
    )
    drawn, repaint = [], workbench.repaint

    def seen(slices, condition, sampling, **options):
        drawn.append(workbench.inpainter.resolve(sampling.of_single_slices))
        return repaint(slices, condition, sampling, **options)

    monkeypatch.setattr(workbench, "repaint", seen)
    # A sample near the mean takes more steps than one; the preset has its own number.
    settings = dataclasses.replace(SETTINGS, num_steps=1)
    result = control.run(workbench, settings, tmp_path / "control")
    # Slices of several subjects share no noise.
    assert {sampling.z_sigma_mm for sampling in drawn} == {0.0}
    assert {sampling.estimate for sampling in drawn} == {"sample", "near_mean"}
    result = json.loads(json.dumps(result, allow_nan=False))
    for row in result["scores"]:
        if row["kind"] != "components":
            assert row["tumor_dice"]["mean"] < 0.3
            assert row["ratio"] is None
        if row["score"] == "share":
            assert row["real"]["mean"] == row["painted"]["mean"] == 1
    shares = {(roi["kind"], roi["place"]): roi["on_background"] for roi in result["rois"]}
    assert len(shares) == 8 and shares["components", "elsewhere"] == 0
    for place in ("outside", "without"):
        for marked in result["false_positives"][place].values():
            assert marked["mean"] == 1
    text = control.tables(result)
    removal = text.split("### Removal")[1]
    for sequence in workbench.sequences:
        (line,) = re.findall(rf"^\| {sequence} .*$", removal, re.MULTILINE)
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[3:] == ["1.00", "1.00", "1.00", "1.00", "-", "1.00", "-"]


def test_false_positives_by_hand():
    labels = np.concatenate([_labels(), 0 * _labels(), np.full_like(_labels(), 2)])
    slices = _slices(labels)
    marked = np.zeros_like(labels)
    marked[:, 8:10] = 1
    found = false_positives(marked, slices)
    # The brain is 28 pixels wide; 12 of each of the two rows are tumor in the first slice.
    np.testing.assert_allclose(found[:2], [2 * (28 - 12) / (28**2 - 96), 2 * 28 / 28**2])
    assert np.isnan(found[2])


def test_ratios_of_what_marking_everything_gets_right_need_a_dice():
    patients, ones = np.array(list("abcd")), np.ones(4)
    for dice, expected in ((0.4, {"mean": 1.0, "low": 1.0, "high": 1.0}), (0.2, None)):
        found = compare((ones, patients), (ones, patients), 0, (dice * ones, patients))
        assert found["ratio"] == expected
        assert found["tumor_dice"]["mean"] == pytest.approx(dice)


def test_the_part_measures_every_task_and_draws_it(tmp_path):
    workbench = make_workbench(tmp_path)
    (tmp_path / "control").mkdir()
    result = control.run(workbench, SETTINGS, tmp_path / "control")
    result = json.loads(json.dumps(result, allow_nan=False))
    places = {(row["kind"], row["place"]) for row in result["scores"]}
    expected = {(k, p) for k in KINDS for p in ("own", "elsewhere")}
    assert places == expected - {("removal", "elsewhere")} | {("removal", "preset")}
    text = control.tables(result)
    # 3 components, 2 kinds of boxes with 2 scores, removal.
    for sequence in workbench.sequences:
        assert len(re.findall(rf"^\| {sequence} ", text, re.MULTILINE)) == 3 + 4 + 1
    links = re.findall(r"\]\((.*?)\)", text)
    assert len(links) == 8
    for link in links:
        assert imread(tmp_path / link).shape[-1] >= 3

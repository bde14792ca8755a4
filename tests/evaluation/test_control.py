"""Tumour control: requests, their scores on constructed label maps, and the part as a whole."""

import json
import re

import numpy as np
import pytest
from evaluation_setting import make_setting
from matplotlib.image import imread
from ml_collections import ConfigDict
from repainted_slices import make_slices

from mbti_jax.evaluation import control
from mbti_jax.evaluation.control import compare
from mbti_jax.evaluation.requests import KINDS, borrow, make_request, measure
from mbti_jax.rois.kinds import COMPONENTS
from mbti_jax.rois.tasks import CLASS_BOX, CLASS_EMPTY, CLASS_FREE_FORM

SIZE = 32
SETTINGS = {
    **{"num_slices": 4, "num_steps": 2, "least_area": 2, "least_brain": 100},
    "segmenter": {
        **{"num_slices": 6, "seed": 0, "model_channels": 8},
        **{"num_steps": 1, "batch_size": 2, "learning_rate": 1e-3},
    },
}


def _labels():
    """A tumour in rows 8 to 15 and columns 6 to 17: edema around enhancement around core."""
    labels = np.zeros((1, SIZE, SIZE), np.uint8)
    labels[0, 8:16, 6:18] = 2
    labels[0, 10:14, 8:14] = 3
    labels[0, 11:13, 9:12] = 1
    return labels


def _slices(labels):
    images = np.full((*labels.shape, 2), -1, np.float32)
    images[:, 2:-2, 2:-2] = 0
    return make_slices(images, labels)


def _request(kind):
    labels = _labels()
    return make_request(kind, _slices(labels), labels, 1)


def test_requests_ask_for_the_tumour():
    labels = _labels()[0]
    masks = {kind: _request(kind).tasks.roi_masks[0] for kind in KINDS}
    for channel in (1, 2, 3):
        np.testing.assert_array_equal(masks["components"][..., channel], labels == channel)
    np.testing.assert_array_equal(masks["removal"][..., 0], labels > 0)
    assert masks["tumor_box"][..., 4].sum() == masks["edema_box"][..., 2].sum() == 8 * 12
    empty, free, box = CLASS_EMPTY, CLASS_FREE_FORM, CLASS_BOX
    vectors = {kind: _request(kind).tasks.class_vectors[0].tolist() for kind in KINDS}
    assert vectors == {
        "components": [empty, free, free, free, empty],
        "tumor_box": [empty, empty, empty, empty, box],
        "edema_box": [empty, free, box, free, empty],
        "removal": [free, empty, empty, empty, empty],
    }


def test_slices_without_what_is_needed_are_left_out():
    labels = np.concatenate([_labels(), np.where(_labels() == 2, 1, 0).astype(np.uint8)])
    labels = np.concatenate([labels, np.full_like(labels[:1], 4)])  # A cavity is no tumour.
    assert len(make_request("components", _slices(labels), labels, 1).slices) == 2
    assert len(make_request("edema_box", _slices(labels), labels, 1).slices) == 1
    # The core has 6 pixels, the edema 72.
    assert len(make_request("components", _slices(labels), labels, 72).slices) == 2
    with pytest.raises(ValueError, match="no slice holds"):
        make_request("edema_box", _slices(labels), labels, 73)
    with pytest.raises(ValueError, match="use more slices"):
        make_request("removal", _slices(labels[2:]), labels[2:], 1)
    with pytest.raises(ValueError, match="unknown kind"):
        make_request("enlarge", _slices(labels), labels, 1)


def test_a_perfect_painter():
    found = _labels()
    for name, value in measure(_request("components"), found, 1).items():
        assert value == 1, name
    for kind in ("tumor_box", "edema_box"):
        assert measure(_request(kind), found, 1) == {"iou": 1, "share": 1}
    assert measure(_request("removal"), np.zeros_like(found), 1)["share"] == 0
    assert measure(_request("removal"), found, 1)["share"] == 1


def test_a_painter_that_is_off_by_two_columns():
    found = np.roll(_labels(), 2, axis=2)
    scores = measure(_request("components"), found, 1)
    # Core 2 x 3; enhancement 4 x 6 without it; edema 8 x 12 without 4 x 6. Shared: core 2 x 1;
    # enhancement 4 x 4 without the 2 x 4 of either core; edema 8 x 10 without both rectangles' 4 x 8.
    assert scores["necrotic_core"] == pytest.approx(2 * 2 / 12)
    assert scores["enhancement"] == pytest.approx(2 * (16 - 8) / 36)
    assert scores["edema"] == pytest.approx(2 * (80 - 32) / 144)
    for kind in ("tumor_box", "edema_box"):
        # 8 x 10 shared of 8 x 14; of the requested 8 x 12, 8 x 10 are tumour.
        scores = measure(_request(kind), found, 1)
        assert scores["iou"] == pytest.approx(80 / 112)
        assert scores["share"] == pytest.approx(80 / 96)


def test_a_painter_that_paints_nothing():
    nothing = np.zeros_like(_labels())
    for name in COMPONENTS:
        assert measure(_request("components"), nothing, 1)[name] == 0
    assert measure(_request("tumor_box"), nothing, 1) == {"iou": 0, "share": 0}


def test_the_edemas_box_is_that_of_edema():
    only_core = np.where(_labels() > 0, 1, 0).astype(np.uint8)
    assert measure(_request("edema_box"), only_core, 1) == {"iou": 0, "share": 1}
    assert measure(_request("tumor_box"), only_core, 1) == {"iou": 1, "share": 1}


def test_small_components_are_not_scored():
    scores = measure(_request("components"), _labels(), 7)
    assert np.isnan(scores["necrotic_core"])  # Of 6 pixels.
    assert scores["enhancement"] == 1


def test_borrowed_tumours_lie_in_the_brain():
    labels = np.repeat(_labels(), 2, 0)
    labels[1] = 0
    hosts = _slices(np.zeros((3, SIZE, SIZE), np.uint8))
    hosts.images[1, :, 8:] = -1  # Too narrow for the tumour.
    found, borrowed = borrow(labels, hosts, seed=0)
    assert found.slice_indices.tolist() == [0, 2]
    for n, label_map in enumerate(borrowed):
        assert not label_map[~found.brain[n]].any()
        assert np.count_nonzero(label_map) >= 0.9 * 96
    again = borrow(labels, hosts, seed=0)[1]
    np.testing.assert_array_equal(borrowed, again)
    with pytest.raises(ValueError, match="no tumour fits"):
        borrow(labels[1:], hosts, seed=0)


def test_scores_beside_real_ones():
    subjects = np.array(["a", "a", "b", "b"])
    painted, real = np.array([0.2, np.nan, 0.4, 0.6]), np.array([0.8, 0.6, np.nan, 1.0])
    found = compare(painted, real, subjects, subjects, seed=0)
    assert found["painted"]["mean"] == pytest.approx(0.4) and found["painted"]["count"] == 3
    assert found["real"]["mean"] == pytest.approx(0.8)
    assert found["ratio"]["mean"] == pytest.approx(0.5)
    # Of subject a alone, and of b alone.
    assert found["ratio"]["low"] == pytest.approx(0.2 / 0.7)
    assert found["ratio"]["high"] == pytest.approx(0.5)


def test_no_ratio_to_what_a_sequence_does_not_show():
    subjects, low = np.array(["a", "b"]), np.array([0.1, 0.2])
    assert compare(np.array([0.9, 0.9]), low, subjects, subjects, seed=0)["ratio"] is None
    found = compare(np.array([np.nan, np.nan]), low, subjects, subjects, seed=0)
    assert found["painted"] is None and found["ratio"] is None


def test_the_part_measures_every_request_and_draws_it(tmp_path):
    setting = make_setting(tmp_path)
    (tmp_path / "control").mkdir()
    result = control.run(setting, ConfigDict(SETTINGS), tmp_path / "control")
    result = json.loads(json.dumps(result, allow_nan=False))
    places = {(row["kind"], row["place"]) for row in result["scores"]}
    assert places == {(k, p) for k in KINDS for p in ("own", "elsewhere")} - {
        ("removal", "elsewhere")
    }
    text = control.tables(result)
    # 3 components, 2 kinds of boxes with 2 scores, removal.
    for sequence in setting.sequences:
        assert len(re.findall(rf"^\| {sequence} ", text, re.MULTILINE)) == 3 + 4 + 1
    links = re.findall(r"\]\((.*?)\)", text)
    assert len(links) == 7
    for link in links:
        assert imread(tmp_path / link).shape[-1] >= 3

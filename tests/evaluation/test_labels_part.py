"""The part "labels": scores on constructed label maps, calibration, and the part as a whole."""

import json

import numpy as np
import pytest
from evaluation_workbench import TINY_SEGMENTER, make_workbench
from labeling_inpainter import THRESHOLDS, labeling_inpainter
from matplotlib.image import imread
from resynthesized_slices import make_condition, make_slices

from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation import labels as part
from mbti_jax.inference.inpainted import Samples

SETTINGS = part.LabelsSettings(num_slices=3, num_steps=2, min_area=2, segmenter=TINY_SEGMENTER)


def square(value: int, top: int = 4, size: int = 6) -> np.ndarray:
    labels = np.zeros((1, 16, 16), np.uint8)
    labels[0, top : top + size, 5 : 5 + size] = value
    return labels


def test_returned_labels_are_painted_inside_and_kept_outside():
    own = square(4, top=1, size=3) + square(1, top=10, size=2)
    probabilities = np.eye(4, dtype=np.float32)[square(2)][None]
    condition = make_condition(square(1) > 0, box=("tumor",))
    slices = make_slices(np.zeros((1, 16, 16, 1), np.float32), own)
    found = part.returned_labels(Samples(slices.images[None], probabilities), condition, slices)
    np.testing.assert_array_equal(found, np.where(square(1) > 0, 2, own))
    with pytest.raises(ValueError, match="no label head"):
        part.returned_labels(Samples(slices.images[None], None), condition, slices)


def test_dice_counts_inside_the_roi_alone():
    roi = square(1) > 0
    truth, found = square(2), square(2, top=7)
    # Three of six rows are shared; below the ROI nothing counts.
    (score,) = part.component_dice(found, truth, 2, roi, min_area=36)
    assert score == pytest.approx(2 * 18 / (36 + 18))
    assert np.isnan(part.component_dice(found, truth, 2, roi, min_area=37)[0])


def test_a_box_is_touched_on_all_sides_or_not():
    box = square(1) > 0
    whole, cross = square(3), np.zeros_like(square(0))
    cross[0, 6, 5:11] = cross[0, 4:10, 7] = 2
    short = cross.copy()
    short[0, 9, 7] = 0
    maps = np.concatenate([whole, cross, short])
    masks = np.concatenate([make_condition(box, "tumor", ("tumor",)).roi_masks] * 3)
    classes = np.array([[1, 1, 1, 1, 3]] * 3, np.float32)
    touched, patients = part.touches_boxes(
        maps, Condition(masks, classes), np.array(["a", "b", "b"])
    )
    np.testing.assert_array_equal(touched, [1, 1, 0])
    assert patients.tolist() == ["a", "b", "b"]
    # In a box of edema only edema counts; boxes of normal tissue and free-form ROIs are none.
    edema = Condition(np.roll(masks, -2, axis=-1), np.array([[1, 1, 3, 1, 1]] * 3, np.float32))
    np.testing.assert_array_equal(part.touches_boxes(maps, edema, patients)[0], [0, 1, 0])
    normal = make_condition(box, "normal", ("normal",))
    assert not len(part.touches_boxes(whole, normal, np.array(["a"]))[0])


def test_agreement_with_the_request():
    inside = np.repeat(square(1) > 0, 2, axis=0)
    condition = make_condition(inside, "edema")
    found = np.concatenate([square(2), square(2, size=3)])
    np.testing.assert_allclose(part.agreement_with_request(found, condition), [1, 9 / 36])
    boxed = make_condition(inside, "edema", ("edema",))
    assert np.isnan(part.agreement_with_request(found, boxed)).all()


def test_reliability_of_a_model_that_says_how_often_it_is_right():
    """Drawn from its own probabilities only counting errs; sharpened ones are overconfident."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(4), 20_000)
    truth = (shares.cumsum(-1) > rng.random((len(shares), 1))).argmax(-1)
    honest = part.reliability(shares, truth)
    assert honest["ece"] < 0.015 and sum(b["pixels"] for b in honest["bins"]) == 20_000
    sharp = shares**3 / (shares**3).sum(-1, keepdims=True)
    found = part.reliability(sharp, truth)
    # Guo et al. 2017, equation 3, in a loop.
    confidence, right = sharp.max(-1), sharp.argmax(-1) == truth
    expected = 0.0
    for b in range(10):
        inside = (confidence >= b / 10) & (confidence < (b + 1) / 10 + (b == 9))
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert found["ece"] == pytest.approx(expected) and found["ece"] > 0.1
    # A cavity is none of the labels.
    left_out = part.reliability(np.r_[sharp, sharp[:5]], np.r_[truth, [4] * 5])
    assert left_out == found
    assert part.reliability(sharp[:0], truth[:0])["ece"] is None


def test_the_part_as_a_whole(tmp_path):
    workbench = make_workbench(tmp_path / "bench", label_head=True)
    result = part.run(workbench, SETTINGS, tmp_path)
    result = json.loads(json.dumps(result, allow_nan=False))
    assert len(result["scores"]) == 4 * 4 * 3
    assert [*result["boxes_touched"]] == ["components_box", "tumor_box"]
    assert [*result["calibration"]] == ["components_box", "tumor", "tumor_box"]
    assert 0 <= result["equal_to_request"]["mean"] <= 1
    text = part.tables(result)
    assert text.startswith("## Label maps") and "{" not in text
    for name in result["pictures"]:
        assert imread(tmp_path / name).ndim == 3
        assert f"labels/{name}" in text


def test_labels_of_real_slices_see_them_as_the_last_evaluation_does(tmp_path):
    """Without noise inside the ROI nothing but the network's answer to the slice is left."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (5, 16, 16, 1)).astype(np.float32)
    condition = make_condition(np.ones((5, 16, 16), bool))
    shares = labeling_inpainter().labels_of(images, condition, Sampling(spacing=(999, 0)))
    assert shares.shape == (5, 16, 16, 4)
    # At t = 0 a hundredth of noise is in it.
    painted = 0.9 * np.sin(7 * images[..., 0])
    expected = np.digitize(painted, THRESHOLDS)
    assert (shares.argmax(-1) == expected).mean() > 0.85

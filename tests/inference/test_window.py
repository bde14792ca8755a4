"""Window, resizing and pasting back, against OpenCV, scikit-image and closed forms."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbti_jax.inference.window import Window
from mbti_jax.rois.kinds import CHANNELS
from mbti_jax.rois.regions import Rois
from tfds_brats.scale import IntensityScale
from tfds_brats.slices import bounding_box

UNIT = [IntensityScale(0.0, 2.0)]  # model = value - 1


def place(shape, brain_box, roi_box=None, window=32, image_size=16, pixel_size=(1.0, 1.0)):
    roi_box = brain_box if roi_box is None else roi_box
    return Window.place(
        shape, brain_box, roi_box, window=window, image_size=image_size, pixel_size=pixel_size
    )


@given(st.tuples(*[st.integers(1, 90)] * 2), st.data(), st.sampled_from([0.5, 1.0, 1.7]))
def test_window_holds_brain_and_roi(shape, data, pixel):
    def box():
        (y0, y1), (x0, x1) = (
            sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True)))
            for n in shape
        )
        return y0, x0, y1, x1

    brain, roi = box(), box()
    window = place(shape, brain, roi, pixel_size=(pixel, pixel))
    # All of the ROI; all of the brain unless the window was already too small to need it.
    assert window.rows.start <= roi[0] and roi[2] <= window.rows.stop
    assert window.columns.start <= roi[1] and roi[3] <= window.columns.stop
    assert window.rows.start <= brain[0] and brain[2] <= window.rows.stop
    assert len(window.rows) == len(window.columns) >= round(32 / pixel)


def test_window_is_that_of_training():
    # 240 pixels, brain 20 ... 200 and 50 ... 190: centered at 110 and 120.
    window = place((240, 240), (20, 50, 200, 190), window=192, image_size=64)
    assert (window.rows, window.columns) == (range(14, 206), range(24, 216))
    # Smaller than the window: padded on both sides.
    window = place((240, 240), (20, 50, 200, 190), window=256, image_size=256)
    assert (window.rows, window.columns) == (range(-8, 248), range(-8, 248))
    # Half-millimeter pixels: twice as many.
    window = place(
        (480, 480), (40, 100, 400, 380), window=192, image_size=64, pixel_size=(0.5,) * 2
    )
    assert (window.rows, window.columns) == (range(28, 412), range(48, 432))


def test_an_image_larger_than_the_window_is_shown_whole():
    window = place((500, 300), (50, 30, 450, 270), window=192, image_size=64)
    assert len(window.rows) == len(window.columns) == 400
    assert window.rows == range(50, 450)


def test_area_averages_into_the_model_and_keeps_background_exact():
    rng = np.random.default_rng(0)
    values = np.zeros((40, 36, 1))
    values[8:30, 6:28] = rng.uniform(0.5, 3, (22, 22, 1))
    window = place((40, 36), (8, 6, 30, 28))
    image = window.to_model(values, values[..., 0] != 0, UNIT)
    cut = values[window.rows.start : window.rows.stop, window.columns.start : window.columns.stop]
    expected = cv2.resize(cut.astype(np.float32) - 1, (16, 16), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(image[..., 0], expected, atol=1e-5)
    assert (image[0] == -1).all()


@pytest.mark.parametrize("side", [32, 48, 37])
def test_comes_back_bilinearly(side):
    sample = np.random.default_rng(1).normal(size=(16, 16, 2)).astype(np.float32)
    window = place((side, side), (0, 0, side, side), window=side)
    expected = cv2.resize(sample, (side, side), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(window.to_slice(sample), expected, atol=1e-5)


def test_same_size_is_exact_both_ways():
    rng = np.random.default_rng(2)
    values = rng.integers(1, 1000, (16, 14, 1))
    window = place((16, 14), (0, 0, 16, 14), window=16)
    image = window.to_model(values, np.ones((16, 14), bool), UNIT)
    np.testing.assert_array_equal(window.to_slice(image)[..., 0], values[..., 0] - 1)


def test_a_coarser_slice_is_averaged_back():
    sample = np.random.default_rng(3).normal(size=(16, 16, 1)).astype(np.float32)
    window = place((8, 8), (0, 0, 8, 8), pixel_size=(4.0, 4.0))
    expected = sample.reshape(8, 2, 8, 2).mean((1, 3))
    np.testing.assert_allclose(window.to_slice(sample)[..., 0], expected, atol=1e-6)


@settings(deadline=None)  # The first example compiles.
@given(st.data())
def test_every_roi_pixel_is_replaced_and_none_is_seen(data):
    shape = (40, 36)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    masks = np.zeros((*shape, 5), bool)
    for channel in (1, 2, 3):
        y, x = rng.integers(4, 30, 2)
        masks[y : y + rng.integers(1, 9), x : x + rng.integers(1, 6), channel] = True
    masks[..., 2] &= ~masks[..., 1]
    masks[..., 3] &= ~masks[..., 1:3].any(-1)
    window = place(shape, (2, 2, 38, 34))
    values = np.where(masks.any(-1), 1e6, 2)[..., None]
    image = window.to_model(values, np.ones(shape, bool), UNIT)
    task = window.condition(Rois(masks))
    roi = task.roi_masks.any(-1)
    # What is left of the context shows nothing of the huge values inside the ROI.
    assert (image[~roi] <= 1).all()
    assert (task.roi_masks.sum(-1) <= 1).all()
    np.testing.assert_array_equal(task.class_vector == 2, masks.any((0, 1)))


def test_a_tiny_component_is_not_lost():
    masks = np.zeros((40, 36, 5), bool)
    masks[10:20, 10:20, 2] = True
    masks[14, 14, 2], masks[14, 14, 3] = False, True
    task = place((40, 36), (2, 2, 38, 34)).condition(Rois(masks))
    assert task.roi_masks[..., 3].sum() == 1
    assert task.class_vector.tolist() == [1, 1, 2, 2, 1]


def test_a_box_is_a_rectangle_in_the_model_too():
    masks = np.zeros((40, 36, 5), bool)
    masks[11:20, 13:18, CHANNELS.index("tumor")] = True
    task = place((40, 36), (2, 2, 38, 34)).condition(Rois(masks, ("tumor",)))
    assert task.class_vector.tolist() == [1, 1, 1, 1, 3]
    y0, x0, y1, x1 = bounding_box(task.roi_masks[..., 4] > 0)
    assert task.roi_masks.sum() == (y1 - y0) * (x1 - x0)


def test_probabilities_are_interpolated_among_roi_pixels_alone():
    """What a network says outside the ROI reaches no pixel of it; elsewhere it is interpolation."""
    window = place((40, 40), (4, 4, 36, 36))  # 32 pixels seen as 16.
    mask = np.zeros((40, 40), bool)
    mask[9:27, 10:29] = True
    masks = np.zeros((40, 40, len(CHANNELS)), bool)
    masks[..., CHANNELS.index("tumor")] = mask
    roi = window.condition(Rois(masks)).roi[..., 0]
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(4), (16, 16)).astype(np.float32)
    shares[~roi] = 1e6
    back = window.probabilities_to_slice(shares, roi)
    np.testing.assert_allclose(back[mask].sum(-1), 1, atol=1e-5)
    assert back[mask].max() < 1
    # Two pixels or more from the ROI's edge it is what OpenCV's resizing makes of it.
    expected = cv2.resize(shares, (32, 32), interpolation=cv2.INTER_LINEAR)
    inner = (slice(13, 23), slice(14, 25))
    cut = tuple(slice(s.start - 4, s.stop - 4) for s in inner)
    np.testing.assert_allclose(back[inner], expected[cut], atol=1e-5)
    assert back[0, 0].sum() == 0

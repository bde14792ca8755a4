"""Decoding against its formula, resizing against OpenCV and scikit-image."""

import cv2
import jax
import numpy as np
import pytest
from skimage.transform import downscale_local_mean

from mbti_jax.data.preprocess import area_resize, decode, nearest_resize


def _image(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_decode_is_linear_above_background():
    codes = np.array([[[0, 0], [1, 65535]], [[300, 0], [2, 40000]]], np.uint16)
    gain, bias = np.array([1e-3, 3e-5], np.float32), np.array([-1.2, -0.5], np.float32)
    image = np.asarray(decode(codes, gain, bias))
    assert image.dtype == np.float32
    for index in np.ndindex(codes.shape):
        c = index[-1]
        line = float(gain[c]) * float(codes[index]) + float(bias[c])
        assert image[index] == pytest.approx(-1 if codes[index] == 0 else line, rel=1e-6)
    assert (image[codes == 0] == -1).all()


@pytest.mark.parametrize("factors", [(2, 2), (4, 3), (1, 5)])
def test_area_resize_equals_block_means_at_integer_ratios(factors):
    image = _image((24, 30, 4))
    size = (24 // factors[0], 30 // factors[1])
    np.testing.assert_allclose(
        area_resize(image, size), downscale_local_mean(image, (*factors, 1)), atol=1e-6
    )


@pytest.mark.parametrize("shape, size", [((240, 240), (64, 64)), ((61, 47), (60, 20))])
def test_area_resize_equals_opencv_at_other_ratios(shape, size):
    image = _image((*shape, 3))
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(area_resize(image, size), expected, atol=2e-5)


def test_area_resize_enlarges_by_repetition():
    image = _image((5, 4, 2))
    expected = image.repeat(3, axis=0).repeat(2, axis=1)
    np.testing.assert_allclose(area_resize(image, (15, 8)), expected, atol=1e-6)


def test_area_resize_keeps_the_mean_and_the_size_it_has():
    image = _image((50, 37, 1))
    small = np.asarray(area_resize(image, (11, 13)), np.float64)
    assert small.mean() == pytest.approx(image.mean(dtype=np.float64), abs=1e-6)
    np.testing.assert_array_equal(area_resize(image, (50, 37)), image)


def test_background_stays_exactly_minus_one():
    image = np.full((70, 70, 2), -1, np.float32)
    image[30:40, 20:50] = _image((10, 30, 2))
    for size in ((64, 64), (23, 31), (90, 70)):
        small = np.asarray(area_resize(image, size))
        touched = cv2.resize(
            (image != -1).any(-1).astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA
        )
        if size[0] <= 70:  # OpenCV interpolates when it enlarges.
            np.testing.assert_array_equal((small != -1).any(-1), touched > 1e-6)
        assert (small[0] == -1).all() and (small[:, -1] == -1).all()


@pytest.mark.parametrize("shape, size", [((240, 240), (64, 64)), ((61, 47), (17, 90))])
def test_nearest_resize_takes_the_pixel_under_the_center(shape, size):
    labels = np.random.default_rng(0).integers(0, 5, shape).astype(np.uint8)
    small = np.asarray(nearest_resize(labels, size))
    assert small.dtype == np.uint8
    expected = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    np.testing.assert_array_equal(small, expected)


def test_resizing_works_vmapped_and_jitted():
    images = _image((3, 20, 20, 2))
    small = jax.jit(jax.vmap(lambda image: area_resize(image, (8, 8))))(images)
    for image, one in zip(images, small, strict=True):
        np.testing.assert_allclose(one, area_resize(image, (8, 8)), atol=1e-6)

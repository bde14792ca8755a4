"""Metrics against the official implementation's numbers, scikit-image, scikit-learn and closed forms."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import mean_absolute_error, mean_squared_error, mean_squared_log_error

from mbti_jax.evaluation.metrics import (
    axial_inpainting_metrics,
    axial_slice_metrics,
    brats_inpainting_metrics,
    masked_mae,
    masked_mse,
    psnr,
    ssim_map,
)


def test_parity_with_the_official_metrics(goldens):
    files = sorted(goldens.glob("brats_inpainting_metrics*.npz"))
    assert files, f"no brats_inpainting_metrics*.npz in {goldens}"
    for file in files:
        with np.load(file) as golden:
            for case in sorted({name.split("/")[0] for name in golden}):
                ours = brats_inpainting_metrics(
                    prediction=golden[f"{case}/prediction"],
                    target=golden[f"{case}/t1n"],
                    voided=golden[f"{case}/t1n_voided"],
                    mask=golden[f"{case}/mask_healthy"],
                )
                prefix = f"{case}/metric/"
                official = {
                    name.removeprefix(prefix): golden[name]
                    for name in golden
                    if name.startswith(prefix)
                }
                assert set(ours) == set(official), f"{file.name}, case {case}"
                for name, value in official.items():
                    assert ours[name] == pytest.approx(value.item(), rel=1e-4), (
                        f"{file.name}, case {case}, {name}"
                    )


def _case(seed=0, shape=(26, 28, 30)):
    """A positive volume with a mask in its middle, of which the voided one is the rest."""
    rng = np.random.default_rng(seed)
    target = rng.uniform(200, 900, shape)
    target[:3] = 0
    mask = np.zeros(shape, bool)
    mask[8:18, 9:20, 10:19] = rng.uniform(size=(10, 11, 9)) < 0.8
    return target, np.where(mask, 0, target), mask


def _scaled(volume, voided, mask):
    low, high = max(np.percentile(voided, 0.5), 0), np.percentile(voided, 99.5)
    return np.clip((volume[mask] - low) / (high - low), 0, 1)


def test_voxel_metrics_equal_scikit_learn_and_scikit_image():
    target, voided, mask = _case()
    prediction = target + np.random.default_rng(1).normal(0, 80, target.shape)
    ours = brats_inpainting_metrics(prediction, target, voided, mask)
    x, y = _scaled(prediction, voided, mask), _scaled(target, voided, mask)
    expected = {
        "mse": mean_squared_error(y, x),
        "rmse": mean_squared_error(y, x) ** 0.5,
        "msle": mean_squared_log_error(y, x),
        "mae": mean_absolute_error(y, x),
        "psnr": peak_signal_noise_ratio(y, x, data_range=y.max() - y.min()),
        "psnr_eps": peak_signal_noise_ratio(y, x, data_range=y.max() - y.min()),
        "psnr_01": peak_signal_noise_ratio(y, x, data_range=1),
        "psnr_01_eps": peak_signal_noise_ratio(y, x, data_range=1),
    }
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, rel=1e-9), name
    axial = axial_inpainting_metrics(prediction, target, voided, mask)
    assert {name: axial[name] for name in expected} == {name: ours[name] for name in expected}
    assert set(axial) - set(expected) == {"ssim_axial"}


@pytest.mark.parametrize(
    "metrics, name, across",
    [(brats_inpainting_metrics, "ssim", 0), (axial_inpainting_metrics, "ssim_axial", 2)],
)
def test_ssim_equals_scikit_image_in_every_plane(metrics, name, across):
    target, voided, mask = _case()
    prediction = target + np.random.default_rng(1).normal(0, 80, target.shape)
    low, high = max(np.percentile(voided, 0.5), 0), np.percentile(voided, 99.5)
    x, y = ((np.clip(v * mask, low, high) - low) / (high - low) for v in (prediction, target))
    # The mask lies far enough from the border that its treatment does not matter.
    similarity = [
        structural_similarity(
            np.take(x, k, across),
            np.take(y, k, across),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=max(np.ptp(x), np.ptp(y)),
            full=True,
        )[1]
        for k in range(x.shape[across])
    ]
    expected = np.stack(similarity, across)[mask].mean()
    assert metrics(prediction, target, voided, mask)[name] == pytest.approx(expected, rel=1e-9)


def test_metrics_by_slice_are_those_of_a_mask_of_one_slice():
    target, voided, mask = _case()
    prediction = target + np.random.default_rng(1).normal(0, 80, target.shape)
    by_slice = axial_slice_metrics(prediction, target, voided, mask)
    assert list(by_slice) == list(range(10, 19))
    for k, metrics in by_slice.items():
        alone = np.zeros_like(mask)
        alone[..., k] = mask[..., k]
        expected = axial_inpainting_metrics(prediction, target, voided, alone)
        assert metrics == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="mask is empty"):
        axial_slice_metrics(prediction, target, voided, np.zeros_like(mask))


def test_ssim_mirrors_at_the_border():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 17, 14))
    # Mirrored by hand, the image's border becomes the inside of a larger one.
    wide_x, wide_y = (np.pad(image, 10, mode="reflect") for image in (x, y))
    _, expected = structural_similarity(
        wide_x,
        wide_y,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=max(np.ptp(x), np.ptp(y)),
        full=True,
    )
    similarity = ssim_map(x, y, window_axes=(0, 1))
    np.testing.assert_allclose(similarity, expected[10:-10, 10:-10], rtol=1e-9)


@pytest.mark.parametrize("metrics", [brats_inpainting_metrics, axial_inpainting_metrics])
def test_identical_images(metrics):
    target, voided, mask = _case()
    result = metrics(target, target, voided, mask)
    assert (result.get("ssim") or result["ssim_axial"]) == pytest.approx(1, abs=1e-12)
    assert [result[name] for name in ("mse", "rmse", "msle", "mae")] == [0, 0, 0, 0]
    assert result["psnr"] == result["psnr_01"] == np.inf
    assert result["psnr_01_eps"] == pytest.approx(-10 * np.log10(2.0**-52))


def test_a_constant_shift_has_closed_form_errors():
    target, voided, mask = _case()
    high = np.percentile(voided, 99.5)
    target[mask] = np.random.default_rng(2).uniform(0.2, 0.6, mask.sum()) * high
    shifted = np.where(mask, target + 0.1 * high, -1e6)  # Outside the mask nothing counts.
    result = brats_inpainting_metrics(shifted, target, voided, mask)
    spread = np.ptp(target[mask]) / high
    assert result["mae"] == pytest.approx(0.1)
    assert result["mse"] == pytest.approx(0.01)
    assert result["psnr_01"] == pytest.approx(20)
    assert result["psnr"] == pytest.approx(20 + 20 * np.log10(spread))


def test_values_beyond_the_voided_range_are_clipped():
    target, voided, mask = _case()
    high = np.percentile(voided, 99.5)
    target[mask] = 0.5 * high
    for value, error in ((50 * high, 0.5), (-7 * high, 0.5)):
        result = brats_inpainting_metrics(np.where(mask, value, 0), target, voided, mask)
        assert result["mae"] == pytest.approx(error)


def test_masked_errors():
    prediction, target = np.zeros((2, 3, 2)), np.ones((2, 3, 2))
    prediction[0, 0] = (3, -1)
    mask = np.zeros((2, 3, 1))
    mask[0, :2] = 1
    assert masked_mae(prediction, target, mask) == pytest.approx((2 + 2 + 1 + 1) / 4)
    assert masked_mse(prediction, target, mask) == pytest.approx((4 + 4 + 1 + 1) / 4)
    assert psnr(0.25, 2.0) == pytest.approx(10 * np.log10(16))


def test_what_cannot_be_judged_is_refused():
    target, voided, mask = _case()
    with pytest.raises(ValueError, match="mask is empty"):
        brats_inpainting_metrics(target, target, voided, np.zeros_like(mask))
    with pytest.raises(ValueError, match=r"prediction has shape"):
        brats_inpainting_metrics(target[1:], target, voided, mask)
    with pytest.raises(ValueError, match="prediction holds"):
        axial_inpainting_metrics(np.where(mask, np.nan, target), target, voided, mask)
    with pytest.raises(ValueError, match="voided has no intensity range"):
        brats_inpainting_metrics(target, target, np.zeros_like(voided), mask)
    with pytest.raises(ValueError, match="volumes"):
        brats_inpainting_metrics(target[0], target[0], voided[0], mask[0])
    with pytest.raises(ValueError, match="mask is empty"):
        masked_mae(target, target, np.zeros_like(mask))
    with pytest.raises(ValueError, match="shape"):
        masked_mse(target[1:], target, mask)

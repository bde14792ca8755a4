"""How close an inpainted region is to the image that was there.

`brats_inpainting_metrics` gives the numbers of the BraTS local-inpainting challenge (Kofler et al.
2023, arXiv 2305.08992) without PyTorch. Its SSIM windows lie in the last two axes of the volume, so
in sagittal planes of a BraTS volume. `axial_inpainting_metrics` puts them into axial planes, which
suits a model of axial slices; its SSIM has a name of its own, since the two are not comparable.
`axial_slice_metrics` does that slice by slice. The other functions work on any masked arrays.

Everything is numpy in float64.
"""

import sys

import numpy as np
from scipy import ndimage

_SSIM_SIGMA = 1.5
_SSIM_RADIUS = 5  # 11 taps.
_SSIM_K1, _SSIM_K2 = 0.01, 0.03


def brats_inpainting_metrics(
    prediction: np.ndarray, target: np.ndarray, voided: np.ndarray, mask: np.ndarray
) -> dict[str, float]:
    """The official metrics of one case of the BraTS local-inpainting challenge.

    Prediction and target are multiplied by the mask, clipped to the percentiles 0.5 (at least 0)
    and 99.5 of the voided volume, and scaled to [0, 1].

    Args:
        prediction: [I, J, K], the inpainted volume, in the target's units.
        target: [I, J, K], the original volume (`t1n`).
        voided: [I, J, K], the volume with the regions to inpaint set to zero (`t1n-voided`).
        mask: [I, J, K], non-zero in the healthy tissue that is scored (`mask-healthy`).

    Returns:
        `ssim`: mean structural similarity in the mask, windows in the last two axes.
        `mse`, `rmse`, `mae`: errors in the mask, in units of the scaled intensity.
        `msle`: mean squared difference of log(1 + intensity).
        `psnr`: dB relative to the target's range in the mask; `psnr_01`: relative to 1. Both are
            infinite for identical images; `psnr_eps` and `psnr_01_eps` add the machine epsilon to mse.

    Raises:
        ValueError: shapes differ, a volume is not 3-D or not finite, the mask is empty, or the voided
            volume gives no intensity range.
    """
    return _scores("ssim", (1, 2), *_scale_by_voided(prediction, target, voided, mask))


def axial_inpainting_metrics(
    prediction: np.ndarray, target: np.ndarray, voided: np.ndarray, mask: np.ndarray
) -> dict[str, float]:
    """The same as `brats_inpainting_metrics`, but with SSIM windows in axial planes.

    Args:
        prediction: [I, J, K]; K counts axial slices. So do `target`, `voided` and `mask`.
        target: see `brats_inpainting_metrics`.
        voided: the whole volume, even if the mask selects a few slices.
        mask: voxels that are scored.

    Returns:
        Its metrics with `ssim_axial` instead of `ssim`.

    Raises:
        ValueError: see `brats_inpainting_metrics`.
    """
    return _scores("ssim_axial", (0, 1), *_scale_by_voided(prediction, target, voided, mask))


def axial_slice_metrics(
    prediction: np.ndarray, target: np.ndarray, voided: np.ndarray, mask: np.ndarray
) -> dict[int, dict[str, float]]:
    """`axial_inpainting_metrics` of each axial slice by itself, as if the mask held only that one.

    Args:
        prediction: [I, J, K]; for all arguments see `axial_inpainting_metrics`.

    Returns:
        k -> metrics, for every slice in which there is mask.

    Raises:
        ValueError: see `axial_inpainting_metrics`.
    """
    scaled = _scale_by_voided(prediction, target, voided, mask)
    slices = np.flatnonzero(scaled[2].any((0, 1))).tolist()
    return {k: _scores("ssim_axial", (0, 1), *(v[..., k] for v in scaled)) for k in slices}


def ssim_map(
    prediction: np.ndarray, target: np.ndarray, window_axes: tuple[int, int]
) -> np.ndarray:
    """Structural similarity at every pixel (Wang et al. 2004, eq. 13).

    Windows are Gaussian with 11 x 11 taps and sigma 1.5; the image is mirrored at its border. The
    data range is the larger of the two images' ranges.

    Args:
        prediction: float array.
        target: float array of the same shape.
        window_axes: the two axes in which windows lie; all others only hold further images.

    Returns:
        float64 array of the same shape, at most 1; NaN if both images are constant.

    Raises:
        ValueError: shapes differ.
    """
    prediction, target = _pair(prediction, target)
    data_range = max(np.ptp(prediction), np.ptp(target))
    c1, c2 = (_SSIM_K1 * data_range) ** 2, (_SSIM_K2 * data_range) ** 2

    taps = np.exp(-0.5 * (np.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1) / _SSIM_SIGMA) ** 2)
    taps /= taps.sum()

    def local_mean(image: np.ndarray) -> np.ndarray:
        for axis in window_axes:
            image = ndimage.correlate1d(image, taps, axis=axis, mode="mirror")
        return image

    mean_x, mean_y = local_mean(prediction), local_mean(target)
    variance_x = local_mean(prediction**2) - mean_x**2
    variance_y = local_mean(target**2) - mean_y**2
    covariance = local_mean(prediction * target) - mean_x * mean_y
    with np.errstate(invalid="ignore"):  # 0 / 0 where both images are constant.
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return luminance * structure


def masked_mae(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute error over a mask.

    Args:
        prediction: float array.
        target: float array of the same shape.
        mask: non-zero where it counts; broadcast to the target's shape, so that the mask [H, W, 1] of
            an image [H, W, C] counts in every sequence.

    Returns:
        The mean, in units of the intensity.

    Raises:
        ValueError: shapes don't fit, or the mask is empty.
    """
    return float(np.abs(_masked_difference(prediction, target, mask)).mean())


def masked_mse(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    """Mean squared error over a mask; arguments and errors as for `masked_mae`."""
    return float(np.square(_masked_difference(prediction, target, mask)).mean())


def psnr(mse: float, data_range: float, epsilon: float = 0.0) -> float:
    """Peak signal-to-noise ratio 10 log10(data_range^2 / (mse + epsilon)) in dB.

    Args:
        mse: mean squared error.
        data_range: the signal's range, in the units of which `mse` is the square.
        epsilon: keeps the ratio of identical images finite.

    Returns:
        The ratio; infinite if `mse + epsilon` is 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(10 * np.log10(np.float64(data_range) ** 2 / (np.float64(mse) + epsilon)))


def _scale_by_voided(
    prediction: np.ndarray, target: np.ndarray, voided: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masked and scaled prediction and target (float64), and the mask (bool); all [I, J, K]."""
    names, given = ("prediction", "target", "voided", "mask"), (prediction, target, voided, mask)
    volumes = [np.asarray(volume, np.float64) for volume in given]
    prediction, target, voided, mask = volumes
    for name, volume in zip(names, volumes, strict=True):
        if volume.ndim != 3 or volume.shape != target.shape:
            raise ValueError(
                f"{name} has shape {volume.shape}; prediction, target, voided and mask must be "
                "volumes [I, J, K] of one shape"
            )
        if not np.isfinite(volume).all():
            raise ValueError(f"{name} holds values that are not finite")
    mask = mask != 0
    if not mask.any():
        raise ValueError("mask is empty, so there is nothing to score")
    low, high = np.percentile(voided, (0.5, 99.5))
    low = max(low, 0.0)
    if high <= low:
        raise ValueError(
            f"voided has no intensity range: percentile 99.5 is {high:g}, the lower bound {low:g}"
        )

    def scale(volume: np.ndarray) -> np.ndarray:
        return (np.clip(volume * mask, low, high) - low) / (high - low)

    return scale(prediction), scale(target), mask


def _scores(
    name: str,
    window_axes: tuple[int, int],
    prediction: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray,
) -> dict[str, float]:
    """All metrics over a mask, with the mean structural similarity called `name`."""
    mse = masked_mse(prediction, target, mask)
    target_range = float(np.ptp(target[mask]))
    epsilon = sys.float_info.epsilon
    return {
        name: float(ssim_map(prediction, target, window_axes)[mask].mean()),
        "mse": mse,
        "rmse": mse**0.5,
        "msle": masked_mse(np.log1p(prediction), np.log1p(target), mask),
        "mae": masked_mae(prediction, target, mask),
        "psnr": psnr(mse, target_range),
        "psnr_eps": psnr(mse, target_range, epsilon),
        "psnr_01": psnr(mse, 1.0),
        "psnr_01_eps": psnr(mse, 1.0, epsilon),
    }


def _pair(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prediction, target = np.asarray(prediction, np.float64), np.asarray(target, np.float64)
    if prediction.shape != target.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, target {target.shape}")
    return prediction, target


def _masked_difference(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """prediction - target, float64, as a flat array over the mask."""
    prediction, target = _pair(prediction, target)
    mask = np.broadcast_to(np.asarray(mask) != 0, target.shape)
    if not mask.any():
        raise ValueError("mask is empty, so there is nothing to average")
    return prediction[mask] - target[mask]

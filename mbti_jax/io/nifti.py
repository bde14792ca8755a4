"""Writing results: complete or not at all, and untouched outside the ROI.

A NIfTI result is the bytes of its input file with the ROI's voxels replaced: header, extensions,
scaling, data type and every other stored number are the input's, bit for bit.
"""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    io_orientation,
    ornt_transform,
)

from mbti_jax.io.files import write_bytes
from mbti_jax.io.quantize import quantize
from tfds_brats.conventions import CaseError
from tfds_brats.volumes import read_content


def write_nifti_like(
    source: Path,
    target: Path,
    values: Mapping[int | None, np.ndarray],
    roi: np.ndarray,
) -> int:
    """Writes a copy of a NIfTI file with other values inside the ROI.

    The file's own axes count: files of one case may be stored in different orientations.

    Args:
        source: .nii or .nii.gz file to copy.
        target: file to write, compressed if its name ends in .gz.
        values: float [X, Y, Z] in LPS, in the units of slope * stored + intercept; used inside the ROI.
            The key is the index along a fourth axis, None for a file with three axes.
        roi: bool [X, Y, Z] in LPS.

    Returns:
        How many values were clipped to the file's data type.

    Raises:
        CaseError: `source` is truncated or otherwise damaged.
    """
    raw = read_content(source)
    header = _header(raw)
    dtype, shape = header.get_data_dtype(), header.get_data_shape()
    offset, count = int(header["vox_offset"]), math.prod(shape)
    if offset + count * dtype.itemsize > len(raw):
        raise CaseError(f"{source}: is truncated")
    slope, intercept = header.get_slope_inter()
    slope, intercept = (1 if slope is None else slope), intercept or 0
    # A view, so that what is set in it is set in `raw`.
    stored = np.frombuffer(raw, dtype, count, offset).reshape(shape, order="F")
    to_disk = _to_disk(header)
    roi, clipped = apply_orientation(roi, to_disk), 0
    for channel, new in values.items():
        volume = stored if channel is None else stored[..., channel]
        inside = apply_orientation(new, to_disk)[roi].astype(np.float64)
        volume[roi], count = quantize((inside - intercept) / slope, dtype)
        clipped += count
    write_bytes(target, raw)
    return clipped


def load_image(path: Path) -> nib.Nifti1Image:
    """A NIfTI file (NIfTI-2 is a kind of it for nibabel)."""
    return cast(nib.Nifti1Image, nib.load(path))


def write_label_map(target: Path, labels: np.ndarray, like: Path) -> None:
    """Writes uint8 labels [X, Y, Z], in LPS, as NIfTI on the grid of the file `like`."""
    reference = load_image(like)
    stored = apply_orientation(labels, _to_disk(reference.header))
    image = nib.Nifti1Image(stored, reference.affine)
    # The same codes, so that viewers take both for the same space.
    image.set_sform(reference.affine, int(reference.header["sform_code"]) or 1)
    image.set_qform(reference.affine, int(reference.header["qform_code"]))
    image.header.set_xyzt_units("mm")
    write_bytes(target, image.to_bytes())


def _to_disk(header: nib.Nifti1Header) -> np.ndarray:
    """[3, 2] orientation from LPS to the axes of a file with that header."""
    return ornt_transform(axcodes2ornt("LPS"), io_orientation(np.asarray(header.get_best_affine())))


def _header(content: bytes | bytearray) -> nib.Nifti1Header:
    """NIfTI-1 or, by the size of its header, NIfTI-2."""
    file = io.BytesIO(content)
    is_nifti2 = 540 in (int.from_bytes(content[:4], order) for order in ("little", "big"))
    return (nib.Nifti2Header if is_nifti2 else nib.Nifti1Header).from_fileobj(file)

"""Writing results: complete or not at all, and untouched outside the ROI.

A NIfTI result is the bytes of its input file with the ROI's voxels replaced: header, extensions,
scaling, data type and every other stored number are the input's, bit for bit.
"""

import io
import math
from collections.abc import Mapping
from pathlib import Path

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
from tfds_brats.volumes import read_content, read_header

# What a header says of its geometry besides the spacing.
_QFORM = (
    "qform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
)
_FORMS = (*_QFORM, "sform_code", "srow_x", "srow_y", "srow_z")


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
            The key is the index along a fourth axis, None for a file with three axes (and perhaps others
            of length 1).
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
    stored = np.frombuffer(raw, dtype, count, offset)
    stored = stored.reshape(shape[:3] if None in values else shape, order="F")
    to_disk = _to_disk(header)
    roi, clipped = apply_orientation(roi, to_disk), 0
    for channel, new in values.items():
        volume = stored if channel is None else stored[..., channel]
        inside = apply_orientation(new, to_disk)[roi].astype(np.float64)
        volume[roi], count = quantize((inside - intercept) / slope, dtype)
        clipped += count
    write_bytes(target, raw)
    return clipped


def write_label_map(target: Path, labels: np.ndarray, like: Path) -> None:
    """Writes uint8 labels [X, Y, Z], in LPS, as NIfTI on the grid of the file `like`."""
    write_map(target, labels.astype(np.uint8, copy=False), like)


def write_map(target: Path, values: np.ndarray, like: Path, description: str = "") -> None:
    """Writes numbers [X, Y, Z] or [X, Y, Z, C], in LPS, as NIfTI on the grid of the file `like`.

    The header is that of `like` with everything it says of geometry - both forms, spacing, units - as it
    is, so that programs take image and map for the same space whichever statement they read.

    Args:
        description: for the header, at most 79 characters.
    """
    reference = read_header(like)
    header = type(reference)(endianness=reference.endianness, check=False)
    for name in ("pixdim", "xyzt_units", *_FORMS):
        header[name] = reference[name]
    header.set_data_dtype(values.dtype)
    header["descrip"] = description
    is_nifti2 = isinstance(reference, nib.Nifti2Header)
    image_class = nib.Nifti2Image if is_nifti2 else nib.Nifti1Image
    # Without an affine nibabel leaves the forms of the header alone.
    image = image_class(apply_orientation(values, _to_disk(reference)), None, header)
    # It computes the spacing from what it is given, so the stored one goes in last.
    image.header["pixdim"] = header["pixdim"]
    write_bytes(target, image.to_bytes())


def _to_disk(header: nib.Nifti1Header) -> np.ndarray:
    """[3, 2] orientation from LPS to the axes of a file with that header."""
    return ornt_transform(axcodes2ornt("LPS"), io_orientation(np.asarray(header.get_best_affine())))


def _header(content: bytes | bytearray) -> nib.Nifti1Header:
    """NIfTI-1 or, by the size of its header, NIfTI-2."""
    file = io.BytesIO(content)
    is_nifti2 = 540 in (int.from_bytes(content[:4], order) for order in ("little", "big"))
    return (nib.Nifti2Header if is_nifti2 else nib.Nifti1Header).from_fileobj(file)

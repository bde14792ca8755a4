"""Writing results: complete or not at all, and untouched outside the ROI.

A NIfTI result is the bytes of its input file with the ROI's voxels replaced: header, extensions,
scaling, data type and every other stored number are the input's, bit for bit.
"""

import contextlib
import gzip
import io
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation

from tfds_brats.conventions import CaseError
from tfds_brats.volumes import read_content

# Of 1 to 9. Higher levels take several times longer for a few per cent.
_COMPRESSION = 4


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path beside `path` to write a file to; renamed on success, removed on failure.

    The name keeps its ending, from which some writers tell the format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".partial.{path.name}")
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder to write to; it gets the name `path` when all is written.

    On failure it is removed; what a killed process left is removed by the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".partial.{path.name}")
    if beside.exists():
        shutil.rmtree(beside)
    beside.mkdir()
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes JSON, complete or not at all."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def quantize(values: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, int]:
    """Numbers in the data type of the input.

    Args:
        values: float [...].
        dtype: integer (values are rounded, then clipped to its range) or float.

    Returns:
        (array of `dtype`, how many values were clipped).
    """
    dtype = np.dtype(dtype)
    if dtype.kind not in "iu":
        return values.astype(dtype), 0
    rounded = np.rint(values)
    limits = np.iinfo(dtype)
    clipped = int(((rounded < limits.min) | (rounded > limits.max)).sum())
    # The largest 64-bit integers have no float64 of their own; one below does.
    top = np.nextafter(limits.max, 0) if limits.bits == 64 else limits.max
    return np.clip(rounded, limits.min, top).astype(dtype), clipped


def paste(image: np.ndarray, painted: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, int]:
    """Copies of an image with other values inside, in its own data type.

    Args:
        image: [...].
        painted: float [N, ...], used inside.
        inside: bool [...].

    Returns:
        ([N, ...] of the image's data type, how many values were clipped to it).
    """
    numbers, clipped = quantize(painted[:, inside], image.dtype)
    images = np.repeat(image[None], len(painted), axis=0)
    images[:, inside] = numbers
    return images, clipped


def standard_deviation(images: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The standard deviation of samples, n - 1 in the denominator.

    Args:
        images: [n, ...] with n of at least 2.
        inside: bool [...].

    Returns:
        float32 [...], 0 where not `inside`.
    """
    spread = np.std(images, axis=0, ddof=1, dtype=np.float64)
    return np.where(inside, spread, 0).astype(np.float32)


def write_nifti_like(
    source: Path,
    target: Path,
    values: Mapping[int | None, np.ndarray],
    roi: np.ndarray,
    to_disk: np.ndarray,
) -> int:
    """Writes a copy of a NIfTI file with other values inside the ROI.

    Args:
        source: .nii or .nii.gz file to copy.
        target: file to write, compressed if its name ends in .gz.
        values: float [X, Y, Z] in LPS, in the units of slope * stored + intercept; used inside the ROI.
            The key is the index along a fourth axis, None for a file with three axes.
        roi: bool [X, Y, Z] in LPS.
        to_disk: orientation from LPS to the file's axes (`Case.to_disk`).

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
    roi, clipped = apply_orientation(roi, to_disk), 0
    for channel, new in values.items():
        volume = stored if channel is None else stored[..., channel]
        inside = apply_orientation(new, to_disk)[roi].astype(np.float64)
        volume[roi], count = quantize((inside - intercept) / slope, dtype)
        clipped += count
    write_bytes(target, raw)
    return clipped


def write_label_map(target: Path, labels: np.ndarray, like: Path, to_disk: np.ndarray) -> None:
    """Writes uint8 labels [X, Y, Z], in LPS, as NIfTI on the grid of the file `like`."""
    reference = nib.load(like)
    image = nib.Nifti1Image(apply_orientation(labels, to_disk), reference.affine)
    # The same codes, so that viewers take both for the same space.
    image.set_sform(reference.affine, int(reference.header["sform_code"]) or 1)
    image.set_qform(reference.affine, int(reference.header["qform_code"]))
    image.header.set_xyzt_units("mm")
    write_bytes(target, image.to_bytes())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, complete or not at all, compressed if its name ends in .gz.

    The compressed file has no time stamp, so the same content gives the same bytes.
    """
    if path.suffix == ".gz":
        packed = io.BytesIO()
        with gzip.GzipFile("", "wb", _COMPRESSION, packed, mtime=0) as file:
            file.write(content)
        content = packed.getvalue()
    with replacing(path) as beside:
        beside.write_bytes(content)


def _header(content: bytes) -> nib.Nifti1Header:
    """NIfTI-1 or, by the size of its header, NIfTI-2."""
    file = io.BytesIO(content)
    is_nifti2 = 540 in (int.from_bytes(content[:4], order) for order in ("little", "big"))
    return (nib.Nifti2Header if is_nifti2 else nib.Nifti1Header).from_fileobj(file)

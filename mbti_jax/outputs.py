"""Writing results: complete or not at all, and untouched outside the ROI.

A NIfTI result is the bytes of its input file with the ROI's voxels replaced: header, extensions,
scaling, data type and every other stored number are the input's, bit for bit.
"""

import contextlib
import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation

from tfds_brats.conventions import CaseError

_GZIP = b"\x1f\x8b"
# Of 1 to 9. Higher levels take several times longer for a few per cent.
_COMPRESSION = 4


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path beside `path` to write to; it is renamed on success and removed on failure.

    The name keeps its ending, from which some writers tell the format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
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


def write_nifti_like(
    source: Path,
    target: Path,
    values: np.ndarray,
    roi: np.ndarray,
    to_disk: np.ndarray,
    channel: int | None = None,
) -> int:
    """Writes a copy of a NIfTI file with other values inside the ROI.

    Args:
        source: .nii or .nii.gz file to copy.
        target: file to write, compressed if its name ends in .gz.
        values: float [X, Y, Z] in LPS, in the units of slope * stored + intercept; used inside the ROI.
        roi: bool [X, Y, Z] in LPS.
        to_disk: orientation from LPS to the file's axes (`Case.to_disk`).
        channel: index along a fourth axis, for files with several sequences.

    Returns:
        How many values were clipped to the file's data type.

    Raises:
        CaseError: `source` does not hold what it says.
    """
    content = source.read_bytes()
    if content[:2] == _GZIP:
        content = gzip.decompress(content)
    header = _header(content)
    dtype, shape = header.get_data_dtype(), header.get_data_shape()
    offset, count = int(header["vox_offset"]), int(np.prod(shape))
    if offset + count * dtype.itemsize > len(content):
        raise CaseError(f"{source}: is truncated")
    slope, intercept = header.get_slope_inter()
    raw = bytearray(content)
    stored = np.frombuffer(raw, dtype, count, offset).reshape(shape, order="F")
    volume = stored if channel is None else stored[..., channel]
    roi = apply_orientation(roi, to_disk).astype(bool)
    new = apply_orientation(values, to_disk)[roi].astype(np.float64)
    numbers, clipped = quantize((new - (intercept or 0)) / (slope or 1), dtype)
    volume[roi] = numbers
    with replacing(target) as beside:
        write_bytes(beside, raw)
    return clipped


def write_label_map(target: Path, labels: np.ndarray, affine: np.ndarray, like: Path, to_disk):
    """Writes uint8 labels [X, Y, Z], in LPS, as NIfTI on the grid of the file `like`."""
    on_disk = apply_orientation(labels, to_disk)
    with replacing(target) as beside:
        image = nib.Nifti1Image(on_disk, nib.load(like).affine)
        image.header.set_xyzt_units("mm")
        write_bytes(beside, image.to_bytes())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes, compressed if the name ends in .gz (without a time stamp: same in, same out)."""
    if path.suffix == ".gz":
        packed = io.BytesIO()
        with gzip.GzipFile("", "wb", _COMPRESSION, packed, mtime=0) as file:
            file.write(content)
        content = packed.getvalue()
    path.write_bytes(content)


def _header(content: bytes) -> nib.Nifti1Header:
    file = io.BytesIO(content)
    size = content[:4]
    is_nifti2 = 540 in (int.from_bytes(size, order) for order in ("little", "big"))
    return (nib.Nifti2Header if is_nifti2 else nib.Nifti1Header).from_fileobj(file)

"""Reading one NIfTI file and bringing any orientation to LPS.

LPS, as in BraTS: voxel index i increases toward the patient's left, j toward posterior, k toward
superior.
"""

import contextlib
import gzip
import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from tfds_brats.conventions import CaseError

# Affines that differ by no more than this, in mm, describe the same grid.
AFFINE_TOLERANCE = 1e-3
_LPS = axcodes2ornt("LPS")
# Farther than this from every anatomical axis, the nearest orientation would be a guess.
_MAX_OBLIQUE_DEGREES = 40.0
# Larger volumes are refused: 512 x 512 x 2048 voxels, 4 GB in float64.
MAX_VOXELS = 2**29
# What may follow the voxels in a file.
_SLACK_BYTES = 2**20
_PART_BYTES = 2**22
_READ_ERRORS = (
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    OSError,
    EOFError,
    OverflowError,
    zlib.error,
    ValueError,
)


@dataclass(frozen=True)
class Volume:
    """One file in LPS.

    Attributes:
        data: [X, Y, Z] or [X, Y, Z, C], the stored numbers in their native-endian dtype;
            value = slope * data + intercept.
        slope, intercept: scl_slope and scl_inter (1 and 0 if the file has none).
        affine: [4, 4] float64, LPS voxel indices -> RAS millimeters.
        to_disk: [3, 2] nibabel orientation; `apply_orientation(lps_array, to_disk)` restores the
            file's own axes.
    """

    data: np.ndarray
    slope: float
    intercept: float
    affine: np.ndarray
    to_disk: np.ndarray


def read_volume(path: Path) -> Volume:
    """Reads a .nii or .nii.gz file in LPS.

    Raises:
        CaseError: the file is unreadable, truncated, corrupt or too large; its voxels are not real
                numbers or not finite; its affine is missing, singular or ambiguous. The message names
                the file.
    """
    content = read_content(path)
    try:
        image = _open(io.BytesIO(content))
        voxels = _voxels(image)
        data = np.asarray(voxels.get_unscaled())
        slope, intercept = float(voxels.slope), float(voxels.inter)
    except _READ_ERRORS as error:
        raise CaseError(
            f"{path}: cannot be read as NIfTI ({error}); it is truncated, corrupt or not NIfTI"
        ) from error
    if data.dtype.kind not in "iuf":
        raise CaseError(f"{path}: holds {data.dtype} voxels; integers or floats are needed")
    if data.dtype.itemsize > 8:
        data = data.astype(np.float64)
    data = data.astype(data.dtype.newbyteorder("="), copy=False)
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        raise CaseError(f"{path}: holds NaN or infinite values")
    to_lps = _orientation_to_lps(path, image)
    return Volume(
        apply_orientation(data, to_lps),
        slope,
        intercept,
        image.affine @ inv_ornt_aff(to_lps, data.shape[:3]),
        ornt_transform(_LPS, io_orientation(image.affine)),
    )


def read_content(path: Path) -> bytearray:
    """The bytes of a .nii or .nii.gz file, uncompressed.

    A gzip file is read to its end, so that its checksum is verified, but not beyond what its header
    announces: a few kilobytes can unpack to more than fits in memory.

    Raises:
        CaseError: the file is unreadable, or larger than `MAX_VOXELS` or its own header allows.
    """
    with _opened(path) as (file, image):
        size = math.prod(image.shape) * np.dtype(image.get_data_dtype()).itemsize
        limit = int(_voxels(image).offset) + size + _SLACK_BYTES
        file.seek(0)
        content = bytearray()
        # In parts: a damaged header may announce far more than the file holds.
        while part := file.read(_PART_BYTES):
            content += part
            if len(content) > limit:
                raise CaseError(
                    f"{path}: holds more than the {size} bytes of voxels that its header announces"
                )
    return content


def read_geometry(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine that `read_volume` would give, from the header alone (a quick check).

    Raises:
        CaseError: as in `read_volume`, as far as the header shows.
    """
    with _opened(path) as (_, image):
        pass
    to_lps = _orientation_to_lps(path, image)
    shape = [0] * 3
    for axis in range(3):
        shape[int(to_lps[axis, 0])] = image.shape[axis]
    affine = image.affine @ inv_ornt_aff(to_lps, image.shape[:3])
    return (*shape, *image.shape[3:]), affine


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedIOBase, nib.Nifti1Image]]:
    """The uncompressed file and its header as an image, the size checked.

    Errors while the file is open become `CaseError`s, too.
    """
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file = gzip.GzipFile(fileobj=raw) if is_gzip else raw
            image = _open(file)
            if not 0 < math.prod(image.shape) <= MAX_VOXELS:
                raise ValueError(f"its shape is {image.shape}; 1 to {MAX_VOXELS} voxels are read")
            yield file, image
    except CaseError:
        raise
    except _READ_ERRORS as error:
        raise CaseError(
            f"{path}: cannot be read as NIfTI ({error}); it is truncated, corrupt or not NIfTI"
        ) from error


def _open(file: io.BufferedIOBase) -> nib.Nifti1Image:
    """NIfTI-1 or, by the size of its header, NIfTI-2."""
    header_size = file.read(4)
    file.seek(0)
    is_nifti2 = 540 in (int.from_bytes(header_size, order) for order in ("little", "big"))
    image_class = nib.Nifti2Image if is_nifti2 else nib.Nifti1Image
    files = image_class.make_file_map()
    files["image"].fileobj = file
    return image_class.from_file_map(files)


def _voxels(image: nib.Nifti1Image) -> ArrayProxy:
    """The voxels as stored; images read from files always have them."""
    if not isinstance(image.dataobj, ArrayProxy):
        raise CaseError(f"{image.get_filename()}: its voxels cannot be read as stored")
    return image.dataobj


def _orientation_to_lps(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    """[3, 2] orientation that takes the file's axes to LPS."""
    if image.ndim < 3:
        raise CaseError(f"{path}: has shape {image.shape}; a volume is needed")
    if image.header["sform_code"] == 0 and image.header["qform_code"] == 0:
        raise CaseError(
            f"{path}: its header holds no orientation (sform_code and qform_code are 0); "
            "write the right affine into it first"
        )
    affine = np.asarray(image.affine)
    with np.errstate(all="ignore"):
        cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and abs(np.linalg.det(cosines)) > 1e-3):
        raise CaseError(f"{path}: its affine is singular or not finite: {affine.tolist()}")
    orientation = io_orientation(affine)
    nearest = np.abs(cosines[orientation[:, 0].astype(int), np.arange(3)])
    if nearest.min() < np.cos(np.deg2rad(_MAX_OBLIQUE_DEGREES)):
        raise CaseError(
            f"{path}: its axes are more than {_MAX_OBLIQUE_DEGREES:g} degrees off the anatomical "
            "axes, so no orientation is clearly the nearest; resample it to an axial grid first"
        )
    return ornt_transform(orientation, _LPS)

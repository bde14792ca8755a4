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
# In mm. Outside of it a header is wrong or in other units, and a window in mm would span a few pixels or
# gigabytes of them.
MIN_SPACING, MAX_SPACING = 0.1, 20.0
# Relative; spacings or axes that differ by more are a contradiction in a header.
_GEOMETRY_TOLERANCE = 0.01
# NIfTI's codes for units of space, to mm; 0 is unknown, by custom mm.
_MILLIMETERS = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}
_UNIT_NAMES = {1: "meters", 3: "micrometers"}
NIFTI_ENDINGS = (".nii.gz", ".nii")
# Endings of formats that are not read, and what turns them into NIfTI.
_OTHER_FORMATS = {
    ".hdr": "Analyze or a NIfTI pair; write one file with `nibabel.save(nibabel.load(IN), OUT)`",
    ".img": "Analyze or a NIfTI pair; write one file with `nibabel.save(nibabel.load(IN), OUT)`",
    ".mgz": "FreeSurfer's; convert it with `mri_convert IN.mgz OUT.nii.gz`",
    ".mgh": "FreeSurfer's; convert it with `mri_convert IN.mgh OUT.nii.gz`",
    ".nrrd": "NRRD; save it as NIfTI, for example in 3D Slicer",
    ".nhdr": "NRRD; save it as NIfTI, for example in 3D Slicer",
    ".mha": "MetaImage; save it as NIfTI, for example in 3D Slicer",
    ".mhd": "MetaImage; save it as NIfTI, for example in 3D Slicer",
    ".dcm": "DICOM; convert the series with `dcm2niix`",
    ".mnc": "MINC; convert it with `mnc2nii IN.mnc OUT.nii`",
}
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
        affine: [4, 4] float64, LPS voxel indices -> RAS millimeters, whatever the unit of the file.
        to_disk: [3, 2] nibabel orientation; `apply_orientation(lps_array, to_disk)` restores the
            file's own axes.
        warnings: what is odd about the header without making the file useless.
    """

    data: np.ndarray
    slope: float
    intercept: float
    affine: np.ndarray
    to_disk: np.ndarray
    warnings: tuple[str, ...] = ()


def split_ending(path: Path) -> tuple[str, str]:
    """(name without its ending, ending in lower case) of a file; .nii.gz is one ending."""
    for ending in NIFTI_ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)], ending
    return path.stem, path.suffix.lower()


def is_gzip(path: Path) -> bool:
    """Whether a file's content, not its name, is gzip's."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def other_format(path: Path) -> str:
    """What a file of another format than NIfTI is and how to convert it; "" if its name is NIfTI's."""
    ending = (
        split_ending(path)[1] if path.suffix.lower() != ".gz" else Path(path.stem).suffix.lower()
    )
    return _OTHER_FORMATS.get(ending, "")


def read_volume(path: Path) -> Volume:
    """Reads a .nii or .nii.gz file in LPS; its content says which of them it is, not its name.

    Axes of length 1 after the third are dropped. The affine is that of the sform, or of the qform where
    there is no sform, in mm. Of the header's other statements, a spacing (pixdim) or axes (qform) that
    differ by more than 1% are an error, since sizes or sides would be a guess; a qform that is only
    shifted is a warning.

    Raises:
        CaseError: the file is unreadable, truncated, corrupt or too large; its voxels are not real
            numbers or not finite; its geometry is missing, singular, ambiguous or contradictory, or its
            voxels are not `MIN_SPACING` to `MAX_SPACING` mm wide. The message names the file.
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
        raise CaseError(f"{path}: {_not_finite(data)}")
    data = data.reshape(_without_trailing_ones(data.shape))
    affine, warnings = _affine(path, image)
    to_lps = _orientation_to_lps(path, affine)
    return Volume(
        apply_orientation(data, to_lps),
        slope,
        intercept,
        affine @ inv_ornt_aff(to_lps, data.shape[:3]),
        ornt_transform(_LPS, io_orientation(affine)),
        warnings,
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
    affine, _ = _affine(path, image)
    to_lps = _orientation_to_lps(path, affine)
    shape = [0] * 3
    for axis in range(3):
        shape[int(to_lps[axis, 0])] = image.shape[axis]
    return (
        (*shape, *_without_trailing_ones(image.shape)[3:]),
        affine @ inv_ornt_aff(to_lps, image.shape[:3]),
    )


def read_header(path: Path) -> nib.Nifti1Header:
    """The header of a .nii or .nii.gz file (NIfTI-2's is a kind of NIfTI-1's for nibabel).

    Raises:
        CaseError: the file is unreadable; the message names it.
    """
    with _opened(path) as (_, image):
        return image.header


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedIOBase, nib.Nifti1Image]]:
    """The uncompressed file and its header as an image, the size checked.

    Errors while the file is open become `CaseError`s, too.
    """
    _check_readable(path)
    try:
        with path.open("rb") as raw:
            file = gzip.GzipFile(fileobj=raw) if is_gzip(path) else raw
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


def _check_readable(path: Path) -> None:
    """Raises CaseError, with the way out, for a file that is not there or of another format."""
    if not path.exists():
        if path.is_symlink() and ".git/annex/objects" in str(path.readlink()):
            raise CaseError(
                f"{path}: is a git-annex link whose content is not on this machine; fetch it with "
                "`git annex get` (or `datalad get`)"
            )
        if path.is_symlink():
            raise CaseError(f"{path}: is a link to {path.readlink()}, which does not exist")
        raise CaseError(f"{path}: is not a file")
    if not path.is_file():
        raise CaseError(f"{path}: is not a file")
    if what := other_format(path):
        raise CaseError(f"{path}: is {what}")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CaseError(f"{path}: cannot be read ({error})") from error
    if start.startswith(b"version https://git-lfs"):
        raise CaseError(f"{path}: is a Git LFS pointer; fetch its content with `git lfs pull`")
    if b".git/annex/objects" in start or start.startswith(b"/annex/objects"):
        raise CaseError(f"{path}: is a git-annex pointer; fetch its content with `git annex get`")
    if not start:
        raise CaseError(f"{path}: is empty, not NIfTI")


def _not_finite(data: np.ndarray) -> str:
    """How many voxels are NaN or infinite, where, and what to do."""
    bad = ~np.isfinite(data)
    count, border = int(bad.sum()), data[tuple(slice(0, 1) for _ in data.shape)]
    first = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), data.shape))
    where = f"holds NaN or infinite values in {count} of {data.size} voxels, the first at {first}"
    if np.isnan(border).all():
        where += " (the background, it seems)"
    return (
        f"{where}; replace them, for example with "
        "`fslmaths IN -nan OUT` or `numpy.nan_to_num(data, nan=0, posinf=0, neginf=0)`"
    )


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the axes of length 1 after the third."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _affine(path: Path, image: nib.Nifti1Image) -> tuple[np.ndarray, tuple[str, ...]]:
    """(affine of the file's own axes in mm, warnings); see `read_volume`."""
    header = image.header
    if image.ndim < 3:
        raise CaseError(f"{path}: has shape {image.shape}; a volume is needed")
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        raise CaseError(
            f"{path}: its header holds no orientation (sform_code and qform_code are 0); "
            "write the right affine into it first"
        )
    affine = np.array(image.affine, np.float64)
    with np.errstate(all="ignore"):
        cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and abs(np.linalg.det(cosines)) > 1e-3):
        raise CaseError(f"{path}: its affine is singular or not finite: {affine.tolist()}")
    unit = int(header["xyzt_units"]) & 7
    if unit not in _MILLIMETERS:
        raise CaseError(f"{path}: its header gives an unknown unit of space (xyzt_units {unit})")
    warnings = _compare_forms(path, header, affine, _MILLIMETERS[unit])
    affine[:3] *= _MILLIMETERS[unit]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not (spacing.min() >= MIN_SPACING and spacing.max() <= MAX_SPACING):
        meant = "" if unit in (0, 2) else f"; its unit is {_UNIT_NAMES[unit]}, is that right?"
        raise CaseError(
            f"{path}: its voxels are {_numbers(spacing)} mm; "
            f"{MIN_SPACING:g} to {MAX_SPACING:g} mm are plausible for a brain: correct the header{meant}"
        )
    return affine, warnings


def _compare_forms(
    path: Path, header: nib.Nifti1Header, affine: np.ndarray, unit: float
) -> tuple[str, ...]:
    """Warnings about what else a header says of its geometry; contradictions are `CaseError`s."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    if not np.allclose(pixdim, spacing, rtol=_GEOMETRY_TOLERANCE, atol=0):
        raise CaseError(
            f"{path}: its header contradicts itself: voxels of {_numbers(pixdim)} mm (pixdim), but of "
            f"{_numbers(spacing)} mm in its affine; programs differ in which they take: correct it"
        )
    if header["sform_code"] == 0 or header["qform_code"] == 0:
        return ()
    try:
        qform = header.get_qform()
    except (ValueError, HeaderDataError) as error:
        raise CaseError(f"{path}: its header holds an invalid qform ({error})") from error
    axes = np.abs((qform - affine)[:3, :3] / spacing).max()
    if axes > _GEOMETRY_TOLERANCE:
        raise CaseError(
            f"{path}: its header contradicts itself: the axes of qform and sform differ by {axes:.3g} "
            "voxels per voxel, so sides and sizes are ambiguous; make both the same, for example with "
            "`fslorient -copysform2qform`"
        )
    shift = np.abs((qform - affine)[:3, 3]).max() * unit
    # Ten times as much as between files: a quaternion in float32 rounds more.
    if shift > 10 * AFFINE_TOLERANCE:
        return (
            f"{path.name}: the origins of qform and sform differ by {shift:.3g} mm; programs differ in "
            "which they take, and results keep both as they are",
        )
    return ()


def _numbers(values: np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _orientation_to_lps(path: Path, affine: np.ndarray) -> np.ndarray:
    """[3, 2] orientation that takes the file's axes to LPS."""
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    orientation = io_orientation(affine)
    nearest = np.abs(cosines[orientation[:, 0].astype(int), np.arange(3)])
    if nearest.min() < np.cos(np.deg2rad(_MAX_OBLIQUE_DEGREES)):
        raise CaseError(
            f"{path}: its axes are more than {_MAX_OBLIQUE_DEGREES:g} degrees off the anatomical "
            "axes, so no orientation is clearly the nearest; resample it to an axial grid first"
        )
    return ornt_transform(orientation, _LPS)

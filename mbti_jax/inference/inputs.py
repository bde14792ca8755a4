"""Cases and ROIs given as files."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from mbti_jax.rois.regions import Rois
from tfds_brats.cases import Case, CaseFiles
from tfds_brats.conventions import CONVENTIONS, SEQUENCES, CaseError, Convention
from tfds_brats.slices import to_slices
from tfds_brats.volumes import AFFINE_TOLERANCE, read_geometry, read_volume

# The local-inpainting task of BraTS: t1n with the ROI set to zero, and the ROI.
_VOIDED, _MASK = "-t1n-voided.nii.gz", "-mask.nii.gz"
_NIFTI_ENDINGS = (".nii.gz", ".nii")


def named_files(images: Mapping[str, str]) -> CaseFiles:
    """A case of NIfTI files given one by one, {sequence: path}; empty paths are left out.

    Raises:
        ValueError: no file, an unknown sequence, or a missing file.
    """
    paths = {name: Path(path) for name, path in images.items() if path}
    unknown = [name for name in paths if name not in SEQUENCES]
    if unknown or not paths:
        raise ValueError(f"images {list(paths)}: name files of {', '.join(SEQUENCES)}")
    for path in paths.values():
        check_file(path)
    first = next(iter(paths.values()))
    subject = stem(first)
    rule = Convention("files", "", "", {})
    return CaseFiles(subject, subject, rule, paths, None)


def voided_cases(source: str | Path, with_all_sequences: bool) -> list[tuple[CaseFiles, Path]]:
    """The cases of a folder in the layout of BraTS's local inpainting, at any depth, with their ROIs.

    Args:
        source: folder.
        with_all_sequences: take the other sequences of the case, too, as context.

    Raises:
        ValueError: none found, or a file is missing.
    """
    rule = CONVENTIONS["brats2023"]
    found = []
    for voided in sorted(Path(source).rglob(f"*{_VOIDED}")):
        subject = voided.name.removesuffix(_VOIDED)
        images = {"t1": voided}
        if with_all_sequences:
            for name in SEQUENCES[1:]:
                images[name] = voided.with_name(f"{subject}{rule.suffixes[name]}.nii.gz")
        mask = voided.with_name(subject + _MASK)
        for path in (mask, *images.values()):
            if not path.is_file():
                raise ValueError(f"{subject}: lacks {path.name}, which this model needs")
        found.append((CaseFiles(subject, subject, rule, images, None), mask))
    if not found:
        raise ValueError(f"{source}: holds no file *{_VOIDED}")
    return found


def read_roi_volume(
    path: Path, case: Case, labels: Mapping[int, str], box: Collection[str] = ()
) -> Rois:
    """ROIs from a NIfTI label map on the grid of a case.

    Args:
        path: the label map.
        case: the case.
        labels: meaning of its numbers, see `rois.regions.to_masks`.
        box: names of the ROIs that are bounding boxes.

    Raises:
        ValueError: unreadable, on another grid, unknown labels, ROIs that overlap, or empty; the message
            names the file.
    """
    check_file(path)
    volume = read_volume(path)
    data = volume.data
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    shape = next(iter(case.images.values())).shape
    if data.shape != shape:
        raise CaseError(f"{path}: has shape {data.shape}, but the images have {shape} (in LPS)")
    shift = np.abs(volume.affine - case.affine).max()
    if shift > AFFINE_TOLERANCE:
        raise CaseError(f"{path}: its affine differs from that of the images by {shift:.3g} mm")
    if (volume.slope, volume.intercept) != (1, 0):
        data = (volume.slope * data.astype(np.float64) + volume.intercept).astype(np.float32)
    try:
        return Rois.of(to_slices(data), shape[::-1], box, labels)
    except ValueError as error:
        raise CaseError(f"{path}: {error}") from error


def stem(path: Path) -> str:
    """The name of a NIfTI file without .nii or .nii.gz."""
    for ending in _NIFTI_ENDINGS:
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    return path.stem


def check_file(path: Path) -> None:
    """Raises CaseError if a file is not there, or its header says that it cannot be read."""
    if not path.is_file():
        raise CaseError(f"{path}: is not a file")
    read_geometry(path)

"""Cases and ROIs from files, and a repainted case as files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mbti_jax.inference.continuity import InpaintedVolume
from mbti_jax.io import pictures
from mbti_jax.io.nifti import write_label_map, write_nifti_like
from mbti_jax.rois.regions import to_label_map, to_masks
from tfds_brats.cases import Case, CaseFiles
from tfds_brats.conventions import CONVENTIONS, SEQUENCES, CaseError, Convention
from tfds_brats.slices import bounding_box, from_slices, to_slices
from tfds_brats.volumes import AFFINE_TOLERANCE, read_geometry, read_volume

# The local-inpainting task of BraTS: t1n with the ROI set to zero, and the ROI.
_VOIDED, _MASK = "-t1n-voided.nii.gz", "-mask.nii.gz"
_NIFTI_ENDINGS = (".nii.gz", ".nii")


def named_files(images: Mapping[str, str]) -> CaseFiles:
    """A case of NIfTI files given one by one, {sequence: path}; empty paths are left out.

    Raises:
        ValueError: no file, an unknown sequence, or a file that is not there.
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


def read_roi_volume(path: Path, case: Case, labels: Mapping[int, str]) -> np.ndarray:
    """ROI masks from a NIfTI label map on the grid of a case.

    Args:
        labels: meaning of its numbers, as of `rois.to_masks`.

    Returns:
        bool [Z, H, W, 5], boxes not filled.

    Raises:
        ValueError: unreadable, on another grid, unknown labels, or empty; the message names the file.
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
        data = np.float32(volume.slope * data.astype(np.float64) + volume.intercept)
    try:
        return to_masks(to_slices(data), shape[::-1], labels)
    except ValueError as error:
        raise CaseError(f"{path}: {error}") from error


def write_case(
    folder: Path, case: Case, result: InpaintedVolume, ending: str = ""
) -> dict[str, int]:
    """Writes the repainted volumes and the map of ROIs into `folder`.

    Args:
        ending: .nii or .nii.gz; default that of the input.

    Returns:
        Files written -> how many values were clipped to their data type.
    """
    roi = from_slices(result.masks.any(-1))
    by_file: dict[Path, dict[int | None, np.ndarray]] = {}
    channels = case.files.convention.channels
    for sequence, values in result.values.items():
        channel = channels.index(sequence) if channels else None
        volume = from_slices(values)
        by_file.setdefault(case.files.images[sequence], {})[channel] = volume
    clipped = {}
    for source, volumes in by_file.items():
        name = f"{stem(source)}-inpainted{ending or source.name.removeprefix(stem(source))}"
        clipped[name] = write_nifti_like(source, folder / name, volumes, roi, case.to_disk)
    write_label_map(
        folder / "rois.nii.gz", from_slices(to_label_map(result.masks)), source, case.to_disk
    )
    return clipped


def draw_preview(
    path: Path,
    case: Case,
    result: InpaintedVolume,
    title: str,
) -> None:
    """Draws slices before, with their ROIs, and after, cut to the brain.

    They are the slice with the largest ROI and those a quarter of the way from either end.
    """
    area = result.masks.any(-1).sum((1, 2))
    with_roi = np.flatnonzero(area)
    quarter = len(with_roi) // 4
    numbers = {int(area.argmax()), int(with_roi[quarter]), int(with_roi[-1 - quarter])}
    shown = to_slices(case.brain) | result.masks.any(-1)
    y0, x0, y1, x1 = bounding_box(shown)
    cells, rows = [], []
    for number in sorted(numbers):
        masks = result.masks[number]
        for sequence, values in result.values.items():
            scale = case.scale(sequence)
            before = to_slices(case.values(sequence))[number]
            after = np.where(masks.any(-1), values[number], before)
            picture = pictures.gray(scale.to_model(before))
            marked = pictures.with_rois(picture, masks)
            line = [picture, marked, pictures.gray(scale.to_model(after))]
            cells.append([cell[y0:y1, x0:x1] for cell in line])
            rows.append(f"{sequence.upper()}, slice {number}")
    columns = ["input", "ROIs", "inpainted"]
    pictures.figure(path, cells, rows=rows, columns=columns, title=title)


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

"""Cases and ROIs given as files or images."""

import dataclasses
import itertools
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mbti_jax.rois.given import check_names
from mbti_jax.rois.kinds import ROI_LABELS
from mbti_jax.rois.regions import Rois
from tfds_brats.cases import Case, CaseFiles, read_case, read_label_volume
from tfds_brats.conventions import CONVENTIONS, SEQUENCES, CaseError, Convention, get_convention
from tfds_brats.search import search_cases
from tfds_brats.slices import to_slices
from tfds_brats.spelling import nearest
from tfds_brats.volumes import AFFINE_TOLERANCE, read_geometry, split_ending

# The local-inpainting task of BraTS, with any case names: t1n with the ROI set to zero, and the ROI.
_VOIDED = dataclasses.replace(
    CONVENTIONS["brats2023"],
    name="brats_inpainting",
    case_pattern="(?P<patient>.+)",
    suffixes={**CONVENTIONS["brats2023"].suffixes, "t1": "-t1n-voided"},
    label_suffix="-mask",
)


# The name of a segmentation among files that are given one by one.
SEGMENTATION = "seg"


def named_files(images: Mapping[str, str], convention: str = "") -> CaseFiles:
    """A case of NIfTI files given one by one, {sequence: path}; empty paths are left out.

    It is named by what the names of its files have in common up to a separator, or after the first file.

    Args:
        images: the paths; that of `SEGMENTATION` is no sequence, but the case's segmentation.
        convention: whose numbers the segmentation has; without it none is taken.

    Raises:
        ValueError: no file, an unknown sequence or convention, a missing file, or one file for two.
    """
    segmentation = images.get(SEGMENTATION, "") if convention else ""
    given = [n for n, path in images.items() if path and not (segmentation and n == SEGMENTATION)]
    if not given or not set(given) <= set(SEQUENCES):
        way = nearest(next(iter({*given} - {*SEQUENCES}), ""), SEQUENCES)
        raise ValueError(f"images {given}: name files of {', '.join(SEQUENCES)}{way}")
    paths = {name: Path(images[name]) for name in SEQUENCES if name in given}
    labels = get_convention(convention).labels if segmentation else {}
    files: dict[tuple[int, int], str] = {}
    of_labels = {SEGMENTATION: Path(segmentation)} if segmentation else {}
    for name, path in {**paths, **of_labels}.items():
        check_file(path)
        status = path.stat()
        other = files.setdefault((status.st_dev, status.st_ino), name)
        if other != name:
            raise CaseError(f"{path}: is given for {other} and for {name}")
    subject = _common_name([split_ending(path)[0] for path in paths.values()])
    rule = Convention(convention or "files", "", "", labels)
    return CaseFiles(subject, subject, rule, paths, of_labels.get(SEGMENTATION))


def case_of(images: Case | Mapping[str, Any]) -> Case:
    """A case of paths or nibabel images.

    Args:
        images: the case itself; or {sequence: path or NIfTI image}, with sequences t1, t1ce, t2 and
            flair.

    Raises:
        ValueError: see `named_files` and `read_case`, or something else than these is given.
    """
    if isinstance(images, Case):
        return images
    if not isinstance(images, Mapping):
        raise ValueError(
            f"the case is given as {type(images).__name__}; give {{sequence: path or NIfTI image}} or "
            "a Case"
        )
    # Its files are deleted with the case.
    folder = tempfile.TemporaryDirectory(prefix="mbti_jax.")
    paths = {name: str(_path_of(image, name, Path(folder.name))) for name, image in images.items()}
    files = named_files(paths)
    if any(Path(folder.name) in Path(path).parents for path in paths.values()):
        files = dataclasses.replace(files, subject="case", patient="case")
    case = read_case(files, [name for name in SEQUENCES if name in files.images], labels=False)
    vars(case)["_folder"] = folder
    return case


def rois_of(rois: Any, case: Case) -> Rois:
    """The ROIs of a case, given as `Rois`, arrays, paths or nibabel images.

    Args:
        rois: `Rois`; or a map of the numbers of `rois.kinds.ROI_LABELS`; or {name: mask}. Maps and masks
            are arrays [Z, H, W], or paths or NIfTI images on the grid of the case.

    Raises:
        ValueError: see `read_roi_volume` and `Rois.of`.
    """
    shape = to_slices(case.brain).shape
    if isinstance(rois, Mapping):
        masks = [_roi_of(given, case, shape, name).masks for name, given in rois.items()]
        if not masks:
            raise ValueError("the ROI is empty: there is nothing to inpaint")
        return Rois(np.any(masks, axis=0))
    return _roi_of(rois, case, shape, ROI_LABELS)


def _roi_of(
    given: Any, case: Case, shape: tuple[int, ...], labels: Mapping[int, str] | str
) -> Rois:
    if isinstance(labels, str):
        check_names([labels])
    if isinstance(given, str | os.PathLike | nib.Nifti1Image):
        with tempfile.TemporaryDirectory() as folder:
            return read_roi_volume(_path_of(given, "roi", Path(folder)), case, labels)
    return Rois.of(given, shape, labels=labels)


def _path_of(image: Any, name: str, folder: Path) -> Path:
    """The file of an image, written to `folder` if there is none that holds what it holds."""
    if isinstance(image, str | os.PathLike):
        return Path(image)
    if not isinstance(image, nib.Nifti1Image):
        raise ValueError(f"{name} is {type(image).__name__}; a path or a NIfTI image is needed")
    file = image.get_filename()
    if file and nib.is_proxy(image.dataobj) and Path(file).is_file():
        return Path(file)
    path = folder / f"{name}.nii"
    path.write_bytes(image.to_bytes())
    return path


def voided_cases(source: str | Path, with_all_sequences: bool) -> tuple[list[CaseFiles], list[str]]:
    """The cases of a folder in the layout of BraTS's local inpainting, at any depth.

    Args:
        source: folder.
        with_all_sequences: take the other sequences of the case, too, as context.

    Returns:
        (cases, whose `labels` are the ROI; what is wrong with the cases that lack a file).

    Raises:
        ValueError: none found.
    """
    sequences = SEQUENCES if with_all_sequences else ("t1",)
    suffixes = {name: _VOIDED.suffixes[name] for name in sequences}
    rule = dataclasses.replace(_VOIDED, suffixes=suffixes)
    return search_cases(source, rule, sequences)


def held_by_voided_cases(source: str | Path, subjects: Collection[str] = ()) -> tuple[str, ...]:
    """All `SEQUENCES` if there is a case of `voided_cases` that has them, else T1 alone.

    Args:
        source: as there.
        subjects: the cases that count; empty for all.
    """
    cases, _ = voided_cases(source, with_all_sequences=True)
    has_all = any(not subjects or files.subject in subjects for files in cases)
    return SEQUENCES if has_all else ("t1",)


def read_roi_volume(
    path: Path, case: Case, labels: Mapping[int, str] | str, box: Collection[str] = ()
) -> Rois:
    """ROIs from a NIfTI label map on the grid of a case.

    Args:
        path: the label map.
        case: the case.
        labels: meaning of its numbers, see `rois.given.to_masks`.
        box: names of the ROIs that are bounding boxes.

    Raises:
        ValueError: unreadable, on another grid, unknown labels, ROIs that overlap, or empty; the message
            names the file.
    """
    check_file(path)
    data, volume = read_label_volume(path)
    shape = next(iter(case.images.values())).shape
    if data.shape != shape:
        raise CaseError(f"{path}: has shape {data.shape}, but the images have {shape} (in LPS)")
    shift = np.abs(volume.affine - case.affine).max()
    if shift > AFFINE_TOLERANCE:
        raise CaseError(f"{path}: its affine differs from that of the images by {shift:.3g} mm")
    try:
        return Rois.of(to_slices(data), shape[::-1], box, labels)
    except ValueError as error:
        raise CaseError(f"{path}: {error}") from error


def check_file(path: Path) -> None:
    """Raises CaseError if a file is not there, or its header says that it cannot be read."""
    read_geometry(path)


def _common_name(stems: list[str]) -> str:
    words = [re.split(r"(?<=[_\-. ])", stem) for stem in stems]
    common = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
    return "".join(column[0] for column in common).strip("_-. ") or stems[0]

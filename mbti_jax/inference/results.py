"""Repainted cases and slices as files and pictures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mbti_jax.inference.inpainted import InpaintedSlice, InpaintedVolume
from mbti_jax.io import pictures
from mbti_jax.io.files import distinct_names
from mbti_jax.io.nifti import write_label_map, write_map, write_nifti_like
from mbti_jax.io.planes import planes_through
from tfds_brats.cases import Case
from tfds_brats.slices import from_slices, to_slices
from tfds_brats.volumes import split_ending

STD_OF_SLICE = "std.npy"
# What a header has to say of it; NIfTI has no units of intensities.
_STD = "standard deviation over samples, in the image's units"


def write_case(
    folder: Path, case: Case, result: InpaintedVolume, ending: str = ""
) -> dict[str, int]:
    """Writes the repainted volumes, the map of ROIs and the label map into `folder`.

    A volume is named <input>-inpainted, or <input>-<sequence>-inpainted where inputs share a name. The
    standard deviation over the samples, of a mean, is float32 in <input>-std, in the units of the input.
    The label map is <case>-seg.nii.gz, in the numbers of the case's convention; files without one have
    canonical numbers. There is none where nobody knows what was painted.

    Args:
        folder: where to.
        case: the case that was repainted.
        result: what it became.
        ending: .nii or .nii.gz; default that of the input.

    Returns:
        Repainted volumes -> how many values were clipped to their data type.
    """
    roi = from_slices(result.rois.union)
    by_sequence = {case.files.images[name]: name for name in result.values}
    names = distinct_names({by_sequence[path]: split_ending(path)[0] for path in by_sequence})
    clipped = {}
    deviations = _by_file(case, result.std or {})
    for source, volumes in _by_file(case, result.values).items():
        name, its_ending = names[by_sequence[source]], ending or split_ending(source)[1]
        written = f"{name}-inpainted{its_ending}"
        clipped[written] = write_nifti_like(source, folder / written, volumes, roi)
        if source in deviations:
            std = deviations[source]
            none = np.zeros(roi.shape, np.float32)
            channels = range(len(case.files.convention.channels))
            stacked = [std.get(c, none) for c in channels]
            std = std[None] if None in std else np.stack(stacked, axis=-1)
            write_map(folder / f"{name}-std{its_ending}", std, source, _STD)
    grid = next(iter(by_sequence))
    write_label_map(folder / "rois.nii.gz", from_slices(result.rois.label_map()), grid)
    if result.labels is not None:
        labels = case.files.convention.on_disk(from_slices(result.labels))
        write_label_map(folder / f"{case.subject}-seg.nii.gz", labels, grid)
    return clipped


def _by_file(
    case: Case, volumes: Mapping[str, np.ndarray]
) -> dict[Path, dict[int | None, np.ndarray]]:
    """Volumes [Z, H, W] by sequence -> by file and channel, None where a file has one, [X, Y, Z]."""
    channels = case.files.convention.channels
    out: dict[Path, dict[int | None, np.ndarray]] = {}
    for sequence, values in volumes.items():
        channel = channels.index(sequence) if channels else None
        out.setdefault(case.files.images[sequence], {})[channel] = from_slices(values)
    return out


def draw_case(path: Path, case: Case, result: InpaintedVolume, title: str) -> None:
    """Draws a case before, with its ROIs, and after: what lies around them.

    A row is the axial, the coronal or the sagittal plane of a sequence in which the ROIs are largest.
    """
    roi = result.rois.union
    planes = planes_through(roi, to_slices(case.brain), case.spacing[::-1])
    cells, rows, labels = [], [], _painted_labels(result)
    for sequence, values in result.values.items():
        before, scale = to_slices(case.values(sequence)), case.scale(sequence)
        for plane in planes:
            real, inside = plane.of(before), plane.of(roi)
            picture = pictures.gray(scale.to_model(real))
            after = np.where(inside, plane.of(values), real)
            line = [picture, pictures.with_rois(picture, plane.of(result.rois.masks))]
            line.append(pictures.gray(scale.to_model(after)))
            if labels is not None:
                line.append(pictures.with_labels(line[-1], plane.of(labels)))
            cells.append(line)
            rows.append(f"{sequence.upper()} {plane.title}")
    pictures.figure(path, cells, rows=rows, columns=_columns(labels), title=title)


def draw_slice(path: Path, image: np.ndarray, result: InpaintedSlice, title: str) -> None:
    """Draws a slice before, with its ROIs, and after (the first sample), one sequence per row."""
    cells, labels = [], _painted_labels(result)
    before, after = np.atleast_3d(image), np.atleast_3d(result.images[0])
    for c, (low, high) in enumerate(result.provenance["intensity"]["low_high"]):
        picture = pictures.gray(before[..., c], low, high)
        marked = pictures.with_rois(picture, result.rois.masks)
        line = [picture, marked, pictures.gray(after[..., c], low, high)]
        if labels is not None:
            line.append(pictures.with_labels(line[-1], labels[0]))
        cells.append(line)
    rows = [f"sequence {c}" for c in range(len(cells))] if len(cells) > 1 else [""]
    pictures.figure(path, cells, rows=rows, columns=_columns(labels), title=title)


def _painted_labels(result: InpaintedSlice | InpaintedVolume) -> np.ndarray | None:
    """The labels that a preview shows; those that are the request would say nothing that ROIs do not."""
    return None if result.label_probabilities is None else result.labels


def _columns(labels: np.ndarray | None) -> list[str]:
    return ["input", "ROIs", "inpainted"] + ["labels painted"] * (labels is not None)

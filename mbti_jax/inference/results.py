"""Repainted cases and slices as files and pictures."""

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import nibabel as nib
import numpy as np

from mbti_jax.io import pictures
from mbti_jax.io.files import distinct_names, write_bytes
from mbti_jax.io.nifti import write_label_map, write_map, write_nifti_like
from mbti_jax.io.planes import planes_through
from mbti_jax.rois.kinds import COMPONENTS, KINDS
from mbti_jax.rois.regions import Rois
from tfds_brats.cases import Case, read_case
from tfds_brats.slices import from_slices, to_slices
from tfds_brats.volumes import split_ending

STD_OF_SLICE, ROIS_OF_SLICE = "std.npy", "rois.png"
# Samples of a slice that a picture shows.
_MOST_SAMPLES = 4
# What a header has to say of it; NIfTI has no units of intensities.
_STD = "standard deviation over samples, in the image's units"


class Volume(Protocol):
    """An `InpaintedVolume`, which see."""

    @property
    def values(self) -> dict[str, np.ndarray]: ...
    @property
    def std(self) -> dict[str, np.ndarray] | None: ...
    @property
    def rois(self) -> Rois: ...
    @property
    def labels(self) -> np.ndarray | None: ...
    @property
    def label_probabilities(self) -> np.ndarray | None: ...


class Slice(Protocol):
    """An `InpaintedSlice`, which see."""

    @property
    def images(self) -> np.ndarray: ...
    @property
    def std(self) -> np.ndarray | None: ...
    @property
    def rois(self) -> Rois: ...
    @property
    def labels(self) -> np.ndarray | None: ...
    @property
    def label_probabilities(self) -> np.ndarray | None: ...
    @property
    def provenance(self) -> dict[str, Any]: ...
    @property
    def is_mean(self) -> bool: ...


class NiftiImages(NamedTuple):
    """A repainted case as nibabel images, each on the grid of its input.

    Attributes:
        images: sequence -> the input with its ROI repainted, in its data type and scaling.
        std: sequence -> float32, of a mean; else empty.
        rois: uint8, in the numbers of `rois.kinds.ROI_LABELS`.
        labels: uint8, what is in the images; None where nobody knows.
    """

    images: dict[str, nib.Nifti1Image]
    std: dict[str, nib.Nifti1Image]
    rois: nib.Nifti1Image
    labels: nib.Nifti1Image | None


def write_case(folder: Path, case: Case, result: Volume, ending: str = "") -> dict[str, int]:
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
    by_sequence, names = _names(case, result.values)
    clipped = {}
    for source, volumes in _by_file(case, result.values).items():
        name, its_ending = names[by_sequence[source]], ending or split_ending(source)[1]
        written = f"{name}-inpainted{its_ending}"
        clipped[written] = write_nifti_like(source, folder / written, volumes, roi)
    if result.std:
        write_std(folder, case, result.std, ending)
    grid = next(iter(by_sequence))
    write_label_map(folder / "rois.nii.gz", from_slices(result.rois.label_map()), grid)
    if result.labels is not None:
        labels = case.files.convention.on_disk(from_slices(result.labels))
        write_label_map(folder / f"{case.subject}-seg.nii.gz", labels, grid)
    return clipped


def as_nifti(case: Case, result: Volume) -> NiftiImages:
    """A repainted case as images in memory; what `write_case` writes."""
    by_sequence, names = _names(case, result.values)

    def read(path: Path) -> nib.Nifti1Image:
        # Whole, since the file goes.
        return type(nib.load(path)).from_bytes(path.read_bytes())  # pyright: ignore

    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder)
        write_case(written, case, result, ".nii")

        def of_inputs(kind: str) -> dict[str, nib.Nifti1Image]:
            stems = {name: names[by_sequence[case.files.images[name]]] for name in result.values}
            return {name: read(written / f"{stem}-{kind}.nii") for name, stem in stems.items()}

        labels = written / f"{case.subject}-seg.nii.gz"
        return NiftiImages(
            of_inputs("inpainted"),
            of_inputs("std") if result.std else {},
            _in_memory(written / "rois.nii.gz"),
            _in_memory(labels) if labels.exists() else None,
        )


def _in_memory(path: Path) -> nib.Nifti1Image:
    """A label map without its file."""
    image = nib.load(path)
    return type(image)(np.asanyarray(image.dataobj), image.affine, image.header)  # pyright: ignore


def write_std(folder: Path, case: Case, std: Mapping[str, np.ndarray], ending: str = "") -> None:
    """Writes standard deviations over samples, float32, as <input>-std; see `write_case`.

    Args:
        std: sequence -> [Z, H, W] in the file's units.
    """
    by_sequence, names = _names(case, std)
    for source, by_channel in _by_file(case, std).items():
        name, its_ending = names[by_sequence[source]], ending or split_ending(source)[1]
        none = np.zeros(next(iter(by_channel.values())).shape, np.float32)
        channels = range(len(case.files.convention.channels))
        stacked = [by_channel.get(c, none) for c in channels]
        values = by_channel[None] if None in by_channel else np.stack(stacked, axis=-1)
        write_map(folder / f"{name}-std{its_ending}", values, source, _STD)


def std_of_samples(
    case: Case, samples: Sequence[Path], chosen: Sequence[str]
) -> dict[str, np.ndarray]:
    """The standard deviation over the samples of a case that `write_case` wrote.

    Args:
        case: the case.
        samples: folders of at least two samples.
        chosen: sequences that were repainted.

    Returns:
        Sequence -> float32 [Z, H, W], n - 1 in the denominator, in the file's units; 0 outside the ROI.
    """
    by_sequence, names = _names(case, chosen)
    total: dict[str, np.ndarray] = {}
    squares: dict[str, np.ndarray] = {}
    for folder in samples:
        images = {}
        for name in chosen:
            source = case.files.images[name]
            written = f"{names[by_sequence[source]]}-inpainted{split_ending(source)[1]}"
            images[name] = folder / written
        files = dataclasses.replace(case.files, images=images, labels=None)
        sample = read_case(files, list(chosen), labels=False)
        for name in chosen:
            # From the input, so that what is as it was deviates by exactly nothing.
            change = sample.values(name).astype(np.float64) - case.values(name)
            total[name] = total.get(name, 0) + change
            squares[name] = squares.get(name, 0) + change**2
    count = len(samples)
    out = {}
    for name in chosen:
        variance = (squares[name] - total[name] ** 2 / count) / (count - 1)
        out[name] = to_slices(np.sqrt(np.maximum(variance, 0)).astype(np.float32))
    return out


def write_label_descriptions(path: Path) -> None:
    """Names and colors of the numbers in rois.nii.gz, as ITK-SNAP reads them."""
    # Index, red, green, blue, opacity, visibility, in the mesh, name.
    lines = ['0 0 0 0 0 0 0 "no ROI"']
    for kind in sorted(KINDS, key=lambda kind: kind.label):
        color = " ".join(map(str, kind.color))
        lines.append(f'{kind.label} {color} 1 1 1 "{kind.title}"')
    write_bytes(path, "\n".join([*lines, ""]).encode())


def _names(case: Case, sequences: Iterable[str]) -> tuple[dict[Path, str], dict[str, str]]:
    """Of each input a sequence that it holds, and of these the names of what is written."""
    by_sequence = {case.files.images[name]: name for name in sequences}
    stems = {by_sequence[path]: split_ending(path)[0] for path in by_sequence}
    return by_sequence, distinct_names(stems)


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


def draw_case(path: Path, case: Case, result: Volume, title: str) -> None:
    """Draws a case with its ROIs before, and after: what lies around them, as wide as a screen.

    A row is a sequence. Side by side are the axial, the coronal and the sagittal plane in which the ROIs
    are largest, and what the model says that it painted, if it does, in the axial one.
    """
    roi, masks = result.rois.union, result.rois.masks
    planes = planes_through(roi, to_slices(case.brain), case.spacing[::-1])
    labels, cells = _painted_labels(result), []
    columns = [label for plane in planes for label in (f"{plane.title}, ROIs", "inpainted")]
    sides = [plane.sides for plane in planes for _ in range(2)]
    if labels is not None:
        columns.insert(2, "labels painted")
        sides.insert(2, planes[0].sides)
    for sequence, values in result.values.items():
        before, scale = to_slices(case.values(sequence)), case.scale(sequence)
        line = []
        for number, plane in enumerate(planes):
            real, inside = plane.of(before), plane.of(roi)
            picture = pictures.gray(scale.to_model(real))
            after = pictures.gray(scale.to_model(np.where(inside, plane.of(values), real)))
            line += [pictures.with_rois(picture, plane.of(masks), fill=0.0), after]
            if labels is not None and number == 0:
                line.append(pictures.with_labels(after, plane.of(labels)))
        cells.append(line)
    shown = [plane.of(masks).reshape(-1, masks.shape[-1]) for plane in planes]
    kinds = _kinds(np.concatenate(shown), None if labels is None else planes[0].of(labels))
    pictures.figure(
        path,
        cells,
        rows=[sequence.upper() for sequence in result.values],
        columns=columns,
        title=title,
        marks=pictures.Marks(kinds, sides),
    )


def draw_slice(path: Path, image: np.ndarray, result: Slice, title: str) -> None:
    """Draws a slice before, with its ROIs, and after, one sequence per row.

    Beside each other are the samples, of many the first ones, and their standard deviation. Shown is the
    brain.
    """
    cells, labels = [], _painted_labels(result)
    shown = result.images[:_MOST_SAMPLES]
    before = np.atleast_3d(image)
    window = pictures.around((before != 0).any(-1) | result.rois.union)
    for c, (low, high) in enumerate(result.provenance["intensity"]["low_high"]):
        picture = pictures.gray(before[..., c], low, high)
        line = [picture, pictures.with_rois(picture, result.rois.masks)]
        line += [pictures.gray(np.atleast_3d(sample)[..., c], low, high) for sample in shown]
        if result.std is not None:
            std = np.atleast_3d(result.std)[..., c]
            line.append(pictures.gray(std, 0.0, float(std.max()) or 1.0))
        if labels is not None:
            line.append(pictures.with_labels(line[2], labels[0]))
        cells.append([cell[window] for cell in line])
    rows = [f"sequence {c}" for c in range(len(cells))] if len(cells) > 1 else [""]
    columns = ["input", "ROIs"]
    columns += ["inpainted"] if len(shown) == 1 else [f"sample {n}" for n in range(len(shown))]
    columns += ["standard deviation"] * (result.std is not None)
    columns += ["labels painted"] * (labels is not None)
    marks = pictures.Marks(_kinds(result.rois.masks, labels), ["RL"] * len(columns))
    pictures.figure(path, cells, rows=rows, columns=columns, title=title, marks=marks)


def _kinds(masks: np.ndarray, labels: np.ndarray | None) -> list[str]:
    """The kinds of ROI that a legend has to explain."""
    used = set(pictures.kinds_in(masks))
    if labels is not None:
        used |= {name for name, number in COMPONENTS.items() if (labels == number).any()}
    return [kind.name for kind in KINDS if kind.name in used]


def _painted_labels(result: Slice | Volume) -> np.ndarray | None:
    """The labels that a preview shows; those that are the request would say nothing that ROIs do not."""
    return None if result.label_probabilities is None else result.labels

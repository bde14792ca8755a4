"""Reading one case into the canonical form.

Canonical: LPS volumes, sequences named t1, t1ce, t2, flair, labels 0 / 1 necrotic core / 2 edema /
3 enhancement / 4 resection cavity.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from tfds_brats.conventions import LABELS, SEQUENCES, TUMOR_LABELS, CaseError, Convention
from tfds_brats.plausible_order import likely_order, order_warning
from tfds_brats.scale import IntensityScale, fit_scale
from tfds_brats.volumes import AFFINE_TOLERANCE, Volume, read_geometry, read_volume

# How far stored labels may be from whole numbers: scaled ones carry the rounding of a float32 factor.
_LABEL_TOLERANCE = 1e-3
# Shares beyond which a case is reported: of the brain that a sequence lacks, and of a volume that is
# brain. In nine real cases the former is 0, the latter 0.13 to 0.18.
_MAX_MISSING = 0.1
_MAX_BRAIN = 0.9


@dataclass(frozen=True)
class CaseFiles:
    """Where the files of one case are.

    Attributes:
        subject: name of the case, which is one timepoint of one patient.
        patient: the name that the timepoints of one patient share.
        convention: how to read the files.
        images: sequence -> file (the same 4-D file for every sequence in MSD).
        labels: the segmentation, or None.
    """

    subject: str
    patient: str
    convention: Convention
    images: Mapping[str, Path]
    labels: Path | None

    @property
    def segmentation(self) -> Path:
        """`labels`, which must exist.

        Raises:
            CaseError: there is none; the message says which file is missing.
        """
        if self.labels is None:
            name = self.convention.file_name(self.subject, LABELS)
            raise CaseError(f"{self.subject}: has no segmentation {name}")
        return self.labels


@dataclass(frozen=True)
class Case:
    """One case in the canonical form; X, Y, Z are the LPS axes.

    Attributes:
        files: where it was read from.
        images: sequence -> [X, Y, Z] numbers as stored (integers stay integers).
        slope, intercept: sequence -> scaling of those numbers; value = slope * stored + intercept.
        labels: uint8 [X, Y, Z] canonical labels, or None if they were not read.
        affine: float64 [4, 4], LPS voxel indices -> RAS millimeters.
        to_disk: [3, 2] orientation; nibabel's `apply_orientation(lps_array, to_disk)` gives an array
            in the files' own axes.
        header_warnings: what is odd about the files' headers, see `volumes.read_volume`.
    """

    files: CaseFiles
    images: Mapping[str, np.ndarray]
    slope: Mapping[str, float]
    intercept: Mapping[str, float]
    labels: np.ndarray | None
    affine: np.ndarray
    to_disk: np.ndarray
    header_warnings: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        return self.files.subject

    @property
    def patient(self) -> str:
        return self.files.patient

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along X, Y, Z in mm."""
        return tuple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist())

    @property
    def segmentation(self) -> np.ndarray:
        """`labels`, which must have been read.

        Raises:
            CaseError: the case was read without its labels.
        """
        if self.labels is None:
            raise CaseError(f"{self.subject}: its segmentation was not read")
        return self.labels

    def values(self, sequence: str) -> np.ndarray:
        """[X, Y, Z] values in the file's units; exactly 0 is background.

        The stored numbers themselves if they are not scaled, otherwise float64.
        """
        stored = self.images[sequence]
        slope, intercept = self.slope[sequence], self.intercept[sequence]
        if slope == 1 and intercept == 0:
            return stored
        values = slope * stored.astype(np.float64) + intercept
        # Headers hold float32 factors, so a background of 0 comes out slightly off.
        tolerance = 0.01 * abs(slope) if stored.dtype.kind in "iu" else 1e-6 * abs(intercept)
        values[np.abs(values) < tolerance] = 0
        return values

    def repainted(self, values: Mapping[str, np.ndarray], labels: np.ndarray) -> "Case":
        """The case with other images and labels, but with this one's brain and intensity scales.

        Args:
            values: sequence -> [X, Y, Z] in the file's units; the other sequences stay.
            labels: uint8 [X, Y, Z], canonical.
        """
        plain = {"slope": dict.fromkeys(values, 1.0), "intercept": dict.fromkeys(values, 0.0)}
        other = replace(
            self,
            images={**self.images, **values},
            slope={**self.slope, **plain["slope"]},
            intercept={**self.intercept, **plain["intercept"]},
            labels=labels,
        )
        scales = {name: self.scale(name) for name in self.images}
        # What these cached properties would compute anew is to stay.
        vars(other).update(brain=self.brain, _scales=scales)
        return other

    @cached_property
    def brain(self) -> np.ndarray:
        """bool [X, Y, Z]: non-zero in any sequence that was read.

        Raises:
            CaseError: no voxel is background.
        """
        first, *others = self.images
        brain = self.values(first) != 0
        for sequence in others:  # In place: reducing a list would stack the volumes first.
            brain |= self.values(sequence) != 0
        if brain.all():
            raise CaseError(self._no_background())
        return brain

    @cached_property
    def warnings(self) -> list[str]:
        """What makes the case implausible without making it useless, in sentences.

        Reported are odd headers, a sequence that is zero in more than a tenth of the brain, a volume
        that is nine tenths brain, sequences that look exchanged, and tumor on background.
        """
        out, brain = list(self.header_warnings), self.brain
        size = np.count_nonzero(brain)
        for sequence in self.images:
            missing = 1 - np.count_nonzero(self.values(sequence)) / size
            if missing > _MAX_MISSING:
                out.append(f"{sequence} is zero in {missing:.0%} of the brain")
        if size > _MAX_BRAIN * brain.size:
            out.append(f"{size / brain.size:.0%} of the volume is not zero: is it skull-stripped?")
        likely = likely_order({name: self.values(name) for name in self.images}, brain)
        if likely:
            out.append(order_warning(likely))
        if self.labels is not None:
            count = np.count_nonzero(is_tumor(self.labels) & ~brain)
            if count:
                out.append(f"{count} voxels of tumor are on background, zero in every sequence")
        return out

    def _no_background(self) -> str:
        lines = []
        for sequence in self.images:
            values = self.values(sequence)
            if np.all(values != 0):
                corner = values[0, 0, 0]
                share = np.count_nonzero(values == corner) / values.size
                lines.append(
                    f"{self.files.images[sequence]} (corner {corner:g}, {share:.0%} of it)"
                )
        which = f"no voxel is zero in {', '.join(lines)}" if lines else "every voxel is non-zero"
        return (
            f"{self.subject}: {which}; the images must be skull-stripped, with a background of zero: "
            "set what is outside the brain to 0"
        )

    def scale(self, sequence: str) -> IntensityScale:
        """The intensity scale of one sequence.

        Raises:
            CaseError: the sequence is empty or constant; the message names its file.
        """
        if sequence not in self._scales:
            try:
                self._scales[sequence] = fit_scale(self.values(sequence), self.brain)
            except ValueError as error:
                raise CaseError(f"{self.files.images[sequence]}: {error}") from error
        return self._scales[sequence]

    @cached_property
    def _scales(self) -> dict[str, IntensityScale]:
        return {}


def read_case(files: CaseFiles, sequences: Sequence[str] = SEQUENCES, labels: bool = True) -> Case:
    """Reads sequences of a case, and its segmentation unless `labels` is False.

    Raises:
        CaseError: a file is missing or unusable, a shape or affine differs between files, a volume
            is constant, two sequences are the same, or a label is not in the convention. The message
            names the file.
    """
    volumes: dict[str, Volume] = {}
    by_path: dict[Path, Volume] = {}
    for sequence in sequences:
        if sequence not in files.images:
            raise CaseError(f"{files.subject}: has no {sequence} image")
        path = files.images[sequence]
        if path not in by_path:
            by_path[path] = read_volume(path)
            _check_shape(path, by_path[path].data.shape, files.convention)
        volumes[sequence] = _channel(by_path[path], files.convention, sequence)
        if volumes[sequence].data.min() == volumes[sequence].data.max():
            raise CaseError(f"{path}: the {sequence} image is empty or constant")
    first = sequences[0]
    reference = (volumes[first].data.shape, volumes[first].affine)
    for sequence, volume in volumes.items():
        geometry = (volume.data.shape, volume.affine)
        _check_same(files.images[sequence], geometry, files.images[first], reference)
    for one, other in itertools.combinations(sequences, 2):
        if np.array_equal(volumes[one].data, volumes[other].data):
            raise CaseError(
                f"{files.images[one]}: is the same image as {files.images[other]}, so it cannot be both "
                f"{one} and {other}"
            )
    canonical, warnings = None, [text for volume in volumes.values() for text in volume.warnings]
    if labels:
        canonical, segmentation = _read_labels(files)
        geometry = (canonical.shape, segmentation.affine)
        _check_same(files.segmentation, geometry, files.images[first], reference)
        warnings += segmentation.warnings
    return Case(
        files,
        {sequence: volume.data for sequence, volume in volumes.items()},
        {sequence: volume.slope for sequence, volume in volumes.items()},
        {sequence: volume.intercept for sequence, volume in volumes.items()},
        canonical,
        volumes[first].affine,
        volumes[first].to_disk,
        tuple(dict.fromkeys(warnings)),
    )


def survey_case(files: CaseFiles) -> float:
    """Mean tumor area of an axial slice of the case, in pixels.

    Reads the segmentation and the headers of the images, so that most unusable cases are found
    before hours of work. Raises the errors of `read_case`.
    """
    labels, volume = _read_labels(files)
    for path in dict.fromkeys(files.images.values()):
        shape, affine = read_geometry(path)
        _check_shape(path, shape, files.convention)
        geometry, reference = (shape[:3], affine), (labels.shape, volume.affine)
        _check_same(path, geometry, files.segmentation, reference)
    return float(is_tumor(labels).sum() / labels.shape[2])


def is_tumor(labels: np.ndarray) -> np.ndarray:
    """Where canonical labels are `conventions.TUMOR_LABELS`: bool, of any shape.

    A resection cavity is not tumor: it is never an ROI, and a slice with nothing else is not a tumor
    slice.
    """
    return np.isin(labels, TUMOR_LABELS)


def read_label_volume(path: Path) -> tuple[np.ndarray, Volume]:
    """(whole numbers [X, Y, Z] of a label map, the file's volume).

    Raises:
        CaseError: as `read_volume` does, another number of axes, or numbers that are not whole.
    """
    volume = read_volume(path)
    if volume.data.ndim != 3:
        raise CaseError(f"{path}: has shape {volume.data.shape}; 3 axes are needed")
    values = volume.data
    if (volume.slope, volume.intercept) != (1, 0):
        values = np.float64(volume.slope) * values + volume.intercept
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        off = np.abs(values - rounded)
        if off.max() > _LABEL_TOLERANCE:
            example = values.flat[int(off.argmax())]
            raise CaseError(
                f"{path}: holds labels that are not whole numbers, such as {example:g} (was it "
                "resampled with interpolation?)"
            )
        values = rounded
    return values, volume


def _read_labels(files: CaseFiles) -> tuple[np.ndarray, Volume]:
    """(canonical labels uint8 [X, Y, Z], the file's volume) of the segmentation."""
    values, volume = read_label_volume(files.segmentation)
    known = files.convention.labels
    canonical, num_known = np.zeros_like(values, np.uint8), 0
    for label, meaning in known.items():
        here = values == label
        num_known += np.count_nonzero(here)
        if meaning:
            canonical[here] = meaning
    if num_known != values.size:
        unknown = [int(label) for label in np.unique(values) if label not in known]
        raise CaseError(
            f"{files.labels}: holds the labels {unknown[:10]}, which are unknown in the convention "
            f"{files.convention.name} ({', '.join(map(str, known))}); tfds_brats/README.md lists "
            "the conventions"
        )
    return canonical, volume


def _check_shape(path: Path, shape: tuple[int, ...], rule: Convention) -> None:
    expected = "3 axes"
    if rule.channels:
        if len(shape) == 4 and shape[3] == len(rule.channels):
            return
        expected = f"4 axes, the last with {len(rule.channels)} sequences,"
    elif len(shape) == 3:
        return
    raise CaseError(f"{path}: has shape {shape}; {expected} are needed for {rule.name}")


def _channel(volume: Volume, rule: Convention, sequence: str) -> Volume:
    if not rule.channels:
        return volume
    return dataclasses.replace(volume, data=volume.data[..., rule.channels.index(sequence)])


def _check_same(path: Path, geometry, other: Path, reference) -> None:
    (shape, affine), (other_shape, other_affine) = geometry, reference
    if shape != other_shape:
        raise CaseError(f"{path}: has shape {shape}, but {other.name} has {other_shape} (in LPS)")
    difference = np.abs(affine - other_affine).max()
    if difference > AFFINE_TOLERANCE:
        raise CaseError(
            f"{path}: its affine differs from that of {other.name} by {difference:.3g} mm; "
            "the images of a case must share one grid"
        )

"""Finding the cases of a source folder and reading one case into the canonical form.

Canonical: LPS volumes, sequences named t1, t1ce, t2, flair, labels 0 / 1 necrotic core / 2 edema /
3 enhancement / 4 resection cavity.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tfds_brats.conventions import (
    CONVENTIONS,
    SEQUENCES,
    TUMOR_LABELS,
    CaseError,
    Convention,
    get_convention,
)
from tfds_brats.scale import IntensityScale, fit_scale
from tfds_brats.volumes import AFFINE_TOLERANCE, Volume, read_geometry, read_volume

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip", ".7z")
_NIFTI = r"\.nii(?:\.gz)?"
_LABELS = "labels"


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
            name = _expected_name(self.convention, self.subject, _LABELS)
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
    """

    files: CaseFiles
    images: Mapping[str, np.ndarray]
    slope: Mapping[str, float]
    intercept: Mapping[str, float]
    labels: np.ndarray | None
    affine: np.ndarray
    to_disk: np.ndarray

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
            raise CaseError(
                f"{self.subject}: no voxel is zero in {', '.join(self.images)}; the images must be "
                "skull-stripped, with a background of zero"
            )
        return brain

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


def find_cases(
    source: str | os.PathLike,
    convention: str,
    sequences: Sequence[str] = SEQUENCES,
    labels: bool = True,
) -> list[CaseFiles]:
    """Finds the cases of a convention below a folder, at any depth.

    Args:
        source: folder that holds case folders, or one case folder.
        convention: its name, a key of `CONVENTIONS`.
        sequences: sequences that every case must have.
        labels: whether every case must have a segmentation.

    Returns:
        The cases in the order of their names.

    Raises:
        CaseError: an archive instead of a folder, no case found, a case that lacks a file or has
            one twice, or two cases of the same name. The message names the case and the files.
    """
    rule = get_convention(convention)
    root = Path(source)
    if root.is_file() and root.name.lower().endswith(_ARCHIVES):
        raise CaseError(f"{root} is an archive; {_how_to_unpack(root)}")
    if not root.is_dir():
        raise CaseError(f"{root} is not a folder")
    files = list(_walk(root))
    found = _group(files, rule, with_unlabeled=not labels)
    if not found:
        raise CaseError(_nothing_found(root, rule, files))

    problems, cases = [], {}
    for (folder, subject), roles in sorted(found.items()):
        wanted = [*sequences, _LABELS] if labels else list(sequences)
        twice = [paths for paths in roles.values() if len(paths) > 1]
        missing = [_expected_name(rule, subject, role) for role in wanted if role not in roles]
        if twice:
            names = " and ".join(path.name for path in twice[0])
            problems.append(f"{folder}: {names} are duplicates; keep one")
        elif missing:
            problems.append(f"{folder}: {subject} lacks {', '.join(missing)}")
        elif subject in cases:
            other = next(iter(cases[subject].images.values())).parent
            problems.append(f"{subject} exists twice, in {other} and {folder}; keep one")
        else:
            patient = re.sub(rule.case_pattern, r"\g<patient>", subject)
            images = {name: roles[name][0] for name in SEQUENCES if name in roles}
            segmentation = roles[_LABELS][0] if _LABELS in roles else None
            cases[subject] = CaseFiles(subject, patient, rule, images, segmentation)
    if problems:
        more = f"\n... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CaseError("\n".join(problems[:5]) + more)
    return [cases[subject] for subject in sorted(cases)]


def read_case(files: CaseFiles, sequences: Sequence[str] = SEQUENCES, labels: bool = True) -> Case:
    """Reads sequences of a case, and its segmentation unless `labels` is False.

    Raises:
        CaseError: a file is missing or unusable, a shape or affine differs between files, a volume
            is constant, or a label is not in the convention. The message names the file.
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
    canonical = None
    if labels:
        canonical, affine = _read_labels(files)
        geometry = (canonical.shape, affine)
        _check_same(files.segmentation, geometry, files.images[first], reference)
    return Case(
        files,
        {sequence: volume.data for sequence, volume in volumes.items()},
        {sequence: volume.slope for sequence, volume in volumes.items()},
        {sequence: volume.intercept for sequence, volume in volumes.items()},
        canonical,
        volumes[first].affine,
        volumes[first].to_disk,
    )


def survey_case(files: CaseFiles) -> float:
    """Mean tumor area of an axial slice of the case, in pixels.

    Reads the segmentation and the headers of the images, so that most unusable cases are found
    before hours of work. Raises the errors of `read_case`.
    """
    labels, affine = _read_labels(files)
    for path in dict.fromkeys(files.images.values()):
        shape, image_affine = read_geometry(path)
        _check_shape(path, shape, files.convention)
        _check_same(path, (shape[:3], image_affine), files.segmentation, (labels.shape, affine))
    return float(is_tumor(labels).sum() / labels.shape[2])


def is_tumor(labels: np.ndarray) -> np.ndarray:
    """Where canonical labels are `conventions.TUMOR_LABELS`: bool, of any shape.

    A resection cavity is not tumor: it is never an ROI, and a slice with nothing else is not a tumor
    slice.
    """
    return np.isin(labels, TUMOR_LABELS)


def _read_labels(files: CaseFiles) -> tuple[np.ndarray, np.ndarray]:
    """(canonical labels uint8 [X, Y, Z], affine) of the segmentation."""
    volume = read_volume(files.segmentation)
    if volume.data.ndim != 3:
        raise CaseError(f"{files.labels}: has shape {volume.data.shape}; 3 axes are needed")
    values = volume.data
    if (volume.slope, volume.intercept) != (1, 0):
        values = np.float64(volume.slope) * values + volume.intercept
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        # Scaled labels carry the rounding error of a float32 factor.
        if np.abs(values - rounded).max() > 1e-3:
            raise CaseError(f"{files.labels}: holds labels that are not whole numbers")
        values = rounded
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
    return canonical, volume.affine


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
    data = volume.data[..., rule.channels.index(sequence)]
    return Volume(data, volume.slope, volume.intercept, volume.affine, volume.to_disk)


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


def _walk(root: Path) -> Iterator[Path]:
    """Files below a folder in a fixed order; follows links, but visits each real folder once."""
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        # Names with a leading dot are leftovers of macOS (the MSD archive has them).
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _group(
    files: list[Path], rule: Convention, with_unlabeled: bool
) -> dict[tuple[Path, str], dict[str, list[Path]]]:
    """(folder, case) -> role -> files; a role is a sequence or "labels"."""
    found: dict[tuple[Path, str], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    if rule.channels:
        folders = ("imagesTr", "imagesTs") if with_unlabeled else ("imagesTr",)
        for path in files:
            match = re.fullmatch(f"(?P<case>{rule.case_pattern}){_NIFTI}", path.name)
            folder = path.parent.resolve()
            if not match or folder.name not in folders:
                continue
            roles = found[path.parent, match["case"]]
            for sequence in rule.channels:
                roles[sequence].append(path)
            labels = [
                folder.parent / "labelsTr" / f"{match['case']}{end}" for end in (".nii", ".nii.gz")
            ]
            if present := [labels_path for labels_path in labels if labels_path.is_file()]:
                roles[_LABELS] = present
        return found
    roles_by_suffix = {suffix: role for role, suffix in rule.suffixes.items()}
    roles_by_suffix[rule.label_suffix] = _LABELS
    suffixes = "|".join(re.escape(suffix) for suffix in roles_by_suffix)
    pattern = re.compile(f"(?P<case>{rule.case_pattern})(?P<suffix>{suffixes}){_NIFTI}")
    for path in files:
        match = pattern.fullmatch(path.name)
        if match:
            found[path.parent, match["case"]][roles_by_suffix[match["suffix"]]].append(path)
        elif re.sub(_NIFTI + "$", "", path.name) in rule.stray_labels:
            case = path.parent.resolve().name
            if re.fullmatch(rule.case_pattern, case):
                found[path.parent, case][_LABELS].append(path)
    return found


def _expected_name(rule: Convention, subject: str, role: str) -> str:
    if rule.channels:
        return f"{'labelsTr' if role == _LABELS else 'imagesTr'}/{subject}.nii.gz"
    suffix = rule.label_suffix if role == _LABELS else rule.suffixes[role]
    return f"{subject}{suffix}.nii.gz"


def _how_to_unpack(archive: Path) -> str:
    folder = archive.parent / archive.name.split(".")[0]
    tool = f"tar -xf {archive} -C {folder}"
    if archive.suffix.lower() == ".zip":
        tool = f"unzip -q {archive} -d {folder}"
    elif archive.suffix.lower() == ".7z":
        tool = f"7z x {archive} -o{folder}"
    return f"unpack it first, `mkdir -p {folder} && {tool}`, and pass {folder}"


def _nothing_found(root: Path, rule: Convention, files: list[Path]) -> str:
    first = _expected_name(rule, rule.case_example.split("/")[-1], SEQUENCES[0])
    message = f"{root}: no case of convention {rule.name}, whose files are named like {first}"
    for path in files:
        if path.name.lower().endswith(_ARCHIVES):
            return f"{message}; found the archive {path.name}: {_how_to_unpack(path)}"
    others = [
        other.name
        for other in CONVENTIONS.values()
        if other is not rule and _group(files, other, with_unlabeled=True)
    ]
    return message + (f"; the files are named as in {' or '.join(others)}" * bool(others))

"""Finding the cases of a source folder and reading one case into the canonical form.

Canonical: LPS volumes, sequences named t1, t1ce, t2, flair, labels 0 / 1 necrotic core / 2 edema /
3 enhancement / 4 resection cavity.
"""

import dataclasses
import itertools
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from tfds_brats.volumes import (
    AFFINE_TOLERANCE,
    NIFTI_ENDINGS,
    Volume,
    other_format,
    read_geometry,
    read_volume,
    split_ending,
)

_log = logging.getLogger(__name__)
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip", ".7z")
_LABELS = "labels"
# How far stored labels may be from whole numbers: scaled ones carry the rounding of a float32 factor.
_LABEL_TOLERANCE = 1e-3
# Shares beyond which a case is reported: of the brain that a sequence lacks, and of a volume that is
# brain. In nine real cases the former is 0, the latter 0.13 to 0.18.
_MAX_MISSING = 0.1
_MAX_BRAIN = 0.9
# How many problems a message lists.
_LISTED = 5


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
        that is nine tenths brain, and tumor on background.
        """
        out, brain = list(self.header_warnings), self.brain
        size = np.count_nonzero(brain)
        for sequence in self.images:
            missing = 1 - np.count_nonzero(self.values(sequence)) / size
            if missing > _MAX_MISSING:
                out.append(f"{sequence} is zero in {missing:.0%} of the brain")
        if size > _MAX_BRAIN * brain.size:
            out.append(f"{size / brain.size:.0%} of the volume is not zero: is it skull-stripped?")
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


def find_cases(
    source: str | os.PathLike,
    convention: str | Convention,
    sequences: Sequence[str] = SEQUENCES,
    labels: bool = True,
) -> list[CaseFiles]:
    """Finds the cases of a convention below a folder, at any depth.

    Hidden files and folders are passed over. A segmentation may lie in another folder than the images.

    Args:
        source: folder that holds case folders, or one case folder.
        convention: its name, a key of `CONVENTIONS`, or the convention itself.
        sequences: sequences that every case must have.
        labels: whether every case must have a segmentation.

    Returns:
        The cases in the order of their names.

    Raises:
        CaseError: an archive instead of a folder, no case found, a case that lacks a file or has
            one twice, or two cases of the same name. The message names the case and the files.
    """
    cases, problems = search_cases(source, convention, sequences, labels)
    if problems:
        raise CaseError(list_problems(problems))
    return cases


def search_cases(
    source: str | os.PathLike,
    convention: str | Convention,
    sequences: Sequence[str] = SEQUENCES,
    labels: bool = True,
) -> tuple[list[CaseFiles], list[str]]:
    """The cases below a folder that can be used, and what is wrong with the others.

    Args, Raises: see `find_cases`, but a case that cannot be used is not an error.
    """
    rule = get_convention(convention) if isinstance(convention, str) else convention
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
    wanted = [*sequences, _LABELS] if labels else list(sequences)
    for (folder, subject), roles in sorted(found.items()):
        twice = [paths for paths in roles.values() if len(paths) > 1]
        missing = [_expected_name(rule, subject, role) for role in wanted if role not in roles]
        images = {name: roles[name][0] for name in SEQUENCES if name in roles}
        if twice:
            names = " and ".join(
                path.name if path.parent == folder else str(path) for path in twice[0]
            )
            problems.append(f"{folder}: {names} are duplicates; keep one")
        elif not images:
            problems.append(_without_images(folder, subject, rule, files))
        elif missing:
            problems.append(f"{folder}: {subject} lacks {', '.join(missing)}")
        elif subject in cases:
            other = next(iter(cases[subject].images.values())).parent
            problems.append(f"{subject} exists twice, in {other} and {folder}; keep one")
        else:
            patient = re.sub(rule.case_pattern, r"\g<patient>", subject)
            segmentation = roles[_LABELS][0] if _LABELS in roles else None
            cases[subject] = CaseFiles(subject, patient, rule, images, segmentation)
    return [cases[subject] for subject in sorted(cases)], problems


def list_problems(problems: Sequence[str]) -> str:
    """Problems of several cases, a line each; of many the first ones."""
    more = f"\n... and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    return "\n".join(problems[:_LISTED]) + more


def for_each_case(
    cases: Sequence[CaseFiles], problems: Sequence[str], do: Callable[[CaseFiles], None]
) -> None:
    """Does something with every case; those that cannot be used do not keep the others from it.

    Args:
        cases: the cases.
        problems: of further cases, as `search_cases` reports them.
        do: raises `CaseError` for a case that cannot be used.

    Raises:
        CaseError: when all others are done, for the cases that could not be used; lists why.
    """
    failed = list(problems)
    for number, files in enumerate(cases, 1):
        if len(cases) > 1:
            _log.info(f"{files.subject} ({number} of {len(cases)})")
        try:
            do(files)
        except CaseError as error:
            _log.info(f"{files.subject}: not done: {error}")
            failed.append(str(error))
    total = len(cases) + len(problems)
    if failed and total == 1:
        raise CaseError(failed[0])
    if failed:
        rest = f"; the other {total - len(failed)} are done" if len(failed) < total else ""
        raise CaseError(
            f"{len(failed)} of {total} cases could not be done{rest}:\n{list_problems(failed)}"
        )


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


def _walk(root: Path) -> Iterator[Path]:
    """Files below a folder in a fixed order; follows links, but visits each real folder once."""

    def refuse(error: OSError) -> None:
        raise CaseError(f"{error.filename}: cannot be read ({error.strerror})") from error

    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        # Names with a leading dot are leftovers of macOS (the MSD archive has them) and of killed runs.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _group(
    files: list[Path], rule: Convention, with_unlabeled: bool
) -> dict[tuple[Path, str], dict[str, list[Path]]]:
    """(folder, case) -> role -> files; a role is a sequence or "labels"."""
    found: dict[tuple[Path, str], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    named = [(path, *split_ending(path)) for path in files]
    volumes = [(path, stem) for path, stem, ending in named if ending in NIFTI_ENDINGS]
    if rule.channels:
        folders = ("imagesTr", "imagesTs") if with_unlabeled else ("imagesTr",)
        for path, case in volumes:
            folder = path.parent.resolve()
            if not re.fullmatch(rule.case_pattern, case) or folder.name not in folders:
                continue
            roles = found[path.parent, case]
            for sequence in rule.channels:
                roles[sequence].append(path)
            labels = [folder.parent / "labelsTr" / f"{case}{end}" for end in NIFTI_ENDINGS]
            if present := [labels_path for labels_path in labels if labels_path.is_file()]:
                roles[_LABELS] = present
        return found
    roles_by_suffix = {suffix: role for role, suffix in rule.suffixes.items()}
    roles_by_suffix[rule.label_suffix] = _LABELS
    suffixes = "|".join(re.escape(suffix) for suffix in roles_by_suffix)
    pattern = re.compile(f"(?P<case>{rule.case_pattern})(?P<suffix>{suffixes})")
    for path, stem in volumes:
        match = pattern.fullmatch(stem)
        if match:
            found[path.parent, match["case"]][roles_by_suffix[match["suffix"]]].append(path)
        elif stem in rule.stray_labels:
            case = path.parent.resolve().name
            if re.fullmatch(rule.case_pattern, case):
                found[path.parent, case][_LABELS].append(path)
    return _with_labels_from_elsewhere(found)


def _with_labels_from_elsewhere(
    found: dict[tuple[Path, str], dict[str, list[Path]]],
) -> dict[tuple[Path, str], dict[str, list[Path]]]:
    """Moves segmentations that lie without images in a folder to the only images of their case."""
    homes, alone = defaultdict(list), []
    for key, roles in found.items():
        if set(roles) == {_LABELS}:
            alone.append(key)
        else:
            homes[key[1]].append(key)
    for key in alone:
        if len(homes[key[1]]) == 1:
            found[homes[key[1]][0]][_LABELS] += found.pop(key)[_LABELS]
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


def _without_images(folder: Path, subject: str, rule: Convention, files: list[Path]) -> str:
    expected = [_expected_name(rule, subject, role) for role in SEQUENCES]
    others = [
        path.name
        for path in files
        if path.parent == folder and path.name.lower().startswith(subject.lower())
    ]
    return (
        f"{folder}: {subject} has a segmentation, but no image named {', '.join(expected)} (capitals "
        f"count); the folder holds {', '.join(others[:6])}{', ...' * (len(others) > 6)}"
    )


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
    if others:
        return f"{message}; the files are named as in {' or '.join(others)}"
    volumes = [path for path in files if split_ending(path)[1] in NIFTI_ENDINGS]
    if volumes:
        return (
            f"{message}, but files like {volumes[0].relative_to(root)}; for names of no convention give "
            "the files of a case one by one, images.t1=FILE and so on"
        )
    for path in files:
        if what := other_format(path):
            return f"{message}, but {path.relative_to(root)}, which is {what}"
    return f"{message}, nor any other NIfTI file"

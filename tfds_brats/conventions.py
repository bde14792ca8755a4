"""Named conventions: how a release of the data names its files and numbers its labels.

A segmentation with labels 0, 1, 2, 3 is valid in BraTS 2023 and in MSD with different meanings, so
the convention is always named by the user and never guessed from label values or file names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tfds_brats.spelling import nearest

# The four sequences, in the one order used everywhere (records, channels, tables).
SEQUENCES = ("t1", "t1ce", "t2", "flair")
# The role of a segmentation beside them.
LABELS = "labels"

# Canonical labels, uint8, of every record.
BACKGROUND, NECROTIC_CORE, EDEMA, ENHANCEMENT, CAVITY = range(5)
# What a tumor consists of. A resection cavity is not part of it.
TUMOR_LABELS = (NECROTIC_CORE, EDEMA, ENHANCEMENT)


class CaseError(ValueError):
    """A case, file or source folder that cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Convention:
    """File names, sequences and labels of one release.

    Attributes:
        name: the name to give on the command line, e.g. "brats2021".
        case_pattern: regular expression of a whole case name; its group `patient` is what the
            timepoints of one patient share.
        case_example: a matching case name, for messages.
        suffixes: what follows the case name in the file of a sequence (without .nii or .nii.gz).
        label_suffix: the same for the segmentation.
        labels: label on disk -> canonical label; every other value is an error.
        stray_labels: file stems of segmentations not named after their case; their folder is.
        channels: sequences along the fourth axis of one 4-D file in `imagesTr` (labels in
            `labelsTr`); empty where every sequence has its own 3-D file.
    """

    name: str
    case_pattern: str
    case_example: str
    labels: Mapping[int, int]
    suffixes: Mapping[str, str] = field(default_factory=dict)
    label_suffix: str = ""
    stray_labels: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()

    def file_name(self, subject: str, role: str) -> str:
        """How a compressed file of a case is named.

        Args:
            subject: name of the case.
            role: a sequence, or `LABELS`.
        """
        if self.channels:
            return f"{'labelsTr' if role == LABELS else 'imagesTr'}/{subject}.nii.gz"
        suffix = self.label_suffix if role == LABELS else self.suffixes[role]
        return f"{subject}{suffix}.nii.gz"

    def on_disk(self, labels: np.ndarray) -> np.ndarray:
        """Canonical labels in the numbers of this release, uint8 of the same shape.

        Without `labels` of its own they stay canonical.

        Raises:
            CaseError: the release has no number for one of them.
        """
        numbers = {meaning: number for number, meaning in self.labels.items()}
        table = np.arange(CAVITY + 1, dtype=np.uint8)
        for label in np.unique(labels).tolist() if numbers else ():
            if label not in numbers:
                raise CaseError(
                    f"convention {self.name} has no number for the canonical label {label}"
                )
            table[label] = numbers[label]
        return table[labels]


_UNDERSCORE = {"t1": "_t1", "t1ce": "_t1ce", "t2": "_t2", "flair": "_flair"}
_HYPHEN = {"t1": "-t1n", "t1ce": "-t1c", "t2": "-t2w", "flair": "-t2f"}

_ET_IS_4 = {0: BACKGROUND, 1: NECROTIC_CORE, 2: EDEMA, 4: ENHANCEMENT}
_ET_IS_3 = {0: BACKGROUND, 1: NECROTIC_CORE, 2: EDEMA, 3: ENHANCEMENT}


def _until_2021(name: str, pattern: str, example: str, stray: tuple[str, ...] = ()) -> Convention:
    return Convention(name, pattern, example, _ET_IS_4, _UNDERSCORE, "_seg", stray)


def _upenn(name: str, label_suffix: str) -> Convention:
    suffixes = {"t1": "_T1", "t1ce": "_T1GD", "t2": "_T2", "flair": "_FLAIR"}
    pattern = r"(?P<patient>UPENN-GBM-\d+)_\d+"
    return Convention(name, pattern, "UPENN-GBM-00001_11", _ET_IS_4, suffixes, label_suffix)


_ALL = (
    # The last number of a 2018/2019 case is the timepoint: Brats18_<site>_<patient>_<timepoint>.
    _until_2021("brats2018", r"(?P<patient>Brats18_[^_]+_[^_]+)_\d+", "Brats18_TCIA01_201_1"),
    _until_2021("brats2019", r"(?P<patient>BraTS19_[^_]+_[^_]+)_\d+", "BraTS19_TCIA01_201_1"),
    _until_2021(
        "brats2020",
        r"(?P<patient>BraTS20_[A-Za-z]+_\d+)",
        "BraTS20_Training_001",
        # Case 355 was published with its segmentation under this name.
        stray=("W39_1998.09.19_Segm",),
    ),
    _until_2021("brats2021", r"(?P<patient>BraTS2021_\d+)", "BraTS2021_00000"),
    _until_2021("fets2022", r"(?P<patient>FeTS2022_\d+)", "FeTS2022_00000"),
    Convention(
        "brats2023",
        r"(?P<patient>BraTS-(?:GLI|SSA|MET)-\d+)-\d+",
        "BraTS-GLI-00001-000",
        _ET_IS_3,
        _HYPHEN,
        "-seg",
    ),
    Convention(
        "brats2024",
        r"(?P<patient>BraTS-GLI-\d+)-\d+",
        "BraTS-GLI-00005-100",
        {**_ET_IS_3, 4: CAVITY},
        _HYPHEN,
        "-seg",
    ),
    Convention(
        "brats2024_goat",
        r"(?P<patient>BraTS-GoAT-\d+)",
        "BraTS-GoAT-00001",
        _ET_IS_3,
        _HYPHEN,
        "-seg",
    ),
    # The second number is the session. Segmentations lie in folders of their own.
    _upenn("upenn_gbm", "_segm"),
    _upenn("upenn_gbm_automated", "_automated_approx_segm"),
    Convention(
        "ucsf_pdgm",
        r"(?P<patient>UCSF-PDGM-\d+)(?:_FU\d+d)?",
        "UCSF-PDGM-0004",
        _ET_IS_4,
        {"t1": "_T1", "t1ce": "_T1c", "t2": "_T2", "flair": "_FLAIR"},
        "_tumor_segmentation",
    ),
    Convention(
        "msd",
        r"(?P<patient>BRATS_\d+)",
        "imagesTr/BRATS_001",
        {0: BACKGROUND, 1: EDEMA, 2: NECROTIC_CORE, 3: ENHANCEMENT},
        channels=("flair", "t1", "t1ce", "t2"),
    ),
    _until_2021("phantom", r"(?P<patient>Phantom_\d+)", "Phantom_0000"),
)

CONVENTIONS: dict[str, Convention] = {convention.name: convention for convention in _ALL}


def get_convention(name: str) -> Convention:
    """The convention of that name.

    Raises:
        CaseError: no such convention; the message lists the names.
    """
    if name not in CONVENTIONS:
        known = ", ".join(CONVENTIONS)
        raise CaseError(
            f"unknown convention {name!r}; choose one of {known}{nearest(name, CONVENTIONS)}"
        )
    return CONVENTIONS[name]

"""The table of slices and images per split, to compare with the paper's counts."""

from collections.abc import Mapping
from typing import NamedTuple

from tfds_brats.conventions import SEQUENCES
from tfds_brats.reading import RecordIndex


class SplitCounts(NamedTuple):
    """Counts of one split; an image is one sequence of one slice.

    Attributes:
        patients, subjects, slices, tumor_slices: what the records contain.
        images: slices times sequences.
        doubled_images: images when every slice with tumor is taken twice.
        tumor_share: share of slices (not doubled) that contain tumor.
    """

    patients: int
    subjects: int
    slices: int
    tumor_slices: int
    images: int
    doubled_images: int
    tumor_share: float


def count_split(index: RecordIndex) -> SplitCounts:
    """Counts the records of a split."""
    slices = len(index.slice_index)
    tumor_slices = int((index.tumor_area > 0).sum())
    return SplitCounts(
        patients=len(set(index.patient)),
        subjects=len(set(index.subject)),
        slices=slices,
        tumor_slices=tumor_slices,
        images=slices * len(SEQUENCES),
        doubled_images=(slices + tumor_slices) * len(SEQUENCES),
        tumor_share=tumor_slices / slices,
    )


def format_table(indices: Mapping[str, RecordIndex]) -> str:
    """The counts of every split (name -> index) as text, one line per split."""
    lines = [
        f"{'split':<12}{'patients':>9}{'subjects':>9}{'slices':>9}{'images':>10}"
        f"{'with tumor':>13}{'doubled':>10}"
    ]
    for split, index in indices.items():
        counts = count_split(index)
        lines.append(
            f"{split:<12}{counts.patients:>9,}{counts.subjects:>9,}{counts.slices:>9,}"
            f"{counts.images:>10,}{counts.tumor_share:>13.1%}{counts.doubled_images:>10,}"
        )
    return "\n".join(lines)

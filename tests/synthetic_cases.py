"""Tiny synthetic cases, written with nibabel as the releases would name them."""

from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (24, 20, 6)
# BraTS's own orientation, LPS.
AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 19], [0, 0, 1.0, 0], [0, 0, 0, 1]])
SUFFIXES = {"t1": "_t1", "t1ce": "_t1ce", "t2": "_t2", "flair": "_flair"}


def make_arrays(seed: int, tumor_size: int = 3) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(sequence -> int16, labels uint8 in BraTS 2021's numbers), both of SHAPE, in LPS.

    The brain is a box with noise, different on every side so that a wrong axis shows, too small for
    a record in the lowest slice and absent in the highest.
    """
    rng = np.random.default_rng(seed)
    brain = np.zeros(SHAPE, bool)
    brain[3:19, 4:17, 1:5] = True
    brain[3:10, 4:9, 0] = True
    images = {
        sequence: np.where(brain, rng.integers(1, 900, SHAPE), 0).astype(np.int16)
        for sequence in SUFFIXES
    }
    labels = np.zeros(SHAPE, np.uint8)
    labels[5 : 6 + tumor_size, 6 : 7 + tumor_size, 1:4] = 2
    labels[6 : 6 + tumor_size, 7 : 7 + tumor_size, 2:4] = 4
    labels[7, 8, 2] = 1
    return images, labels


def write_volume(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def write_case(
    folder: Path,
    subject: str,
    seed: int = 0,
    tumor_size: int = 3,
    suffixes: dict[str, str] = SUFFIXES,
    label_suffix: str = "_seg",
    end: str = ".nii.gz",
) -> Path:
    """Writes one case into folder/subject; returns that."""
    images, labels = make_arrays(seed, tumor_size)
    for sequence, image in images.items():
        write_volume(folder / subject / f"{subject}{suffixes[sequence]}{end}", image)
    write_volume(folder / subject / f"{subject}{label_suffix}{end}", labels)
    return folder / subject

"""Digital phantom: seeded brains with gliomas in four MR sequences, as BraTS-layout NIfTI files.

For running the whole pipeline without a download, and for tests. None of it is patient data, nor a
substitute for it: the anatomy is one averaged brain, deformed.

    write_phantoms("phantoms", num_subjects=12, seed=0)

Anatomy is in `phantom_anatomy`, growth in `phantom_tumor`; this file turns both into images and files.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from threadpoolctl import threadpool_limits

from tfds_brats.conventions import SEQUENCES
from tfds_brats.phantom_anatomy import (
    GRID_SHAPE,
    WINDOW,
    WINDOW_SHAPE,
    Tissue,
    sample_head,
    sample_tissue,
    smooth_field,
)
from tfds_brats.phantom_tumor import Tumor, TumorPlan, before_tumor, grow_tumor, plan_tumor
from tfds_brats.workers import Workers, default_num_workers

# Increase it whenever the same seed gives other images.
VERSION = 1

AFFINE = np.array(
    [[-1.0, 0, 0, 0], [0, -1.0, 0, 239.0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]]
)  # voxel -> RAS mm, as in BraTS

# Signal in units of normal white matter, from medians over labeled voxels of real cases.
_SIGNAL = {
    #         fluid  gray  edema necrosis enhancing
    "t1": (0.36, 0.80, 0.84, 0.62, 0.84),
    "t1ce": (0.36, 0.82, 0.87, 0.64, 1.65),
    "t2": (3.00, 1.33, 2.00, 2.60, 2.05),
    "flair": (0.28, 1.14, 1.85, 1.45, 1.75),
}
# A non-enhancing core is cellular tumor, not dead tissue.
_LOW_GRADE_CORE = {"t1": 0.70, "t1ce": 0.70, "t2": 2.40, "flair": 1.80}


@dataclasses.dataclass(frozen=True)
class PhantomSettings:
    """Which phantoms to make.

    Attributes:
        num_subjects: number of subjects, at least 1; they are numbered from 0.
        seed: seed of the whole set, at least 0.
    """

    num_subjects: int
    seed: int = 0


def make_phantom(seed: int, subject_index: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Makes one subject, a function of (seed, subject_index) alone.

    Args:
        seed: not negative.
        subject_index: not negative.

    Returns:
        images: int16 [240, 240, 155] by sequence name (t1, t1ce, t2, flair), LPS, 1 mm, 0 outside the
            brain and positive inside in all four.
        labels: uint8 of the same shape, 0, 1 necrotic or non-enhancing core, 2 edema, 4 enhancing.

    Raises:
        ValueError: a number is negative.
    """
    if seed < 0 or subject_index < 0:
        raise ValueError(f"seed {seed} and subject index {subject_index} must not be negative")
    streams = np.random.SeedSequence([seed, subject_index]).spawn(4)
    head_rng, plan_rng, tissue_rng, image_rng = map(np.random.default_rng, streams)
    # The matrix products are small: several threads on busy cores take ten times as long.
    with threadpool_limits(limits=1):
        head = sample_head(head_rng)
        plan = plan_tumor(plan_rng, head)
        tissue = sample_tissue(tissue_rng, head, lambda points: before_tumor(points, plan, head))
        tumor = grow_tumor(plan_rng, plan, tissue)
        windows = _render(image_rng, plan, tissue, tumor)
    images = {}
    for sequence, window in windows.items():
        images[sequence] = np.zeros(GRID_SHAPE, np.int16)
        images[sequence][WINDOW] = window
    labels = np.zeros(GRID_SHAPE, np.uint8)
    labels[WINDOW] = tumor.labels
    return images, labels


def _render(
    rng: np.random.Generator, plan: TumorPlan, tissue: Tissue, tumor: Tumor
) -> dict[str, np.ndarray]:
    """Int16 images on the window."""
    brain = np.flatnonzero(tissue.brain)

    def field(spacing: float) -> np.ndarray:
        return smooth_field(rng, WINDOW_SHAPE, spacing).ravel()[brain]

    fluid, gray, white, depth, side, core, necrosis, edema = (
        volume.ravel()[brain]
        for volume in (
            *(tissue.fluid, tissue.gray, tissue.white, tissue.depth, tissue.side),
            *(tumor.core, tumor.necrosis, tumor.edema),
        )
    )
    # Shared by all sequences: grain of the tissue, patchy edema, debris in the necrosis.
    grain = 0.5 * field(2.0) + 0.5 * field(3.5) + 0.5 * field(8.0)
    patchy = np.clip(0.85 + 0.18 * field(7.0), 0.3, 1.2) * edema * (white + 0.65 * gray)
    debris = 0.8 * field(9.0) + 0.5 * field(4.0) + 0.3 * field(2.0)
    vivid = np.clip(1.0 + 0.30 * field(4.0) + 0.15 * field(2.0), 0.3, 2.0)
    # Vessels run where two random surfaces cross, in the fluid around the brain.
    vessel = np.exp(-(field(6.0) ** 2 + field(6.0) ** 2) / 0.08) * (depth < 25)
    # The superior sagittal sinus runs along the mid-plane under the skull.
    vessel += np.exp(-((side / 2.0) ** 2)) * np.clip(1.5 - depth / 4.0, 0.0, 1.0)
    vessel *= np.clip(2.0 * fluid, 0.0, 1.0)
    meninges = np.clip(1.0 - depth / 3.0, 0.0, 1.0) * np.clip(field(6.0), 0.0, 1.5)

    images = {}
    for sequence in SEQUENCES:
        signal = np.array(_SIGNAL[sequence]) * np.exp(rng.normal(0.0, 0.06, 5))
        if plan.kind == "low-grade":
            signal[3] = _LOW_GRADE_CORE[sequence] * np.exp(rng.normal(0.0, 0.08))
        # Plain floats: NumPy scalars would turn the arrays into float64.
        fluid_signal, gray_signal, edema_signal, necrosis_signal, enhancing_signal = signal.tolist()
        value = fluid_signal * fluid + gray_signal * gray + white
        value *= 1.0 + 0.025 * grain + 0.02 * field(5.0)
        value += (edema_signal - 1.0) * patchy * (1.0 + 0.05 * grain)
        dead = necrosis_signal * (1.0 + 0.10 * debris)
        alive = 1.0 + (enhancing_signal - 1.0) * (vivid if sequence == "t1ce" else 1 + 0.1 * debris)
        value += core * (necrosis * dead + (1.0 - necrosis) * alive - value)
        if sequence == "t1ce":
            value += (1.6 * vessel + 0.5 * meninges) * (1.0 - core)
        value *= np.exp(0.06 * field(60.0))  # coil sensitivity that remains after correction
        images[sequence] = _acquire(rng, value, brain)
    return images


def _acquire(rng: np.random.Generator, value: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Blur of the scanner and of resampling, Rician noise, and the sequence's own scale, int16.

    The noise that is blurred is larger by what the blur removes, so that the real and imaginary parts of
    the noise end up about equal.
    """
    noise = rng.uniform(0.015, 0.04)
    # The brain's edge mixes with skull and air, which skull-stripping removes later.
    volume = np.full(WINDOW_SHAPE, 0.3, np.float32).ravel()
    volume[indices] = value + 1.8 * noise * rng.standard_normal(indices.size, dtype=np.float32)
    # Brain voxels touch no face of the window but the lowest, where a step down wraps to background.
    # Each voxel mixes with its six neighbors; between slices more than within.
    in_plane, through = rng.uniform(0.06, 0.12), rng.uniform(0.06, 0.15)
    real = volume[indices] * (1.0 - 4.0 * in_plane - 2.0 * through)
    rows, columns = WINDOW_SHAPE[1] * WINDOW_SHAPE[2], WINDOW_SHAPE[2]
    for stride, weight in ((rows, in_plane), (columns, in_plane), (1, through)):
        real += weight * (volume[indices - stride] + volume[indices + stride])
    imaginary = noise * rng.standard_normal(indices.size, dtype=np.float32)
    magnitude = np.sqrt(real**2 + imaginary**2)
    # White matter anywhere from 100 to 1500: scanners have no common scale.
    magnitude *= np.float32(np.exp(rng.uniform(np.log(100), np.log(1500))))
    out = np.zeros(WINDOW_SHAPE, np.int16)
    out.ravel()[indices] = np.clip(np.rint(magnitude), 1, np.iinfo(np.int16).max)
    return out


def write_phantoms(
    directory: str | os.PathLike, num_subjects: int, seed: int, num_workers: int | None = None
) -> list[Path]:
    """Writes subjects 0 .. num_subjects - 1 into `directory`, as many at a time as there are workers.

    Layout: `Phantom_0000/Phantom_0000_{t1,t1ce,t2,flair,seg}.nii.gz`, and `phantom.json` with seed and
    generator version. A subject's folder appears complete or not at all, so an interrupted call
    can be repeated; existing subjects are kept.

    Args:
        directory: created if absent.
        num_subjects: number of subjects.
        seed: seed of the whole set.
        num_workers: number of processes; by default one per CPU core.

    Returns:
        The folders of the subjects, in order.

    Raises:
        ValueError: the seed is negative or `num_subjects` is below 1; the directory holds phantoms of
            another seed or generator version, or other files.
        ChildProcessError: a worker process died.
    """
    if seed < 0 or num_subjects < 1:
        raise ValueError(
            f"seed {seed} must not be negative, num_subjects {num_subjects} at least 1"
        )
    directory = Path(directory)
    _claim(directory, seed)
    for leftover in directory.glob(".Phantom_*.partial"):
        shutil.rmtree(leftover)
    folders = [directory / f"Phantom_{index:04d}" for index in range(num_subjects)]
    todo = [(folder, seed, index) for index, folder in enumerate(folders) if not folder.exists()]
    if todo:
        num_workers = min(num_workers or default_num_workers(), len(todo))
        with Workers(num_workers) as workers:
            for _ in workers.map(_write_subject, todo, "Making phantoms"):
                pass
    return folders


def record_of(directory: str | os.PathLike) -> dict[str, Any] | None:
    """What `write_phantoms` recorded in a directory: generator, its version, and seed; None elsewhere.

    Raises:
        ValueError: the record is damaged.
    """
    path = Path(directory) / "phantom.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged; choose another directory or delete it") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged; choose another directory or delete it")
    return record


def _claim(directory: Path, seed: int) -> None:
    """Marks the directory as this seed's, or raises if it holds something else."""
    wanted = {"generator": "tfds_brats.phantom", "version": VERSION, "seed": int(seed)}
    found = record_of(directory)
    if found is not None:
        if found != wanted:
            raise ValueError(
                f"{directory} holds phantoms of {found}, wanted {wanted}; "
                "choose another directory or delete it"
            )
        return
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty and has no phantom.json; choose another one")
    partial = directory / ".phantom.json.partial"
    partial.write_text(json.dumps(wanted) + "\n")
    partial.rename(directory / "phantom.json")


def _write_subject(job: tuple[Path, int, int]) -> None:
    folder, seed, index = job
    images, labels = make_phantom(seed, index)
    partial = folder.parent / f".{folder.name}.partial"
    partial.mkdir()
    for name, volume in {**images, "seg": labels}.items():
        image = nib.Nifti1Image(volume, AFFINE)
        image.set_sform(AFFINE, code="scanner")
        image.set_qform(AFFINE, code="scanner")
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, partial / f"{folder.name}_{name}.nii.gz")  # nibabel: gzip level 1
    partial.rename(folder)

"""The dataset of stages 7 and 8: phantoms made on the spot with all cores."""

from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.accelerator.record import Record
from benchmarks.accelerator.sizes import Sizes
from mbti_jax.io.files import new_folder
from tfds_brats.builder import BuiltDataset, build_or_make_phantoms
from tfds_brats.phantom import PhantomSettings

_SEED = 0
# At tiny sizes a phantom would take longer than everything else.
_SHAPE, _NUM_DISCS = (62, 60, 8), 10


def dataset(sizes: Sizes, record: Record) -> BuiltDataset:
    """Makes the cases and the slices that are not there yet."""
    if sizes.phantoms:
        return build_or_make_phantoms(record.work, PhantomSettings(sizes.phantoms, _SEED))
    cases = record.work / "cases"
    if not cases.exists():
        with new_folder(cases) as fresh:
            for number in range(_NUM_DISCS):
                _write_discs(fresh, number)
    return build_or_make_phantoms(record.work, PhantomSettings(1, _SEED), cases, "brats2021")


def _write_discs(folder: Path, number: int) -> None:
    """A case of noise in a round brain, with a tumor of concentric discs."""
    rng = np.random.default_rng(number)
    y, x = np.ogrid[: _SHAPE[0], : _SHAPE[1]]
    brain = np.zeros(_SHAPE, bool)
    brain[..., 1:7] = (np.hypot(y - 31, x - 30) < 28)[..., None]
    distance = np.hypot(y - 18, x - 20)
    labels = np.zeros(_SHAPE, np.uint8)
    # BraTS 2021: 1 necrotic core, 4 enhancement, 2 edema.
    labels[..., 1:7] = np.select([distance < 3, distance < 5, distance < 8], [1, 4, 2], 0)[
        ..., None
    ]
    name = f"BraTS2021_{number:05d}"
    (folder / name).mkdir()
    for kind in ("t1", "t1ce", "t2", "flair", "seg"):
        values = labels if kind == "seg" else brain * rng.integers(100, 900, _SHAPE)
        image = nib.Nifti1Image(values.astype(np.int16), np.diag([-1.0, -1, 1, 1]))
        nib.save(image, folder / name / f"{name}_{kind}.nii.gz")

"""Runs of the command that inpaints files, and what they are given."""

from pathlib import Path

import nibabel as nib
import numpy as np
from synthetic_cases import make_arrays, write_volume

from configs.inpaint import get_config
from mbti_jax.commands import inpaint

SUBJECT = "BraTS2021_00001"


def run(workdir: Path, **fields) -> Path:
    config = get_config()
    config.num_steps = 2
    config.checkpoint = "runs/tiny"
    config.update(fields)
    inpaint.main(config, str(workdir))
    return workdir


def of_case(source: Path, **fields) -> dict:
    of_case = {"source": str(source), "convention": "brats2021", "tumor": "remove"}
    return {**of_case, "dilate_mm": 0.0, **fields}


def stored(path: Path) -> np.ndarray:
    """What a file holds, without its scaling."""
    return np.asarray(nib.load(path).dataobj.get_unscaled())


def write_voided(folder: Path, subject: str):
    """A case of the challenge; returns its image and mask."""
    images, labels = make_arrays(3)
    mask = labels > 0
    voided = np.where(mask, 0, images["t1"]).astype(np.float32)
    write_volume(folder / subject / f"{subject}-t1n-voided.nii.gz", voided)
    write_volume(folder / subject / f"{subject}-mask.nii.gz", mask.astype(np.float32))
    return voided, mask

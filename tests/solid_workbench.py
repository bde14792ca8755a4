"""A workbench with cases large enough for healthy regions and a tiny network of random weights."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from solid_cases import SIZE, ball, ellipsoid, labels_with
from tiny_inpainter import tiny_metadata, tiny_params

from configs import baseline
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.interop.inference_checkpoint import write_export
from tfds_brats import builder
from tfds_brats.reading import SliceSource

REGRESSION = baseline.get_config().diffusion.to_dict()
CARD = {"title": "of a test", "data": "random weights", "license": "none"}


def write_cases(folder, count):
    """Cases in BraTS 2021's names with a smooth brain and a tumor of more than 800 voxels."""
    x, y, z = np.indices(SIZE)
    for number in range(count):
        rng = np.random.default_rng(number)
        smooth = 400 + 150 * np.sin(x / 6 + number) + 100 * np.cos(y / 5) + 3 * z
        tumor = ball((38, 38, 22), 7 + (number % 3) / 2)
        name = f"BraTS2021_{number:05d}"
        (folder / name).mkdir(parents=True)
        for ending in ("t1", "t1ce", "t2", "flair", "seg"):
            array = labels_with(tumor)
            if ending != "seg":
                image = smooth + 200 * tumor + rng.normal(0, 10, SIZE)
                array = np.where(ellipsoid(), image, 0).astype(np.int16)
            affine = np.diag([-1.0, -1, 1, 1])
            nib.save(nib.Nifti1Image(array, affine), folder / name / f"{name}_{ending}.nii.gz")


def solid_workbench(folder: Path, num_cases: int = 20) -> Workbench:
    """A tenth of the cases is the test split."""
    write_cases(folder / "cases", num_cases)
    dataset = builder.build(folder / "cases", "brats2021", folder / "slices")
    metadata = tiny_metadata()
    metadata["contract"]["data"]["fingerprint"] = SliceSource(dataset, "train").fingerprint
    metadata |= {"step": 10}
    metadata["contract"]["batch_size"] = 3
    inpainter = Inpainter(tiny_params(metadata), metadata, 4, "runs/tiny")
    built = builder.BuiltDataset(dataset, folder / "cases", "brats2021")
    return Workbench(inpainter, built, folder / "samples", 0)


def write_regressor(workbench: Workbench, folder: Path) -> Path:
    """An exported regressor with random weights, of the workbench's data."""
    metadata = json.loads(json.dumps(workbench.inpainter.metadata))
    metadata["contract"]["diffusion"] = REGRESSION
    metadata["inference"]["guidance_weight"] = 0.0
    write_export(folder, tiny_params(metadata), metadata, CARD)
    return folder

"""A setting of an evaluation with tiny cases and a tiny network of random weights."""

from pathlib import Path

from synthetic_cases import write_case
from tiny_inpainter import tiny_metadata, tiny_params

from mbti_jax.evaluation.setting import Setting
from mbti_jax.inference.inpainter import Inpainter
from tfds_brats import builder
from tfds_brats.reading import SliceSource


def make_setting(
    folder: Path, num_subjects: int = 20, seed: int = 0, held_out: bool = True
) -> Setting:
    """Writes cases of `synthetic_cases` with large tumours to `folder`, and opens their dataset.

    Args:
        num_subjects: a tenth of them is the test split.
        held_out: whether the network says that it was trained on the training split.
    """
    cases, slices = folder / "cases", folder / "slices"
    for number in range(num_subjects):
        write_case(cases, f"BraTS2021_{number:05d}", number, tumor_size=9 + number % 2)
    dataset = builder.build(cases, "brats2021", slices)
    metadata = tiny_metadata()
    metadata["contract"]["data"]["fingerprint"] = (
        SliceSource(dataset, "train").fingerprint if held_out else "another dataset"
    )
    inpainter = Inpainter(tiny_params(metadata), metadata, 4, "runs/tiny")
    return Setting(inpainter, dataset, cases, "brats2021", folder / "samples", seed)

"""A workbench with tiny cases and a tiny network of random weights."""

from pathlib import Path

from synthetic_cases import write_case
from tiny_inpainter import tiny_metadata, tiny_params

from mbti_jax.evaluation.segmenter import RealSegmenterSettings
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.inference.inpainter import Inpainter
from tfds_brats import builder
from tfds_brats.builder import BuiltDataset
from tfds_brats.reading import SliceSource

TINY_SEGMENTER = RealSegmenterSettings(
    model_channels=8, num_steps=1, batch_size=2, learning_rate=1e-3, num_slices=6, seed=0
)


def make_workbench(
    folder: Path,
    num_subjects: int = 20,
    seed: int = 0,
    held_out: bool = True,
    label_head: bool = False,
) -> Workbench:
    """Writes cases of `synthetic_cases` with large tumors to `folder`, and opens their dataset.

    Args:
        folder: for cases, dataset and samples.
        num_subjects: a tenth of them is the test split.
        seed: of the workbench.
        held_out: whether the network says that it was trained on the training split.
        label_head: whether the network has one.
    """
    cases = folder / "cases"
    for number in range(num_subjects):
        write_case(cases, f"BraTS2021_{number:05d}", number, tumor_size=9 + number % 2)
    dataset = builder.build(cases, "brats2021", folder / "slices")
    metadata = tiny_metadata(label_head=label_head)
    metadata["contract"]["data"]["fingerprint"] = (
        SliceSource(dataset, "train").fingerprint if held_out else "another dataset"
    )
    inpainter = Inpainter(tiny_params(metadata), metadata, 4, "runs/tiny")
    return Workbench(inpainter, BuiltDataset(dataset, cases, "brats2021"), folder / "samples", seed)

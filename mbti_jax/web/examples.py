"""Examples for the page: a digital phantom with ROIs in one slice."""

from collections.abc import Sequence
from pathlib import Path

from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.rois.regions import REMOVAL_MARGIN_MM
from mbti_jax.rois.tumors import own_tumor
from mbti_jax.web.loading import new_session_folder, volume_session
from mbti_jax.web.session import Session
from tfds_brats.cases import Case, is_tumor, read_case
from tfds_brats.phantom import write_phantoms
from tfds_brats.search import find_cases
from tfds_brats.slices import to_slices

# Title -> (what is made of the phantom's own tumor, names of the boxes).
EXAMPLES = {
    "grow another tumor": ("replace", ()),
    "remove a tumor": ("remove", ()),
}
# One with all three components.
_SEED = 1


def make_phantom(folder: Path) -> Case:
    """The case of the examples, written into `folder`; takes some seconds, so all users share it."""
    write_phantoms(folder, num_subjects=1, seed=_SEED)
    (files,) = find_cases(folder, "phantom")
    return read_case(files)


def load_example(title: str, case: Case, inpainters: Sequence[Inpainter], root: Path) -> Session:
    """A session with ROIs in the slice that holds most of the tumor.

    Args:
        title: a key of `EXAMPLES`.
        case: with a segmentation, such as `make_phantom` gives.
        inpainters: the models.
        root: folder in which the session makes its own.

    Raises:
        ValueError: there is no such example, or no model can paint it.
    """
    if title not in EXAMPLES:
        raise ValueError(f"unknown example {title!r}; examples are {', '.join(EXAMPLES)}")
    mode, box = EXAMPLES[title]
    session = volume_session(case, inpainters, new_session_folder(root))
    labels = to_slices(case.segmentation)
    largest = int(is_tumor(labels).sum((1, 2)).argmax())
    rois = own_tumor(
        labels, session.brain, mode, dilate_mm=REMOVAL_MARGIN_MM, spacing=case.spacing[::-1]
    )
    session.paint(largest, rois[largest].label_map(), box)
    return session

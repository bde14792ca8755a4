"""What the bundled model makes of a digital phantom: the first thing that the quickstart shows."""

import dataclasses
from pathlib import Path

import numpy as np

from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io import pictures
from mbti_jax.io.progress import progress_bar
from mbti_jax.rois.kinds import COMPONENTS
from mbti_jax.rois.regions import REMOVAL_MARGIN_MM
from mbti_jax.rois.tumors import own_tumor
from tfds_brats.cases import Case
from tfds_brats.slices import bounding_box, to_slices

_SAMPLE = Sampling(blend=True)
# What is removed is best replaced by what is near to the truth and still looks like tissue.
_NEAR_MEAN = Sampling(blend=True, estimate="near_mean")
# Title of a column, mode of the tumor, names of the boxes, and how it is drawn.
REQUESTS = (
    ("tumor removed", "remove", (), _NEAR_MEAN),
    ("its components anew", "replace", (), _SAMPLE),
    ("components in boxes", "replace", tuple(COMPONENTS), _SAMPLE),
    ("any tumor in its box", "random", ("tumor",), _SAMPLE),
)


def draw_first_picture(inpainter: Inpainter, case: Case, path: Path, seed: int = 0) -> Path:
    """One slice of a case in every sequence, and its tumor removed and painted anew.

    Args:
        inpainter: of several sequences together.
        case: with its segmentation. The slice is the one that shows all components best.
        path: of the PNG.
        seed: of the samples.

    Returns:
        The path.

    Raises:
        ValueError: the case has no tumor.
    """
    labels, brain = to_slices(case.segmentation), to_slices(case.brain)
    areas = np.stack([(labels == label).sum((1, 2)) for label in COMPONENTS.values()])
    z = int(np.argmax(areas.min(0) + 0.01 * areas.sum(0)))
    values = [to_slices(case.values(name))[z] for name in inpainter.sequences]
    image, ranges = np.stack(values, axis=-1), [case.scale(name) for name in inpainter.sequences]
    results = []
    with progress_bar("painting") as progress:
        for number, (_, mode, box, sampling) in enumerate(REQUESTS):
            rois = own_tumor(
                labels, brain, mode, box, dilate_mm=REMOVAL_MARGIN_MM, spacing=case.spacing[::-1]
            )

            def report(done: int, total: int, number: int = number) -> None:
                progress(number * total + done, len(REQUESTS) * total)

            results.append(
                inpainter.inpaint(
                    image,
                    rois[z],
                    dataclasses.replace(sampling, seed=seed),
                    intensity_range=[(scale.low, scale.high) for scale in ranges],
                    labels=labels[z],
                    slice_index=z,
                    brain_box=bounding_box(brain),
                    pixel_size=(case.spacing[1], case.spacing[0]),
                    progress=report,
                )
            )
    rows, columns = pictures.around(brain[z])
    used = pictures.kinds_in(*(result.rois.masks for result in results))
    cells = []
    for channel, scale in enumerate(ranges):

        def shown(slice_: np.ndarray, channel: int = channel, scale=scale) -> np.ndarray:
            picture = pictures.gray(slice_[rows, columns, channel], scale.low, scale.high)
            return pictures.enlarge(picture)

        line = [shown(image)]
        for result in results:
            masks = pictures.enlarge(result.rois.masks[rows, columns])
            line += [pictures.with_rois(shown(result.images[0]), masks, fill=0.0)]
        cells.append(line)
    return pictures.figure(
        path,
        cells,
        rows=[name.upper() for name in inpainter.sequences],
        columns=["input", *(title for title, *_ in REQUESTS)],
        title=f"{case.subject}, a digital phantom, slice {z}, painted by the bundled model",
        footnote="synthetic inside the outlines, not for diagnosis",
        marks=pictures.Marks(used, ["RL"] * (1 + len(REQUESTS))),
    )

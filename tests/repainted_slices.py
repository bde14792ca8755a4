"""Slices and their samples made in memory, for the parts of an evaluation that look at samples."""

import numpy as np

from mbti_jax.evaluation.own_anatomy import Repainted
from mbti_jax.evaluation.setting import LabelledSlices, Tasks


def make_slices(images: np.ndarray, labels: np.ndarray, subjects=None) -> LabelledSlices:
    """Slices [N, S, S, Q]; each of a subject of its own if none are given."""
    numbers = np.arange(len(images))
    subjects = [f"subject_{n}" for n in numbers] if subjects is None else subjects
    return LabelledSlices(images, labels, np.array(subjects), numbers)


def make_repainted(images, samples, inside, subjects=None, name="tumor") -> Repainted:
    """Samples [R, N, S, S, Q] of images [N, S, S, Q] with one ROI, bool [N, S, S], pasted into them."""
    labels = np.where(inside, 2, 0).astype(np.uint8)
    tasks = Tasks.whole(inside, name, box=False)
    pasted = np.where(inside[None, ..., None], samples, images[None])
    return Repainted(make_slices(images, labels, subjects), tasks, pasted)

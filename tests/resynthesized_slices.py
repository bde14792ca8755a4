"""Slices and their samples made in memory, for the parts of an evaluation that look at samples."""

import numpy as np

from mbti_jax.diffusion.condition import Condition
from mbti_jax.evaluation.resynthesis import Resynthesis
from mbti_jax.evaluation.slices import LabeledSlices
from mbti_jax.rois.kinds import CHANNELS, NUM_KINDS
from mbti_jax.rois.regions import Rois


def make_slices(images: np.ndarray, labels: np.ndarray, subjects=None) -> LabeledSlices:
    """Slices [N, S, S, Q]; each of a subject of its own if none are given."""
    numbers = np.arange(len(images))
    subjects = [f"subject_{n}" for n in numbers] if subjects is None else subjects
    return LabeledSlices(images, labels, np.array(subjects), numbers)


def make_condition(inside: np.ndarray, name: str = "tumor", box: tuple[str, ...] = ()) -> Condition:
    """One ROI, bool [N, S, S]."""
    masks = np.zeros((*inside.shape, NUM_KINDS), bool)
    masks[..., CHANNELS.index(name)] = inside
    return Rois(masks, box).condition()


def make_resynthesis(images, samples, inside, subjects=None) -> Resynthesis:
    """Samples [R, N, S, S, Q] of images [N, S, S, Q] with one ROI, bool [N, S, S], pasted into them."""
    labels = np.where(inside, 2, 0).astype(np.uint8)
    pasted = np.where(inside[None, ..., None], samples, images[None])
    return Resynthesis(make_slices(images, labels, subjects), make_condition(inside), pasted)

"""Inpainters with a tiny network of random weights, and slices for them."""

import functools

import jax
import numpy as np
from tiny import tiny_config

from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.models.parameters import param_shapes
from mbti_jax.models.pipeline import Pipeline

IMAGE_SIZE = 16
WINDOW = 32


def tiny_metadata(
    sequences=("t1", "t1ce", "t2", "flair"), joint=False, label_head=False, neighbors=0
) -> dict:
    config = tiny_config()
    config.data.sequences = sequences
    config.data.joint = joint
    config.data.window = WINDOW
    config.data.image_size = IMAGE_SIZE
    config.diffusion.prediction = "v"
    contract = {name: config[name].to_dict() for name in ("data", "model", "diffusion", "tasks")}
    contract["model"]["neighbors"] = neighbors
    if label_head:
        contract["label_weight"] = 0.1
    inference = {"x_0_bounds": [-1.0, 3.0], "guidance_weight": 0.4, "note": "random weights"}
    return {"contract": contract, "inference": inference, "step": 0}


def tiny_params(metadata: dict):
    """Random everywhere: a fresh network has zeros in its last layer, and so returns zeros."""
    rng = np.random.default_rng(0)
    shapes = param_shapes(Pipeline.from_contract(metadata["contract"]).model)
    return jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), shapes)


@functools.cache
def tiny_inpainter(
    num_sequences: int = 1, batch_size: int = 4, label_head=False, neighbors=0
) -> Inpainter:
    joint = num_sequences > 1
    names = ("t1", "t1ce", "t2", "flair")
    chosen = names[:num_sequences] if joint else names
    metadata = tiny_metadata(chosen, joint, label_head, neighbors)
    return Inpainter(tiny_params(metadata), metadata, batch_size, "runs/tiny")


def make_slice(shape=(40, 36), channels: int | None = None, dtype=np.int16) -> np.ndarray:
    """An elliptic brain on background 0; [H, W], or [H, W, C]."""
    rng = np.random.default_rng(7)
    height, width = shape
    y, x = np.mgrid[:height, :width]
    brain = np.hypot((y - height / 2) / (0.35 * height), (x - width / 2) / (0.38 * width)) < 1
    image = brain[..., None] * rng.integers(100, 900, (*shape, channels or 1))
    return (image if channels else image[..., 0]).astype(dtype)


def make_mask(shape=(40, 36), box=(14, 10, 25, 19)) -> np.ndarray:
    """A free-form region that touches all sides of `box`."""
    mask = np.zeros(shape, bool)
    y0, x0, y1, x1 = box
    mask[y0:y1, (x0 + x1) // 2] = True
    mask[(y0 + y1) // 2, x0:x1] = True
    return mask

"""Sessions of the web page with the tiny network, as its tests load and paint them."""

import numpy as np
from tiny_inpainter import tiny_inpainter

from mbti_jax import Sampling
from mbti_jax.rois.kinds import ROI_LABELS
from mbti_jax.web import results
from mbti_jax.web.loading import load_files
from mbti_jax.web.uploads import Limits

SUBJECT = "BraTS2021_00001"
LIMITS = Limits(upload_mb=5, volume_mb=20, pixels=100_000, images=64)
SETTINGS = {"seed": 3, "num_samples": 2, "num_steps": 2, "guidance_weight": 0.4}
NUMBERS = {name: number for number, name in ROI_LABELS.items()}


def load(paths, tmp_path, convention="", sequences=(), limits=LIMITS, inpainter=None):
    inpainter = inpainter or tiny_inpainter()
    return load_files(paths, convention, sequences, [inpainter], tmp_path / "sessions", limits)


def painted(session, number, name="normal", box=()):
    """Paints a cross into a slice; returns its mask."""
    labels = np.zeros(session.shape[1:], np.uint8)
    labels[8, 5:14] = labels[6:12, 9] = NUMBERS[name]
    session.paint(number, labels, box)
    return labels > 0


def run(session, *, inpainter=None, limits=LIMITS, **changes):
    """A run of the page with `SETTINGS` and what differs from them."""
    settings = {**SETTINGS, **changes}
    fields = ("seed", "num_steps", "estimate", "mean_passes")
    drawn = {name: settings.pop(name) for name in fields if name in settings}
    sampling = Sampling(guidance=settings.pop("guidance_weight"), z_sigma_mm=2.0, **drawn)
    session.inpainter = inpainter or tiny_inpainter()
    return results.run(session, limits, sampling, **settings)

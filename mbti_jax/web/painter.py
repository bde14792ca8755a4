"""The painter: what it shows and what it sends back, without the page around it.

The painter (`painter.html`, `painter.css`, and its scripts, see `_SCRIPTS`) draws on a label map of the
slice's own pixels and sends its numbers. Nothing is read off a picture, so the mask is what was
painted, pixel by pixel. It holds the whole case, so turning a slice waits for no server.

Gradio's own `ImageEditor` was tried: on a page that has just opened the first stroke reached no event, a
stroke made soon after a change of color was lost, every stroke sent nine pictures, and it cannot show
boxes. So was niivue: see "Decisions" in ARCHITECTURE.md.
"""

from importlib import resources
from typing import Any

import numpy as np

from mbti_jax.rois.kinds import KINDS, ROI_LABELS

# What users paint most comes first.
_FIRST = ("normal", "edema", "enhancement", "necrotic_core")


# Of its script, in their order: they share one scope.
_SCRIPTS = ("volumes.js", "masks.js", "drawing.js", "edits.js", "painter.js")


def template(name: str) -> str:
    """A file of the page: `painter.html`, `painter.css` or a script."""
    return (resources.files("mbti_jax.web") / name).read_text("utf-8")


def script() -> str:
    """All of its script."""
    return "\n".join(map(template, _SCRIPTS))


def tissues() -> list[dict[str, Any]]:
    """The kinds of ROI in the order of the page: name, title, label and color."""
    kinds = {kind.name: kind for kind in KINDS}
    ordered = [kinds[name] for name in _FIRST] + [k for k in KINDS if k.name not in _FIRST]
    return [
        {"name": kind.name, "title": kind.title, "label": kind.label, "color": list(kind.color)}
        for kind in ordered
    ]


def to_runs(labels: np.ndarray) -> list[int]:
    """Run-length code of uint8 [H, W], row by row: label, length, label, length, ..."""
    flat = labels.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=len(flat))
    return np.stack([flat[starts], lengths], axis=1).astype(int).ravel().tolist()


def from_runs(runs: Any, shape: tuple[int, int]) -> np.ndarray:
    """The inverse of `to_runs`.

    Raises:
        ValueError: it is no code of a label map of that shape.
    """
    numbers = np.asarray(runs if isinstance(runs, list) else [], dtype=object)
    whole = all(type(number) is int and number >= 0 for number in numbers)
    if numbers.ndim == 1 and len(numbers) and len(numbers) % 2 == 0 and whole:
        labels, lengths = numbers[::2], numbers[1::2]
        known = all(label == 0 or label in ROI_LABELS for label in labels)
        if known and sum(lengths) == shape[0] * shape[1]:
            return np.repeat(labels.astype(np.uint8), lengths.astype(int)).reshape(shape)
    raise ValueError(f"the mask is not a label map of {shape[1]} x {shape[0]} pixels")

"""What every output says about how it was made."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import mbti_jax
from mbti_jax.models.parameters import Params
from tfds_brats.scale import IntensityScale, fit_scale

# The file of an output's record, beside it.
RECORD = "provenance.json"


def digest(content: Any) -> str:
    """SHA-256, hex, of JSON values; the same for the same content in any order of keys."""
    text = json.dumps(content, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()


def weights_digest(params: Params) -> str:
    """SHA-256, hex, of names, shapes, types and numbers of a tree of parameters."""
    total = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        array = np.ascontiguousarray(jax.device_get(leaf))
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def checkpoint_record(path: str, params: Params, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Name, step, digests and the checkpoint's own `note`, in JSON values.

    The digest of the weights is the same for a training checkpoint and its export.
    """
    inference = metadata["inference"]
    return {
        "name": Path(path).name,
        "step": metadata.get("step"),
        "weights_sha256": weights_digest(params),
        "config_sha256": digest(metadata["contract"]),
        "trained_with": inference.get("version"),
        "note": inference.get("note", ""),
    }


def record(checkpoint: Mapping[str, Any], **details: Any) -> dict[str, Any]:
    """The provenance record of an output, in JSON values."""
    return {
        "synthetic": True,
        "software": f"mbti-jax {mbti_jax.__version__}",
        "checkpoint": dict(checkpoint),
        **details,
    }


def preview_title(name: str, checkpoint: Mapping[str, Any]) -> str:
    """What the picture of an output says above it: what it is of, and the checkpoint's own note."""
    return "\n".join(filter(None, (f"{name}: synthetic inside the ROIs", checkpoint.get("note"))))


def scale_record(scales: list[IntensityScale], source: str) -> dict[str, Any]:
    """The intensity scales used, one a sequence, and where they come from."""
    return {"from": source, "low_high": [[scale.low, scale.high] for scale in scales]}


def slice_scale_shift(
    values: np.ndarray, brain: np.ndarray, scales: Sequence[IntensityScale]
) -> list[float | None]:
    """By how much scales fitted to single slices would differ: median of high / high - 1, a sequence."""
    out = []
    for c, scale in enumerate(scales):
        shifts = []
        for image, inside in zip(values[..., c], brain, strict=True):
            try:
                shifts.append(fit_scale(image, inside).high / scale.high - 1)
            except ValueError:  # A slice without enough brain has no scale.
                continue
        out.append(float(np.median(shifts)) if shifts else None)
    return out

"""A trained model from wherever it lies: a training run, an export, or the package itself."""

import os
from pathlib import Path
from typing import Any

from mbti_jax.interop.inference_checkpoint import check_params, is_export, read_export
from mbti_jax.training.checkpoint import load_for_inference
from tfds_brats.spelling import nearest

# Models that come with the package: for slices of all four sequences, and for one sequence at a time.
JOINT, SINGLE = "phantom", "phantom_single"
PRETRAINED = {name: Path(__file__).parent.parent / "pretrained" / name for name in (JOINT, SINGLE)}


def other_model(path: str) -> str:
    """What to say where a model lacks a sequence: of `JOINT`, which model does not need it."""
    return (
        f"; {SINGLE}, which comes along, too, paints one sequence at a time"
        if path == JOINT
        else ""
    )


def load_model(path: str | os.PathLike) -> tuple[dict, dict[str, Any]]:
    """Averaged parameters and metadata of a model, as `checkpoint.load_for_inference` returns them.

    Args:
        path: folder of a training run, whose newest checkpoint is read, or of an export; or a name in
            `PRETRAINED` (a folder of that name is "./phantom").

    Raises:
        ValueError: there is nothing, or nothing readable.
    """
    folder = PRETRAINED.get(str(path), path)
    if not os.path.exists(folder):
        raise ValueError(
            f"{path} is not there; give a training run's folder, an export, or {JOINT} or {SINGLE}, the "
            f"bundled models{nearest(path, PRETRAINED)}"
        )
    if is_export(folder):
        return read_export(folder)
    params, metadata = load_for_inference(folder)
    check_params(params, metadata["contract"], folder)
    return params, metadata

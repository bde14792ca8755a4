"""Arrays that take long to make and are kept in case a run stops: samples, segmenters."""

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from mbti_jax.engine.pieces import holding
from mbti_jax.inference.provenance import digest
from mbti_jax.interop.tensors import read_safetensors
from mbti_jax.io.files import replacing


def cached(
    folder: Path, kind: str, request: Any, compute: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Named arrays: read from `folder` if they were computed before, else computed and written there.

    Args:
        folder: where they are kept.
        kind: the beginning of the file's name.
        request: all that the arrays depend on, in JSON values.
        compute: makes them.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / f"{kind}-{digest(request)[:32]}.safetensors"
    if not path.is_file():
        # Parts that are measured at the same time share arrays: one computes them, the others wait.
        with holding(folder, path.name, math.inf):
            if not path.is_file():
                arrays = {name: np.ascontiguousarray(array) for name, array in compute().items()}
                with replacing(path) as partial:
                    partial.write_bytes(save(arrays))
    return read_safetensors(path)


def array_digest(array: np.ndarray) -> str:
    """Data type, shape and SHA-256 of the numbers."""
    content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{array.dtype} {array.shape} {content}"

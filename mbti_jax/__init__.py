"""Multitask brain-tumor inpainting with diffusion models, in JAX."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mbti_jax.diffusion.sampling import Sampling
    from mbti_jax.inference.inpainter import Inpainter
    from mbti_jax.inference.load import load_model
    from mbti_jax.rois.regions import Rois

__all__ = ["Inpainter", "Rois", "Sampling", "__version__", "load_model"]

__version__: str

# Imported when first asked for: a program that only reads the version does not start JAX.
_HOMES = {
    "Inpainter": "mbti_jax.inference.inpainter",
    "Rois": "mbti_jax.rois.regions",
    "Sampling": "mbti_jax.diffusion.sampling",
    "load_model": "mbti_jax.inference.load",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        # Not imported by every command line: until it can be, an interrupt ends in a traceback.
        from importlib.metadata import version

        return version("mbti-jax")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__

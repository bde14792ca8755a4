"""Multitask brain-tumour inpainting with diffusion models, in JAX."""

from importlib.metadata import version

__version__ = version("mbti-jax")

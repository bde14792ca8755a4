"""The inference checkpoint: a folder that carries a trained model to someone else.

    model.safetensors   the averaged weights, float32 or float16
    config.json         what the weights are of, and all that sampling needs
    README.md           the model card

config.json has `format`, `format_version`, `names` (how the tensors are called: "mbti_jax", paths in
the parameter tree joined by "/", or "guided_diffusion"), `weights_sha256`, `intensity_scale` (the
rule in words) and, as in a training checkpoint, `contract`, `inference` and `step`.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save

from mbti_jax.interop.model_card import model_card
from mbti_jax.interop.names import (
    check_names_and_shapes,
    from_guided_diffusion,
    to_guided_diffusion,
    torch_shapes,
)
from mbti_jax.interop.tensors import read_safetensors, safetensors_shapes
from mbti_jax.io.files import file_digest
from mbti_jax.models.contract import checked
from mbti_jax.models.parameters import flat_shapes
from mbti_jax.models.pipeline import Pipeline

FORMAT = "mbti-jax inference checkpoint"
FORMAT_VERSION = 1
NAMES = ("mbti_jax", "guided_diffusion")
DTYPES = ("float32", "float16")
INTENSITY_SCALE = (
    "per volume and sequence: y = -1 + 2 (value - low) / (high - low), low = min(0, 0.1th) and "
    "high = 99.5th percentile of the brain, nothing clipped; background is -1"
)
_CONFIG = "config.json"
_MAX_CONFIG_BYTES = 2**20
_WEIGHTS = "model.safetensors"
_CARD = "README.md"


def write_export(
    directory: str | os.PathLike,
    params: Mapping,
    config: Mapping[str, Any],
    card: Mapping[str, str] | str,
    names: str = "mbti_jax",
    dtype: str = "float32",
) -> None:
    """Writes an inference checkpoint; it appears under its name when it is complete.

    Args:
        directory: where to; an older inference checkpoint there is replaced.
        params: tree of float32 arrays.
        config: `contract`, `inference` and `step` as a training checkpoint's metadata has them.
        card: the model card, or what `model_card` puts into it.
        names: "mbti_jax" or "guided_diffusion".
        dtype: "float32", or "float16" for half the size: the weights are rounded once, to 11 bits, and
            read back as float32 of exactly those values.

    Raises:
        ValueError: unknown `names` or `dtype`, weights beyond float16, or `directory` holds something
            else.
    """
    directory = Path(directory).absolute()
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if names not in NAMES:
        raise ValueError(f"names must be one of {', '.join(NAMES)}, not {names!r}")
    if directory.exists() and any(directory.iterdir()) and not is_export(directory):
        raise ValueError(
            f"{directory} is not empty and no inference checkpoint; choose another folder"
        )
    params = jax.device_get(params)
    if names == "mbti_jax":
        tensors = {"/".join(path): leaf for path, leaf in flatten_dict(params).items()}
    else:
        tensors = to_guided_diffusion(params)
    tensors = {name: _rounded(name, value, dtype) for name, value in tensors.items()}

    fresh = directory.with_name(f"{directory.name}.writing-{os.getpid()}")
    old = directory.with_name(f"{directory.name}.replaced-{os.getpid()}")
    fresh.mkdir(parents=True)
    try:
        # Its own `save_file` makes files that their owner alone can read.
        (fresh / _WEIGHTS).write_bytes(save(tensors))
        config = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "names": names,
            "dtype": dtype,
            "weights_sha256": file_digest(fresh / _WEIGHTS),
            "intensity_scale": INTENSITY_SCALE,
            **config,
        }
        (fresh / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        (fresh / _CARD).write_text(card if isinstance(card, str) else model_card(config, **card))
        if directory.exists():
            directory.rename(old)
        fresh.rename(directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _rounded(name: str, value: Any, dtype: str) -> np.ndarray:
    if dtype == "float16" and not np.all(np.abs(value) <= np.finfo(np.float16).max):
        raise ValueError(f"{name} holds numbers that float16 cannot; export with dtype=float32")
    return np.ascontiguousarray(value, dtype)


def is_export(directory: str | os.PathLike) -> bool:
    """Whether a folder looks like an inference checkpoint (and not like a training run)."""
    return (Path(directory) / _CONFIG).is_file()


def read_export(directory: str | os.PathLike) -> tuple[dict, dict[str, Any]]:
    """Reads an inference checkpoint.

    Returns:
        (params, config): nested dict of float32 numpy arrays, and what config.json holds, of which
        `contract`, `inference` and `step` are what `checkpoint.load_for_inference` returns.

    Raises:
        ValueError: a file is missing, damaged, of another version, or not of this model; the message
            names it and lists every tensor that does not fit.
    """
    config = _read_config(Path(directory) / _CONFIG)
    weights = Path(directory) / _WEIGHTS
    if not weights.is_file():
        raise ValueError(f"{directory} has no {_WEIGHTS}")
    # Of the header alone; nothing is read before all fits.
    found = safetensors_shapes(weights)
    if file_digest(weights) != config["weights_sha256"]:
        raise ValueError(f"{weights} is damaged, or not the file that {_CONFIG} describes")
    try:
        config = checked(config)
        model = Pipeline.from_contract(config["contract"]).model
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{directory}/{_CONFIG} lacks or has an unknown field, or one that cannot be used: {error}"
        ) from error
    by_torch = config["names"] == "guided_diffusion"
    shapes = torch_shapes(model) if by_torch else _shapes(flat_shapes(model))
    try:
        check_names_and_shapes(found, shapes)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error
    tensors = read_safetensors(weights)
    if by_torch:
        return from_guided_diffusion(tensors, model), config
    params = {tuple(name.split("/")): v.astype(np.float32) for name, v in tensors.items()}
    return unflatten_dict(params), config


def check_params(params: Mapping, contract: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Raises a ValueError, with the path, if parameters are not those of a contract's model."""
    try:
        shapes = _shapes(flat_shapes(Pipeline.from_contract(contract).model))
        check_names_and_shapes(_shapes(flatten_dict(params)), shapes)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _shapes(flat: Mapping[tuple[str, ...], Any]) -> dict[str, tuple[int, ...]]:
    return {"/".join(path): leaf.shape for path, leaf in flat.items()}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"{path} is too large to describe a model")
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(
            f"{path.parent} is no inference checkpoint: it has no {_CONFIG}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is truncated or no JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe a {FORMAT!r}")
    if config.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {config.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; use the mbti-jax that wrote it"
        )
    missing = {"names", "weights_sha256", "contract", "inference"} - config.keys()
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
    return config

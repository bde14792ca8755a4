"""Parameters of the UNet under guided-diffusion's names and in PyTorch's layouts, both ways.

| guided-diffusion                   | here                        | layout of the weight         |
| ---------------------------------- | --------------------------- | ---------------------------- |
| input_blocks.1.0.in_layers.2       | input_blocks_1_0/in_layers_2 | [O, I, 3, 3] <-> [3, 3, I, O] |
| input_blocks.5.0.skip_connection   | .../skip_connection         | [O, I, 1, 1] <-> [I, O]      |
| middle_block.1.qkv                 | middle_block_1/qkv          | [O, I, 1] <-> [I, O]         |
| time_embed.0                       | time_embed_0                | [O, I] <-> [I, O]            |
| out.0                              | out_0                       | [C]; "scale" here            |

Only transposition, never arithmetic: a round trip is exact.
"""

import re
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mbti_jax.models.parameters import flat_shapes
from mbti_jax.models.unet import UNet

# 1x1 convolutions are matrix products here; PyTorch keeps their window axes.
_WINDOW_AXES = {"skip_connection": (1, 1), "qkv": (1,), "proj_out": (1,)}


def to_guided_diffusion(params: Mapping) -> dict[str, np.ndarray]:
    """A parameter tree of `UNet` as a guided-diffusion state dict.

    Args:
        params: nested mapping of arrays.

    Returns:
        C-contiguous numpy arrays in PyTorch's layouts by name, in the dtypes of `params`.
    """
    return {
        _torch_name(path): np.ascontiguousarray(_to_torch_layout(path, np.asarray(value)))
        for path, value in flatten_dict(params).items()
    }


def from_guided_diffusion(state_dict: Mapping[str, np.ndarray], model: UNet) -> dict:
    """The parameter tree of `model` from a guided-diffusion state dict.

    Args:
        state_dict: arrays in PyTorch's layouts by name.
        model: the network the weights are for.

    Returns:
        Nested dict of float32 numpy arrays.

    Raises:
        ValueError: listing every missing, unexpected and misshapen tensor.
    """
    paths = {_torch_name(path): path for path in flat_shapes(model)}
    check_names_and_shapes({k: np.shape(v) for k, v in state_dict.items()}, torch_shapes(model))
    return unflatten_dict(
        {path: _from_torch_layout(path, state_dict[name]) for name, path in paths.items()}
    )


def torch_shapes(model: UNet) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters in PyTorch's layouts, by guided-diffusion's names."""
    return {
        _torch_name(path): _torch_shape(path, leaf.shape)
        for path, leaf in flat_shapes(model).items()
    }


def check_names_and_shapes(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises a ValueError that lists every difference between two sets of named shapes."""
    problems = [f"missing     {name} {wanted[name]}" for name in wanted if name not in found]
    problems += [f"unexpected  {name} {found[name]}" for name in found if name not in wanted]
    problems += [
        f"misshapen   {name} is {tuple(found[name])}, the model wants {wanted[name]}"
        for name in wanted
        if name in found and tuple(found[name]) != wanted[name]
    ]
    if problems:
        count = f"{len(problems)} tensor{'s' if len(problems) > 1 else ''}"
        raise ValueError(f"{count} do not fit the model:\n  " + "\n  ".join(problems))


def _torch_name(path: tuple[str, ...]) -> str:
    modules = [re.sub(r"_(?=\d)", ".", module) for module in path[:-1]]
    return ".".join([*modules, "bias" if path[-1] == "bias" else "weight"])


def _torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return shape
    if len(shape) == 4:
        height, width, features_in, features_out = shape
        return features_out, features_in, height, width
    return shape[1], shape[0], *_WINDOW_AXES.get(path[-2], ())


def _to_torch_layout(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    shape = _torch_shape(path, value.shape)
    if path[-1] == "kernel":
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value.reshape(shape)


def _from_torch_layout(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    value = np.asarray(value, np.float32)
    if path[-1] == "kernel":
        spatial = path[-2] not in _WINDOW_AXES and value.ndim == 4
        value = value.transpose(2, 3, 1, 0) if spatial else value.reshape(value.shape[:2]).T
    return np.ascontiguousarray(value)

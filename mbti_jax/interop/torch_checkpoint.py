"""What a checkpoint with guided-diffusion's names is of."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np

from mbti_jax.fields import FieldError, Interval, check_fields
from mbti_jax.interop.hyperparameters import infer_hyperparameters
from mbti_jax.models.unet import Channels, ImageSize, OrNone, PatchSize
from mbti_jax.rois.kinds import NUM_KINDS


@dataclasses.dataclass(frozen=True)
class GivenModel:
    """Fields of `UNet` that leave no trace in its tensors; None where nothing was given."""

    num_heads: Channels | None
    num_head_channels: OrNone | None
    num_heads_upsample: OrNone | None
    use_new_attention_order: bool | None
    num_groups: Channels
    patch_size: PatchSize
    dtype: Literal["float32", "bfloat16"]

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class GivenDiffusion:
    """The process; None where nothing was given."""

    schedule: Literal["linear", "cosine"] | None
    num_timesteps: Annotated[int, Interval(1, 100_000)]
    prediction: Literal["eps", "v", "x_0"]

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class GivenData:
    """The images; None where nothing was given."""

    image_size: ImageSize | None
    window: ImageSize | None
    sequences: Annotated[tuple[str, ...], Interval(1)]

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenFields:
    """What the tensors of a network do not tell."""

    model: GivenModel
    diffusion: GivenDiffusion
    data: GivenData


def describe(
    state_dict: Mapping[str, np.ndarray], fields: Mapping[str, Any]
) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
    """The contract of the model in a state dict, and the tensors that it needs.

    The second half of the output channels of a network that also learns the variance is left out:
    DDIM takes the mean alone.

    Args:
        state_dict: arrays in PyTorch's layouts by guided-diffusion's names.
        fields: the entries `data`, `model` and `diffusion` of configs/import_torch.py; None where
            nothing was given.

    Returns:
        (contract, state dict), the former as in `checkpoint`.

    Raises:
        ValueError: the network is of another kind, or what the tensors do not tell was not given.
    """
    inferred = infer_hyperparameters({name: value.shape for name, value in state_dict.items()})
    model = {k: v for k, v in fields["model"].items() if v is not None}
    data = dict(fields["data"])
    patch_area = model["patch_size"] ** 2
    num_sequences = inferred["in_channels"] / patch_area - NUM_KINDS
    if num_sequences not in (1, len(data["sequences"])) or inferred["num_classes"] != NUM_KINDS:
        raise ValueError(
            f"a network with {inferred['in_channels']} input channels and a class vector of length "
            f"{inferred['num_classes']} cannot inpaint: it needs 1 or "
            f"{len(data['sequences'])} sequences and {NUM_KINDS} masks as input, and "
            f"{NUM_KINDS} classes"
        )
    out_channels = int(num_sequences) * patch_area
    if inferred["out_channels"] == 2 * out_channels and patch_area == 1:
        state_dict = {
            k: v[:out_channels] if k.startswith("out.2.") else v for k, v in state_dict.items()
        }
    elif inferred["out_channels"] != out_channels:
        raise ValueError(
            f"a network with {inferred['out_channels']} output channels cannot inpaint "
            f"{int(num_sequences)} sequence(s): that takes {out_channels}, or twice as many with a "
            "learned variance"
        )
    _check_given(fields)
    for name in ("in_channels", "out_channels", "num_classes"):
        del inferred[name]
    contract = {
        "data": {
            "sequences": list(data["sequences"]),
            "joint": num_sequences > 1,
            "window": data["window"] or data["image_size"],
            "image_size": data["image_size"],
        },
        "model": {k: list(v) if isinstance(v, tuple) else v for k, v in (inferred | model).items()},
        "diffusion": {**fields["diffusion"], "drop_condition": 0.0},
        "tasks": {},
    }
    return contract, state_dict


def _check_given(fields: Mapping[str, Any]) -> None:
    """Raises a FieldError that lists every field that has to be given and was not."""
    model = fields["model"]
    missing = {}
    if model["num_heads"] is None and model["num_head_channels"] is None:
        missing["model.num_heads"] = "or model.num_head_channels (attention heads)"
    if model["use_new_attention_order"] is None:
        missing["model.use_new_attention_order"] = "(True or False)"
    if fields["data"]["image_size"] is None:
        missing["data.image_size"] = "(height = width in training)"
    if fields["diffusion"]["schedule"] is None:
        missing["diffusion.schedule"] = "(linear or cosine)"
    if missing:
        first, *others = missing
        rest = "".join(f"\n  {name} {missing[name]}" for name in others)
        raise FieldError(
            first, f"{missing[first]} has to be given, since the tensors do not tell{rest}"
        )

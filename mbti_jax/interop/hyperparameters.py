"""Hyper-parameters of a guided-diffusion UNet, from the names and shapes of its tensors.

What leaves no trace in the tensors - heads, their order, the groups of the normalization, the size
of the images - cannot be found this way.
"""

from collections.abc import Mapping
from typing import Any


def infer_hyperparameters(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Fields of `UNet` that follow from a state dict.

    Input and output blocks both number L (n + 1), with L levels of n residual blocks. The first
    resampling comes right after n of them, and shows as a convolution (`op`), as a residual block
    that follows another in one output block, or, having no weights, as a gap in the numbering.

    Args:
        shapes: shapes in PyTorch's layouts by guided-diffusion's names.

    Returns:
        in_channels, out_channels, num_classes, model_channels, num_res_blocks, channel_mult,
        attention_resolutions, conv_resample, resblock_updown, use_scale_shift_norm. `conv_resample`
        is True where the network has no use for it; the channels are those of the convolutions,
        after folding if the network works on patches.

    Raises:
        ValueError: the tensors are not those of such a network.
    """
    try:
        return _infer(shapes)
    except (KeyError, StopIteration, IndexError) as error:
        raise ValueError(
            f"these are not the tensors of a guided-diffusion UNet (looked for {error}); "
            f"they are called: {', '.join(sorted(shapes)[:5])}, ..."
        ) from error


def _infer(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    model_channels = shapes["time_embed.0.weight"][1]
    blocks = {".".join(name.split(".")[:2]) for name in shapes}
    num_blocks = sum(block.startswith("output_blocks.") for block in blocks)
    has_block = [f"input_blocks.{i}" in blocks for i in range(num_blocks)]
    has_conv = [f"input_blocks.{i}.0.op.weight" in shapes for i in range(num_blocks)]
    # A residual block that comes second in its output block is there to resample.
    doubled = [
        any(f"output_blocks.{i}.{j}.in_layers.0.weight" in shapes for j in (1, 2))
        for i in range(num_blocks)
    ]
    resblock_updown = any(doubled)
    if resblock_updown:
        num_res_blocks = doubled.index(True)
    else:
        gaps = [conv or not block for conv, block in zip(has_conv, has_block, strict=True)]
        num_res_blocks = [*gaps, True].index(True) - 1
    num_levels, rest = divmod(num_blocks, num_res_blocks + 1)
    if rest or not num_levels:
        raise KeyError(f"a multiple of {num_res_blocks + 1} output blocks, found {num_blocks}")

    # The first output block of every level, from the lowest level to the image.
    first_blocks = [f"output_blocks.{i * (num_res_blocks + 1)}" for i in range(num_levels)][::-1]
    widths = [shapes[f"{block}.0.in_layers.2.weight"][0] for block in first_blocks]
    attending = [i for i, block in enumerate(first_blocks) if f"{block}.1.qkv.weight" in shapes]
    condition_width = shapes["middle_block.0.emb_layers.1.weight"][0]
    return {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "num_classes": shapes.get("label_emb.0.weight", (0, 0))[1],
        "model_channels": model_channels,
        "num_res_blocks": num_res_blocks,
        "channel_mult": tuple(_multiple(width, model_channels) for width in widths),
        "attention_resolutions": tuple(2**level for level in attending),
        "conv_resample": resblock_updown or any(has_conv) or num_levels == 1,
        "resblock_updown": resblock_updown,
        "use_scale_shift_norm": condition_width == 2 * widths[-1],
    }


def _multiple(width: int, model_channels: int) -> float:
    """The multiplier m with int(m * model_channels) == width; an integer where there is one."""
    if width % model_channels == 0:
        return width // model_channels
    multiple = width / model_channels
    # int() rounds down, and the quotient may be a last bit too small.
    return multiple if int(multiple * model_channels) == width else (width + 0.5) / model_channels

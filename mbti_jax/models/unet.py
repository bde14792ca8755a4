"""The ADM UNet of Rouzrokh et al. 2022 (arXiv 2210.12113), conditioned on a class vector.

The same function as the authors' published PyTorch module, a guided-diffusion UNet (Dhariwal &
Nichol 2021, arXiv 2105.05233) whose label embedding takes a real-valued vector, so that their
checkpoints can be used; 2-D only.
"""

import functools
from collections.abc import Sequence
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mbti_jax.diffusion.arrays import AnyArray, Numbers
from mbti_jax.diffusion.condition import Condition, Neighbors
from mbti_jax.diffusion.output import Output
from mbti_jax.fields import FieldError, Interval
from mbti_jax.models import blocks
from mbti_jax.rois.kinds import NUM_LABELS

# Bounds that no network reaches, so that a number in a config or a file asks for no absurd memory.
ImageSize = Annotated[int, Interval(1, 2**12)]
Channels = Annotated[int, Interval(1, 2**16)]
# -1 stands for nothing given, as in guided-diffusion.
OrNone = Annotated[int, Interval(-1, 2**16)]
PatchSize = Annotated[int, Interval(1, 64)]
Multiple = Annotated[float, Interval(0, 1024, "right")]
# The most slices on either side that a network may see.
MAX_NEIGHBORS = 2
# Of the label head: features per pixel, and the width of its hidden layer.
_LABEL_FEATURES, _LABEL_WIDTH = 16, 32


class UNet(nn.Module):
    """ADM UNet. Attributes have guided-diffusion's names where it has them.

    Attributes:
        image_size: height and width in training. Any size divisible by
            patch_size * 2^(levels - 1) can be given to the network.
        in_channels: sequences plus mask channels.
        out_channels: sequences.
        num_classes: length of the class vector. With 0 the vector is ignored and the embedding is
            that of the timestep alone, half as wide, as in guided-diffusion. (The published class
            can be built with 0 but not run: its blocks keep expecting the full width.)
        model_channels: width that `channel_mult` multiplies.
        num_res_blocks: residual blocks per level on the way down; one more on the way up.
        attention_resolutions: downsampling rates (1, 2, 4, ...) with self-attention.
        dropout: rate inside the residual blocks.
        channel_mult: width of each level as a multiple of model_channels; may be fractional.
        conv_resample: resample with convolutions, when not `resblock_updown`.
        num_heads: attention heads, when `num_head_channels` is -1.
        num_head_channels: width of a head; -1 to give `num_heads` instead.
        num_heads_upsample: `num_heads` on the way up; -1 for the same.
        use_scale_shift_norm: FiLM-like conditioning (see `ResBlock`).
        resblock_updown: resample inside residual blocks.
        use_new_attention_order: order of the channels of `qkv` (see `AttentionBlock`).
        num_groups: groups of every normalization. The published network has 32.
        patch_size: p > 1 folds p x p pixels into channels before the network and unfolds after it:
            a p^2 times cheaper network. The published network has 1.
        detail_channels: features per pixel of layers at full resolution that add to the image what
            patches cannot hold: p x p pixels of C sequences are more numbers than the last level has
            channels. 0, as in the published network, for no such layers; they are for `patch_size` > 1.
        label_head: return logits of what lies in every pixel, too. They are read off the last features
            and the network's own input. The published network has no such head.
        neighbors: K, how many slices on either side the network may see: their images, ROI masks and a
            plane of ones are further channels of its input, all of them zeros where a neighbor is not
            there. They enter through a 1x1 convolution of their own (of patches, so that it is cheap in
            networks that fold many pixels), which starts at zero: a new network, and any network whose
            neighbors are not there, is one for single slices. The published network sees none.
        mirror: show the network its input with the columns reversed, too. In axial slices that puts
            every place of one hemisphere beside the same place of the other, which is the best guess
            at healthy tissue that a slice holds (lesions are filled so in enantiomorphic normalization,
            Nachev et al., NeuroImage 2008, 39:1215). The window lies around the brain's middle, so
            heads must stand about upright in training (`Augmentation`) and at inference. The published
            network sees its input once.
        dtype: compute dtype, "float32" or "bfloat16".
        remat: recompute residual and attention blocks in the backward pass to save memory.
    """

    image_size: ImageSize = 256
    in_channels: Channels = 6
    out_channels: Channels = 1
    num_classes: Annotated[int, Interval(0, 1024)] = 5
    model_channels: Channels = 128
    num_res_blocks: Annotated[int, Interval(0, 16)] = 2
    attention_resolutions: Sequence[Annotated[int, Interval(1)]] = (8, 16)
    dropout: Annotated[float, Interval(0, 1, "left")] = 0.0
    channel_mult: Annotated[Sequence[Multiple], Interval(1, 10)] = (1, 2, 4, 8)
    conv_resample: bool = True
    num_heads: Channels = 1
    num_head_channels: OrNone = -1
    num_heads_upsample: OrNone = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    num_groups: Channels = 32
    patch_size: PatchSize = 1
    detail_channels: Annotated[int, Interval(0, 1024)] = 0
    label_head: bool = False
    neighbors: Annotated[int, Interval(0, MAX_NEIGHBORS)] = 0
    mirror: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: AnyArray, t: Numbers, condition: Condition, deterministic: bool = True
    ) -> Output:
        """Predicts the noise (or whatever the diffusion process trains it for).

        Args:
            x: [B, H, W, C], the noisy image. With the ROI masks it has `in_channels` channels.
            t: [B] timesteps, integer or float.
            condition: ROI masks [B, H, W, R], which are further channels of the image; class vector
                [B, num_classes], of which zeros are the null condition; and neighbors, or None where
                there are none.
            deterministic: no dropout. When False, `apply` needs a "dropout" key.

        Returns:
            The image, float32 [B, H, W, out_channels], and label logits if there is a head for them.

        Raises:
            ValueError: for an input or a configuration that does not fit.
        """
        x = jnp.concatenate([x, condition.roi_masks.astype(x.dtype)], axis=-1)
        class_vector = condition.class_vector
        self._check(x, class_vector)
        dtype = jnp.dtype(self.dtype)
        wrap = nn.remat if self.remat else lambda block, **_: block
        res_block = functools.partial(
            wrap(blocks.ResBlock, static_argnums=(3,)),
            num_groups=self.num_groups,
            dropout=self.dropout,
            use_scale_shift_norm=self.use_scale_shift_norm,
            dtype=dtype,
        )
        attention_block = functools.partial(
            wrap(blocks.AttentionBlock),
            num_groups=self.num_groups,
            use_new_attention_order=self.use_new_attention_order,
            dtype=dtype,
        )

        def res(h, width, name, resample="none"):
            block = res_block(channels=width, resample=resample, name=name)
            return block(h, embedding, deterministic)

        def attend(h, num_heads, name):
            if self.num_head_channels != -1:
                num_heads, remainder = divmod(h.shape[-1], self.num_head_channels)
                if remainder:
                    raise ValueError(
                        f"{h.shape[-1]} channels cannot be split into heads of "
                        f"num_head_channels={self.num_head_channels}"
                    )
            return attention_block(num_heads=num_heads, name=name)(h)

        embedding = self._embedding(t, class_vector)
        widths = [int(multiple * self.model_channels) for multiple in self.channel_mult]
        last_level = len(widths) - 1
        heads_up = self.num_heads if self.num_heads_upsample == -1 else self.num_heads_upsample

        planes = None if condition.neighbors is None else self._planes(condition.neighbors, x)
        if self.mirror:
            x = jnp.concatenate([x, jnp.flip(x, axis=2)], axis=-1)
        h = blocks.space_to_depth(x, self.patch_size).astype(dtype)
        h = blocks.conv3x3(widths[0], dtype, "input_blocks_0_0")(h)
        if planes is not None:
            around = blocks.space_to_depth(planes, self.patch_size)
            h += blocks.dense(widths[0], dtype, "neighbors_in", bias=False)(around.astype(dtype))
        skips = [h]
        for level, width in enumerate(widths):
            for _ in range(self.num_res_blocks):
                name = f"input_blocks_{len(skips)}"
                h = res(h, width, f"{name}_0")
                if 2**level in self.attention_resolutions:
                    h = attend(h, self.num_heads, f"{name}_1")
                skips.append(h)
            if level < last_level:
                name = f"input_blocks_{len(skips)}_0"
                if self.resblock_updown:
                    h = res(h, width, name, resample="down")
                else:
                    h = blocks.Downsample(self.conv_resample, dtype, name=name)(h)
                skips.append(h)

        h = res(h, widths[-1], "middle_block_0")
        h = attend(h, self.num_heads, "middle_block_1")
        h = res(h, widths[-1], "middle_block_2")

        num_output_blocks = len(skips)
        for level in reversed(range(len(widths))):
            for i in range(self.num_res_blocks + 1):
                block = f"output_blocks_{num_output_blocks - len(skips)}"
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = res(h, widths[level], f"{block}_0")
                attends = 2**level in self.attention_resolutions
                if attends:
                    h = attend(h, heads_up, f"{block}_1")
                if level and i == self.num_res_blocks:
                    name = f"{block}_{2 if attends else 1}"
                    if self.resblock_updown:
                        h = res(h, widths[level], name, resample="up")
                    else:
                        h = blocks.Upsample(self.conv_resample, dtype, name=name)(h)

        image = blocks.GroupNorm(self.num_groups, name="out_0")(h)
        image = blocks.conv3x3(self.out_channels * self.patch_size**2, dtype, "out_2")(image)
        image = jnp.asarray(blocks.depth_to_space(image, self.patch_size), jnp.float32)
        if self.detail_channels:
            image += self._detail(h, x, embedding)
        return Output(image, self._label_logits(h, x, embedding) if self.label_head else None)

    def _planes(self, neighbors: Neighbors, x: jax.Array) -> jax.Array:
        """[B, H, W, 2 K (C + R + 1)]: images, masks and ones of neighbors that are there, else zeros.

        Args:
            x: [B, H, W, C + R], image and masks of the examples.
        """
        images, masks = neighbors.images, neighbors.roi_masks.astype(x.dtype)
        expected = (len(x), 2 * self.neighbors, *x.shape[1:])
        found = (*images.shape[:-1], images.shape[-1] + masks.shape[-1])
        if not self.neighbors or found != expected or neighbors.present.shape != expected[:2]:
            raise ValueError(
                f"neighbors and their ROI masks have shape {found}, the model wants {expected}"
                if self.neighbors
                else "the model sees no neighboring slices, and the condition has some"
            )
        planes = jnp.concatenate([images, masks, jnp.ones_like(images[..., :1])], axis=-1)
        planes *= neighbors.present[..., None, None, None].astype(x.dtype)
        return jnp.moveaxis(planes, 1, 3).reshape(*x.shape[:3], -1)

    def _detail(self, h, x, embedding):
        """float32 [B, H, W, C] of features [B, H/p, W/p, D] and the network's input [B, H, W, ...].

        Three convolutions, so each pixel's share follows from the 7 x 7 pixels around it.
        """
        dtype, width = jnp.dtype(self.dtype), self.detail_channels
        h = self._pixels(h, x, width, "detail_out")
        h = blocks.conv3x3(width, dtype, "detail_out_2")(h)
        h = self._modulated(h, embedding, "detail_out")
        h = nn.silu(blocks.conv3x3(width, dtype, "detail_out_3")(h))
        return jnp.asarray(blocks.conv3x3(self.out_channels, dtype, "detail_out_4")(h), jnp.float32)

    def _label_logits(self, h, x, embedding):
        """float32 [B, H, W, 4] of features [B, H/p, W/p, C] and the network's input [B, H, W, C].

        Features say what lies around a pixel, the input what the pixel itself shows and what was asked
        of it. All pixels of a patch share the layers that put both together. The embedding scales and
        shifts them, for how far a pixel can be believed depends on the noise in it.
        """
        dtype = jnp.dtype(self.dtype)
        h = self._pixels(h, x, _LABEL_FEATURES, "label_out")
        h = blocks.dense(_LABEL_WIDTH, dtype, "label_out_2")(h)
        h = self._modulated(h, embedding, "label_out")
        return jnp.asarray(blocks.dense(NUM_LABELS, dtype, "label_out_3")(h), jnp.float32)

    def _pixels(self, h, x, features, name):
        """[B, H, W, features + C] of features [B, H/p, W/p, D] and the network's input [B, H, W, C]."""
        dtype = jnp.dtype(self.dtype)
        h = blocks.GroupNorm(self.num_groups, name=f"{name}_0")(h)
        h = blocks.dense(features * self.patch_size**2, dtype, f"{name}_1")(h)
        return jnp.concatenate(
            [blocks.depth_to_space(h, self.patch_size), x.astype(dtype)], axis=-1
        )

    def _modulated(self, h, embedding, name):
        """SiLU of features [B, H, W, D] that the embedding scales and shifts."""
        width, dtype = h.shape[-1], jnp.dtype(self.dtype)
        condition = blocks.dense(2 * width, dtype, f"{name}_emb")(nn.silu(embedding))
        scale, shift = jnp.split(condition[:, None, None, :], 2, axis=-1)
        return nn.silu(h * (1 + scale) + shift)

    def _embedding(self, t, class_vector):
        """[B, 8 model_channels] float32: timestep, class; [B, 4 ...] without classes."""
        width = 4 * self.model_channels
        embedding = blocks.timestep_embedding(t, self.model_channels)
        embedding = blocks.dense(width, jnp.float32, "time_embed_0")(embedding)
        embedding = blocks.dense(width, jnp.float32, "time_embed_2")(nn.silu(embedding))
        if not self.num_classes:
            return embedding
        label = blocks.dense(width, jnp.float32, "label_emb_0")(class_vector.astype(jnp.float32))
        label = blocks.dense(width, jnp.float32, "label_emb_2")(nn.silu(label))
        return jnp.concatenate([embedding, label], axis=-1)

    def _check(self, x, class_vector):
        factor = self.patch_size * 2 ** (len(self.channel_mult) - 1)
        if x.ndim != 4 or x.shape[-1] != self.in_channels:
            raise ValueError(
                f"x and ROI masks have shape {x.shape}, the model wants "
                f"[B, H, W, {self.in_channels}]"
            )
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(f"height and width of x {x.shape} must be divisible by {factor}")
        if self.num_classes and class_vector.shape != (x.shape[0], self.num_classes):
            raise ValueError(
                f"class_vector has shape {class_vector.shape}, the model wants "
                f"{(x.shape[0], self.num_classes)}"
            )


def check_unet(model: UNet) -> None:
    """Checks whether the fields of a network fit each other.

    Raises:
        FieldError: the one that does not fit the others.
    """
    widths = [int(multiple * model.model_channels) for multiple in model.channel_mult]
    rates = [2**level for level in range(len(widths))]
    for rate in model.attention_resolutions:
        if rate not in rates:
            raise FieldError(
                "attention_resolutions",
                f"are downsampling rates, and no level has the rate {rate}; there are "
                f"{', '.join(map(str, rates))}, of images of "
                f"{', '.join(str(model.image_size // model.patch_size // r) for r in rates)} pixels",
            )
    attending = [widths[rates.index(rate)] for rate in model.attention_resolutions]
    heads = {"num_heads": model.num_heads, "num_heads_upsample": model.num_heads_upsample}
    if model.num_head_channels != -1:
        heads = {"num_head_channels": model.num_head_channels}
    divisors = {"num_groups": (model.num_groups, widths)}
    for name, number in heads.items():
        if number == 0 or (number == -1 and name == "num_heads"):
            raise FieldError(name, "must be at least 1, or -1")
        if number != -1:
            # The middle of the network attends at its own width.
            at_middle = [] if name == "num_heads_upsample" else [widths[-1]]
            divisors[name] = (number, [*attending, *at_middle])
    for name, (number, channels) in divisors.items():
        for width in channels:
            if width < 1 or width % number:
                raise FieldError(
                    name,
                    f"must divide the channels of every level it applies to, not be {number} for "
                    f"{width} (levels have {', '.join(map(str, widths))}: channel_mult times "
                    "model_channels)",
                )
    factor = model.patch_size * rates[-1]
    if model.image_size % factor:
        raise FieldError(
            "image_size",
            f"must be divisible by {factor} (patch_size times the lowest level's rate), "
            f"not {model.image_size}",
        )

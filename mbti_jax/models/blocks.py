"""Building blocks of the ADM UNet (Dhariwal & Nichol 2021, arXiv 2105.05233), NHWC.

Sub-modules carry the names that guided-diffusion gives them, with `_` for `.`
(`in_layers_2` is PyTorch's `in_layers.2`), so that `mbti_jax.interop` can map parameters by name.

Every block takes a compute `dtype`; parameters are float32 and so are the statistics of the
normalization and the softmax, whatever the compute dtype.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from mbti_jax.diffusion.arrays import AnyArray, Images
from mbti_jax.models import choices
from mbti_jax.models.convolutions import convolve

_MAX_PERIOD = 10_000
_EPSILON = 1e-5

# Layers that start at zero, so that every residual block starts as the identity and the network as 0.
ZERO_INIT = frozenset(
    {"out_layers_3", "proj_out", "out_2", "detail_out_4", "label_out_3", "neighbors_in"}
)


def kernel_init(name: str) -> nn.initializers.Initializer:
    """Zeros, or PyTorch's default: uniform in +-1 / sqrt(fan_in)."""
    if name in ZERO_INIT:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def timestep_embedding(t: Num[AnyArray, " B"], dim: int) -> Float[jax.Array, "B {dim}"]:
    """Sinusoidal embedding of (possibly fractional) timesteps.

    Args:
        t: [B], float or integer.
        dim: width of the embedding; an odd width is padded with one zero.

    Returns:
        [B, dim] float32: cos(t f_k), then sin(t f_k), with f_k = 10000^(-k / (dim // 2)).
    """
    half = dim // 2
    # Rounded to float32 step by step, as the reference rounds: t reaches 1000, so that a last-bit
    # difference of a frequency would move the embedding by 1e-4.
    exponents = np.float32(-math.log(_MAX_PERIOD)) * np.arange(half, dtype=np.float32)
    exponents /= np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


def group_norm(
    x: Float[AnyArray, "B H W C"],
    weight: Float[AnyArray, "*#B C"],
    bias: Float[AnyArray, "*#B C"],
    num_groups: int,
    silu: bool = False,
) -> Float[jax.Array, "B H W C"]:
    """Group normalization (Wu & He 2018), an affine map that may differ by example, and SiLU.

    How it is computed is one of the `choices`. By default the gradient is written out rather than
    derived, and recomputes what it needs from x: compared with the derived one on CPU, a UNet's
    training step compiles in 2/3 of the time, runs in 0.85 of it and holds 0.9 of the memory. There is
    no forward-mode derivative then.

    Args:
        x: [B, H, W, C].
        weight, bias: float32 [C] or [B, C].
        num_groups: divides C.
        silu: apply SiLU to the result.

    Returns:
        [B, H, W, C] in the type of x, computed in float32: (x - mean) / sqrt(variance + 1e-5) * weight
        + bias, mean and variance per example and group; y * sigmoid(y) of it if `silu`.

    Raises:
        ValueError: if num_groups does not divide C.
    """
    batch, _, _, channels = x.shape
    if channels % num_groups:
        raise ValueError(f"{channels} channels cannot be split into num_groups={num_groups}")
    weight, bias = (jnp.broadcast_to(a, (batch, channels)) for a in (weight, bias))
    how = choices.current().group_norm
    moments = _moments_in_one_pass if how == "one_pass" else _moments_in_two_passes
    if how == "plain":
        return _group_norm_forward(x, weight, bias, num_groups, silu, moments)[0]
    return _group_norm(x, weight, bias, num_groups, silu, moments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _group_norm(x, weight, bias, num_groups, silu, moments):
    return _group_norm_forward(x, weight, bias, num_groups, silu, moments)[0]


def _moments_in_two_passes(values):
    """Means and variances of float32 [B, H, W, C] over its pixels: [B, C] each."""
    # Variances are those of centered values, since E[x^2] - E[x]^2 loses all digits where the mean is
    # large.
    mean = values.mean((1, 2))
    return mean, jnp.square(values - _per_pixel(mean)).mean((1, 2))


def _moments_in_one_pass(values):
    """The same, as E[(x - k)^2] - E[x - k]^2: it is the shift by a pixel k that saves the digits."""
    shift = values[:, 0, 0]
    shifted = values - _per_pixel(shift)
    mean = shifted.mean((1, 2))
    variance = jnp.square(shifted).mean((1, 2)) - jnp.square(mean)
    return mean + shift, jnp.maximum(variance, 0)


def _group_norm_forward(x, weight, bias, num_groups, silu, moments):
    # Moments are taken per channel and then merged into groups: reducing over the two middle axes of
    # a contiguous array is several times faster on CPU than reducing a [.., G, C/G] view.
    channel_mean, channel_variance = moments(x.astype(jnp.float32))
    mean = _group_mean(channel_mean, num_groups)
    variance = _group_mean(channel_variance + jnp.square(channel_mean - mean), num_groups)
    rstd = jax.lax.rsqrt(variance + _EPSILON)
    y = _standardize(x, mean, rstd) * _per_pixel(weight) + _per_pixel(bias)
    y = nn.silu(y) if silu else y
    return y.astype(x.dtype), (x, weight, bias, mean, rstd)


def _group_norm_backward(num_groups, silu, moments, residuals, dy):
    del moments
    x, weight, bias, mean, rstd = residuals
    standard = _standardize(x, mean, rstd)
    dy = dy.astype(jnp.float32)
    if silu:
        y = standard * _per_pixel(weight) + _per_pixel(bias)
        gate = nn.sigmoid(y)
        dy *= gate * (1 + y * (1 - gate))
    dweight, dbias = (dy * standard).sum((1, 2)), dy.sum((1, 2))
    # Mean and variance depend on x, too: dx loses its components along 1 and along `standard`.
    area = x.shape[1] * x.shape[2]
    along_one = _group_mean(weight * dbias, num_groups) / area
    along_standard = _group_mean(weight * dweight, num_groups) / area
    dx = dy * _per_pixel(weight) - _per_pixel(along_one) - standard * _per_pixel(along_standard)
    return (dx * _per_pixel(rstd)).astype(x.dtype), dweight, dbias


_group_norm.defvjp(_group_norm_forward, _group_norm_backward)


def _standardize(x, mean, rstd):
    return (x.astype(jnp.float32) - _per_pixel(mean)) * _per_pixel(rstd)


def _per_pixel(moment):
    return moment[:, None, None, :]


def _group_mean(moment, num_groups):
    """[B, C] -> [B, C], every channel's value being the mean over its group."""
    batch, channels = moment.shape
    grouped = moment.reshape(batch, num_groups, channels // num_groups).mean(-1)
    return jnp.repeat(grouped, channels // num_groups, axis=-1)


def attention(
    query: Float[AnyArray, "B L N D"],
    key: Float[AnyArray, "B L N D"],
    value: Float[AnyArray, "B L N D"],
) -> Float[jax.Array, "B L N D"]:
    """Softmax(query key^T / sqrt(D)) value for each head, over L positions, as `choices` says.

    Args:
        query, key, value: [B, L, heads, D].

    Returns:
        [B, L, heads, D] in their type; the softmax is taken in float32.
    """
    implementation = choices.current().attention
    if implementation == "cudnn":
        obstacle = choices.cudnn_obstacle(jax.default_backend(), query.dtype, query.shape[-1])
        implementation = "xla" if obstacle else "cudnn"
    return jax.nn.dot_product_attention(query, key, value, implementation=implementation)


def conv3x3(channels: int, dtype, name: str, strides: int = 1) -> nn.Conv:
    """A 3x3 convolution padded by one pixel on every side."""
    return nn.Conv(
        channels,
        (3, 3),
        strides,
        padding=1,
        dtype=dtype,
        kernel_init=kernel_init(name),
        conv_general_dilated=convolve,
        name=name,
    )


def dense(channels: int, dtype, name: str, bias: bool = True) -> nn.Dense:
    """A linear layer over the last axis; on an image, a 1x1 convolution."""
    return nn.Dense(channels, use_bias=bias, dtype=dtype, kernel_init=kernel_init(name), name=name)


class GroupNorm(nn.Module):
    """Group normalization, optionally modulated - norm(x) * (1 + scale) + shift - and SiLU."""

    num_groups: int
    silu: bool = True

    @nn.compact
    def __call__(
        self,
        x: Images,
        scale: Float[jax.Array, "B C"] | None = None,
        shift: Float[jax.Array, "B C"] | None = None,
    ) -> Images:
        """x [B, H, W, C]; scale and shift [B, C], or neither -> [B, H, W, C] in the type of x."""
        weight = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        if scale is not None and shift is not None:
            scale = 1 + scale.astype(jnp.float32)
            weight, bias = weight * scale, bias * scale + shift.astype(jnp.float32)
        return group_norm(x, weight, bias, self.num_groups, self.silu)


class Upsample(nn.Module):
    """Doubling of height and width by repetition, then a 3x3 convolution if `use_conv`."""

    use_conv: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B H W C"]) -> Float[jax.Array, "B 2*H 2*W C"]:
        """x [B, H, W, C] -> [B, 2H, 2W, C]."""
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return conv3x3(x.shape[-1], self.dtype, "conv")(x) if self.use_conv else x


class Downsample(nn.Module):
    """Halving of height and width by a 3x3 convolution of stride 2, or by 2x2 averages."""

    use_conv: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B H W C"]) -> Float[jax.Array, "B H//2 W//2 C"]:
        """x [B, 2H, 2W, C] -> [B, H, W, C]."""
        batch, height, width, channels = x.shape
        if self.use_conv:
            return conv3x3(channels, self.dtype, "op", strides=2)(x)
        return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


class ResBlock(nn.Module):
    """Residual block conditioned on an embedding, optionally changing width or resolution.

    Attributes:
        channels: width of the output.
        num_groups: groups of the normalizations.
        dropout: rate before the last convolution.
        use_scale_shift_norm: the embedding scales and shifts the second normalization instead of
            being added before it.
        resample: "up" or "down" for a block that doubles or halves the resolution, else "none".
        dtype: compute dtype.
    """

    channels: int
    num_groups: int
    dropout: float
    use_scale_shift_norm: bool
    resample: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B H W C_in"],
        embedding: Float[jax.Array, "B E"],
        deterministic: bool,
    ) -> Float[jax.Array, "B _H _W {self.channels}"]:
        """x [B, H, W, C_in], embedding [B, E] -> [B, H', W', channels]."""
        h = GroupNorm(self.num_groups, name="in_layers_0")(x)
        if self.resample == "up":
            h, x = (Upsample(use_conv=False, dtype=self.dtype)(z) for z in (h, x))
        elif self.resample == "down":
            h, x = (Downsample(use_conv=False, dtype=self.dtype)(z) for z in (h, x))
        h = conv3x3(self.channels, self.dtype, "in_layers_2")(h)

        width = 2 * self.channels if self.use_scale_shift_norm else self.channels
        condition = dense(width, self.dtype, "emb_layers_1")(nn.silu(embedding))
        norm = GroupNorm(self.num_groups, name="out_layers_0")
        if self.use_scale_shift_norm:
            h = norm(h, *jnp.split(condition, 2, axis=-1))
        else:
            h = norm(h + condition[:, None, None, :])
        h = nn.Dropout(self.dropout)(h, deterministic=deterministic)
        h = conv3x3(self.channels, self.dtype, "out_layers_3")(h)

        if x.shape[-1] != self.channels:
            x = dense(self.channels, self.dtype, "skip_connection")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Residual self-attention over all positions.

    Attributes:
        num_heads: divides the width.
        num_groups: groups of the normalization.
        use_new_attention_order: whether the channels of `qkv` are ordered (q k v, head) instead of
            (head, q k v).
        dtype: compute dtype.
    """

    num_heads: int
    num_groups: int
    use_new_attention_order: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """x [B, H, W, C] -> [B, H, W, C]."""
        batch, height, width, channels = x.shape
        h = GroupNorm(self.num_groups, silu=False, name="norm")(x)
        h = h.reshape(batch, height * width, channels)
        qkv = dense(3 * channels, self.dtype, "qkv")(h)
        if channels % self.num_heads:
            raise ValueError(f"{channels} channels cannot be split into {self.num_heads} heads")
        head_channels = channels // self.num_heads
        if self.use_new_attention_order:
            qkv = qkv.reshape(*qkv.shape[:2], 3, self.num_heads, head_channels)
            query, key, value = jnp.moveaxis(qkv, 2, 0)
        else:
            qkv = qkv.reshape(*qkv.shape[:2], self.num_heads, 3, head_channels)
            query, key, value = jnp.moveaxis(qkv, 3, 0)
        h = attention(query, key, value)
        h = h.reshape(batch, height, width, channels)
        return x + dense(channels, self.dtype, "proj_out")(h)


def space_to_depth(
    x: Float[AnyArray, "B H W C"], patch_size: int
) -> Float[AnyArray, "B H//{patch_size} W//{patch_size} C*{patch_size}**2"]:
    """[B, H, W, C] -> [B, H/p, W/p, p p C]."""
    batch, height, width, channels = x.shape
    p = patch_size
    x = x.reshape(batch, height // p, p, width // p, p, channels).swapaxes(2, 3)
    return x.reshape(*x.shape[:3], p * p * channels)


def depth_to_space(
    x: Float[AnyArray, "B h w D"], patch_size: int
) -> Float[AnyArray, "B h*{patch_size} w*{patch_size} D//{patch_size}**2"]:
    """[B, H/p, W/p, p p C] -> [B, H, W, C], the inverse of `space_to_depth`."""
    batch, height, width, channels = x.shape
    p = patch_size
    x = x.reshape(batch, height, width, p, p, channels // p**2).swapaxes(2, 3)
    return x.reshape(batch, height * p, width * p, channels // p**2)

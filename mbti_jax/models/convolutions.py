"""3x3 convolutions whose gradients are written for CPUs.

XLA's CPU backend has fast kernels for plain convolutions alone. The gradients that JAX derives are other
ones: that of the input reverses the kernel's axes inside the operation, that of the kernel takes the
output's gradient as a kernel of the image's size. Here they are a plain convolution and a matrix product
of the same values, where `choices.current().conv_gradient` says so.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from mbti_jax.models import choices

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# From here on the gradient of the kernel is faster as a matrix product: 43 -> 71 GFLOP/s at 24 x 24
# positions and 128 channels, 23 -> 43 at 48 x 48 and 96; 84 -> 38 at 32 x 32 and 64 -> 32 channels.
_MIN_CHANNELS, _MIN_SIZE = 96, 12


def convolve(
    x: Float[jax.Array, "B H W C"],
    kernel: Float[jax.Array, "_ _ C D"],
    strides: tuple[int, ...],
    padding: Any,
    **options: Any,
) -> Float[jax.Array, "B _H _W D"]:
    """`lax.conv_general_dilated` with the gradients that this backend computes fastest.

    Serves as `conv_general_dilated` of a `flax.linen.Conv`.
    """
    if _is_foldable(x, kernel, strides, padding) and choices.current().strided == "folded":
        return _folded(x, kernel)
    if not _is_written(x, kernel, strides, padding):
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    return _convolve3x3(x, kernel)


def _is_written(x, kernel, strides, padding) -> bool:
    """Whether the gradients below serve this convolution: 3x3, float32, stride 1, padded by a pixel."""
    return (
        choices.current().conv_gradient == "forward"
        and x.dtype == kernel.dtype == jnp.float32
        and kernel.shape[:2] == (3, 3)
        and tuple(strides) == (1, 1)
        and tuple(map(tuple, padding)) == ((1, 1), (1, 1))
    )


def _is_foldable(x, kernel, strides, padding) -> bool:
    """Whether it is a 3x3 convolution of stride 2, padded by a pixel, of even height and width."""
    return (
        kernel.shape[:2] == (3, 3)
        and tuple(strides) == (2, 2)
        and tuple(map(tuple, padding)) == ((1, 1), (1, 1))
        and not x.shape[1] % 2
        and not x.shape[2] % 2
    )


def _folded(x, kernel):
    """A 3x3 convolution of stride 2, as one of stride 1 with 2x2 pixels in the channels.

    y[h] = sum over i of padded[2h + i] k[i], with i = 2a + r: pixel r of the folded row h + a. The
    fourth tap, a = r = 1, is 0.
    """
    batch, height, width, channels = x.shape
    rows, columns, filters = height // 2 + 1, width // 2 + 1, kernel.shape[-1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    pixels = padded.reshape(batch, rows, 2, columns, 2, channels).swapaxes(2, 3)
    taps = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    taps = taps.reshape(2, 2, 2, 2, channels, filters).swapaxes(1, 2)
    return lax.conv_general_dilated(
        pixels.reshape(batch, rows, columns, 4 * channels),
        taps.reshape(2, 2, 4 * channels, filters),
        (1, 1),
        "VALID",
        dimension_numbers=_LAYOUT,
    )


@jax.custom_vjp
def _convolve3x3(x, kernel):
    return _plain(x, kernel)


def _forward(x, kernel):
    return _plain(x, kernel), (x, kernel)


def _backward(residuals, dy):
    x, kernel = residuals
    # The barrier keeps XLA from folding the reversal back into the convolution.
    reversed_kernel = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    wide = min(kernel.shape[2:]) >= _MIN_CHANNELS and min(x.shape[1:3]) >= _MIN_SIZE
    kernel_gradient = _product_gradient if wide else _derived_gradient
    return _plain(dy, reversed_kernel), kernel_gradient(x, dy)


_convolve3x3.defvjp(_forward, _backward)


def _plain(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)


def _derived_gradient(x, dy):
    zeros = jnp.zeros((3, 3, x.shape[-1], dy.shape[-1]), x.dtype)
    return jax.linear_transpose(functools.partial(_plain, x), zeros)(dy)[0]


def _product_gradient(x, dy):
    """The gradient of the kernel as one matrix product.

    dk[i, j] = sum over positions of x[h + i - 1, w + j - 1] dy[h, w]: three copies of x, shifted along
    w, times three of dy, shifted along h, give all nine.
    """
    width, channels, filters = x.shape[2], x.shape[-1], dy.shape[-1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # The barriers keep XLA from computing the copies anew, element by element, where they are joined.
    xs = lax.optimization_barrier([padded[:, :, j : j + width] for j in range(3)])
    dys = lax.optimization_barrier(
        [jnp.pad(dy, ((0, 0), (i, 2 - i), (0, 0), (0, 0))) for i in range(3)]
    )
    a = jnp.concatenate(xs, -1).reshape(-1, 3 * channels)
    b = jnp.concatenate(dys, -1).reshape(-1, 3 * filters)
    a, b = lax.optimization_barrier((a, b))
    product = lax.dot_general(a, b, (((0,), (0,)), ((), ())))
    return product.reshape(3, channels, 3, filters).transpose(2, 0, 1, 3)

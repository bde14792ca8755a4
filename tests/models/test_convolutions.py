"""Convolutions with written gradients, and the gradient of the whole network as XLA compiles it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from scipy.signal import correlate, fftconvolve
from unet_cases import OPTIONS, random_inputs, random_params, relative_l2, run_unet, small_unet

from mbti_jax.models import choices
from mbti_jax.models.convolutions import convolve

LAYOUT = ("NHWC", "HWIO", "NHWC")
ONE = ((1, 1), (1, 1))


def gradients(x, kernel, dy, how, strides=(1, 1)):
    """(output, dx, dkernel) of the compiled convolution."""

    @jax.jit
    def run(x, kernel, dy):
        def function(x, kernel):
            return convolve(x, kernel, strides, ONE, dimension_numbers=LAYOUT)

        y, back = jax.vjp(function, x, kernel)
        return y, *back(dy)

    with choices.override(conv_gradient=how):
        return run(x, kernel, dy)


# The second is wide enough for the matrix product, and neither square nor of one width.
@pytest.mark.parametrize("shape", [(2, 5, 7, 3, 4), (1, 12, 13, 96, 97)])
def test_written_gradients_are_those_of_scipy(shape):
    batch, height, width, channels, filters = shape
    rng = np.random.default_rng(2)
    x = rng.standard_normal((batch, height, width, channels))
    kernel = rng.standard_normal((3, 3, channels, filters))
    dy = rng.standard_normal((batch, height, width, filters))
    padded = np.pad(x, ((0, 0), *ONE, (0, 0)))
    # Of a few channels, in float64: each pair is a correlation or convolution of two planes.
    some_c, some_f = (
        range(0, channels, max(1, channels // 3)),
        range(0, filters, max(1, filters // 3)),
    )
    got = gradients(*(a.astype(np.float32) for a in (x, kernel, dy)), "forward")
    y, dx, dkernel = (np.asarray(a, np.float64) for a in got)
    for f in some_f:
        expected = sum(
            np.stack([correlate(p[..., c], kernel[..., c, f], "valid") for p in padded])
            for c in range(channels)
        )
        np.testing.assert_allclose(y[..., f], expected, atol=2e-4)
    for c in some_c:
        expected = sum(
            np.stack([fftconvolve(d[..., f], kernel[..., c, f], "same") for d in dy])
            for f in range(filters)
        )
        np.testing.assert_allclose(dx[..., c], expected, atol=2e-4)
        for f in some_f:
            planes = zip(padded[..., c], dy[..., f], strict=True)
            expected = sum(correlate(p, d, "valid") for p, d in planes)
            np.testing.assert_allclose(dkernel[..., c, f], expected, atol=2e-4)


@pytest.mark.parametrize("case", ["stride", "type", "one_by_one"])
def test_other_convolutions_keep_the_derived_gradient(case):
    rng = np.random.default_rng(3)
    size = 1 if case == "one_by_one" else 3
    dtype = jnp.bfloat16 if case == "type" else jnp.float32
    strides = (2, 2) if case == "stride" else (1, 1)
    x = jnp.asarray(rng.standard_normal((1, 6, 6, 2)), dtype)
    kernel = jnp.asarray(rng.standard_normal((size, size, 2, 3)), dtype)
    with choices.override(conv_gradient="forward"):
        text = str(
            jax.make_jaxpr(lambda x: convolve(x, kernel, strides, ONE, dimension_numbers=LAYOUT))(x)
        )
    assert "custom_vjp" not in text


def loss_of_a_network(params):
    model = small_unet(**OPTIONS["four_sequences"])
    return jnp.mean(jnp.square(run_unet(model, params, *random_inputs(model)) - 0.5))


@functools.cache
def gradients_without_compilation():
    with jax.disable_jit(), choices.override(conv_gradient="plain"):
        params = random_params(small_unet(**OPTIONS["four_sequences"]))
        return flatten_dict(jax.grad(loss_of_a_network)(params))


@pytest.mark.parametrize("how", ["plain", "forward"])
def test_compiled_gradients_of_the_network_are_those_without_compilation(how):
    """Some versions of XLA's CPU backend compute wrong gradients, without a word."""
    params = random_params(small_unet(**OPTIONS["four_sequences"]))
    with choices.override(conv_gradient=how):
        # As users compile it, and not as the other tests do.
        options = {"xla_backend_optimization_level": 3}
        gradients = jax.jit(jax.grad(loss_of_a_network), compiler_options=options)
        compiled = flatten_dict(gradients(params))
    expected = gradients_without_compilation()
    assert compiled.keys() == expected.keys()
    for path, value in expected.items():
        assert relative_l2(compiled[path], value) < 1e-4, path


@pytest.mark.parametrize("shape", [(2, 6, 4, 3, 5), (1, 2, 8, 4, 4)])
def test_folded_strided_convolution_is_the_plain_one_in_float64(shape):
    batch, height, width, channels, filters = shape
    rng = np.random.default_rng(3)
    x, kernel = (
        rng.standard_normal(size)
        for size in ((batch, height, width, channels), (3, 3, channels, filters))
    )
    dy = rng.standard_normal((batch, height // 2, width // 2, filters))
    # y, and its derivatives, as nine shifted products.
    padded, dpadded = (
        np.pad(x, ((0, 0), *ONE, (0, 0))),
        np.zeros((batch, height + 2, width + 2, channels)),
    )
    expected, dkernel = np.zeros_like(dy), np.zeros_like(kernel)
    for i, j in np.ndindex(3, 3):
        rows, columns = slice(i, i + height, 2), slice(j, j + width, 2)
        expected += padded[:, rows, columns] @ kernel[i, j]
        dkernel[i, j] = np.einsum("bhwc,bhwd->cd", padded[:, rows, columns], dy)
        dpadded[:, rows, columns] += dy @ kernel[i, j].T

    def function(x, kernel):
        return convolve(x, kernel, (2, 2), ONE, dimension_numbers=LAYOUT)

    arrays = [a.astype(np.float32) for a in (x, kernel, dy)]
    with choices.override(strided="folded"):
        assert "window_strides=(2, 2)" not in str(jax.make_jaxpr(function)(*arrays[:2]))
        y, back = jax.vjp(function, *arrays[:2])
        dx, dk = back(jnp.asarray(arrays[2]))
    wanted = (expected, dpadded[:, 1:-1, 1:-1], dkernel)
    for got, want in zip((y, dx, dk), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_what_cannot_be_folded_is_not():
    x, kernel = jnp.ones((1, 5, 4, 2)), jnp.ones((3, 3, 2, 2))
    with choices.override(strided="folded"):
        odd = convolve(x, kernel, (2, 2), ONE, dimension_numbers=LAYOUT)
        plain = convolve(x[:, :4], kernel, (1, 1), ONE, dimension_numbers=LAYOUT)
    assert odd.shape == (1, 3, 2, 2) and plain.shape == (1, 4, 4, 2)

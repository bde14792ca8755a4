"""Implementation choices that only a measurement can make, per backend, in one place.

Each has several ways of computing the same function; which is fastest depends on the hardware.
`python -m benchmarks.accelerator` measures them, and its numbers decide the defaults below.
"""

import contextlib
import dataclasses
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mbti_jax.fields import check_fields, check_names

_CUDNN_HEAD_CHANNELS = 8
_CUDNN_MAX_HEAD_CHANNELS = 128


@dataclasses.dataclass(frozen=True)
class Choices:
    """How the network computes.

    Attributes:
        attention: "xla", or "cudnn" for cuDNN's fused kernel where it can be used (see
            `cudnn_obstacle`) and XLA elsewhere. cuDNN's has no forward-mode derivative.
        group_norm: "written": moments in two passes, the gradient written out; "one_pass": the same
            gradient, moments in one pass over values shifted by the first pixel; "plain": two passes,
            the gradient derived by JAX, which is the only one with a forward-mode derivative.
        conv_gradient: "plain": the gradients of 3x3 convolutions as JAX derives them; "forward": that of
            the input as a forward convolution with the flipped kernel, and, of wide layers, that of the
            kernel as a matrix product (see `models.convolutions`).
        strided: "plain": 3x3 convolutions of stride 2 as they are, whose input gradient is a dilated
            convolution; "folded": of 2x2 pixels folded into channels, by 2x2 kernels of stride 1: 16/9
            of the multiplications, and plain gradients.

    Raises:
        FieldError: there is no such choice.
    """

    attention: Literal["xla", "cudnn"] = "xla"
    group_norm: Literal["written", "one_pass", "plain"] = "written"
    conv_gradient: Literal["plain", "forward"] = "plain"
    strided: Literal["plain", "folded"] = "plain"

    def __post_init__(self):
        check_fields(self)


# By `jax.default_backend()`. CPUs: benchmarks/README.md, "Network speed". Accelerators: unmeasured.
DEFAULTS: Mapping[str, Choices] = types.MappingProxyType(
    {"cpu": Choices(conv_gradient="forward"), "gpu": Choices(), "tpu": Choices()}
)

# Part of the key of compiled programs: a jitted function is traced anew under other choices.
_OVERRIDE = jax.make_user_context(None)


def current() -> Choices:
    """The choices of this backend, or those inside `override`; read while a function is traced."""
    overridden = _OVERRIDE.value
    if overridden is not None:
        return overridden
    return DEFAULTS.get(jax.default_backend(), Choices())


@contextlib.contextmanager
def override(**fields: Any) -> Iterator[Choices]:
    """Sets some choices for what is traced inside; for measurements and tests.

    Args:
        fields: of `Choices`; the others stay as they are.

    Raises:
        FieldError: there is no such choice.
    """
    check_names(fields, [field.name for field in dataclasses.fields(Choices)])
    choices = dataclasses.replace(current(), **fields)
    with _OVERRIDE(choices):
        yield choices


def cudnn_obstacle(backend: str, dtype: Any, head_channels: int) -> str | None:
    """Why cuDNN's attention cannot be used; None where it can.

    Args:
        backend: as `jax.default_backend()` calls it.
        dtype: of query, key and value.
        head_channels: width of a head.
    """
    if backend != "gpu":
        return f"cuDNN needs an NVIDIA GPU, not {backend}"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN's attention computes in bfloat16 or float16, not {jnp.dtype(dtype)}"
    if head_channels % _CUDNN_HEAD_CHANNELS or head_channels > _CUDNN_MAX_HEAD_CHANNELS:
        return (
            f"cuDNN's attention needs heads whose width is a multiple of {_CUDNN_HEAD_CHANNELS} and "
            f"at most {_CUDNN_MAX_HEAD_CHANNELS}, not {head_channels}"
        )
    return None

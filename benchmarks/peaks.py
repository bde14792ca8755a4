"""The fastest matrix product of each framework on this device, and the device that they share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import interleaved


def measure_peak(
    torch: Any,
    device: str,
    dtype: str,
    size: int,
    rounds: int,
    clock: str,
    precision: str = "default",
) -> dict[str, Any]:
    """FLOP/s of a product of two random square matrices, in each framework.

    Args:
        torch: the module; None to measure JAX alone.
        device: PyTorch's name of the device.
        dtype: "float32" or "bfloat16".
        size: rows of the matrices.
        rounds: how often each is timed.
        clock: "cpu" or "wall".
        precision: of float32 in JAX: "default" is TF32 where the device has it, "highest" is not.

    Returns:
        `matmul_size`, the rate by framework, the `best`, and by framework the `ranges` over the rounds.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), np.float32) for _ in range(2))
    calls = 20 if jax.default_backend() != "cpu" else 2
    jax_matrices = [jnp.asarray(matrix, dtype) for matrix in (a, b)]
    matmul = jax.jit(functools.partial(jnp.matmul, precision=precision))

    def jax_products() -> int:
        products = [matmul(*jax_matrices) for _ in range(calls)]
        jax.block_until_ready(products)
        return calls

    rivals = {"jax": jax_products}
    if torch is not None:
        torch_matrices = [
            torch.tensor(matrix, device=device, dtype=getattr(torch, dtype)) for matrix in (a, b)
        ]

        def torch_products() -> int:
            for _ in range(calls):
                torch.mm(*torch_matrices)
            if device == "cuda":
                torch.cuda.synchronize()
            return calls

        rivals["torch"] = torch_products
    flops, rates, ranges = 2 * size**3, {}, {}
    for name, timing in interleaved(rivals, rounds).items():
        rates[name] = flops / getattr(timing, f"{clock}_seconds")
        ranges[name] = [flops / s for s in reversed(getattr(timing, f"{clock}_range"))]
    return {"matmul_size": size, **rates, "best": max(rates.values()), "ranges": ranges}


def torch_device(torch: Any) -> str:
    """PyTorch's name of the device that JAX uses.

    Raises:
        ValueError: PyTorch cannot use it.
    """
    backend = jax.default_backend()
    if backend == "cpu":
        return "cpu"
    if backend == "gpu" and torch.cuda.is_available():
        return "cuda"
    raise ValueError(
        f"JAX computes on {backend}, where this PyTorch ({torch.__version__}) cannot: install one "
        "that can, or set JAX_PLATFORMS=cpu"
    )


def one_line(error: BaseException) -> str:
    """An error as one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]

"""The device that JAX uses: its clock, its memory, and PyTorch on it where it can be used."""

import functools
import gc
import importlib
from typing import Any

import jax

from benchmarks.peaks import one_line, torch_device


def clock() -> str:
    """The clock that counts the device's work."""
    return "cpu" if jax.default_backend() == "cpu" else "wall"


@functools.cache
def pytorch() -> tuple[Any, str]:
    """(the module torch, its name of the device), or (None, why it takes no part)."""
    try:
        torch = importlib.import_module("torch")
        device = torch_device(torch)
    except (ImportError, OSError, ValueError) as error:
        return None, f"PyTorch takes no part: {one_line(error)}"
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("highest" if device == "cpu" else "high")
    return torch, device


def is_out_of_memory(text: str) -> bool:
    """Whether an error's text is that of an allocator."""
    text = text.lower()
    return any(sign in text for sign in ("resource_exhausted", "out of memory", "outofmemory"))


def free_pytorch() -> None:
    """Drops what nobody uses any more, and gives PyTorch's unused memory back to the device."""
    torch, device = pytorch()
    if torch is not None and device == "cuda":
        # What it compiled holds on to weights.
        torch.compiler.reset()
    gc.collect()
    if torch is not None and device == "cuda":
        torch.cuda.empty_cache()


def memory_in_use() -> int | None:
    """Largest number of bytes that JAX has held on its device so far; None where nobody counts."""
    stats = jax.local_devices()[0].memory_stats()
    return (stats or {}).get("peak_bytes_in_use")

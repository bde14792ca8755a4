"""Stage 1: what machine this is, and how fast it multiplies and copies at best."""

import os
import time
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator.device import clock, pytorch
from benchmarks.accelerator.record import Record
from benchmarks.accelerator.sizes import Sizes
from benchmarks.accelerator.stages import card_and_driver
from benchmarks.peaks import measure_peak
from benchmarks.timing import describe_machine, interleaved

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# name -> (dtype, precision)
PEAKS = {
    "bfloat16": ("bfloat16", "default"),
    "TF32": ("float32", "default"),
    "float32": ("float32", "highest"),
}
_COPIES = 10


def run(sizes: Sizes, record: Record) -> None:
    """Describes the machine and measures its peaks."""
    found = record.unit("machine", _describe)
    if sizes.needs_accelerator and found.get("platform") == "cpu":
        return  # The command stops here, and products of this size would take minutes.
    for name, (dtype, precision) in PEAKS.items():
        for size in sizes.matmul_sizes:
            record.unit(
                f"{name} {size}", lambda d=dtype, p=precision, s=size: _peak(d, p, s, sizes.rounds)
            )
    record.unit("copy", lambda: _copy(sizes))


def _describe() -> dict[str, Any]:
    device = jax.local_devices()[0]
    torch, name = pytorch()
    return {
        **describe_machine(_PACKAGES),
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "card": card_and_driver().removeprefix(", "),
        "backend": device.client.platform_version.split("\n")[0],
        "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        "plugins": {
            package: metadata.version(package)
            for package in ("jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cudnn-cu13", "triton")
            if _is_installed(package)
        },
        "torch": None
        if torch is None
        else f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN "
        f"{torch.backends.cudnn.version()}",
        "without_torch": name if torch is None else None,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "memory_limit": os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION"),
    }


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _peak(dtype: str, precision: str, size: int, rounds: int) -> dict[str, Any]:
    torch, device = pytorch()
    if torch is not None and device != "cpu" and dtype == "float32":
        torch.set_float32_matmul_precision("high" if precision == "default" else "highest")
    return measure_peak(torch, device, dtype, size, rounds, clock(), precision)


def _copy(sizes: Sizes) -> dict[str, Any]:
    """Bytes read and written a second by x + 1, out of place."""
    x = jnp.arange(sizes.copy_megabytes * 2**20 // 4, dtype=jnp.float32)
    increment = jax.jit(lambda x: x + 1)

    def copies() -> int:
        for _ in range(_COPIES):
            y = increment(x)
        y.block_until_ready()
        return _COPIES

    timing = interleaved({"copy": copies}, sizes.rounds)["copy"]
    least, largest = timing.wall_range
    moved = 2 * x.nbytes
    return {
        "bytes_per_second": moved / timing.wall_seconds,
        "range": [moved / largest, moved / least],
        "megabytes": sizes.copy_megabytes,
    }

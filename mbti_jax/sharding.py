"""How arrays lie on the devices: one mesh axis, `data`, over all devices of all processes.

The batch is split along it. The state is replicated, or split as well ("fully sharded"): then every
device keeps a part of each large array and XLA gathers what a layer needs when it needs it.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Arrays below this many elements cost more to gather than they save.
_MIN_SHARDED_ELEMENTS = 2**16


def make_mesh(
    # To pyright the stubs of jaxlib define no class here.
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
    """A mesh with the one axis `data` over `devices` (default: all devices of all processes)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def state_sharding(mesh: Mesh, shapes: Any, *, fully_sharded: bool) -> Any:
    """Shardings for a pytree of arrays or `ShapeDtypeStruct`s.

    Args:
        shapes: the pytree.
        fully_sharded: split each array of at least 65,536 elements along its largest axis that the
            number of devices divides; arrays without such an axis stay whole on every device.
    """

    def rule(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if not fully_sharded or math.prod(leaf.shape) < _MIN_SHARDED_ELEMENTS or not axes:
            return replicated(mesh)
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        spec = ("data" if axis == largest else None for axis in range(len(leaf.shape)))
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(rule, shapes)


def padded_batch_size(batch_size: int, mesh: Mesh, accumulation: int) -> int:
    """The smallest size >= `batch_size` that splits into `accumulation` parts over the devices."""
    unit = mesh.size * accumulation
    return -(-batch_size // unit) * unit


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Moves this process's part of a global batch (a pytree of numpy arrays) onto its devices."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), batch
    )

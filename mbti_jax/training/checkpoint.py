"""Checkpoints of a training run (Orbax): the state, and metadata that says what it belongs to.

A checkpoint holds three items: `train` (step, parameters, optimizer state), `ema` (the averaged
parameters, so that inference reads nothing else) and `metadata` (JSON):
    contract: what a resumed run must share with the one that wrote the checkpoint - data, seed, global
        batch, model, tasks, diffusion, optimizer. Nested dict of JSON values.
    inference: what sampling needs beyond that, such as the bounds that x_0 is clipped to.
    checksums: of the other items, which tell when items of two checkpoints were mixed. Not handed on.
"""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mbti_jax.models.contract import checked, upgrade
from mbti_jax.models.parameters import Params
from mbti_jax.training.cluster import ElsewhereError, everywhere, of_first
from mbti_jax.training.state import TrainState

_FOLDER = "checkpoints"
# Fields of the state in the item `train`.
_TRAIN = ("step", "params", "opt_state")
# Of a contract's part `diffusion`, the fields that came after the first checkpoints.
_DIFFUSION = {
    "zero_terminal_snr": False,
    "time_sampling": "uniform",
    "objective": "diffusion",
    "halve_every": 0,
    "max_loss_weight": 1.0,
    "z_sigma": 0.0,
}
# Trained arrays hardly compress. Smaller ones than _MIN_BYTES harm nobody.
_MAX_COMPRESSION, _MIN_BYTES = 50, 2**26
_MAX_JSON_BYTES = 2**24

T = TypeVar("T")

logger = logging.getLogger(__name__)


class CheckpointMismatchError(ValueError):
    """A checkpoint that belongs to another run than the one that would resume from it."""


class Checkpointer:
    """Saves and restores the checkpoints of the run in `workdir`.

    Saving is asynchronous and atomic: a checkpoint appears under its name when it is complete. What a
    killed process left half-written is removed on opening.
    """

    def __init__(self, workdir: str | os.PathLike, metadata: dict[str, Any], max_to_keep: int = 3):
        """Opens the checkpoints of a run.

        Args:
            workdir: the run's folder.
            metadata: dict with `contract` and `inference`, see the module's docstring; saved with every
                checkpoint, and its contract compared on restoring.
            max_to_keep: older checkpoints beyond this number are deleted.
        """
        self._metadata = metadata
        # Waits for no other process, unlike the manager, which would hang where one cannot read.
        self._reader = ocp.CompositeCheckpointHandler()
        self._manager = ocp.CheckpointManager(
            (Path(workdir) / _FOLDER).absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=max_to_keep, cleanup_tmp_directories=True
            ),
            item_handlers={
                "train": ocp.StandardCheckpointHandler(),
                "ema": ocp.StandardCheckpointHandler(),
                "metadata": ocp.JsonCheckpointHandler(),
            },
        )

    def save(self, state: TrainState) -> None:
        """Saves `state` under its own step; a step that was saved before is left as it is."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        train = {name: getattr(state, name) for name in _TRAIN}
        checksums = {"train": _checksum(train), "ema": _checksum(state.ema)}
        items = ocp.args.Composite(
            train=ocp.args.StandardSave(train),
            ema=ocp.args.StandardSave(state.ema),
            metadata=ocp.args.JsonSave({**self._metadata, "checksums": checksums}),
        )
        self._manager.save(step, args=items, force=True)

    def restore(self, shapes: TrainState) -> TrainState | None:
        """The newest readable checkpoint, or None when the run has none yet.

        A checkpoint that cannot be read (truncated, say) is reported, and the one before it is used;
        the unreadable one is then renamed to `<step>.unreadable`. Of several processes, all use the
        newest one that all of them can read.

        Args:
            shapes: state of `jax.ShapeDtypeStruct`s with the shardings that the arrays get.

        Raises:
            CheckpointMismatchError: it was written by a run with other data, seed, batch, model, ...;
                the message lists the differences.
            ValueError: there are checkpoints, but none can be read. They are left as they are, so that
                no run starts over because of a disk or memory failure.
        """
        # A shared file system may show a new checkpoint to some processes before others.
        newest_first = of_first(sorted(self._manager.all_steps(), reverse=True))
        train = {name: getattr(shapes, name) for name in _TRAIN}
        items = ocp.args.Composite(
            train=ocp.args.StandardRestore(train), ema=ocp.args.StandardRestore(shapes.ema)
        )

        def read_metadata(step: int) -> dict[str, Any]:
            folder = Path(self._manager.directory) / str(step)
            _check_sizes(folder, "train", "ema")
            args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
            metadata = self._reader.restore(epath.Path(folder), args)["metadata"]
            current = self._metadata["contract"]
            contract = upgrade(metadata["contract"])
            for name in ("pixel_size_mm", "slice_distance_mm", "phantoms"):
                if name in current["data"] and contract["data"].get(name) is None:
                    # Not known then: the dataset is the same by its fingerprint.
                    contract["data"][name] = current["data"][name]
            # What older runs did not know, they did by default.
            contract["diffusion"] = _DIFFUSION | contract["diffusion"]
            current = {**current, "diffusion": _DIFFUSION | current["diffusion"]}
            if differences := _differences(contract, current):
                raise CheckpointMismatchError(
                    f"the checkpoint {folder} belongs to another run; start in a new workdir, or "
                    f"undo: {'; '.join(differences)}"
                )
            return metadata

        def read(step: int) -> TrainState:
            folder = Path(self._manager.directory) / str(step)
            # Whatever fails in one process fails in all of them before the next part, in which they
            # may wait for each other.
            metadata = everywhere(lambda: read_metadata(step))
            saved = everywhere(lambda: self._reader.restore(epath.Path(folder), items))
            everywhere(lambda: check(folder, metadata, saved))
            return TrainState(**saved["train"], ema=saved["ema"])

        def check(folder: Path, metadata: Mapping[str, Any], saved: Any) -> None:
            step = int(folder.name)
            _check_sums(folder, metadata, {"train": saved["train"], "ema": saved["ema"]})
            if int(saved["train"]["step"]) != step:
                raise _mixed(folder, f"its state is that of step {int(saved['train']['step'])}")

        if not newest_first:
            return None
        found = _first_readable(Path(self._manager.directory), newest_first, read)
        if found is None:
            raise ValueError(
                f"none of the checkpoints in {self._manager.directory} can be read, see the warnings "
                "above. Start in a new workdir, unless it was the disk or the memory that failed."
            )
        step, state = found
        if step != newest_first[0]:
            self._set_aside(newest_first[: newest_first.index(step)])
        return state

    def _set_aside(self, steps: list[int]) -> None:
        folder = Path(self._manager.directory)

        def rename() -> None:
            for step in steps if jax.process_index() == 0 else []:
                # The same step may have been damaged before.
                before = len([*folder.glob(f"{step}.unreadable*")])
                (folder / str(step)).rename(folder / f"{step}.unreadable{before or ''}")

        everywhere(rename)
        self._manager.reload()

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there."""
        return sorted(self._manager.all_steps())

    def wait(self) -> None:
        """Blocks until what was saved is complete on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def load_for_inference(workdir: str | os.PathLike) -> tuple[Params, dict[str, Any]]:
    """The averaged parameters of a run's newest readable checkpoint and its metadata.

    Returns:
        (ema, metadata): a pytree of float32 arrays on the default device, and the dict with
        `contract`, `inference` and `step`.

    Raises:
        ValueError: there is no readable checkpoint in `workdir`. An unreadable one is reported and the
            one before it used.
    """
    folder = Path(workdir).absolute() / _FOLDER
    if not folder.is_dir():
        raise ValueError(f"{workdir} holds no checkpoints: folder {folder} does not exist")
    items = ocp.args.Composite(
        metadata=ocp.args.JsonRestore(),
        ema=ocp.args.StandardRestore(
            fallback_sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        ),
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:

        def read(step: int) -> tuple[Params, dict[str, Any]]:
            _check_sizes(folder / str(step), "ema")
            saved = checkpointer.restore(folder / str(step), items)
            metadata = checked(saved["metadata"])
            _check_sums(folder / str(step), metadata, {"ema": saved["ema"]})
            metadata.pop("checksums", None)
            return saved["ema"], {**metadata, "step": step}

        newest_first = sorted(ocp.utils.checkpoint_steps(folder), reverse=True)
        found = _first_readable(folder, newest_first, read)
    if found is None:
        raise ValueError(f"{folder} holds no complete, readable checkpoint")
    return found[1]


def _first_readable(
    folder: Path, steps: Sequence[int], read: Callable[[int], T]
) -> tuple[int, T] | None:
    """The first of the steps whose checkpoint can be read, and what `read` makes of it."""
    for step in steps:
        try:
            return step, read(step)
        except CheckpointMismatchError:
            raise
        except ElsewhereError as error:
            if error.kind == CheckpointMismatchError.__name__:
                raise CheckpointMismatchError(error.problem) from error
            logger.warning(
                "checkpoint %s cannot be read %s; trying the one before it",
                folder / str(step),
                error,
            )
        except Exception as error:  # Orbax has no exception of its own for damaged files.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning(
                "checkpoint %s cannot be read (%s); trying the one before it",
                folder / str(step),
                reason,
            )
    return None


def _check_sizes(folder: Path, *items: str) -> None:
    """Raises a ValueError for a checkpoint that takes far more memory than its files can hold."""
    for file in (folder / "metadata").glob("*"):
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"{file} is too large for metadata: {file.stat().st_size:,} bytes")
    for item in map(folder.joinpath, items):
        arrays = jax.tree.leaves(ocp.StandardCheckpointHandler().metadata(epath.Path(item)))
        size = sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in arrays if a.shape)
        stored = sum(file.stat().st_size for file in item.rglob("*") if file.is_file())
        if size > max(_MIN_BYTES, _MAX_COMPRESSION * stored):
            raise ValueError(
                f"{item} is said to hold {size:,} bytes of arrays, but its files have {stored:,}"
            )


def _check_sums(folder: Path, metadata: Mapping[str, Any], items: Mapping[str, Any]) -> None:
    """Compares items with what the metadata beside them says; older checkpoints say nothing."""
    expected = metadata.get("checksums") or {}
    for name, item in items.items():
        if name in expected and _checksum(item) != expected[name]:
            raise _mixed(folder, f"its item {name} is not the one that its metadata was saved with")


def _mixed(folder: Path, problem: str) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        f"the checkpoint {folder} is mixed from several: {problem}. Put back what belongs there, or "
        "move the folder away, and the checkpoint before it is used"
    )


def _checksum(tree: Any) -> str:
    """Of all arrays of a tree, in the order of their paths, wherever they lie on the devices."""
    paths, leaves = zip(*jax.tree.leaves_with_path(tree), strict=True)
    sums = jax.device_get([_sum_of_bits(leaf) for leaf in leaves])
    lines = [
        f"{jax.tree_util.keystr(path)} {number}" for path, number in zip(paths, sums, strict=True)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@jax.jit
def _sum_of_bits(array: jax.Array) -> jax.Array:
    """uint32, every number's bits times an odd number that says where it stands, modulo 2^32."""
    bits = jax.lax.bitcast_convert_type(array, jnp.uint32)
    place = jax.lax.iota(jnp.uint32, array.size).reshape(array.shape)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def _differences(saved: Any, current: Any, name: str = "") -> list[str]:
    """`name: saved -> current` for every leaf in which two nested dicts differ."""
    if isinstance(saved, dict) and isinstance(current, dict):
        out = []
        for key in sorted(saved.keys() | current.keys()):
            path = f"{name}.{key}" if name else key
            out += _differences(saved.get(key, "absent"), current.get(key, "absent"), path)
        return out
    return [] if saved == current else [f"{name} is {current!r} here, was {saved!r} there"]

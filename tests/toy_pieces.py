"""Pieces without a model, which worker processes find under this name."""

import logging
import os
import time
from pathlib import Path

import ray

from tfds_brats.conventions import CaseError


def load(folder: Path) -> Path:
    """A context that says on disk how often it was made."""
    (folder / f"loaded.{os.getpid()}").touch()
    return folder


def refuse() -> None:
    raise CaseError("runs/none: holds no model")


def square(folder: Path, piece: int) -> int:
    """A file and a number for each piece; what is wrong with some is in the first digits."""
    if piece == 13:
        raise CaseError("13.nii: is truncated")
    if piece == 14:
        raise OSError(28, "No space left on device", "14")
    marker = folder / f"tried.{piece}.{os.getpid()}"
    marker.touch()
    if piece == 66 or (piece == 6 and len([*folder.glob("tried.6.*")]) == 1):
        os._exit(1)
    logging.getLogger("mbti_jax.toy").info(f"piece {piece}")
    return piece**2


def wait(folder: Path, piece: int) -> int:
    """Says where it is, and goes on as soon as `go` is there."""
    partial = folder / f".{piece}.{os.getpid()}"
    partial.write_text(ray.get_runtime_context().get_node_id())
    partial.replace(folder / f"at.{piece}.{os.getpid()}")
    while not (folder / "go").exists():
        time.sleep(0.05)
    return piece

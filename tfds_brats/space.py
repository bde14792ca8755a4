"""Whether a disk has room, before the work and not after it."""

import os
import shutil
from pathlib import Path


def check_space(folder: str | os.PathLike, needed: float, what: str) -> None:
    """Raises an OSError if the disk of a folder has fewer bytes free than are needed.

    Args:
        folder: where the files will lie; it need not be there yet.
        needed: bytes, roughly.
        what: they are needed for: "the dataset".
    """
    present = Path(folder).absolute()
    while not present.is_dir():
        present = present.parent
    free = shutil.disk_usage(present).free
    if needed > free:
        raise OSError(
            f"{folder} has {free / 1e9:.2f} GB free, but about {needed / 1e9:.2f} GB are needed for "
            f"{what}; free some space or choose another folder"
        )

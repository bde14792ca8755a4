"""Whether a disk takes what is going to be written, before the work and not after it."""

import os
import shutil
import tempfile
from pathlib import Path


def check_space(folder: str | os.PathLike, needed: float, what: str) -> None:
    """Checks, before work that takes long, that a folder can be written to and has room.

    Args:
        folder: where the files will lie; it need not be there yet, and is not made.
        needed: bytes, roughly.
        what: they are needed for: "the dataset".

    Raises:
        OSError: it cannot be written to, or its disk has too little space; the message names it.
    """
    present = Path(folder).absolute()
    while not present.is_dir():
        present = present.parent
    try:
        with tempfile.TemporaryFile(dir=present) as probe:
            probe.write(bytes(1))
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written to ({error.strerror}); choose another folder, or free its disk"
        ) from error
    free = shutil.disk_usage(present).free
    if needed > free:
        raise OSError(
            f"{folder} has {free / 1e9:.2f} GB free, but about {needed / 1e9:.2f} GB are needed for "
            f"{what}; free some space or choose another folder"
        )

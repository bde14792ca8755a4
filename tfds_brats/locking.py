"""A lock on a folder, so that two processes never write to it at once.

It is the operating system's (`flock`), which frees it when the process ends, however it ends: the file
that a killed process leaves behind locks nothing. Its text only says who holds the lock. A process that
ends otherwise removes it, and the folder if it made it and left it empty.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# What file systems without locks answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

logger = logging.getLogger(__name__)


def lock_file(work: str) -> str:
    """The name of the file that is locked."""
    return f".{work}.lock"


class LockedError(ValueError):
    """A folder that another process is writing to; the message says which process."""


@contextlib.contextmanager
def only_process_in(folder: str | os.PathLike, work: str = "run") -> Iterator[None]:
    """Holds the lock on a folder, which is made if it is not there.

    On a file system without locks there is a warning instead of a lock.

    Args:
        folder: what the caller writes to.
        work: a word for what the caller is, "run" or "build": the folder has a lock for each.

    Raises:
        LockedError: another process holds it.
        OSError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    path = folder / lock_file(work)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(path, work) as file:
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        file.flush()
        try:
            yield
        finally:
            # While the lock is held, so that nobody's file is removed but one's own.
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # A folder with anything in it stays.
                for place in made:
                    place.rmdir()


def _locked(path: Path, work: str) -> IO[str]:
    """The open, locked file."""
    while True:
        # Opened without truncating: the text belongs to whoever holds the lock.
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file in between.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(500).strip()
            file.close()
            raise LockedError(
                f"another {work} is writing to {path.parent}{holder and f' ({holder})'}; wait until it "
                "ends, or choose another folder"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                file.close()
                raise
            logger.warning(
                "%s lies on a file system without locks: see to it that no other process writes to it",
                path.parent,
            )
            return file
        file.close()

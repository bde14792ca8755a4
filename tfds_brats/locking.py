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
    path = Path(folder) / lock_file(work)
    with _made(path.parent), _locked(path, work, fcntl.LOCK_EX | fcntl.LOCK_NB) as file:
        _sign(file)
        try:
            yield
        finally:
            # While the lock is held, so that nobody's file is removed but one's own.
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def beside_others_in(folder: str | os.PathLike, work: str) -> Iterator[bool]:
    """Holds a lock that keeps `only_process_in` out, but none that does the same as the caller.

    Args, Raises: see `only_process_in`.

    Yields:
        Whether nobody else holds it now; True on a file system without locks. Stays so while the caller
        has its turn (`in_turn`), if all take their turn before they come here.
    """
    path = Path(folder) / lock_file(work)
    with _made(path.parent):
        try:
            with _locked(path, work, fcntl.LOCK_EX | fcntl.LOCK_NB) as file:
                _sign(file)
            is_alone = True
        except LockedError:
            is_alone = False
        with _shared(path, work) as file:
            try:
                yield is_alone
            finally:
                # The last one removes it.
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)


@contextlib.contextmanager
def in_turn(folder: str | os.PathLike, work: str) -> Iterator[None]:
    """Waits until no other process is in its turn of this work, and keeps the others waiting.

    Args, Raises: see `only_process_in`.
    """
    path = Path(folder) / lock_file(f"{work}-turn")
    with _made(path.parent):
        try:
            file = _locked(path, work, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except LockedError:
            logger.info(f"Waiting for another {work} that prepares or completes {folder}.")
            file = _locked(path, work, fcntl.LOCK_EX)
        with file:
            try:
                yield
            finally:
                path.unlink(missing_ok=True)


def _shared(path: Path, work: str) -> IO[str]:
    """A lock that others of the same work have too; one that is just leaving is waited for."""
    for _ in range(10):
        with contextlib.suppress(LockedError):
            return _locked(path, work, fcntl.LOCK_SH | fcntl.LOCK_NB)
        time.sleep(0.05)
    return _locked(path, work, fcntl.LOCK_SH | fcntl.LOCK_NB)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder, and removes what it made of it in the end if nothing is in there."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # A folder with anything in it stays.
            for place in made:
                place.rmdir()


def _sign(file: IO[str]) -> None:
    """Says in a file who locked it."""
    file.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
    file.flush()


def _locked(path: Path, work: str, operation: int) -> IO[str]:
    """The open file, locked as `flock` is told to."""
    while True:
        # Opened without truncating: the text belongs to whoever holds the lock.
        try:
            file = path.open("a+")
        except FileNotFoundError:
            # Whoever made the folder has just removed it.
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        try:
            fcntl.flock(file, operation)
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

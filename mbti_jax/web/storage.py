"""The server's folder: with everything that users send and get, and gone when the server is."""

import contextlib
import ctypes
import fcntl
import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Uploads that were not loaded are deleted after so long.
UPLOAD_SECONDS = 1800
_PREFIX = "mbti_serve_"
_LOCK = ".mbti_serve.lock"

_log = logging.getLogger(__name__)

# Those of this process.
_folders: set[Path] = set()


@contextlib.contextmanager
def ending_on_signals() -> Iterator[threading.Event]:
    """Ends the program in order on Ctrl-C, `kill`, or when the terminal is closed.

    The first of these signals becomes an exception; further ones are ignored, so that all is cleaned up.
    But a further Ctrl-C is of somebody who does not want to wait: the folder is deleted, and no more.

    Yields:
        An event to wait for, which never happens.
    """
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    is_ending = threading.Event()

    def end(number: int, frame: Any) -> None:
        for other in signals:
            signal.signal(other, signal.SIG_IGN)
        signal.signal(signal.SIGINT, end_at_once)
        # Whoever else hears of signals would end the process before the folder is deleted.
        signal.set_wakeup_fd(-1)
        is_ending.set()
        sys.exit(0)

    def end_at_once(number: int, frame: Any) -> None:
        for folder in _folders:
            shutil.rmtree(folder, ignore_errors=True)
        # As shells report a program that a signal ended; without waiting for any thread.
        os._exit(128 + signal.SIGINT)

    before = {number: signal.signal(number, end) for number in signals}
    try:
        yield threading.Event()
    finally:
        if is_ending.is_set():
            # All is cleaned up. Python would wait for threads, and one in a library may abort.
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def server_folder(parent: str | os.PathLike | None = None) -> Iterator[Path]:
    """A new folder that is deleted at the end.

    A killed server cannot delete its own. So what such servers of the same user left in `parent` is
    deleted first. Whether a server lives is told by a lock, which the operating system frees with its
    process, however that ends.

    Args:
        parent: default the system's folder for temporary files.
    """
    parent = Path(parent or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    for folder in parent.glob(f"{_PREFIX}*"):
        _delete_if_abandoned(folder)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    _folders.add(folder)
    try:
        # Under another name until it is locked, so that no other server takes this one for abandoned.
        with (folder / "lock").open("w") as lock:
            with contextlib.suppress(OSError):  # Without locks nothing is ever taken for abandoned.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (folder / "lock").rename(folder / _LOCK)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _folders.discard(folder)


def give_back_memory() -> None:
    """Gives memory that is free back to the operating system, where the C library keeps it (glibc)."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def delete_old_files(folder: Path, seconds: float) -> None:
    """Deletes files that nobody has written to for so long, and empty folders."""
    before = time.time() - seconds
    for inside, _, names in os.walk(folder, topdown=False):
        for path in (Path(inside, name) for name in names):
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < before:
                    path.unlink()
        if Path(inside) != folder:
            with contextlib.suppress(OSError):  # Not empty.
                Path(inside).rmdir()


def bytes_in(folder: Path) -> int:
    """The size of all files in a folder."""
    total = 0
    for inside, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(inside, name).lstat().st_size
    return total


def _delete_if_abandoned(folder: Path) -> None:
    if folder.is_symlink() or not (folder / _LOCK).is_file():
        return
    try:
        with (folder / _LOCK).open("r+") as lock:
            if os.fstat(lock.fileno()).st_uid != os.getuid():
                return
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    except OSError as error:
        # It is locked, or another user's, or another server deletes it right now.
        _log.info("%s is left as it is (%s)", folder, error)
    else:
        _log.warning("%s was left by a server that was killed; it is deleted", folder)

"""Ctrl-C ends a command within seconds, in a line, whatever it is doing.

Three things keep Python from that. An import may turn the interrupt into any other exception, so until
there is something to clean up the process just ends (`cli`). A call into a library that takes long, such
as the compilation of a network, keeps the main thread from running a handler: a thread that hears of the
signal all the same ends the process when the main thread has not by then. And an interrupt that comes
inside a callback is only printed: that, too, is left to the thread.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

# What the main thread has to clean up in, before the process ends all the same.
GRACE_SECONDS = 3.0
# A progress bar may stand on the line.
_BAR = "\n"
_STOPPING = b"\nstopping, which may take some seconds; Ctrl-C once more ends it at once\n"
_LINE = "interrupted; nothing is half-written: run the same command again"


def clean_up_on_interrupt() -> None:
    """From where there may be something to clean up: KeyboardInterrupt, and `GRACE_SECONDS` for it.

    A command that handles the signal itself, as training does, has the time that it needs after the
    first one; the second ends it at once.
    """
    signal.signal(signal.SIGINT, _interrupt)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()
    sys.unraisablehook = _all_but_interrupts


def was_interrupted() -> bool:
    """Whether KeyboardInterrupt was raised, whatever became of it."""
    return _received.is_set()


def end_in_a_line(before: str = "") -> NoReturn:
    """Ends the process without waiting for threads, which might print what they make of it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os.write(2, f"{before}{_LINE}\n".encode())
    # As shells report a program that a signal ended.
    os._exit(128 + signal.SIGINT)


_received = threading.Event()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _received.set()
    raise KeyboardInterrupt


def _watch(reading: int) -> None:
    """Ends the process some time after an interrupt, if it is still there and does not end itself."""
    count = 0
    while numbers := os.read(reading, 64):
        count += numbers.count(signal.SIGINT)
        if count and signal.getsignal(signal.SIGINT) is _interrupt:
            _later(end_in_a_line, _BAR)
        elif count > 1:
            end_in_a_line(_BAR)
        elif count:
            # What ends by itself says so; before that only where it takes long.
            _later(os.write, 2, _STOPPING)


def _later(do: Callable[..., Any], *arguments: Any) -> None:
    timer = threading.Timer(GRACE_SECONDS, do, arguments)
    timer.daemon = True
    timer.start()


def _all_but_interrupts(unraisable: Any) -> None:
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)

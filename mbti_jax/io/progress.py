"""Progress bars that show that something goes on, also while a network is compiled."""

import contextlib
import sys
import threading
from collections.abc import Iterator

from tqdm import tqdm

from mbti_jax.diffusion.samplers.driver import Progress

# How often the time moves on a terminal, and in a log, where each time is a line.
_SECONDS, _SECONDS_OF_LOG = 1.0, 60.0
_STARTING = "starting (what is new is compiled first)"


@contextlib.contextmanager
def progress_bar(name: str, leave: bool = True) -> Iterator[Progress]:
    """A progress bar in percent, as the function that moves it."""
    layout = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    with (
        tqdm(total=100, desc=name, unit="%", bar_format=layout, leave=leave) as bar,
        contextlib.ExitStack() as until_it_moves,
    ):
        until_it_moves.enter_context(ticking(bar, _STARTING))

        def progress(done: int, total: int) -> None:
            until_it_moves.close()
            bar.update(100 * done // total - bar.n)

        yield progress


@contextlib.contextmanager
def waiting(name: str) -> Iterator[None]:
    """What a step is that takes time, and how much it took so far; nothing of it stays."""
    # Not shown where it takes no time.
    layout = {"bar_format": "{desc} {elapsed}", "delay": _SECONDS, "leave": False}
    with tqdm(desc=name, **layout) as bar, ticking(bar):
        yield


@contextlib.contextmanager
def ticking(bar: tqdm, what: str = "") -> Iterator[None]:
    """The time of a bar goes on by itself, and its end says `what` is going on."""
    ended = threading.Event()
    later = _SECONDS if sys.stderr.isatty() else _SECONDS_OF_LOG

    def tick() -> None:
        seconds = _SECONDS
        while not ended.wait(seconds):
            bar.refresh()
            seconds = later

    if what:
        bar.set_postfix_str(what)
    clock = threading.Thread(target=tick, daemon=True)
    clock.start()
    try:
        yield
    finally:
        ended.set()
        clock.join()
        bar.set_postfix_str("", refresh=False)

"""When a training is to stop: a signal, heeded after the same step by all processes."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stopping:
    """Tells after a step whether any process has received SIGTERM or SIGINT.

    SIGINT is heeded from the first step on. Before, there is nothing to save, and an interrupt need not
    wait for the network to be compiled.
    """

    def __init__(self):
        self._received: list[int] = []
        self._before: dict[int, Any] = {}
        self._heed(signal.SIGTERM)

    def __call__(self, step: int) -> bool:
        if jax.process_count() > 1:
            # All processes have to stop after the same step.
            return bool(multihost_utils.reached_preemption_sync_point(step))
        self._heed(signal.SIGINT)
        return self.is_asked()

    def is_asked(self) -> bool:
        """Whether this process alone, the only one, is to stop; to be asked within a step."""
        return bool(self._received)

    @contextlib.contextmanager
    def left_to_others(self) -> Iterator[None]:
        """Meanwhile SIGINT does what it did before."""
        ours = signal.getsignal(signal.SIGINT)
        is_ours = signal.SIGINT in self._before
        if is_ours:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
        yield
        if is_ours:
            signal.signal(signal.SIGINT, ours)

    def close(self) -> None:
        """Signals do again what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heed(self, number: int) -> None:
        if jax.process_count() == 1 and number not in self._before:
            self._before[number] = signal.signal(number, lambda n, _: self._received.append(n))

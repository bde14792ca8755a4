"""Who may use the model next: one run at a time."""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator

from mbti_jax.diffusion.samplers.driver import Cancel, SamplingCancelled
from mbti_jax.web.addresses import share

# Seconds: for how long a run keeps the model while others wait, and how often a waiting one looks
# whether it is still wanted.
_SLICE, _LOOK = 10.0, 0.2


class _Turn:
    """A run that waits or has the model, since when."""

    def __init__(self, client: str, since: float):
        self.client, self.since = client, since


class Line:
    """The runs that wait for the model, and the one that has it.

    Next is the client that has gone longest without the model, and of its runs the one that has waited
    longest: nobody gets more of it by many sessions. A long run stands back from time to time and goes
    on when it is its turn again.
    """

    def __init__(self, max_waiting: int, clock: Callable[[], float] = time.monotonic):
        self._max_waiting = max_waiting
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: list[_Turn] = []
        self._holder: _Turn | None = None
        # When clients that wait had the model last.
        self._served: dict[str, float] = {}

    @contextlib.contextmanager
    def turn(
        self, client: str, report: Callable[[int], None], is_cancelled: Cancel
    ) -> Iterator[Callable[[], None]]:
        """Waits for the model, and has it.

        Args:
            client: whose run it is, see `addresses.client_of`.
            report: called while it waits, with how many come before it.
            is_cancelled: asked while it waits.

        Yields:
            A function to call now and then: it lets others have the model first where they should.

        Raises:
            ValueError: as many runs as may wait are waiting, of all clients or of this one.
            SamplingCancelled: `is_cancelled` returned true while it waited.
        """
        with self._changed:
            mine = sum(turn.client == client for turn in self._waiting)
            if len(self._waiting) >= self._max_waiting or mine >= share(self._max_waiting, client):
                raise ValueError(
                    f"{len(self._waiting)} runs are waiting for the model, which is as many as may; try "
                    "again in a minute"
                )
            turn = _Turn(client, self._clock())
            self._waiting.append(turn)
        try:
            self._wait(turn, report, is_cancelled)
            yield functools.partial(self._stand_back, turn, report, is_cancelled)
        finally:
            with self._changed:
                self._leave(turn)

    def _wait(self, turn: _Turn, report: Callable[[int], None], is_cancelled: Cancel) -> None:
        with self._changed:
            while self._holder is not None or self._order()[0] is not turn:
                if is_cancelled():
                    raise SamplingCancelled("Cancelled while it waited.")
                report(self._order().index(turn) + (self._holder is not None))
                self._changed.wait(_LOOK)
            self._waiting.remove(turn)
            self._holder, turn.since = turn, self._clock()

    def _order(self) -> list[_Turn]:
        """Who waits, the next one first."""
        first: dict[str, float] = {}
        for turn in self._waiting:
            first[turn.client] = min(turn.since, first.get(turn.client, turn.since))
        since = {client: max(t, self._served.get(client, t)) for client, t in first.items()}
        return sorted(self._waiting, key=lambda turn: (since[turn.client], turn.since))

    def _stand_back(self, turn: _Turn, report: Callable[[int], None], is_cancelled: Cancel) -> None:
        with self._changed:
            if not self._waiting or self._clock() - turn.since < _SLICE:
                return
            self._leave(turn)
            turn.since = self._clock()
            self._waiting.append(turn)
        self._wait(turn, report, is_cancelled)

    def _leave(self, turn: _Turn) -> None:
        if turn in self._waiting:
            self._waiting.remove(turn)
        if self._holder is turn:
            self._holder = None
            waiting = {other.client for other in self._waiting}
            self._served = {name: t for name, t in self._served.items() if name in waiting}
            self._served[turn.client] = self._clock()
        self._changed.notify_all()

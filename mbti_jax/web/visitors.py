"""Who is on the page, and what is kept for them: admission, limits, and the end of everybody's stay."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from mbti_jax.web.addresses import share
from mbti_jax.web.session import Session
from mbti_jax.web.uploads import Limits

_MB = 10**6
# Seconds for which images are kept: after their tab is closed, where nothing is asked for any more (a
# script's), and where nothing is in an open tab.
_CLOSED_TAB, _IDLE, _IDLE_TAB = 60.0, 900.0, 3600.0
# Seconds without a request after which images may have to make room for those of others, after which a
# visitor without images and without a connection may, and for which a run goes on though nobody listens.
_MAY_GO, _UNCONNECTED, _UNHEARD = 600.0, 30.0, 5.0
# How many visitors there may be for each that may have images, and connections of each.
_VISITORS, _CONNECTIONS = 8, 8
# Seconds that the end waits for runs: one that compiles does not write, and Ctrl-C waits for this.
_PATIENCE = 3.0


@dataclasses.dataclass(eq=False)
class Visitor:
    """One open page, or one script.

    Attributes:
        key: its session hash, which the client makes up.
        client: whom its address belongs to, see `addresses.client_of`.
        used: when it last asked for something, by the clock of `Visitors`.
        session: its images.
        size: bytes of these, by `uploads.memory_needed`.
        loading: whether images are being loaded.
        reserved: bytes of these, once they are let in.
        tabs: connections that are open for as long as its page is.
        listening: connections on which it waits for results.
        silent: since when it has none of these.
        left: since when it has none of both.
        has_chosen: whether its user chose the kind of result, which no preset changes then.
    """

    key: str
    client: str
    used: float
    session: Session | None = None
    size: int = 0
    loading: bool = False
    reserved: int = 0
    tabs: int = 0
    listening: int = 0
    silent: float = 0.0
    left: float | None = None
    has_chosen: bool = False

    @property
    def is_busy(self) -> bool:
        """Whether something of it is waiting or under way."""
        return self.loading or (self.session is not None and self.session.running)

    @property
    def is_connected(self) -> bool:
        return self.tabs + self.listening > 0


class Visitors:
    """Everybody on the page.

    Where there is no room, a newcomer is refused in a sentence. Of those that are there, only images
    with which nothing was done for ten minutes give way, and never those of a run that waits or is under
    way. A client at another address than this machine's has at most half of each kind of room.

    Attributes:
        limits: what is accepted.
        forget: called with the key of a visitor who is gone.
    """

    def __init__(
        self, limits: Limits, max_sessions: int, clock: Callable[[], float] = time.monotonic
    ):
        self.limits = limits
        self.forget: Callable[[str], None] = lambda key: None
        self._max_sessions = max_sessions
        self._clock = clock
        self._lock = threading.RLock()
        self._visitors: dict[str, Visitor] = {}
        self._uploading: list[tuple[str, int]] = []
        self._is_closed = self._was_busy = self._has_ended = False

    def __contains__(self, key: str) -> bool:
        return key in self._visitors

    def of(self, key: str, client: str) -> Visitor:
        """The visitor of a session hash, who asks for something.

        Raises:
            ValueError: it is new, and there are as many as there may be.
        """
        with self._lock:
            visitor = self.asked_by(key, client)
            visitor.left = None
            return visitor

    def asked_by(self, key: str, client: str) -> Visitor:
        """The visitor who asked for what begins now, and may have left since.

        Raises:
            ValueError: it is new, and there are as many as there may be.
        """
        with self._lock:
            self._check_open()
            visitor, now = self._visitors.get(key), self._clock()
            if visitor is None:
                self._admit_visitor(client)
                visitor = self._visitors[key] = Visitor(key, client, now, left=now)
            visitor.used = now
            return visitor

    @contextlib.contextmanager
    def connected(self, key: str, client: str, is_tab: bool) -> Iterator[Callable[[], None]]:
        """While a visitor has a connection open: one of its tab, or one on which it waits for results.

        Yields:
            A function to call if the client broke it off, and not the server.
        """
        visitor = self.of(key, client)
        is_broken = threading.Event()
        with self._lock:
            if visitor.tabs + visitor.listening >= _CONNECTIONS:
                raise ValueError("you have too many connections open; close some and try again")
            visitor.tabs += is_tab
            visitor.listening += not is_tab
        try:
            yield is_broken.set
        finally:
            with self._lock:
                visitor.tabs -= is_tab
                visitor.listening -= not is_tab
                visitor.silent = self._clock()
                if not visitor.is_connected and (is_tab or is_broken.is_set()):
                    visitor.left = self._clock()
                if not is_tab and is_broken.is_set() and not visitor.listening and visitor.session:
                    visitor.session.cancel()

    def is_heard(self, visitor: Visitor, since: float) -> bool:
        """Whether somebody still waits for what a visitor asked for at `since`, by `now`."""
        silent = self._clock() - max(visitor.silent, since)
        return visitor.listening > 0 or silent < _UNHEARD

    def now(self) -> float:
        return self._clock()

    @contextlib.contextmanager
    def loading(self, visitor: Visitor) -> Iterator[Callable[[int], None]]:
        """While images of a visitor are loaded; `keep` is called within.

        Yields:
            A function to call with their bytes before they are decoded. It raises ValueError where there
            is no room for them.

        Raises:
            ValueError: others are being loaded already, or as many users have images as may.
        """
        with self._lock:
            if visitor.loading:
                raise ValueError("your last files are still being loaded; wait for them")
            visitor.loading = True
        try:
            # Before any file is read.
            self._admit_images(visitor, 0)
            yield lambda size: self._admit_images(visitor, size)
        finally:
            with self._lock:
                visitor.loading, visitor.reserved = False, 0

    def keep(self, visitor: Visitor, session: Session) -> None:
        """Images that were loaded take the place of those that the visitor had."""
        with self._lock:
            old, visitor.session = visitor.session, session
            visitor.size = visitor.reserved
            if old is not None:
                self._end(old)
            if self._visitors.get(visitor.key) is not visitor:
                self._end(session)

    @contextlib.contextmanager
    def uploading(self, client: str, size: int, on_disk: int) -> Iterator[None]:
        """While files are uploaded.

        Args:
            client: who uploads them.
            size: their bytes, or as many as they may have.
            on_disk: bytes of all uploads that are there.

        Raises:
            ValueError: there is no room for them.
        """
        with self._lock:
            self._check_open()
            most = self.limits.uploads_mb * _MB
            mine = sum(other for name, other in self._uploading if name == client)
            total = on_disk + sum(other for _, other in self._uploading)
            if total + size > most or mine + size > share(most, client):
                raise ValueError(
                    f"there are {total / _MB:.0f} MB of uploads, of {self.limits.uploads_mb} MB that "
                    "are taken; they are deleted after half an hour, try again then"
                )
            self._uploading.append((client, size))
        try:
            yield
        finally:
            with self._lock:
                self._uploading.remove((client, size))

    def sweep(self) -> bool:
        """Ends the stay of all who are gone, or have done nothing for long.

        Returns:
            Whether images went, or the last run ended, since the last time: memory is free.
        """
        with self._lock:
            was_busy, self._was_busy = (
                self._was_busy,
                any(v.is_busy for v in self._visitors.values()),
            )
            now = self._clock()
            for visitor in list(self._visitors.values()):
                idle = now - visitor.used
                if visitor.is_busy:
                    continue
                if not visitor.is_connected and (
                    idle > _IDLE or (visitor.left is not None and now - visitor.left > _CLOSED_TAB)
                ):
                    self._remove(visitor)
                elif idle > _IDLE_TAB:
                    self._take_images(visitor)
            has_ended, self._has_ended = self._has_ended, False
            return has_ended or (was_busy and not self._was_busy)

    def close(self) -> None:
        """Ends everybody's stay; returns when no run writes any more."""
        with self._lock:
            self._is_closed = True
            visitors = list(self._visitors.values())
            for visitor in visitors:
                if visitor.session is not None:
                    self._end(visitor.session)
        deadline = time.monotonic() + _PATIENCE
        while any(visitor.is_busy for visitor in visitors) and time.monotonic() < deadline:
            time.sleep(0.05)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("the server is being stopped")

    def _admit_visitor(self, client: str) -> None:
        most, now = _VISITORS * self._max_sessions, self._clock()
        gone = [
            visitor
            for visitor in self._visitors.values()
            if not (visitor.session or visitor.is_busy or visitor.is_connected)
            and now - visitor.used > _UNCONNECTED
        ]
        crowd = self._crowd(client, most, self._visitors.values())
        if crowd is not None:
            candidates = [visitor for visitor in gone if visitor in crowd]
            if not candidates:
                raise ValueError(
                    f"{len(crowd)} people use the page, more than that are not let in; try again in "
                    "some minutes"
                )
            self._remove(min(candidates, key=lambda visitor: visitor.used))

    def _admit_images(self, visitor: Visitor, size: int) -> None:
        with self._lock:
            self._check_open()
            held = [
                v for v in self._visitors.values() if v is not visitor and (v.size or v.reserved)
            ]
            crowd = self._crowd(visitor.client, self._max_sessions, held)
            if crowd is not None and not self._make_room(crowd):
                raise ValueError(
                    f"the page holds images of {len(crowd)} users, which is as many as it can; try "
                    "again in some minutes"
                )
            most, own = self.limits.total_mb * _MB, visitor.size + size
            while True:
                mine = [other for other in held if other.client == visitor.client]
                total, taken = (sum(v.size + v.reserved for v in some) for some in (held, mine))
                is_full = total + own > most
                if not is_full and taken + own <= share(most, visitor.client):
                    break
                if not self._make_room(held if is_full else mine):
                    raise ValueError(
                        f"these images take {size / _MB:.0f} MB of memory, and those of all users "
                        f"{total / _MB:.0f} of {self.limits.total_mb} MB; try again in some minutes"
                    )
            visitor.reserved = max(size, 1)

    def _crowd(self, client: str, most: int, visitors: Iterable[Visitor]) -> list[Visitor] | None:
        """Of whom one has to go before another of `client` can come; None if there is room."""
        visitors = list(visitors)
        mine = [visitor for visitor in visitors if visitor.client == client]
        if len(mine) >= share(most, client):
            return mine
        return visitors if len(visitors) >= most else None

    def _make_room(self, visitors: Iterable[Visitor]) -> bool:
        """Takes the images that have gone unused longest, if they may go."""
        now = self._clock()
        may_go = [v for v in visitors if v.size and not v.is_busy and now - v.used > _MAY_GO]
        if may_go:
            self._take_images(min(may_go, key=lambda visitor: visitor.used))
        return bool(may_go)

    def _take_images(self, visitor: Visitor) -> None:
        session, visitor.session, visitor.size = visitor.session, None, 0
        if session is not None:
            self._end(session)

    def _remove(self, visitor: Visitor) -> None:
        self._take_images(visitor)
        del self._visitors[visitor.key]
        self.forget(visitor.key)

    def _end(self, session: Session) -> None:
        """Closes a session, and deletes its uploads unless another one was loaded from the same."""
        session.close()
        self._has_ended = True
        kept = {
            path
            for visitor in self._visitors.values()
            if visitor.session is not None and visitor.session is not session
            for path in visitor.session.uploads
        }
        for path in set(session.uploads) - kept:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # Others have been uploaded beside it.
                path.parent.rmdir()

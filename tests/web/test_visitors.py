"""Who is let in, and when their stay ends."""

import threading

import numpy as np
import pytest
from web_sessions import LIMITS, load, painted

from mbti_jax.web.addresses import LOOPBACK, client_of, share
from mbti_jax.web.uploads import Limits
from mbti_jax.web.visitors import Visitors

MB = 10**6


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def make(clock, max_sessions=4, **limits):
    return Visitors(Limits(5, 20, 10**5, 64, **limits), max_sessions, clock)


@pytest.fixture
def people(clock):
    return make(clock)


class Opened:
    """Stands for the images of a visitor."""

    def __init__(self, uploads=()):
        self.uploads, self.running, self.is_closed, self.is_cancelled = uploads, False, False, False

    def close(self):
        self.is_closed = True

    def cancel(self):
        self.is_cancelled = True


def enter(people, key, client=LOOPBACK, size=MB, uploads=()):
    """A visitor loads images."""
    visitor = people.of(key, client)
    with people.loading(visitor) as admit:
        admit(size)
        people.keep(visitor, Opened(uploads))
    return visitor


def test_newcomers_do_not_put_out_who_is_there(people, clock):
    there = [enter(people, f"there {number}") for number in range(4)]
    for number in range(18):
        with pytest.raises(ValueError, match=r"images of 4 users.*try again"):
            enter(people, f"new {number}")
    assert not any(visitor.session.is_closed for visitor in there)
    # Who has done nothing for ten minutes gives way, the longest unused first.
    clock.now += 500
    people.of("there 0", LOOPBACK)
    clock.now += 200
    closed = there[1].session
    enter(people, "new")
    assert closed.is_closed and there[1].session is None
    assert there[0].session is not None


def test_who_waits_or_works_is_never_put_out(people, clock):
    there = [enter(people, f"there {number}") for number in range(4)]
    for visitor in there:
        visitor.session.running = True
    clock.now += 10**6
    people.sweep()
    with pytest.raises(ValueError, match="as many as it can"):
        enter(people, "new")
    assert not any(visitor.session.is_closed for visitor in there)


def test_one_client_has_at_most_half_of_the_room(people):
    for number in range(2):
        enter(people, f"many {number}", "203.0.113.5")
    with pytest.raises(ValueError, match="images of 2 users"):
        enter(people, "many 2", "203.0.113.5")
    enter(people, "another", "203.0.113.6")


def test_clients_by_their_addresses():
    assert client_of("127.0.0.1") == client_of("::1") == client_of("::ffff:127.0.0.3") == LOOPBACK
    assert client_of("::ffff:203.0.113.5") == client_of("203.0.113.5") != client_of("203.0.113.6")
    # Whoever has one address of IPv6 has 2^64.
    assert client_of("2001:db8::1") == client_of("2001:db8::2:3") != client_of("2001:db8:0:1::1")
    assert [share(most, "203.0.113.5") for most in (16, 3, 1)] == [8, 1, 1]
    assert share(16, LOOPBACK) == 16


def test_images_are_limited_in_bytes(clock):
    people = make(clock, max_sessions=10, total_mb=10)
    first = enter(people, "first", size=6 * MB)
    with pytest.raises(ValueError, match="take 5 MB of memory, and those of all users 6 of 10 MB"):
        enter(people, "second", size=5 * MB)
    enter(people, "second", size=4 * MB)
    clock.now += 601
    enter(people, "third", size=5 * MB)
    assert first.session is None


def test_what_is_being_loaded_counts(clock):
    people = make(clock, max_sessions=1)
    visitor = people.of("loads", LOOPBACK)
    with people.loading(visitor) as admit:
        admit(MB)
        with pytest.raises(ValueError, match="still being loaded"), people.loading(visitor):
            pass
        with pytest.raises(ValueError, match="as many as it can"):
            enter(people, "new")
    enter(people, "new")


def test_visitors_without_images_make_room_for_each_other(people, clock):
    for number in range(32):
        people.of(f"visitor {number}", LOOPBACK)
    with pytest.raises(ValueError, match="32 people use the page"):
        people.of("new", LOOPBACK)
    with people.connected("visitor 0", LOOPBACK, is_tab=True):
        clock.now += 31
        people.of("new", LOOPBACK)
        assert "visitor 0" in people and "visitor 1" not in people


def test_the_end_of_a_stay(people, clock):
    forgotten = []
    people.forget = forgotten.append
    tab, script, idle = (enter(people, name) for name in ("tab", "script", "idle"))
    with people.connected("idle", LOOPBACK, is_tab=True):
        with people.connected("tab", LOOPBACK, is_tab=True):
            clock.now += 59
            people.sweep()
        clock.now += 59
        people.sweep()
        assert not forgotten, "the network may have been lost for a moment"
        clock.now += 2
        people.sweep()
        assert forgotten == ["tab"] and tab.session is None
        clock.now += 900
        people.sweep()
        assert forgotten == ["tab", "script"] and script.session is None
        assert idle.session is not None
        clock.now += 3600
        people.sweep()
        assert idle.session is None and "idle" in people, "its tab is still open"


def test_a_tab_that_comes_back_is_not_gone(people, clock):
    visitor = enter(people, "tab")
    with people.connected("tab", LOOPBACK, is_tab=True):
        pass
    clock.now += 30
    people.of("tab", LOOPBACK)
    clock.now += 600
    people.sweep()
    assert visitor.session is not None


def test_what_begins_after_its_tab_was_closed_keeps_nothing(people, clock):
    """A call may wait in the queue for longer than the tab that asked for it is open."""
    with people.connected("tab", LOOPBACK, is_tab=True):
        pass
    visitor = people.asked_by("tab", LOOPBACK)
    with people.loading(visitor) as admit:
        admit(MB)
        people.keep(visitor, Opened())
    clock.now += 61
    people.sweep()
    assert "tab" not in people and visitor.session is None
    # It waited until the visitor was forgotten.
    people.asked_by("tab", LOOPBACK)
    clock.now += 61
    people.sweep()
    assert "tab" not in people


def test_a_run_ends_with_who_waits_for_it(people, clock):
    visitor = enter(people, "one")
    with people.connected("one", LOOPBACK, is_tab=False) as broken:
        assert people.is_heard(visitor, clock.now)
        clock.now += 100
        assert people.is_heard(visitor, clock.now - 100)
        broken()
    assert visitor.session.is_cancelled
    # Ended by the server, as the answer was complete.
    visitor = enter(people, "two")
    with people.connected("two", LOOPBACK, is_tab=False):
        pass
    assert not visitor.session.is_cancelled
    # Nobody ever listened.
    start = clock.now
    assert people.is_heard(visitor, start)
    clock.now += 11
    assert not people.is_heard(visitor, start)


def test_uploads_go_with_the_last_session_that_was_loaded_from_them(people, clock, tmp_path):
    shared, own = tmp_path / "a" / "shared.png", tmp_path / "b" / "own.png"
    for path in (shared, own):
        path.parent.mkdir()
        path.touch()
    enter(people, "one", uploads=(shared, own))
    enter(people, "two", uploads=(shared,))
    enter(people, "one", uploads=())
    assert shared.exists() and not own.parent.exists()
    clock.now += 901
    people.sweep()
    assert not shared.exists()


def test_uploads_are_limited_in_bytes(clock):
    people = make(clock, uploads_mb=10)
    with people.uploading("a", 3 * MB, on_disk=2 * MB):
        with pytest.raises(ValueError, match="5 MB of uploads, of 10 MB"):
            people.uploading("a", 3 * MB, 2 * MB).__enter__()
        with people.uploading("b", 5 * MB, 2 * MB):
            pass
        with pytest.raises(ValueError, match="deleted after half an hour"):
            people.uploading("b", 5 * MB, 3 * MB).__enter__()


def test_after_the_end_nobody_is_let_in(people):
    visitor = enter(people, "one")
    people.close()
    assert visitor.session.is_closed
    with pytest.raises(ValueError, match="is being stopped"):
        people.of("two", LOOPBACK)


def test_the_end_waits_for_runs(png, tmp_path):
    """What is under way writes nothing after the files are gone."""
    people = Visitors(LIMITS, 4)
    visitor = people.of("one", LOOPBACK)
    with people.loading(visitor) as admit:
        session = load([png], tmp_path)
        admit(1)
        people.keep(visitor, session)
    painted(session, 0)
    entered, left = threading.Event(), threading.Event()

    def run():
        with session.run():
            entered.set()
            assert session.cancelled.wait(20)
            (session.folder / "result").mkdir()
            left.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert entered.wait(20)
    with pytest.raises(ValueError, match="still under way"), session.run():
        pass
    people.close()
    assert left.is_set() and not session.folder.exists()
    thread.join()
    with pytest.raises(ValueError, match="not kept any more"):
        session.write_array(np.zeros((2, 2), np.uint8))

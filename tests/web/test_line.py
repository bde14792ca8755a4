"""Who may use the model next."""

import threading

import pytest

from mbti_jax.diffusion.samplers.driver import SamplingCancelled
from mbti_jax.web.addresses import LOOPBACK
from mbti_jax.web.line import Line

PATIENCE = 20


class Clock:
    """A clock that goes on by one second whenever it is read, so that nothing happens at once."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1
        return self.now


class Runs:
    """Runs in threads, each of one step or several; each begins when it is let go."""

    def __init__(self, line):
        self.line, self.order, self.errors = line, [], []
        self.threads = []

    def add(self, client, name, steps=1, after_step=lambda: None, is_cancelled=lambda: False):
        """Starts a run, and waits until it stands in the line."""
        reported = threading.Event()

        def run():
            try:
                with self.line.turn(client, lambda _: reported.set(), is_cancelled) as stand_back:
                    for _ in range(steps):
                        self.order.append(name)
                        after_step()
                        stand_back()
            except (ValueError, SamplingCancelled) as error:
                self.errors.append((name, error))
            reported.set()

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()
        assert reported.wait(PATIENCE)

    def join(self):
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.fixture
def runs():
    return Runs(Line(8, Clock()))


def test_a_client_with_many_sessions_gets_no_more_than_another(runs):
    with runs.line.turn("first", lambda _: None, lambda: False):
        for number in range(4):
            runs.add("many", f"many {number}")
        runs.add("one", "one")
    runs.join()
    assert runs.order == ["many 0", "one", "many 1", "many 2", "many 3"]


def test_without_addresses_the_first_comes_first(runs):
    with runs.line.turn(LOOPBACK, lambda _: None, lambda: False):
        for name in "abc":
            runs.add(LOOPBACK, name)
    runs.join()
    assert runs.order == ["a", "b", "c"]


def test_a_long_run_stands_back(runs):
    """It keeps the model for ten seconds of the clock, then the other has its turn."""
    begun, go_on = threading.Event(), threading.Event()

    def step():
        begun.set()
        assert go_on.wait(PATIENCE)
        runs.line._clock.now += 4

    with runs.line.turn("first", lambda _: None, lambda: False):
        runs.add(LOOPBACK, "long", steps=6, after_step=step)
    assert begun.wait(PATIENCE)
    runs.add(LOOPBACK, "short")
    go_on.set()
    runs.join()
    first, last = runs.order.index("long"), len(runs.order) - 1 - runs.order[::-1].index("long")
    assert first < runs.order.index("short") < last
    assert runs.order.count("long") == 6 and not runs.errors


def test_a_run_that_nobody_wants_leaves_the_line(runs):
    with runs.line.turn("first", lambda _: None, lambda: False):
        is_cancelled = threading.Event()
        runs.add("gone", "gone", is_cancelled=is_cancelled.is_set)
        runs.add("there", "there")
        is_cancelled.set()
        runs.threads[0].join(PATIENCE)
        assert [name for name, _ in runs.errors] == ["gone"]
    runs.join()
    assert runs.order == ["there"]


def test_a_full_line_refuses_in_a_sentence(runs):
    with runs.line.turn("first", lambda _: None, lambda: False):
        for number in range(4):
            runs.add("many", str(number))
        runs.add("many", "one more")
        assert str(runs.errors[0][1]).startswith("4 runs are waiting for the model")
        for number in range(4):
            runs.add(f"client {number}", "other")
        runs.add("client 4", "too late")
        assert [name for name, _ in runs.errors] == ["one more", "too late"]
    runs.join()
    assert len(runs.order) == 8


def test_the_model_is_free_after_an_error(runs):
    with pytest.raises(KeyError), runs.line.turn("a", lambda _: None, lambda: False):
        raise KeyError
    runs.add("b", "b")
    runs.join()
    assert runs.order == ["b"]

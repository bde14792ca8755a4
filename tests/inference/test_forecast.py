"""What a run will cost, in words."""

import pytest

from mbti_jax.inference.forecast import Forecast, duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (3600, "60 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (86_400, "24.0 h"),
    ],
)
def test_times_have_the_unit_that_one_would_say(seconds, words):
    assert duration(seconds) == words


def test_one_and_many_batches():
    assert str(Forecast(1, 1, 1, 5.0, 10**7)).startswith("1 batch of 1 evaluation, about 5 s;")
    assert str(Forecast(40, 8, 16, 600.0, 10**9)) == (
        "40 batches of 8 evaluations, about 10 min; slices take 1.00 GB on the device"
    )

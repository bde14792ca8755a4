"""Checks of numbers by the names of their fields."""

import math
import operator
from typing import Any


def whole_number(name: str, value: Any, least: int = 0) -> int:
    """`value` if it is a whole number from `least` to 2^31 - 1."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number < 2**31:
        raise ValueError(f"{name} must be a whole number from {least} to 2^31 - 1, not {value!r}")
    return number


def finite_number(name: str, value: Any) -> float:
    """`value` if it is neither NaN nor infinite."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value}")
    return value

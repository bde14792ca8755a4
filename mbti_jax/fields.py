"""Checks of settings; each raises a `FieldError` that names the field and says what is wrong with it."""

import dataclasses
import math
import operator
from typing import Any


class FieldError(ValueError):
    """A setting that cannot be used.

    Attributes:
        field: its name, with the names of what it lies in: "data.window".
    """

    def __init__(self, field: str, problem: str):
        super().__init__(f"{field} {problem}")
        self.field, self.problem = field, problem

    def within(self, name: str) -> "FieldError":
        """The same of the field `name` that holds this one."""
        return FieldError(f"{name}.{self.field}", self.problem)


def whole_number(name: str, value: Any, least: int = 0) -> int:
    """`value` if it is a whole number from `least` to 2^31 - 1."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number < 2**31:
        raise FieldError(name, f"must be a whole number from {least} to 2^31 - 1, not {value!r}")
    return number


def finite_number(name: str, value: Any) -> float:
    """`value` if it is neither NaN nor infinite."""
    if not math.isfinite(value):
        raise FieldError(name, f"must be a finite number, not {value}")
    return value


def one_of(name: str, value: Any, choices: Any) -> Any:
    """`value` if it is one of `choices`."""
    if value not in choices:
        raise FieldError(name, f"must be one of {', '.join(choices)}, not {value!r}")
    return value


def whole_numbers(settings: Any, *, least: int) -> None:
    """Checks every field of a dataclass that is an `int` with `whole_number`."""
    for field in dataclasses.fields(settings):
        if field.type is int:
            whole_number(field.name, getattr(settings, field.name), least)

"""Checks of settings by the names and types of their fields; each raises a `FieldError`.

A dataclass says in the types of its fields what they may hold, and asks for the check where it is made:

    @dataclasses.dataclass(frozen=True)
    class Settings:
        batch_size: Count
        share: Annotated[float, Interval(0, 1)]

        def __post_init__(self):
            check_fields(self)
"""

import dataclasses
import functools
import inspect
import math
import numbers
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import numpy as np

from tfds_brats.spelling import nearest

_MAX_INT = 2**31 - 1
# The least number that float32 holds with all its digits; processors make zeros of smaller ones.
_TINY, _MAX = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


P = ParamSpec("P")
T = TypeVar("T")


class FieldError(ValueError):
    """A setting that cannot be used.

    Attributes:
        field: its name, with the names of what it lies in: "data.window".
    """

    def __init__(self, field: str, problem: str):
        super().__init__(f"{field} {problem}")
        self.field, self.problem = field, problem

    def __reduce__(self) -> tuple:
        # Exceptions are pickled with their text alone, and worker processes send theirs.
        return FieldError, (self.field, self.problem)

    def within(self, name: str) -> "FieldError":
        """The same of the field `name` that holds this one."""
        return FieldError(f"{name}.{self.field}", self.problem)


@dataclasses.dataclass(frozen=True)
class Interval:
    """The numbers that a field may hold, or how many entries; whole numbers end at 2^31 - 1.

    Attributes:
        low, high: its ends.
        closed: which of them belong to it: "both", "left", "right" or "neither".
    """

    low: float = -math.inf
    high: float = math.inf
    closed: Literal["both", "left", "right", "neither"] = "both"

    def __contains__(self, value: float) -> bool:
        above = self.low <= value if self.closed in ("both", "left") else self.low < value
        below = value <= self.high if self.closed in ("both", "right") else value < self.high
        return above and below

    def __str__(self) -> str:
        """What a value must do."""
        if self.high == math.inf:
            return f"be {'at least' if self.closed in ('both', 'left') else 'above'} {self.low}"
        left = "[" if self.closed in ("both", "left") else "("
        right = "]" if self.closed in ("both", "right") else ")"
        return f"lie in {left}{self.low}, {self.high}{right}"


Count = Annotated[int, Interval(1)]
Share = Annotated[float, Interval(0, 1)]
Positive = Annotated[float, Interval(0, closed="neither")]
NotNegative = Annotated[float, Interval(0)]
Name = Annotated[str, Interval(1)]


def check_fields(settings: Any) -> None:
    """Checks every field of a dataclass by its type, see `check_field`."""
    hints = field_types(type(settings))
    for field in dataclasses.fields(settings):
        check_field(field.name, getattr(settings, field.name), hints[field.name])


def check_names(values: Iterable[str], known: Iterable[str]) -> None:
    """Raises a FieldError for the first name that is not a known one."""
    for name in values:
        if name not in known:
            way = nearest(name, known) or f"; there are {', '.join(known)}"
            raise FieldError(name, f"is no setting{way}")


@functools.cache
def field_types(cls: type) -> Mapping[str, Any]:
    """The types of a class's fields by name, with what is annotated about them."""
    return typing.get_type_hints(cls, include_extras=True)


def check_field(name: str, value: Any, kind: Any) -> None:
    """Checks a value by the type of its field.

    Numbers are neither bool nor text, whole ones are at least 0 unless an `Interval` says otherwise, and
    others are numbers of float32: neither too large for it nor so small that it makes 0 of them. Of a
    text or a tuple the `Interval` is that of its length.

    Args:
        name: of the field.
        value: what it holds.
        kind: bool, int, float, str, a tuple of these of any length, a `Literal`, a dataclass or a
            Mapping; `Annotated` with an `Interval`; or one of them or None. What is of another type is
            not checked.
    """
    interval = None
    if typing.get_origin(kind) is Annotated:
        kind, *extras = typing.get_args(kind)
        interval = next((extra for extra in extras if isinstance(extra, Interval)), None)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        choices = [choice for choice in arguments if choice is not type(None)]
        if len(choices) == 1 and value is not None:
            check_field(name, value, choices[0])
    elif origin is Literal:
        one_of(name, value, arguments)
    elif kind is int:
        whole_number(name, value, *_int_ends(interval or Interval(0)))
    elif kind is float:
        finite_number(name, value, interval or Interval())
    elif kind is bool:
        if not isinstance(value, bool | np.bool_):
            raise FieldError(name, f"must be True or False, not {value!r}")
    elif kind is str:
        if not isinstance(value, str):
            raise FieldError(name, f"must be text, not {value!r}")
        _check_length(name, value, interval)
    elif origin in (tuple, Sequence) and arguments[-1] in (..., arguments[0]):
        if not isinstance(value, tuple | list):
            raise FieldError(name, f"must be a tuple, not {value!r}")
        _check_length(name, value, interval)
        for entry in value:
            check_field(name, entry, arguments[0])
    elif origin is Mapping or (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        wanted = origin or kind
        if not isinstance(value, wanted):
            raise FieldError(name, f"must be a group of fields, not {value!r}")
        for key, entry in value.items() if origin is Mapping else ():
            check_field(f"{name}.{key}", entry, arguments[1])


def whole_number(name: str, value: Any, least: int = 0, most: int = _MAX_INT) -> int:
    """`value` if it is a whole number from `least` to `most`, and no bool."""
    try:
        number = least - 1 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        end = "2^31 - 1" if most == _MAX_INT else most
        raise FieldError(name, f"must be a whole number from {least} to {end}, not {value!r}")
    return number


def finite_number(name: str, value: Any, interval: Interval = Interval()) -> float:
    """`value` if it is a number of `interval`, also once it is rounded to float32.

    There a number may become infinite, or 0, or an end of the interval that does not belong to it.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise FieldError(name, f"must be a number, not {value!r}")
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise FieldError(name, f"must be a finite number, not {value}")
    if value not in interval:
        raise FieldError(name, f"must {interval}, not {value}")
    if abs(value) > _MAX:
        raise FieldError(name, f"must be a number that float32 can hold, not {value}")
    rounded = float(np.float32(value))
    if value != 0 and abs(rounded) < _TINY:
        raise FieldError(name, f"must be 0 or a number that float32 can tell from 0, not {value}")
    if rounded not in interval:
        raise FieldError(name, f"must {interval}, not {value}, which is {rounded} in float32")
    return value


def increasing_numbers(name: str, values: Any) -> tuple[float, float]:
    """The two ends of a range, (low, high), if they are finite and differ in float32."""
    if not isinstance(values, tuple | list | np.ndarray) or len(values) != 2:
        raise FieldError(name, f"must be two numbers (low, high), not {values!r}")
    low, high = (finite_number(name, value) for value in values)
    length = float(np.float32(high)) - float(np.float32(low))
    if not length >= _TINY:
        raise FieldError(
            name, f"must be (low, high) with low below high in float32, not {tuple(values)}"
        )
    # Numbers are divided by its length.
    finite_number(name, length)
    return low, high


def one_of(name: str, value: Any, choices: Any) -> Any:
    """`value` if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        problem = f"must be one of {', '.join(choices)}, not {value!r}{nearest(value, choices)}"
        raise FieldError(name, problem)
    return value


def whole_numbers(settings: Any, *names: str, least: int = 0) -> None:
    """Checks all fields of a dataclass, and those named, or all that are `int`, with `whole_number`."""
    check_fields(settings)
    all_names = [field.name for field in dataclasses.fields(settings) if field.type is int]
    for name in names or all_names:
        whole_number(name, getattr(settings, name), least)


def _int_ends(interval: Interval) -> tuple[int, int]:
    return int(interval.low), int(min(interval.high, _MAX_INT))


def _check_length(name: str, value: Any, interval: Interval | None) -> None:
    if interval is None or len(value) in interval:
        return
    if not len(value):
        raise FieldError(name, "must not be empty")
    raise FieldError(name, f"has {len(value)} entries, whose number must {interval}")


def suggesting_names(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, which answers an argument of an unknown name with the nearest that it knows.

    Python does so itself from 3.13 on, but for dataclasses and for names that are far off.
    """
    known = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name not in known:
                way = nearest(name, known) or f"; arguments are {', '.join(known)}"
                raise TypeError(f"{function.__qualname__} has no argument {name!r}{way}")
        return function(*args, **kwargs)

    return checked

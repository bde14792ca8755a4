"""From a config to the settings of a command: frozen dataclasses, checked where they are made."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ml_collections import ConfigDict

from mbti_jax.fields import FieldError, check_field, check_names, field_types

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

# Fields of a config that say which command runs and where, and are no settings.
_ADDRESS = ("task", "workdir")


def from_config(cls: type[T], config: Mapping[str, Any] | ConfigDict, **given: Any) -> T:
    """The settings `cls` with the values of a config's fields of the same names.

    Args:
        cls: a dataclass. Where a field's type is a dataclass, the config's field of that name is a
            group of fields, which becomes one.
        config: a `ConfigDict` or dict.
        **given: values of fields that the config does not have.

    Raises:
        FieldError: a field that `cls` does not know, lacks, or refuses, by its full name.
    """
    hints = field_types(cls)
    names = sorted(field.name for field in dataclasses.fields(cls))
    config = {name: value for name, value in config.items() if name not in _ADDRESS}
    check_names(config, names)
    values = dict(given)
    for name, value in config.items():
        kind = _dataclass_in(hints[name])
        value = value.to_dict() if isinstance(value, ConfigDict) else value
        if kind is not None and isinstance(value, Mapping):
            try:
                value = from_config(kind, value)
            except FieldError as error:
                raise error.within(name) from error
        # Lists are not immutable.
        values[name] = tuple(value) if isinstance(value, list) else value
        check_field(name, values[name], hints[name])
    none = dataclasses.MISSING
    required = [f for f in dataclasses.fields(cls) if f.default is none is f.default_factory]
    missing = sorted({field.name for field in required} - values.keys())
    if missing:
        raise FieldError(missing[0], "is missing")
    return cls(**values)


def _dataclass_in(hint: Any) -> "type[DataclassInstance] | None":
    """The dataclass that a type is, or that it is unless it is None."""
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    found = [kind for kind in choices if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    return found[0] if found else None

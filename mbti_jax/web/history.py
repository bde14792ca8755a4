"""The runs of a session, and their settings as JSON."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mbti_jax.fields import Count, FieldError, Share, check_fields

# How many runs of a session are kept.
KEPT_RUNS = 5
_KIND, _VERSION = "mbti_jax run of the page", 1
_LARGEST_FILE = 10**5


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What the form held when a run was asked for; each field is an input of `Actions.inpaint`.

    A weight of None is what suits the estimate.

    Raises:
        FieldError: a field is of another kind or out of its range.
    """

    sequences: tuple[str, ...]
    seed: int
    num_samples: Count
    num_steps: Count
    guidance_weight: float | None
    estimate: str
    sampler: str
    guidance: str
    lowest_noise: Share
    highest_noise: Share
    blend: bool

    def __post_init__(self):
        check_fields(self)


FIELDS = tuple(field.name for field in dataclasses.fields(RunSettings))


@dataclasses.dataclass(frozen=True)
class Run:
    """A run and what the page shows of it.

    Attributes:
        number: from 1, in the order of the session.
        settings: what it was asked with.
        sentence: what came of it.
        view: its result, see `views.result_view`.
        files: an archive of all, then those of the first result.
        settings_file: `settings` as JSON.
    """

    number: int
    settings: RunSettings
    sentence: str
    view: Mapping[str, Any]
    files: Sequence[Path]
    settings_file: Path

    @property
    def title(self) -> str:
        one = self.settings
        count = f"{one.num_samples} sample{'s' * (one.num_samples > 1)}, "
        count = "" if one.estimate == "mean in one pass" else count
        weight = one.guidance_weight
        end = "" if weight is None else f", guidance weight {weight:g}"
        return (
            f"Run {self.number}: {one.estimate}, {count}{one.num_steps} steps, seed {one.seed}{end}"
        )


def to_json(settings: RunSettings) -> str:
    """The settings as a file holds them."""
    held = {"kind": _KIND, "version": _VERSION, "settings": dataclasses.asdict(settings)}
    return json.dumps(held, indent=2) + "\n"


def read_settings(path: Path, choices: Mapping[str, Sequence[str]]) -> RunSettings:
    """The settings in a file that `to_json` made.

    Args:
        path: the file.
        choices: field -> what it may be on this page.

    Raises:
        ValueError: it is another kind of file, or a field is missing, unknown or wrong; the message
            names the file and the field.
    """
    name = path.name
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError("too large")
        held = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: is no JSON file of settings") from error
    if not isinstance(held, dict) or held.get("kind") != _KIND:
        raise ValueError(
            f"{name}: holds no settings of a run of this page; save those of a run in section 4"
        )
    if held.get("version") != _VERSION:
        raise ValueError(f"{name}: version must be {_VERSION}, not {held.get('version')!r:.40}")
    fields = held.get("settings")
    if not isinstance(fields, dict):
        raise ValueError(f"{name}: settings must be a group of fields")
    for field in (*FIELDS, *fields):
        if field not in fields:
            raise ValueError(f"{name}: settings.{field} is missing")
        if field not in FIELDS:
            raise ValueError(f"{name}: settings.{field:.40} is unknown")
    if not isinstance(fields["sequences"], list):
        raise ValueError(f"{name}: settings.sequences must be a list of names")
    try:
        settings = RunSettings(**{**fields, "sequences": tuple(fields["sequences"])})
    except FieldError as error:
        raise ValueError(f"{name}: settings.{error}") from error
    for field, allowed in choices.items():
        values = getattr(settings, field)
        for value in values if field == "sequences" else (values,):
            if value not in allowed:
                raise ValueError(
                    f"{name}: settings.{field} cannot be {value!r:.40} here, but "
                    f"{', '.join(allowed)}"
                )
    return settings

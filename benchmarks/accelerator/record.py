"""What a stage has measured so far, in one JSON file that is always complete.

Fields: `state` (new, running, finished, cut off, failed), `seconds` that the stage took over all calls,
`seconds_before` this call, `error`, `where` it ran (sizes and card), and `units`: results by name. A
unit is measured once: a stage that was stopped goes on with the next.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mbti_jax.io.files import write_json

_NEW = {"state": "new", "seconds": 0.0, "seconds_before": 0.0, "error": None, "where": None}


class OutOfTime(BaseException):
    """The stage's share of the time is over. No Exception, so that nothing takes it for a failure."""


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """The record of a stage; a new one where there is none, or one that is not readable."""
    try:
        content = json.loads((folder / f"{name}.json").read_text())
        return {**_NEW, "units": {}, **content}
    except (OSError, ValueError, TypeError):
        return {**_NEW, "units": {}}


def write_record(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Writes it, complete or not at all."""
    write_json(folder / f"{name}.json", _plain(record))


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, and no types of NumPy."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Record:
    """The record of the stage that runs in this process.

    Attributes:
        folder: of all results.
        share: seconds that the stage may take over all calls.
    """

    def __init__(self, folder: Path, name: str, seconds: float, share: float):
        self.folder, self.share = folder, share
        self._name, self._start = name, time.monotonic()
        self._deadline = self._start + seconds
        self._content = read_record(folder, name)
        if self._content["state"] == "failed":
            units = self._content["units"].items()
            self._content["units"] = {key: unit for key, unit in units if "error" not in unit}
        self._content |= {"state": "running", "error": None}
        self._content["seconds_before"] = self._content["seconds"]
        self._write()

    @property
    def units(self) -> Mapping[str, Any]:
        """Results so far, by name."""
        return self._content["units"]

    @property
    def work(self) -> Path:
        """Folder for what is no result: caches, data, checkpoints."""
        return self.folder / "work"

    def left(self) -> float:
        """Seconds until the stage is cut off."""
        return self._deadline - time.monotonic()

    def used(self) -> float:
        """Seconds that the stage has taken, over all calls."""
        return self._content["seconds_before"] + time.monotonic() - self._start

    def unit(self, name: str, measure: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """The result of `measure()`, which is called unless there is one.

        What it raises becomes the result {"error": ...}, so that one failure does not end the stage.
        """
        if name not in self.units:
            if self.left() <= 0:
                raise OutOfTime
            start = time.monotonic()
            try:
                result = dict(measure())
            except Exception as error:  # Compilers and allocators fail in any way.
                result = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
            self.add(name, {**result, "seconds": time.monotonic() - start})
        return self.units[name]

    def add(self, name: str, result: Mapping[str, Any]) -> None:
        """Adds or replaces a unit."""
        self._content["units"][name] = _plain(result)
        self._write()
        print(f"{self._name}: {name}: {json.dumps(self.units[name])[:300]}", flush=True)

    def end(self, state: str, error: str | None = None) -> None:
        """Writes how the stage ended; one of which nothing succeeded has failed."""
        errors = [unit["error"] for unit in self.units.values() if "error" in unit]
        if state == "finished" and errors and len(errors) == len(self.units):
            state, error = "failed", errors[0]
        self._content |= {"state": state, "error": error}
        self._write()

    def _write(self) -> None:
        self._content["seconds"] = self.used()
        write_record(self.folder, self._name, self._content)

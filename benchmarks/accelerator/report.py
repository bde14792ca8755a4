"""report.md out of the stages' records: all tables, with card, driver, versions, date and spread."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.accelerator.record import read_record
from benchmarks.accelerator.tables import SUMMARIES, TABLES, Units
from mbti_jax.io.files import replacing

TITLES = {
    "machine": "Machine",
    "train_step": "Train step",
    "implementations": "Implementations, in turn",
    "kernels": "Where the time of a step goes",
    "sampling": "Sampling",
    "resume": "Resuming, deterministic operations, microbatches",
    "loading": "Loader and step",
    "model": "The accelerator model",
}
_MAX_LINES = 199


def stage_line(name: str, record: Mapping[str, Any], folder: Path) -> str:
    """One line of Markdown: how the stage ended and what it found."""
    number = list(TITLES).index(name) + 1
    state, seconds = record["state"], record["seconds"]
    if state == "new":
        return f"- **{number}. {TITLES[name]}**: not started, no time was left."
    ending = {
        "finished": f"{seconds:.0f} s",
        "cut off": f"cut off after {seconds:.0f} s",
        "failed": f"failed after {seconds:.0f} s: {record['error']}",
    }.get(state, f"stopped after {seconds:.0f} s")
    units = record["units"]
    errors = sum("error" in unit for unit in units.values())
    some = f", {errors} of its parts failed" if errors and state != "failed" else ""
    found = _or_nothing(SUMMARIES[name], units, _peak(folder))
    return f"- **{number}. {TITLES[name]}**{f': {found}' if found else ''} ({ending}{some})."


def write_report(folder: Path) -> None:
    """Writes report.md of what there is, complete or not at all."""
    records = {name: read_record(folder, name) for name in TITLES}
    peak = _peak(folder)
    machine = records["machine"]["units"].get("machine", {})
    lines = ["# Measurements on an accelerator", "", *_heading(machine), ""]
    lines += [stage_line(name, record, folder) for name, record in records.items()]
    for number, (name, record) in enumerate(records.items(), start=1):
        units = record["units"]
        table = _or_nothing(TABLES[name], units, peak) or []
        errors = [f"- {key}: {unit['error']}" for key, unit in units.items() if "error" in unit]
        if table or errors:
            lines += ["", f"## {number}. {TITLES[name]}", "", *table]
            lines += ["", "Failed:", "", *errors[:6]] if errors else []
    if len(lines) > _MAX_LINES:
        lines = [*lines[: _MAX_LINES - 1], "(cut; all numbers are in the JSON files)"]
    with replacing(folder / "report.md") as beside:
        beside.write_text("\n".join(lines) + "\n")


def _or_nothing(function: Callable[[Units, float | None], Any], units: Units, peak: Any) -> Any:
    """What a function makes of units, unless one that it needs is not there (yet), failed or is zero."""
    try:
        return function(units, peak)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return None


def _peak(folder: Path) -> float | None:
    """The measured peak in FLOP/s of the train step's type."""
    units = read_record(folder, "machine")["units"]
    network = read_record(folder, "train_step")["units"].get("network", {})
    name = "float32" if network.get("dtype") == "float32" else "bfloat16"
    if name == "float32" and units.get("machine", {}).get("platform") != "cpu":
        name = "TF32"
    rates = [unit["best"] for key, unit in units.items() if key.startswith(name) and "best" in unit]
    return max(rates, default=None)


def _heading(machine: Mapping[str, Any]) -> list[str]:
    if "date" not in machine:
        return ["Nothing is known of the machine."]
    versions = {**machine["versions"], **machine["plugins"]}
    torch = f"PyTorch {machine['torch']}" if machine["torch"] else machine["without_torch"]
    return [
        f"{machine['date']}; {machine['card'] or machine['device']}; {machine['devices']} device(s); "
        f"{machine['cpu']}, {machine['cores']} cores (load {machine['load_average']:.1f}).",
        f"Python {machine['python']}, {', '.join(f'{k} {v}' for k, v in versions.items())}; "
        f"{torch}; {machine['backend']}.",
        "",
        "Times are medians over rounds in which the rivals take turns; in brackets the least and the "
        "largest. A ratio is the median of the ratios within a round. FLOPs are counted from layer "
        "shapes, two a multiply-add; the peak is the fastest matrix product measured here.",
    ]

"""The report of an evaluation: `report.json` with every number and the human-readable `report.md`."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import mbti_jax
from mbti_jax.evaluation.statistics import MIN_PATIENTS, cell
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.io.files import replacing, shipped_text, write_json
from tfds_brats.splits import SPLITS

_PACKAGES = ("jax", "flax", "numpy", "scipy", "scikit-image")


def section(name: str, /, **values: Any) -> str:
    """The text `evaluation/text/NAME.md` with `values` in it."""
    return shipped_text(f"evaluation/text/{name}.md", **values)


def machine() -> dict[str, Any]:
    """The hardware and software that made the numbers and the seconds, in JSON values."""
    device = jax.local_devices()[0]
    return {
        "devices": f"{jax.local_device_count()} x {device.device_kind} ({device.platform})",
        "cpu_cores": os.cpu_count(),
        "architecture": platform.machine(),
        "versions": {
            "mbti-jax": mbti_jax.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }


def header(workbench: Workbench) -> dict[str, Any]:
    """Model, data and seed of an evaluation, in JSON values."""
    inpainter = workbench.inpainter
    contract, step = inpainter.metadata["contract"], inpainter.checkpoint["step"]
    sizes = {}
    for split in SPLITS:
        index = workbench.source(split).index
        sizes[split] = {
            "subjects": len(np.unique(index.subject)),
            "slices": len(index.subject),
            "slices_with_tumor": int((index.tumor_area > 0).sum()),
        }
    return {
        "model": {
            **inpainter.checkpoint,
            "image_size": inpainter.image_size,
            "sequences": list(workbench.sequences),
            "joint": inpainter.num_channels > 1,
            "images_seen": images_seen(contract, step),
            "continues": "started_from" in contract,
            "neighbors": inpainter.neighbors,
            "guidance_weight": inpainter.default_guidance_weight,
        },
        "dataset": {
            "convention": workbench.dataset.convention,
            "splits": sizes,
            "warnings": workbench.warnings,
            "held_out": workbench.held_out,
        },
        "seed": workbench.seed,
    }


def images_seen(contract: Mapping[str, Any], step: int | None) -> int | None:
    """Training images of a run up to a step, repeated ones counted again; None for imported weights."""
    return step * contract["batch_size"] if step and "batch_size" in contract else None


def write_report(
    folder: Path, head: Mapping[str, Any], parts: Mapping[str, Any], text: str
) -> None:
    """Writes both files of the report.

    Args:
        head: see `header`.
        parts: name -> request, seconds, machine and result.
        text: the parts' sections in Markdown.
    """
    write_json(folder / "report.json", {**head, "parts": dict(parts)})
    with replacing(folder / "report.md") as partial:
        partial.write_text(markdown(head, parts, text))


def markdown(head: Mapping[str, Any], parts: Mapping[str, Any], text: str) -> str:
    """The whole report."""
    limits = ["limits"]
    if not head["model"]["neighbors"]:
        limits.append("limit_slices")
    if head["dataset"]["convention"] == "phantom":
        limits.append("limit_phantom")
    if not head["dataset"]["held_out"]:
        limits.append("limit_unknown")
    shown = "\n".join(section(name) for name in limits)
    sections = [_introduction(head), text.strip(), _budget(parts), shown]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(columns: list[str], rows: list[list[Any]], num_text: int = 1, digits: int = 2) -> str:
    """A Markdown table; all but the first `num_text` columns are aligned to the right.

    Means with intervals are shown with `digits`, and None as "-", see `statistics.cell`.

    Raises:
        ValueError: a row is longer or shorter than the columns.
    """
    rule = ["---"] * num_text + ["---:"] * (len(columns) - num_text)
    lines = [columns, rule, *rows]

    def shown(value: Any) -> str:
        return cell(value, digits) if value is None or isinstance(value, Mapping) else str(value)

    if any(len(line) != len(columns) for line in lines):
        raise ValueError(f"every row of a table needs the {len(columns)} cells of its head")
    return "\n".join(f"| {' | '.join(map(shown, line))} |" for line in lines)


def _introduction(head: Mapping[str, Any]) -> str:
    model, dataset = head["model"], head["dataset"]
    known = (
        "The checkpoint names other training data than this training split: whether the model "
        "saw the test subjects is **not known**"
    )
    if dataset["held_out"]:
        known = "was trained on this training split, so the test subjects are **held out**"
        known = (
            f"The model's last run {known} of it" if model["continues"] else f"The model {known}"
        )
    seen = f"{model['images_seen']:,}" if model["images_seen"] else "an unknown number of"
    seen = f"{seen} images"
    if model["continues"]:
        seen += (
            ", in a run that started from the weights of another one, of whose data the checkpoint says "
            "nothing"
        )
    implausible = dataset.get("warnings", {}).items()
    warnings = "".join(f"\n- Implausible: {name}: {'; '.join(what)}." for name, what in implausible)
    rows = [
        [split, n["subjects"], f"{n['slices']:,}", f"{n['slices_with_tumor']:,}"]
        for split, n in dataset["splits"].items()
    ]
    return section(
        "introduction",
        model=model,
        dataset=dataset,
        sequences=", ".join(model["sequences"]),
        joint="jointly" if model["joint"] else "one at a time",
        seen=seen,
        note=f' Its exporter notes, unchecked here: "{model["note"]}"' if model["note"] else "",
        known=known,
        warnings=warnings and f"{warnings}\n",
        min_patients=MIN_PATIENTS,
        table=table(["split", "subjects", "slices", "with tumor"], rows),
    )


def _budget(parts: Mapping[str, Any]) -> str:
    if not parts:
        return ""
    rows = []
    for name, part in parts.items():
        settings = _short(part["request"]["settings"])[1:-1]
        rows.append([name, f"{part['seconds'] / 60:.1f}", part["request"]["seed"], settings])
    machines = {
        f"{m['devices']}, {m['cpu_cores']} CPU cores, {m['architecture']}; "
        + ", ".join(f"{name} {version}" for name, version in m["versions"].items())
        for m in (part["machine"] for part in parts.values())
    }
    minutes = sum(part["seconds"] for part in parts.values()) / 60
    return section(
        "budget",
        table=table(["part", "minutes", "seed", "settings"], rows),
        minutes=minutes,
        machines="; and ".join(sorted(machines)),
    )


def _short(value: Any) -> str:
    """A setting as the table shows it: only the end of a path, since folders differ between machines."""
    if isinstance(value, list | tuple):
        return "/".join(str(entry) for entry in value) or "none"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} {_short(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str):
        return Path(value).name or "none"
    return str(value)

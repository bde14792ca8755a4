"""The task that measures a model (`configs/evaluate.py`): parts, one after the other, and a report."""

import json
import time
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from mbti_jax.evaluation import (
    control,
    diversity,
    downstream,
    fidelity,
    healthy,
    memorisation,
    report,
    sweeps,
)
from mbti_jax.evaluation.setting import Setting
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.runs import is_done
from mbti_jax.io.files import new_folder, write_json
from tfds_brats import builder, phantom


class Part(Protocol):
    """What a part is: a module, or an object with these functions."""

    def run(self, setting: Setting, settings: ConfigDict, folder: Path) -> dict[str, Any]:
        """Findings in JSON values; `settings` are the part's fields of the config."""

    def tables(self, result: dict[str, Any]) -> str:
        """The section of the report in Markdown, with pictures as PART/NAME.png."""


# In the order of the report.
PARTS: dict[str, Part] = {
    "healthy": healthy,
    "control": control,
    "guidance": sweeps.guidance,
    "steps": sweeps.steps,
    "diversity": diversity,
    "fidelity": fidelity,
    "memorisation": memorisation,
    "downstream": downstream,
}

_RESULT = "result.json"


def main(config: ConfigDict, workdir: str) -> None:
    """Measures `config.checkpoint` on the cases of `config.source` and writes `report.md` to `workdir`.

    A part whose result is there is not done again, and what was sampled for a part that was stopped is
    not sampled again.

    Raises:
        ValueError, OSError: config, model or cases cannot be used, or `workdir` holds the result of
            another request.
    """
    unknown = set(config.parts) - PARTS.keys()
    if unknown:
        raise ValueError(
            f"unknown parts {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}"
        )
    folder = Path(workdir)
    inpainter = Inpainter.load(config.checkpoint, config.batch_size)
    source, convention = config.source, config.convention
    if not source:
        source, convention = folder / "phantom", "phantom"
        phantom.write_phantoms(source, config.phantom.num_subjects, config.phantom.seed)
    dataset = builder.build(source, convention, config.data_dir or folder / "slices")
    setting = Setting(inpainter, dataset, source, convention, folder / "samples", config.seed)
    head = report.header(setting, dataset, convention)
    common = {
        "checkpoint": inpainter.checkpoint,
        "dataset": {split: setting.fingerprint(split) for split in ("train", "test")},
        "seed": config.seed,
    }
    for name in config.parts or PARTS:
        settings = config[name]
        request = json.loads(json.dumps({**common, "settings": settings.to_dict()}))
        if is_done(folder / name / _RESULT, request):
            print(f"{name}: is there")
        else:
            print(f"\n== {name}", flush=True)
            start = time.perf_counter()
            with new_folder(folder / name) as target:
                result = PARTS[name].run(setting, settings, target)
                seconds = time.perf_counter() - start
                part = {"seconds": seconds, "machine": report.machine(), "result": result}
                write_json(target / _RESULT, {"request": request, **part})
            print(f"== {name}: {seconds:.0f} s", flush=True)
        # After each part, so that a run that is stopped leaves a report of what it has.
        _write_report(folder, head, common)
    print(f"\n{folder / 'report.md'}")


def _write_report(folder: Path, head: dict[str, Any], common: dict[str, Any]) -> None:
    """The report of all parts that are there, asked for now or before."""
    common = json.loads(json.dumps(common))
    there = [name for name in PARTS if is_done(folder / name / _RESULT, common)]
    parts = {name: json.loads((folder / name / _RESULT).read_text()) for name in there}
    text = "\n\n".join(PARTS[name].tables(part["result"]).strip() for name, part in parts.items())
    report.write(folder, head, parts, text)

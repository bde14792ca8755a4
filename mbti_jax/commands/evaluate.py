"""Command `evaluate`: measures a model in parts, one after the other, and writes one report."""

import dataclasses
import functools
import json
import logging
import time
from pathlib import Path
from typing import Any, Protocol

import jax
from ml_collections import ConfigDict

from mbti_jax.commands.settings import from_config
from mbti_jax.engine.pieces import holding, run_pieces
from mbti_jax.engine.settings import EngineSettings
from mbti_jax.engine.work import PieceError, Work
from mbti_jax.evaluation import (
    control,
    diversity,
    downstream,
    fidelity,
    healthy,
    labels,
    memorization,
    volumes,
)
from mbti_jax.evaluation.report import header, machine, write_report
from mbti_jax.evaluation.sweeps import GUIDANCE, STEPS, GuidanceSettings, StepsSettings
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.fields import Count, FieldError, Name
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.requests import is_done
from mbti_jax.io.files import new_folder, write_json
from tfds_brats.builder import BuiltDataset, build_or_make_phantoms
from tfds_brats.locking import only_process_in
from tfds_brats.phantom import PhantomSettings
from tfds_brats.spelling import nearest

_log = logging.getLogger(__name__)

# What a worker that was given up may take to end.
_LOCK_SECONDS = 60.0
# Of the first share of an array, which makes the dataset while the others wait.
_DATASET_SECONDS = 7200.0


class Part(Protocol):
    """What a part of the evaluation is: a module or an object with these functions."""

    def run(self, workbench: Workbench, settings: Any, folder: Path) -> dict[str, Any]:
        """Results in JSON values; `settings` are the part's own, pictures go to `folder`."""
        ...

    def tables(self, result: dict[str, Any]) -> str:
        """The section of the report in Markdown, with pictures as PART/NAME.png."""
        ...


# In the order of the report.
PARTS: dict[str, Part] = {
    "healthy": healthy,
    "volumes": volumes,
    "control": control,
    "labels": labels,
    "guidance": GUIDANCE,
    "steps": STEPS,
    "diversity": diversity,
    "fidelity": fidelity,
    "memorization": memorization,
    "downstream": downstream,
}

_RESULT = "result.json"
# Counts what results hold and how intervals are made, so that results of different kinds do not mix.
_REPORT = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings(EngineSettings):
    """Settings of the command; those of each part have its name. A piece is a share of the parts.

    Attributes:
        checkpoint: the model, see `load_model`.
        batch_size: slices sampled at once over all devices.
        seed: of everything that is drawn.
        source, convention: the cases; an empty source for phantoms made in the workdir.
        phantom: which phantoms.
        data_dir: the dataset of the cases; empty to build it in the workdir.
        parts: which parts to do; empty for all.
    """

    checkpoint: Name
    batch_size: Count
    seed: int
    source: str
    convention: str
    phantom: PhantomSettings
    data_dir: str
    parts: tuple[str, ...]
    healthy: healthy.HealthySettings
    volumes: volumes.VolumesSettings
    control: control.ControlSettings
    labels: labels.LabelsSettings
    guidance: GuidanceSettings
    steps: StepsSettings
    diversity: diversity.DiversitySettings
    fidelity: fidelity.FidelitySettings
    memorization: memorization.MemorizationSettings
    downstream: downstream.DownstreamSettings

    def __post_init__(self):
        super().__post_init__()
        # Each case of the parts "healthy" and "volumes" has a seed of its own.
        most = 2**31 - max(self.healthy.num_cases, self.volumes.num_cases)
        if self.seed > most:
            raise FieldError("seed", f"must be at most {most}, not {self.seed}")
        unknown = sorted(set(self.parts) - PARTS.keys())
        if unknown:
            way = f"choose from {', '.join(PARTS)}{nearest(unknown[0], PARTS)}"
            raise FieldError("parts", f"has unknown {', '.join(unknown)}; {way}")


def main(config: ConfigDict, workdir: str) -> None:
    """Measures `config.checkpoint` on the cases of `config.source` and writes `report.md` to `workdir`.

    Parts do not need each other, so that they can be measured at the same time by an engine. One that
    cannot be measured does not keep the others from it. A part whose result exists is not done again,
    and what was sampled for a part that was stopped is not sampled again.

    Raises:
        ValueError, OSError: config, model or cases cannot be used, or `workdir` holds the result of
            another request.
    """
    settings = from_config(EvaluateSettings, config)
    if settings.share() is None:
        with only_process_in(workdir):
            _run(settings, Path(workdir))
    else:
        # Beside others, which measure other parts.
        _run(settings, Path(workdir))


def _run(settings: EvaluateSettings, folder: Path) -> None:
    if settings.engine == "ray":
        # The GPUs are the workers'.
        jax.config.update("jax_platforms", "cpu")
    inpainter = Inpainter.load(settings.checkpoint, settings.batch_size)
    process, names = inpainter.pipeline.process, list(settings.parts or PARTS)
    if not process.is_stochastic:
        raise FieldError("checkpoint", "is a regressor; it can be given as healthy.regressor")
    if not inpainter.has_labels:
        if "labels" in settings.parts:
            raise FieldError("parts", "names labels, but the checkpoint's model has no label head")
        names = [name for name in names if name != "labels"]
    for name in names:
        try:
            getattr(settings, name).check_model(process)
        except FieldError as error:
            raise error.within(name) from error
    with holding(folder, "dataset", _DATASET_SECONDS):
        dataset = build_or_make_phantoms(
            folder, settings.phantom, settings.source, settings.convention, settings.data_dir
        )
    workbench = Workbench(inpainter, dataset, folder / "samples", settings.seed)
    head = header(workbench)
    common = {
        "checkpoint": inpainter.checkpoint,
        "dataset": {split: workbench.source(split).fingerprint for split in ("train", "test")},
        "seed": settings.seed,
        "report": _REPORT,
    }
    pieces = []
    for name in names:
        part_settings = getattr(settings, name)
        request = _plain({**common, "settings": dataclasses.asdict(part_settings)})
        if is_done(folder / name / _RESULT, request):
            _log.info(f"{name}: exists")
        else:
            pieces.append(_Piece(name, part_settings, request, folder))

    def write() -> None:
        paths = {name: folder / name / _RESULT for name in PARTS}
        # Other shares write it, too.
        with holding(folder, "report", _LOCK_SECONDS):
            done = {name: path for name, path in paths.items() if is_done(path, _plain(common))}
            parts = {name: json.loads(path.read_text()) for name, path in done.items()}
            sections = [PARTS[name].tables(part["result"]).strip() for name, part in parts.items()]
            write_report(folder, head, parts, "\n\n".join(sections))

    if settings.is_merge:
        write()
        if pieces:
            missing = ", ".join(map(str, pieces))
            raise ValueError(f"{len(pieces)} of {len(names)} parts are missing: {missing}")
        print(f"\n{folder / 'report.md'}")
        return
    share = settings.share()
    if share is not None:
        # Of all parts, whichever exist, so that every share has its own whenever it starts.
        mine = share.of(names)
        pieces = [piece for piece in pieces if piece.name in mine]
        _log.info(f"Share {share.number} of {share.count}: {', '.join(mine) or 'no part'}")
    here = settings.engine == "local"
    remote = functools.partial(_open, settings.checkpoint, settings.batch_size, dataset)
    context = (lambda: workbench) if here else functools.partial(remote, folder, settings.seed)
    work = Work(_measure, context, reported=(ValueError,), loads_model=True)
    failed = []
    write()
    for piece, result in run_pieces(work, pieces, settings, label="parts"):
        if isinstance(result, PieceError):
            failed.append(f"{piece}: {result.message}")
        # After each part, so that a run that is stopped leaves a report of the parts it finished.
        write()
    if failed:
        rest = "; the others are done" if len(failed) < len(names) else ""
        listed = "\n".join(failed)
        raise ValueError(f"{len(failed)} of {len(names)} parts could not be done{rest}:\n{listed}")
    print(f"\n{folder / 'report.md'}")


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A part to be measured.

    Attributes:
        name: of the part.
        settings: its own.
        request: what its result depends on.
        folder: of the report.
    """

    name: str
    settings: Any
    request: dict[str, Any]
    folder: Path

    def __str__(self) -> str:
        return self.name


def _open(
    checkpoint: str, batch_size: int, dataset: BuiltDataset, folder: Path, seed: int
) -> Workbench:
    """The workbench in a worker."""
    return Workbench(Inpainter.load(checkpoint, batch_size), dataset, folder / "samples", seed)


def _measure(workbench: Workbench, piece: _Piece) -> float:
    """Measures a part and writes its result; how many seconds that took."""
    name, folder = piece.name, piece.folder
    with holding(folder, name, _LOCK_SECONDS):
        if is_done(folder / name / _RESULT, piece.request):
            return 0.0
        _log.info(f"\n== {name}")
        start = time.perf_counter()
        with new_folder(folder / name) as target:
            result = PARTS[name].run(workbench, piece.settings, target)
            seconds = time.perf_counter() - start
            part = {"seconds": seconds, "machine": machine(), "result": result}
            write_json(target / _RESULT, {"request": piece.request, **part})
        _log.info(f"== {name}: {seconds:.0f} s")
    return seconds


def _plain(request: dict[str, Any]) -> dict[str, Any]:
    """As it is read back from JSON."""
    return json.loads(json.dumps(request))

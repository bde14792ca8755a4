"""How whole volumes hold together: in all planes, for healthy tissue and tumors, for several models.

Healthy regions are those of the part "healthy", filled in all sequences: by fills that go slice by
slice, by a regressor, and by models with noise that slices share by various distances along z. Tumors
are painted into the case as it is, in the place of its own. Models, estimates and kinds of noise are
compared at equal numbers of passes of the network, with differences paired by patient.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tqdm import tqdm

from mbti_jax.diffusion.processes import Process
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation import baselines, coherence, healthy_masks, metrics, report
from mbti_jax.evaluation.healthy import (
    REGRESSOR,
    Fill,
    compared,
    fill_slices,
    load_regressor,
    load_rival,
    metric_tables,
    voided_case,
)
from mbti_jax.evaluation.healthy_masks import HealthyMask
from mbti_jax.evaluation.repainted import repainted
from mbti_jax.evaluation.rivals import Painted, Rival, rivals, without_neighbors
from mbti_jax.evaluation.slices import spread
from mbti_jax.evaluation.workbench import PartSettings, Workbench
from mbti_jax.fields import Count, FieldError, Interval
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io import pictures
from mbti_jax.io.planes import planes_through
from mbti_jax.rois.regions import Rois
from mbti_jax.rois.tumors import MODES, Share, own_tumor, parse_shares
from tfds_brats.cases import Case, read_case
from tfds_brats.conventions import CaseError
from tfds_brats.slices import from_slices, to_slices

FILLS: dict[str, Fill] = {"Telea": baselines.telea, "biharmonic": baselines.biharmonic}
# Measures of `coherence` -> what they are called.
_SHOWN = {
    "step": "step",
    "step_around": "step, around",
    "coronal": "stripes, coronal",
    "sagittal": "stripes, sagittal",
    "texture": "texture",
    "seam": "seam",
    "false_brain": "false brain",
}
_NUM_PICTURES = 2
# Of a pass with guidance; a mean needs one evaluation of each sample.
_GUIDED_PASSES = 2


@dataclasses.dataclass(frozen=True)
class VolumesSettings(PartSettings):
    """Settings of the part.

    Attributes:
        num_cases: of the test split.
        num_shape_cases: of the training split, whose tumors give the shapes of healthy regions.
        passes: of the network, that a slice of a result may cost; a guided evaluation takes two.
        num_samples: of a mean, which share the passes; 1 for no means.
        z_sigma_mm: see `Sampling`; None for each model's own. The means have the first one's noise.
        tumors: ways to make ROIs of the case's own tumor, as "replace" or "random box", see `MODES`;
            empty for none.
        models: further models, trained on the same data.
        hide_neighbors: whether the model, if it sees neighbors, is also measured without seeing any.
        regressor: folder of a regression model trained on the same data; empty for none.
    """

    num_cases: Count
    num_shape_cases: Count
    passes: Annotated[tuple[Count, ...], Interval(1)]
    num_samples: Count
    z_sigma_mm: Annotated[tuple[Annotated[float, Interval(0, 1000)] | None, ...], Interval(1)]
    tumors: tuple[str, ...]
    models: tuple[str, ...]
    hide_neighbors: bool
    regressor: str

    def __post_init__(self):
        super().__post_init__()
        least = _GUIDED_PASSES * self.num_samples
        if min(self.passes) < least:
            problem = f"must be at least {least}, for {self.num_samples} samples and their guidance"
            raise FieldError("passes", f"{problem}, not {min(self.passes)}")
        self.requests()
        for name in ("passes", "z_sigma_mm", "tumors", "models"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise FieldError(name, f"must not hold anything twice, as {values} does")

    def check_model(self, process: Process) -> None:
        super().check_model(process)
        if max(self.passes) > process.num_timesteps:
            problem = f"must be at most {process.num_timesteps}, as the model's timesteps"
            raise FieldError("passes", f"{problem}, not {max(self.passes)}")

    def requests(self) -> list[Share]:
        """What `tumors` names."""
        out = []
        for text in self.tumors:
            try:
                shares = parse_shares(text)
            except ValueError as error:
                raise FieldError("tumors", f"cannot be used: {error}") from error
            share, *others = shares
            if others or MODES[share.mode].is_step:
                problem = f"must be one mode each, which paints in one go, not {text!r}"
                raise FieldError("tumors", problem)
            out.append(share)
        return out


def run(workbench: Workbench, settings: VolumesSettings, folder: Path) -> dict[str, Any]:
    """Measures all methods on cases of the test split.

    Raises:
        ValueError: a model that does not paint T1 or was trained on other data, a regressor that is
            none, or no case with a place for a healthy region.
    """
    models, regressor = _models(workbench, settings)
    painters = rivals(models, settings.passes, settings.z_sigma_mm, settings.num_samples)
    shapes = healthy_masks.read_shapes(spread(workbench.cases("train"), settings.num_shape_cases))
    known = [*models.values(), *([regressor] if regressor else [])]
    sequences = tuple(dict.fromkeys(["t1", *(name for m in known for name in m.sequences)]))
    official, healthy, tumors, left_out, subjects = [], [], [], [], []
    cells, labels, columns = [], [], []
    cases = spread(workbench.cases("test"), settings.num_cases)
    for number, files in enumerate(tqdm(cases, desc="volumes", unit="case")):
        case = read_case(files, tuple(name for name in sequences if name in files.images))
        row = {"subject": case.subject, "patient": case.patient}
        seed = workbench.seed + number
        try:
            mask = healthy_masks.case_mask(case, shapes, (workbench.seed, number))
        except CaseError as error:
            left_out.append(str(error))
        else:
            subjects.append(case.subject)
            voided = voided_case(case, mask)
            roi = to_slices(mask.healthy)
            drawn = len(subjects) <= _NUM_PICTURES and _Drawing(case, voided, mask)
            filled = _filled(workbench, voided, mask, painters, regressor, seed)
            for method, painted in filled:
                named = {**row, "method": method}
                official.append({**named, **_official(case, voided, mask, painted["t1"])})
                healthy += [{**named, **m} for m in _measures(case, painted, roi, voided)]
                if drawn:
                    drawn.add(method, painted["t1"])
            if drawn:
                cells += drawn.rows()
                labels += [f"{case.subject} {plane.title}" for plane in drawn.planes]
                columns = list(drawn.columns)
        for share in settings.requests():
            try:
                rois = _tumor_rois(case, share, (workbench.seed, number))
            except ValueError as error:
                left_out.append(f"{case.subject}, {share.name}: {error}")
                continue
            for rival in painters:
                if rival.sampling.is_mean or rival.num_samples > 1:
                    continue  # Of tumors the mean of different ones says nothing.
                painted = rival.paint(workbench, case, rois, seed)
                named = {**row, "method": rival.name, "request": share.name}
                found = _measures(case, painted, rois.union, case)
                tumors += [{**named, **measured} for measured in found]
    if not official:
        raise ValueError(f"no test case has a place for a mask: {'; '.join(left_out[:3])}")
    title = "Healthy tissue, T1: the planes in which the region is largest"
    pictures.figure(folder / "planes.png", cells, rows=labels, columns=columns, title=title)
    first = [rival.name for rival in painters if rival.model == painters[0].model]
    return {
        "num_cases": len(subjects),
        "left_out": left_out,
        "num_shapes": len(shapes),
        "around_mm": coherence.AROUND_MM,
        "methods": list(dict.fromkeys(row["method"] for row in official)),
        "rivals": [rival.record() for rival in painters],
        "official_3d": compared(official, first, workbench.seed),
        "healthy": _by("sequence", healthy, first, workbench.seed),
        "tumors": {
            request: _by("sequence", list(rows), first, workbench.seed)
            for request, rows in itertools.groupby(
                sorted(tumors, key=lambda row: row["request"]), lambda row: row["request"]
            )
        },
        "values": {"official_3d": official, "healthy": healthy, "tumors": tumors},
    }


def tables(result: Mapping[str, Any]) -> str:
    """The part's section of the report, in Markdown."""
    first, several = result["rivals"][0], len({r["model"] for r in result["rivals"]}) > 1
    columns = ["method", "sampler", "steps", "samples", "noise along, mm", "passes"]
    fields = ("name", "sampler", "num_steps", "num_samples", "z_sigma_mm", "network_passes")
    costs = [[rival[field] for field in fields] for rival in result["rivals"]]
    shown = ["sequence", "method", *_SHOWN.values()]
    rows = list(_rows(result["healthy"]))
    painted = [
        [request, *row] for request, found in result["tumors"].items() for row in _rows(found)
    ]
    return report.section(
        "volumes",
        result=result,
        left_out="".join(f" Left out: {problem}." for problem in result["left_out"]),
        costs=report.table(columns, costs, num_text=2),
        official=metric_tables(result["official_3d"], [first["name"]]),
        healthy=report.table(shown, rows, num_text=2),
        tumors=report.table(["request", *shown], painted, num_text=3)
        if painted
        else "No tumor was painted.",
        models=_models_table(result) if several else "One model was measured.",
    )


def _models_table(result: Mapping[str, Any]) -> str:
    """Every further model's difference from the first one at the same setting."""
    first = result["rivals"][0]["model"]
    counterparts = {r["setting"]: r["name"] for r in result["rivals"] if r["model"] == first}
    groups = [("t1", result["official_3d"], ("ssim", "psnr", "mse"))]
    groups += [(f"{name}, healthy", found, _SHOWN) for name, found in result["healthy"].items()]
    for request, by_sequence in result["tumors"].items():
        groups += [(f"{name}, {request}", f, _SHOWN) for name, f in by_sequence.items()]
    rows = []
    for where, found, measures in groups:
        for rival, measure in itertools.product(result["rivals"], measures):
            other = counterparts.get(rival["setting"])
            minus = found[measure].get(rival["name"], {}).get("minus", {})
            if rival["model"] != first and other in minus:
                rows.append([rival["name"], where, measure, minus[other]])
    return report.table(
        ["method", "of", "measure", f"minus {first}, same setting"], rows, num_text=3, digits=3
    )


def _rows(by_sequence: Mapping[str, Mapping[str, Any]]) -> Iterator[list[Any]]:
    for sequence, found in by_sequence.items():
        methods = dict.fromkeys(method for of_method in found.values() for method in of_method)
        for method in methods:
            yield [sequence, method, *(found[measure].get(method) for measure in _SHOWN)]


def _models(
    workbench: Workbench, settings: VolumesSettings
) -> tuple[dict[str, Inpainter], Inpainter | None]:
    """The models by name, the workbench's first; and the regressor."""
    names = [Path(path).name for path in settings.models]
    own = workbench.inpainter.checkpoint["name"]
    if len({own, *names}) <= len(names):
        names = list(settings.models)
    models = {own: workbench.inpainter}
    if settings.hide_neighbors and workbench.inpainter.neighbors:
        models[f"{own}, neighbors hidden"] = without_neighbors(workbench.inpainter)
    for name, path in zip(names, settings.models, strict=True):
        models[name] = load_rival(path, workbench.inpainter)
        if not models[name].pipeline.process.is_stochastic:
            raise ValueError(f"{path}: is a regressor; it can be given as regressor")
    for name, inpainter in models.items():
        if "t1" not in inpainter.sequences:
            raise ValueError(f"{name} does not paint T1, which the official metrics are of")
    regressor = settings.regressor and load_regressor(settings.regressor, workbench.inpainter)
    return models, regressor or None


class _Drawing:
    """Pictures of a case, by method and plane.

    Attributes:
        planes: through the healthy region.
        columns: title -> a picture of each plane.
    """

    def __init__(self, case: Case, voided: Case, mask: HealthyMask):
        self._t1, self._roi = to_slices(case.values("t1")), to_slices(mask.whole)
        self._scale = voided.scale("t1")
        brain = to_slices(case.brain)
        self.planes = planes_through(to_slices(mask.healthy), brain, case.spacing[::-1])
        self.columns: dict[str, list[np.ndarray]] = {}
        self.add("T1", self._t1)
        self.add("voided", np.zeros(self._t1.shape))

    def add(self, title: str, values: np.ndarray) -> None:
        """A column of what was painted, [Z, H, W]."""
        after = self._scale.to_model(np.where(self._roi, values, self._t1))
        self.columns[title] = [pictures.gray(plane.of(after)) for plane in self.planes]

    def rows(self) -> list[list[np.ndarray]]:
        """A row for each plane."""
        return [list(row) for row in zip(*self.columns.values(), strict=True)]


def _filled(
    workbench: Workbench,
    voided: Case,
    mask: HealthyMask,
    painters: Sequence[Rival],
    regressor: Inpainter | None,
    seed: int,
) -> Iterator[tuple[str, Painted]]:
    """What each method makes of a voided case."""
    numbers = np.flatnonzero(mask.healthy.any((0, 1))).tolist()
    for name, fill in FILLS.items():
        yield (
            name,
            {
                s: to_slices(fill_slices(fill, voided.values(s), mask.whole, numbers))
                for s in voided.images
            },
        )
    roi = np.zeros(to_slices(mask.whole).shape, bool)
    roi[numbers] = to_slices(mask.whole)[numbers]
    rois = Rois.of({"normal": roi}, roi.shape)
    if regressor is not None:
        yield REGRESSOR, next(repainted(workbench, regressor, voided, rois, Sampling(1, seed=seed)))
    for rival in painters:
        yield rival.name, rival.paint(workbench, voided, rois, seed)


def _tumor_rois(case: Case, share: Share, seed: tuple[int, int]) -> Rois:
    labels, brain = to_slices(case.segmentation), to_slices(case.brain)
    box = MODES[share.mode].kinds if share.box else ()
    return own_tumor(labels, brain, share.mode, box, seed, spacing=case.spacing[::-1])


def _official(case: Case, voided: Case, mask: HealthyMask, painted: np.ndarray) -> dict[str, float]:
    t1 = case.values("t1")
    prediction = np.where(mask.whole, from_slices(painted), t1)
    return metrics.brats_inpainting_metrics(prediction, t1, voided.values("t1"), mask.healthy)


def _measures(
    case: Case, painted: Painted, roi: np.ndarray, scaled: Case
) -> Iterator[dict[str, Any]]:
    """`coherence.measures` of each sequence in an ROI [Z, H, W], on the scale of a case."""
    brain = to_slices(case.brain)
    for sequence, values in painted.items():
        before, scale = to_slices(case.values(sequence)), scaled.scale(sequence)
        level = scale.low + coherence.BRAIN_LEVEL * (scale.high - scale.low)
        after = np.where(roi, values, before)
        options = {"spacing": case.spacing[::-1], "level": level}
        found = coherence.measures(before, after, roi, brain, **options)
        yield {"sequence": sequence, **found}


def _by(
    key: str, rows: Sequence[Mapping[str, Any]], references: Sequence[str], seed: int
) -> dict[str, Any]:
    """`compared` for each value of a key of the rows."""
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return {value: compared(group, references, seed) for value, group in groups.items()}

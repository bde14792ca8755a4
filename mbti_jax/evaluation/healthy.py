"""Tumor-shaped regions cut out of healthy tissue, inpainted and compared with the original.

Everything is done on T1 as in BraTS's local-inpainting challenge: the case is voided inside a healthy
mask and its dilated tumor (`healthy_masks`), the methods see the voided volume only and fill both, and
the healthy mask is scored. All methods fill the same voxels.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tqdm import tqdm

from mbti_jax.diffusion.sampling import Sampling, has_mean
from mbti_jax.evaluation import (
    baselines,
    coherence,
    healthy_masks,
    metrics,
    report,
    statistics,
)
from mbti_jax.evaluation.healthy_masks import HealthyMask
from mbti_jax.evaluation.repainted import repainted
from mbti_jax.evaluation.slices import spread
from mbti_jax.evaluation.workbench import PartSettings, Workbench
from mbti_jax.fields import Count, Interval
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io import pictures
from mbti_jax.models.contract import same_data
from mbti_jax.rois.regions import Rois
from tfds_brats.cases import Case, read_case
from tfds_brats.conventions import CaseError
from tfds_brats.slices import bounding_box, from_slices, to_slices

# fill(image [H, W], roi [H, W], brain [H, W]) -> [H, W]
Fill = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

FILLS: dict[str, Fill] = {
    "surrounding mean": baselines.surrounding_mean,
    "Telea": baselines.telea,
    "biharmonic": baselines.biharmonic,
}
REGRESSOR = "U-Net regressor"
ONE_SAMPLE = "diffusion, one sample"
ONE_PASS = "diffusion, mean in one pass"
BLENDED = ", blended"
# The preset where tumors are removed.
NEAR_MEAN = "diffusion, near the mean, blended"
# A slice is scored by itself if that many pixels of brain are masked in it, or more than in any other.
_MIN_AREA = 100
_NUM_PICTURES = 4
_NOT_MEASURED = ("subject", "patient", "method", "slice", "sequence", "request")
# Metric -> its digits in the tables.
_SHOWN = {"ssim": 3, "ssim_axial": 3, "psnr": 2, "mse": 4}
# Measures of `coherence` in slices -> what they are called.
_REGION = {"texture": "texture", "seam": "seam", "false_brain": "false brain"}


@dataclasses.dataclass(frozen=True)
class HealthySettings(PartSettings):
    """Settings of the part.

    Attributes:
        num_cases: of the test split.
        num_samples: per case.
        num_steps: of the sampler.
        slices_per_case: that are also scored one by one.
        z_sigma_mm: see `Sampling`.
        num_shape_cases: of the training split, whose tumors give the shapes.
        regressor: folder of a regression model trained on the same data; empty for none.
    """

    num_cases: Count
    num_samples: Count
    num_steps: Count
    slices_per_case: Count
    z_sigma_mm: Annotated[float, Interval(0, 1000)] | None
    num_shape_cases: Count
    regressor: str

    @property
    def mean_name(self) -> str:
        """How the mean of the samples is called."""
        return f"diffusion, mean of {self.num_samples}"


def run(workbench: Workbench, settings: HealthySettings, folder: Path) -> dict[str, Any]:
    """Measures all methods on cases of the test split.

    Raises:
        ValueError: a case without T1, or none with a place for a mask; a regressor that is not one, or
            was trained on other data.
    """
    models, regressor = [workbench.inpainter], None
    if settings.regressor:
        regressor = load_regressor(settings.regressor, workbench.inpainter)
        models.append(regressor)
    donors = spread(workbench.cases("train"), settings.num_shape_cases)
    shapes = healthy_masks.read_shapes(donors)
    joint = [name for model in models if model.num_channels > 1 for name in model.sequences]
    sequences = tuple(dict.fromkeys(["t1", *joint]))
    volumes, slices, regions, labels, cells, painted = [], [], [], [], [], {}
    masks, left_out = [], []
    cases = spread(workbench.cases("test"), settings.num_cases)
    for number, case_files in enumerate(tqdm(cases, desc="healthy tissue", unit="case")):
        case = read_case(case_files, sequences)
        try:
            mask = healthy_masks.case_mask(case, shapes, (workbench.seed, number))
        except CaseError as error:
            left_out.append(str(error))
            continue
        voided, t1 = voided_case(case, mask), case.values("t1")
        counts = {"voxels": int(np.count_nonzero(mask.healthy))}
        counts["on_background"] = mask.on_background(t1 != 0)
        masks.append({"subject": case.subject, **counts})
        seed = workbench.seed + number
        painted = paint(workbench, voided, mask, settings, seed, regressor)
        area, scale = (mask.healthy & (t1 != 0)).sum((0, 1)), voided.scale("t1")
        level = scale.low + coherence.BRAIN_LEVEL * (scale.high - scale.low)
        for method, values in painted.items():
            arrays = (np.where(mask.whole, values, t1), t1, voided.values("t1"), mask.healthy)
            row = {"subject": case.subject, "patient": case.patient, "method": method}
            volumes.append({**row, **metrics.brats_inpainting_metrics(*arrays)})
            after = np.where(mask.healthy, values, t1)
            fits = map(to_slices, (t1, after, mask.healthy, t1 != 0))
            found = coherence.measures(*fits, spacing=case.spacing[::-1], level=level)
            regions.append({**row, **{name: found[name] for name in _REGION}})
            by_slice = metrics.axial_slice_metrics(*arrays)
            large = [k for k in by_slice if area[k] >= _MIN_AREA] or [int(area.argmax())]
            for k in spread(large, settings.slices_per_case):
                slices.append({**row, "slice": k, **by_slice[k]})
        if len(cells) < _NUM_PICTURES:
            labels.append(f"{case.subject}, slice {area.argmax()}")
            cells.append(_cells(case, voided, mask, painted, int(area.argmax())))
    if not masks:
        raise ValueError(f"no test case has a place for a mask: {'; '.join(left_out[:3])}")
    pictures.figure(
        folder / "slices.png",
        cells,
        rows=labels,
        columns=["T1", "voided", *painted],
        title="Healthy tissue: the slice with the largest mask",
    )
    references = [ONE_SAMPLE, settings.mean_name][: 1 + (settings.num_samples > 1)]
    return {
        "num_cases": len(masks),
        "left_out": left_out,
        "masks": masks,
        "num_slices": len(slices) // len(painted),
        "num_shapes": len(shapes),
        "methods": list(painted),
        "references": references,
        "images_seen": {
            "diffusion": _images_seen(workbench.inpainter),
            "regressor": regressor and _images_seen(regressor),
        },
        "official_3d": compared(volumes, references, workbench.seed),
        "axial_2d": compared(slices, references, workbench.seed),
        "region": compared(regions, references, workbench.seed),
        "values": {"official_3d": volumes, "axial_2d": slices, "region": regions},
    }


def load_regressor(path: str, inpainter: Inpainter) -> Inpainter:
    """A regressor that was trained on the data of a model.

    Raises:
        ValueError: it is not a regressor, or was trained on other data.
    """
    regressor = load_rival(path, inpainter)
    if regressor.pipeline.process.is_stochastic:
        raise ValueError(f"{path}: is not a regressor; train one with configs/baseline.py")
    return regressor


def load_rival(path: str, inpainter: Inpainter) -> Inpainter:
    """Another model that was trained on the data of a model.

    Raises:
        ValueError: it was trained on other data.
    """
    rival = Inpainter.load(path)
    ours, theirs = (m.metadata["contract"]["data"] for m in (inpainter, rival))
    if not same_data(ours, theirs):
        raise ValueError(f"{path}: was trained on other data than the model that is evaluated")
    return rival


def voided_case(case: Case, mask: HealthyMask) -> Case:
    """A case without the values inside the mask in any sequence, nor their part in the scale."""
    images = {name: np.where(mask.whole, 0, case.values(name)) for name in case.images}
    one, zero = dict.fromkeys(images, 1.0), dict.fromkeys(images, 0.0)
    return dataclasses.replace(case, images=images, slope=one, intercept=zero, labels=None)


def paint(
    workbench: Workbench,
    voided: Case,
    mask: HealthyMask,
    settings: HealthySettings,
    seed: int,
    regressor: Inpainter | None,
) -> dict[str, np.ndarray]:
    """What each method makes of a voided case.

    Returns:
        Method -> T1 values, float64 [X, Y, Z], meaningful inside the mask in the slices that hold
        healthy mask.
    """
    numbers = np.flatnonzero(mask.healthy.any((0, 1))).tolist()
    roi = np.zeros_like(mask.whole)
    roi[..., numbers] = mask.whole[..., numbers]
    painted = {
        name: fill_slices(fill, voided.values("t1"), mask.whole, numbers)
        for name, fill in FILLS.items()
    }
    if regressor is not None:
        sampling = Sampling(num_steps=1, seed=seed)
        painted[REGRESSOR] = next(_inpainted(workbench, regressor, voided, roi, sampling, 1))
    sampling = Sampling(settings.num_steps, seed=seed, z_sigma_mm=settings.z_sigma_mm)
    total, count = np.zeros(roi.shape), settings.num_samples
    for values in _inpainted(workbench, workbench.inpainter, voided, roi, sampling, count):
        painted.setdefault(ONE_SAMPLE, values)
        total = total + values
    if count > 1:
        painted[settings.mean_name] = total / count
    one_pass = Sampling(seed=seed, z_sigma_mm=settings.z_sigma_mm, estimate="mean", mean_passes=1)
    further = {ONE_SAMPLE + BLENDED: dataclasses.replace(sampling, blend=True)}
    # A model tuned for few steps has no mean in one pass.
    if has_mean(workbench.inpainter.pipeline.process):
        further |= {
            ONE_PASS: one_pass,
            ONE_PASS + BLENDED: dataclasses.replace(one_pass, blend=True),
        }
        if settings.num_steps > 1:
            near = dataclasses.replace(sampling, estimate="near_mean", blend=True)
            further[NEAR_MEAN] = near
    for name, drawn in further.items():
        painted[name] = next(_inpainted(workbench, workbench.inpainter, voided, roi, drawn, 1))
    return painted


def fill_slices(
    fill: Fill, values: np.ndarray, roi: np.ndarray, numbers: Sequence[int]
) -> np.ndarray:
    """Fills axial slices one by one.

    Args:
        values: [X, Y, Z], 0 in the background and inside the ROI.
        roi: bool [X, Y, Z].
        numbers: of the slices to fill.

    Returns:
        float64 [X, Y, Z], 0 in other slices, and where a slice has no brain to go by.
    """
    out = np.zeros(values.shape)
    for k in numbers:
        image, inside = values[..., k].astype(np.float32), roi[..., k]
        brain = (image != 0) & ~inside
        if brain.any():
            out[..., k] = fill(image, inside, brain)
    return out


def compared(
    rows: Sequence[Mapping[str, Any]], references: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """Summaries of every method and metric, and their differences from the references.

    Args:
        rows: `subject`, `patient` (default: the subject), `method` and, by name, numbers, or None where
            there is none; all methods in the same order of subjects.
        references: names of methods.
        seed: of the intervals.

    Returns:
        Metric -> method -> `mean`, `median`, `sd`, `count`, `low`, `high`, and `minus`: reference ->
        `mean`, `low`, `high` of the paired difference method - reference. Methods without any number
        are left out.
    """
    of_method = collections.defaultdict(list)
    for row in rows:
        of_method[row["method"]].append(row)
    first = of_method[rows[0]["method"]]
    patients = np.array([row.get("patient", row["subject"]) for row in first])
    out: dict[str, dict[str, Any]] = {}
    for metric in (name for name in rows[0] if name not in _NOT_MEASURED):
        values = {m: np.array([row[metric] for row in of_method[m]], float) for m in of_method}
        values = {m: mine for m, mine in values.items() if not np.isnan(mine).all()}
        out[metric] = {
            method: {
                **statistics.summary(mine[~np.isnan(mine)]),
                **(statistics.mean_with_interval(mine, patients, seed) or {}),
                "minus": {
                    name: statistics.paired_difference(*pairs, seed)
                    for name in references
                    if name != method and name in values
                    if (pairs := _pairs(mine, values[name], patients))
                },
            }
            for method, mine in values.items()
        }
    return out


def _pairs(
    a: np.ndarray, b: np.ndarray, patients: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The numbers that both have, and their patients; None without any."""
    both = ~(np.isnan(a) | np.isnan(b))
    return (a[both], b[both], patients[both]) if both.any() else None


def tables(result: Mapping[str, Any]) -> str:
    """The part's section of the report, in Markdown."""
    seen = result["images_seen"]
    if None not in seen.values():
        about = (
            f"The regressor is the same U-Net without time; it was trained on {seen['regressor']:,} "
            f"images, all with ROIs of healthy tissue, the diffusion model on {seen['diffusion']:,}, "
            "some of them with ROIs of tumor."
        )
    elif REGRESSOR in result["methods"]:
        about = "The regressor is the same U-Net without time."
    else:
        about = "**No regressor was given**, so the table lacks the plain U-Net."
    share = sum(m["on_background"] for m in result["masks"]) / sum(
        m["voxels"] for m in result["masks"]
    )
    left_out = "".join(f" Left out: {problem}." for problem in result["left_out"])
    return report.section(
        "healthy",
        about=about,
        on_background=share,
        left_out=left_out,
        result=result,
        official=metric_tables(result["official_3d"], result["references"]),
        axial=metric_tables(result["axial_2d"], result["references"]),
        region=_region_table(result["region"], result["methods"]),
    )


def metric_tables(results: Mapping[str, Any], references: Sequence[str]) -> str:
    """A table for each metric of `compared`, with the differences from the references."""
    out, minus = [], [f"minus {reference}" for reference in references]
    for metric, digits in _SHOWN.items():
        rows = []
        for method, numbers in results.get(metric, {}).items():
            differences = [numbers["minus"].get(name) for name in references]
            middle = [statistics.cell(numbers[name], digits) for name in ("median", "sd")]
            rows.append([method, numbers, *middle, *differences])
        if rows:
            columns = [f"`{metric}`", "mean", "median", "SD", *minus]
            out.append(report.table(columns, rows, digits=digits))
    return "\n\n".join(out)


def _region_table(results: Mapping[str, Any], methods: Sequence[str]) -> str:
    rows = [[method, *(results[name].get(method) for name in _REGION)] for method in methods]
    return report.table(["T1", *_REGION.values()], rows)


def _inpainted(
    workbench: Workbench,
    inpainter: Inpainter,
    voided: Case,
    roi: np.ndarray,
    sampling: Sampling,
    num_samples: int,
) -> Iterator[np.ndarray]:
    """T1 of each sample, float64 [X, Y, Z]."""
    rois = Rois.of({"normal": to_slices(roi)}, to_slices(roi).shape)
    sequences = () if inpainter.num_channels > 1 else ("t1",)
    options = {"num_samples": num_samples, "sequences": sequences}
    for values in repainted(workbench, inpainter, voided, rois, sampling, **options):
        yield from_slices(values["t1"])


def _cells(
    case: Case, voided: Case, mask: HealthyMask, painted: Mapping[str, np.ndarray], k: int
) -> list[np.ndarray]:
    """Pictures of slice `k`, cut to the brain: original, voided and painted."""
    t1, scale = case.values("t1"), voided.scale("t1")
    y0, x0, y1, x1 = bounding_box(to_slices((t1 != 0) | mask.healthy)[k])
    filled = (np.where(mask.whole, values, t1) for values in painted.values())
    cut = [to_slices(v)[k, y0:y1, x0:x1] for v in (t1, voided.values("t1"), *filled)]
    return [pictures.gray(scale.to_model(values)) for values in cut]


def _images_seen(inpainter: Inpainter) -> int | None:
    """Of all runs; None if there was one before the last, of which nothing is known."""
    contract = inpainter.metadata["contract"]
    started = "started_from" in contract
    return None if started else report.images_seen(contract, inpainter.checkpoint["step"])

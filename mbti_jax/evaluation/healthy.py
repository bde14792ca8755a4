"""Part "healthy": tumour-shaped regions cut out of healthy tissue, inpainted, against what was there.

Everything is done on T1 as in BraTS's local-inpainting challenge: the case is voided inside a healthy
mask and its dilated tumour (`healthy_masks`), the methods see the voided volume only and fill both, and
the healthy mask is judged. All methods fill the same voxels.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from mbti_jax.diffusion.regression import Regression
from mbti_jax.evaluation import baselines
from mbti_jax.evaluation.healthy_masks import HealthyMask, healthy_mask, read_shapes
from mbti_jax.evaluation.metrics import axial_slice_metrics, brats_inpainting_metrics
from mbti_jax.evaluation.report import images_seen, table
from mbti_jax.evaluation.setting import Setting
from mbti_jax.evaluation.statistics import (
    bootstrap_interval,
    interval_text,
    paired_difference,
    summary,
)
from mbti_jax.inference.continuity import inpaint_case, sequences_to_paint
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.provenance import digest
from mbti_jax.io import pictures
from mbti_jax.io.files import file_digest, replacing
from mbti_jax.rois.kinds import CHANNELS
from mbti_jax.rois.regions import box_flags
from tfds_brats.cases import Case, read_case
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
# A slice is judged by itself if that many pixels of brain are masked in it, or more than in any other.
_LEAST_AREA = 100
_NUM_PICTURES = 4
# Metric -> its digits in the tables.
_SHOWN = {"ssim": 3, "ssim_axial": 3, "psnr": 2, "mse": 4}


def run(setting: Setting, settings: ConfigDict, folder: Path) -> dict[str, Any]:
    """Measures all methods on cases of the test split; the settings are those of `configs/evaluate.py`.

    Raises:
        ValueError: a case without T1 or without a place for a mask; a regressor that is none, or was
            trained on other data.
    """
    shapes = read_shapes(_spread(setting.cases("train"), settings.num_shape_cases))
    regressor = None
    if settings.regressor:
        regressor = load_regressor(settings.regressor, setting.inpainter)
    models = [model for model in (setting.inpainter, regressor) if model is not None]
    together = [name for m in models if m.num_channels > 1 for name in m.sequences]
    sequences = tuple(dict.fromkeys(["t1", *together]))
    volumes, slices, shown = [], [], []
    files_of_cases = _spread(setting.cases("test"), settings.num_cases)
    for number, files in enumerate(tqdm(files_of_cases, desc="healthy tissue", unit="case")):
        case = read_case(files, sequences)
        # As in the challenge, the brain is that of T1.
        brain = case.values("t1") != 0
        try:
            mask = healthy_mask(case.labels, brain, shapes, (setting.seed, number))
        except ValueError as error:
            raise ValueError(f"{files.subject}: {error}") from error
        voided = voided_case(case, mask)
        seed = setting.seed + number
        painted = paint(setting, voided, mask, settings, seed, regressor)
        t1, t1_voided = case.values("t1"), voided.values("t1")
        for method, values in painted.items():
            arrays = (np.where(mask.whole, values, t1), t1, t1_voided, mask.healthy)
            row = {"subject": files.subject, "method": method}
            volumes.append({**row, **brats_inpainting_metrics(*arrays)})
            by_slice = axial_slice_metrics(*arrays)
            area = (mask.healthy & brain).sum((0, 1))
            judged = [k for k in by_slice if area[k] >= _LEAST_AREA] or [int(area.argmax())]
            for k in _spread(judged, settings.slices_per_case):
                slices.append({**row, "slice": k, **by_slice[k]})
        if len(shown) < _NUM_PICTURES:
            shown.append(_picture_row(case, voided, mask, painted))
    pictures.figure(
        folder / "slices.png",
        [cells for _, cells in shown],
        rows=[label for label, _ in shown],
        columns=["T1", "voided", *painted],
        title="Healthy tissue: the slice with the largest mask",
    )
    references = [ONE_SAMPLE, _mean_name(settings.num_samples)][: 1 + (settings.num_samples > 1)]
    contract = setting.inpainter.metadata["contract"]
    return {
        "num_cases": len(files_of_cases),
        "num_slices": len(slices) // len(painted),
        "num_shapes": len(shapes),
        "methods": list(painted),
        "references": references,
        "images_seen": {
            "diffusion": images_seen(contract, setting.inpainter.checkpoint["step"]),
            "regressor": regressor
            and images_seen(regressor.metadata["contract"], regressor.checkpoint["step"]),
        },
        "official_3d": compared(volumes, references, setting.seed),
        "axial_2d": compared(slices, references, setting.seed),
        "values": {"official_3d": volumes, "axial_2d": slices},
    }


def load_regressor(path: str, inpainter: Inpainter) -> Inpainter:
    """A regressor that was trained on the data of a model.

    Raises:
        ValueError: it is none, or of other data.
    """
    regressor = Inpainter.load(path)
    if not isinstance(regressor.pipeline.process, Regression):
        raise ValueError(f"{path}: is no regressor; train one with configs/baseline.py")
    ours, theirs = (m.metadata["contract"]["data"] for m in (inpainter, regressor))
    if ours["fingerprint"] != theirs["fingerprint"]:
        raise ValueError(f"{path}: was trained on other data than the model that is evaluated")
    return regressor


def voided_case(case: Case, mask: HealthyMask) -> Case:
    """A case of which nothing inside the mask is left, in any sequence: neither values nor scale."""
    images = {name: np.where(mask.whole, 0, case.values(name)) for name in case.images}
    one, zero = dict.fromkeys(images, 1.0), dict.fromkeys(images, 0.0)
    return dataclasses.replace(case, images=images, slope=one, intercept=zero, labels=None)


def paint(
    setting: Setting,
    voided: Case,
    mask: HealthyMask,
    settings: ConfigDict,
    seed: int,
    regressor: Inpainter | None,
) -> dict[str, np.ndarray]:
    """What each method makes of a voided case.

    Returns:
        Pipeline -> T1 values, float64 [X, Y, Z], meaningful inside the mask in the slices that hold
        healthy mask.
    """
    numbers = np.flatnonzero(mask.healthy.any((0, 1)))
    painted = {
        name: fill_slices(fill, voided.values("t1"), mask.whole, numbers)
        for name, fill in FILLS.items()
    }
    if regressor is not None:
        painted[REGRESSOR] = _inpainted(
            setting, regressor, voided, mask, numbers, 0, {"seed": seed, "num_steps": 1}
        )
    sampling = {"seed": seed, "num_steps": settings.num_steps, "z_sigma_mm": settings.z_sigma_mm}
    total = 0.0
    for sample in range(settings.num_samples):
        values = _inpainted(setting, setting.inpainter, voided, mask, numbers, sample, sampling)
        painted.setdefault(ONE_SAMPLE, values)
        total = total + values
    if settings.num_samples > 1:
        painted[_mean_name(settings.num_samples)] = total / settings.num_samples
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
    """Summaries of every method and metric, and what they differ from the references.

    Args:
        rows: `subject`, `method` and, by name, numbers; all methods in the same order of subjects.
        references: names of methods.
        seed: of the intervals.

    Returns:
        Metric -> method -> `mean`, `median`, `sd`, `count`, `low`, `high`, and `minus`: reference ->
        `mean`, `low`, `high` of the paired difference method - reference.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    metrics = [name for name in rows[0] if name not in ("subject", "method", "slice")]
    of_method = {m: [row for row in rows if row["method"] == m] for m in methods}
    subjects = np.array([row["subject"] for row in of_method[methods[0]]])
    out = {}
    for metric in metrics:
        values = {m: np.array([row[metric] for row in of_method[m]]) for m in methods}
        out[metric] = {}
        for method in methods:
            low, high = bootstrap_interval(values[method], subjects, seed)
            out[metric][method] = {
                **summary(values[method]),
                **{"low": low, "high": high},
                "minus": {
                    reference: paired_difference(values[method], values[reference], subjects, seed)
                    for reference in references
                    if reference != method
                },
            }
    return out


def tables(result: Mapping[str, Any]) -> str:
    """The part's section of the report, in Markdown."""
    seen = result["images_seen"]
    if seen["regressor"] is not None:
        about = (
            f"The regressor is the same U-Net without time; it was trained on {seen['regressor']:,} "
            f"images, all with ROIs of healthy tissue, the diffusion model on {seen['diffusion']:,}, "
            "of which a part had ROIs of tumour."
        )
    elif REGRESSOR in result["methods"]:
        about = "The regressor is the same U-Net without time."
    else:
        about = "**No regressor was given**, so the table lacks the plain U-Net."
    cases, slices = result["num_cases"], result["num_slices"]
    return f"""## Healthy tissue

Regions shaped like tumour components ({result["num_shapes"]} shapes of the training split) are cut out
of healthy T1 tissue of {cases} test cases, at least 5 voxels from the dilated tumour, and filled by
every method from the voided volume alone. {about} Differences are paired, the row's method minus the
column's. SSIM and PSNR (dB): higher is better; MSE: lower is better.

### Official metrics of BraTS local inpainting (3-D volumes)

One number a case, {cases} in all. SSIM windows lie in sagittal planes.

{_metric_tables(result["official_3d"], result["references"])}

### 2-D variant with axial windows, slice by slice (not comparable with the official numbers)

One number a slice, {slices} slices of the same volumes. `ssim_axial` has its windows in the plane that
the model paints.

{_metric_tables(result["axial_2d"], result["references"])}

![Slices](healthy/slices.png)

What this does not show: squared error and SSIM reward the average of all that could be there, which a
regressor or a mean of samples is and a single sharp sample is not; neither tells how real a sample
looks. Other sequences than T1 are not judged here."""


def _metric_tables(results: Mapping[str, Any], references: Sequence[str]) -> str:
    out = []
    for metric in (name for name in _SHOWN if name in results):
        digits = _SHOWN[metric]
        rows = []
        for method, numbers in results[metric].items():
            differences = [
                interval_text(**numbers["minus"][reference], digits=digits)
                if reference in numbers["minus"]
                else "-"
                for reference in references
            ]
            sd = "-" if numbers["sd"] is None else f"{numbers['sd']:.{digits}f}"
            mean = interval_text(numbers["mean"], numbers["low"], numbers["high"], digits)
            rows.append([method, mean, f"{numbers['median']:.{digits}f}", sd, *differences])
        minus = [f"minus {reference}" for reference in references]
        out.append(table([f"`{metric}`", "mean", "median", "SD", *minus], rows))
    return "\n\n".join(out)


def _inpainted(
    setting: Setting,
    inpainter: Inpainter,
    voided: Case,
    mask: HealthyMask,
    numbers: np.ndarray,
    sample: int,
    sampling: Mapping[str, Any],
) -> np.ndarray:
    """T1 of one sample, float64 [X, Y, Z]; what was sampled before is read from the setting's folder."""
    sequences = sequences_to_paint(inpainter, voided, () if inpainter.num_channels > 1 else ("t1",))
    sampling = {**sampling, "guidance_weight": inpainter.default_guidance_weight}
    request = {
        "weights": inpainter.checkpoint["weights_sha256"],
        "subject": voided.subject,
        "inputs": [file_digest(voided.files.images[name]) for name in sequences],
        "mask": hashlib.sha256(np.packbits(mask.whole).tobytes()).hexdigest(),
        "sample": sample,
        **sampling,
    }
    path = setting.folder / f"healthy-{digest(request)[:32]}.npy"
    roi = np.zeros_like(mask.whole)
    roi[..., numbers] = mask.whole[..., numbers]
    out = np.zeros(roi.shape)
    if not path.is_file():
        masks = np.zeros((*to_slices(roi).shape, len(CHANNELS)), bool)
        masks[..., CHANNELS.index("normal")] = to_slices(roi)
        name = f"{voided.subject}, sample {sample}"
        with tqdm(total=100, desc=name, unit="%", leave=False) as bar:
            result = inpaint_case(
                *(inpainter, voided, masks, box_flags(()), sequences),
                sample=sample,
                progress=lambda done, total: bar.update(100 * done // total - bar.n),
                **sampling,
            )
        with replacing(path) as beside:
            np.save(beside, from_slices(result.values["t1"])[roi].astype(np.float32))
    # Read in either case, so that both give the same numbers.
    out[roi] = np.load(path)
    return out


def _picture_row(
    case: Case, voided: Case, mask: HealthyMask, painted: Mapping[str, np.ndarray]
) -> tuple[str, list[np.ndarray]]:
    """Label and cells, cut to the brain, of the slice with most masked brain."""
    t1, scale = case.values("t1"), voided.scale("t1")
    k = int((mask.healthy & (t1 != 0)).sum((0, 1)).argmax())
    y0, x0, y1, x1 = bounding_box(to_slices((t1 != 0) | mask.healthy)[k])
    whole = mask.whole
    volumes = [t1, voided.values("t1"), *(np.where(whole, v, t1) for v in painted.values())]
    cells = [
        pictures.gray(scale.to_model(to_slices(volume)[k, y0:y1, x0:x1])) for volume in volumes
    ]
    return f"{case.subject}, slice {k}", cells


def _mean_name(num_samples: int) -> str:
    return f"diffusion, mean of {num_samples}"


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, spread evenly over them."""
    numbers = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[number] for number in numbers]

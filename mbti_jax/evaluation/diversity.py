"""How much samples of the same request differ, and whether that matches the real uncertainty.

A model that always paints the same shows only one of the ways in which the tissue could look. Samples
should differ from each other as the real image differs from them. If the truth could be one more sample
of an ensemble of R, variance over the samples and squared error of their mean satisfy in expectation

    E (truth - mean)^2 = (R + 1) / R * E variance            (Fortin et al. 2014)

so the ratio sqrt((R + 1) / R * variance) / error is 1 for samples that differ as they should, below 1
for samples that are too alike, above 1 for samples that are too different.
"""

import collections
import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from skimage.metrics import structural_similarity

from mbti_jax.evaluation import report, resynthesis
from mbti_jax.evaluation.resynthesis import Resynthesis
from mbti_jax.evaluation.statistics import cell, mean_with_interval
from mbti_jax.evaluation.workbench import PartSettings, Workbench
from mbti_jax.fields import Count, Interval
from mbti_jax.io import pictures
from mbti_jax.io.quantize import standard_deviation
from tfds_brats.slices import bounding_box

# The nominal range [-1, 1]. A range taken from the images would make slices incomparable.
_DATA_RANGE = 2.0
# Twice the reach of SSIM's window of 11 x 11 pixels: the cut-out holds a window, wherever it is.
_MARGIN = 10
# The picture of standard deviations is white from here on.
_WHITE_SD = 0.5
_SHOWN_SAMPLES = 8


@dataclasses.dataclass(frozen=True)
class DiversitySettings(PartSettings):
    """Settings of the part.

    Attributes:
        num_slices: per task.
        num_samples: per slice; one has nothing to differ from.
        num_steps: of the sampler.
        min_brain_area: of a slice without tumor, in the dataset's pixels.
    """

    num_slices: Count
    num_samples: Annotated[int, Interval(2)]
    num_steps: Count
    min_brain_area: Count


def run(workbench: Workbench, settings: DiversitySettings, folder: Path) -> dict[str, Any]:
    """Measures and draws every task, free-form and box."""
    tasks = []
    for kind, box in itertools.product(resynthesis.KINDS, (False, True)):
        repainted = resynthesis.resynthesize(workbench, kind, box, **dataclasses.asdict(settings))
        title = resynthesis.title(kind, box)
        picture = f"{kind}_{'box' if box else 'free_form'}.png"
        _draw(folder / picture, repainted, workbench.sequences, title)
        sequences = measure(repainted, workbench.sequences, workbench.seed)
        tasks.append({"task": title, **repainted.sizes, "picture": picture, "sequences": sequences})
    return {**workbench.record(settings.num_steps), "tasks": tasks}


def measure(repainted: Resynthesis, sequences: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Diversity in every sequence.

    Args:
        repainted: with at least two samples per slice.
        sequences: names of the channels.
        seed: of the intervals' resampling.

    Returns:
        For each sequence `ssim` (mean over the pairs of samples), `ssim_real` (mean over the samples,
        with the real slice), `sd` (mean over the ROI), see `mean_with_interval`, and `spread_to_error`,
        the ratio of the module's docstring over all slices, None where the error is 0.

    Raises:
        ValueError: fewer than two samples.
    """
    samples, patients = repainted.samples, repainted.slices.patients
    if len(samples) < 2:
        raise ValueError("diversity needs at least two samples of a slice; set num_samples")
    out = {}
    for channel, sequence in enumerate(sequences):
        drawn, real = samples[..., channel], repainted.slices.images[..., channel]
        values = collections.defaultdict(list)
        for n, inside in enumerate(repainted.roi):
            of_slice = drawn[:, n]
            values["ssim"].append(pairwise_ssim(of_slice, inside))
            values["ssim_real"].append(np.mean([ssim(x, real[n], inside) for x in of_slice]))
            values["sd"].append(standard_deviation(of_slice, inside)[inside].mean())
            values["errors"].append(variance_and_error(of_slice, real[n], inside))
        variance, error = np.mean(values.pop("errors"), axis=0)
        out[sequence] = {
            name: mean_with_interval(np.array(column, np.float64), patients, seed)
            for name, column in values.items()
        }
        spread = (len(samples) + 1) / len(samples) * variance
        out[sequence]["spread_to_error"] = float(np.sqrt(spread / error)) if error else None
    return out


def ssim(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> float:
    """Mean structural similarity (Wang et al. 2004) inside a region of two slices.

    scikit-image's, with Gaussian windows of 11 x 11 pixels in the slice's plane and the fixed data range
    2 of the model's units. `metrics.ssim_map` takes the range from the images, so that its values for
    pairs of samples could not be averaged. Windows at the region's border see the context around it.

    Args:
        a, b: float [H, W], nominal range [-1, 1]; at least 11 pixels high and wide.
        inside: bool [H, W], not empty.
    """
    y0, x0, y1, x1 = bounding_box(inside)
    # No window of the region's pixels reaches further, so the rest need not be computed.
    cut = np.s_[max(y0 - _MARGIN, 0) : y1 + _MARGIN, max(x0 - _MARGIN, 0) : x1 + _MARGIN]
    similarity = structural_similarity(
        a[cut].astype(np.float64),
        b[cut].astype(np.float64),
        data_range=_DATA_RANGE,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return float(similarity[1][inside[cut]].mean())


def pairwise_ssim(samples: np.ndarray, inside: np.ndarray) -> float:
    """Mean of `ssim` over all pairs of samples [R, H, W]."""
    return float(np.mean([ssim(a, b, inside) for a, b in itertools.combinations(samples, 2)]))


def variance_and_error(
    samples: np.ndarray, real: np.ndarray, inside: np.ndarray
) -> tuple[float, float]:
    """Means over a region.

    Args:
        samples: float [R, H, W].
        real: float [H, W].
        inside: bool [H, W].

    Returns:
        (variance over the samples with R - 1 in the denominator, squared error of their mean).
    """
    values = samples[:, inside].astype(np.float64)
    error = real[inside] - values.mean(0)
    return float(values.var(0, ddof=1).mean()), float(np.square(error).mean())


def tables(result: Mapping[str, Any]) -> str:
    """The part's section of the report, in Markdown."""
    rows, links = [], []
    for task in result["tasks"]:
        size = f"{task['num_slices']} ({task['num_subjects']})"
        for sequence, scores in task["sequences"].items():
            means = [scores[name] for name in ("ssim", "ssim_real", "sd")]
            spread = cell(scores["spread_to_error"], digits=2)
            rows.append([task["task"], size, sequence, *means, spread])
        links.append(f"![Samples for {task['task']}](diversity/{task['picture']})")
    columns = ["task", "slices (subjects)", "sequence", "SSIM of pairs", "SSIM with real"]
    columns += ["SD", "spread / error"]
    return report.section(
        "diversity",
        result=result,
        table=report.table(columns, rows, num_text=3, digits=3),
        pictures="\n".join(links),
    )


def _draw(path: Path, repainted: Resynthesis, sequences: tuple[str, ...], title: str) -> None:
    """The slice with the largest ROI: original, samples and their standard deviation, by sequence."""
    n = int(repainted.roi.sum((1, 2)).argmax())
    inside, image, samples = repainted.roi[n], repainted.slices.images[n], repainted.samples[:, n]
    masks, window = pictures.enlarge(repainted.condition.roi_masks[n]), pictures.around(inside)
    shown, cells = min(len(samples), _SHOWN_SAMPLES), []
    for channel in range(len(sequences)):
        whole = pictures.enlarge(pictures.gray(image[..., channel]))
        spread = standard_deviation(samples[..., channel], inside)
        cut = [x[window][..., channel] for x in (image, *samples[:shown])]
        marked = pictures.with_rois(whole, masks, fill=0.0)
        deviation = pictures.gray(spread[window], 0.0, _WHITE_SD)
        cells.append([marked, *map(pictures.gray, cut), deviation])
    pictures.figure(
        path,
        cells,
        rows=[name.upper() for name in sequences],
        columns=["real, ROIs", "real", *(f"sample {i + 1}" for i in range(shown)), "SD"],
        title=title,
        footnote=f"synthetic inside the ROIs; SD: black 0, white {_WHITE_SD:g} and above",
    )

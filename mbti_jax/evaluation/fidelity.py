"""Whether repainted tissue is distributed like real tissue: in a segmenter's features, in intensities.

Both are compared with the same distance between real patients, since no set of samples can be expected
to be nearer to real tissue than real tissue of other patients is.
"""

import collections
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.stats import wasserstein_distance

from mbti_jax.evaluation import distances, report, resynthesis, segmenter
from mbti_jax.evaluation.baselines import surrounding_mean
from mbti_jax.evaluation.resynthesis import Resynthesis
from mbti_jax.evaluation.statistics import mean_over_pairs, mean_with_interval
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.fields import Count
from mbti_jax.io.files import replacing
from mbti_jax.rois.kinds import CHANNELS, COMPONENTS

# A covariance of D features has full rank from D + 1 vectors on; twice as many keep the
# distance from being mostly bias.
VECTORS_PER_FEATURE = 2
# Fewer pixels of a subject make no distribution.
_MIN_PIXELS = 50
# Each subject is compared with so many others at most, so that large test sets do not take hours.
_MAX_PARTNERS = 8
_BINS = 60


@dataclasses.dataclass(frozen=True)
class FidelitySettings(resynthesis.ResynthesisSettings):
    """Settings of the part.

    Attributes:
        num_subsets: for the standard error of the kernel distance.
        segmenter: trained on real slices.
    """

    num_subsets: Count
    segmenter: segmenter.RealSegmenterSettings


def run(workbench: Workbench, settings: FidelitySettings, folder: Path) -> dict[str, Any]:
    """Measures components and normal tissue, and draws histograms of their intensities."""
    segmenters = segmenter.real_segmenters(workbench, settings.segmenter)
    sets = resynthesis.components_and_normal(workbench, settings)
    values = intensities(sets["components"], sets["normal"])
    _draw_histograms(folder / "histograms.png", values, workbench.sequences)
    by_title = {resynthesis.title(kind): repainted for kind, repainted in sets.items()}
    request = (segmenters, settings.num_subsets, workbench.seed)
    return {
        **workbench.record(settings.num_steps),
        "sizes": {title: repainted.sizes for title, repainted in by_title.items()},
        "features": {title: feature_distances(r, *request) for title, r in by_title.items()},
        "intensities": intensity_distances(values, workbench.sequences, workbench.seed),
    }


def feature_distances(
    repainted: Resynthesis,
    segmenters: Mapping[str, segmenter.Segmenter],
    num_subsets: int,
    seed: int,
) -> dict[str, Any]:
    """Distances of the distributions of a segmenter's bottleneck features, sequence by sequence.

    The patients are split into halves A and B. Real slices of A are compared with real ones of B, and
    with repainted ones of B, and vice versa. So no slice is compared with its own context, both
    distances are between different patients, and the sets have the same size, on which the Frechet
    distance depends. A slice's features are averaged over its ROI, since the context is real, and
    standardized over all real slices, since their units mean nothing.

    Args:
        repainted: the first sample of each slice is used.
        segmenters: by sequence, in the order of the channels.
        num_subsets: random halves of the sets for the kernel distance's standard error.
        seed: of the halves.

    Returns:
        `refused`, a sentence, where there are too few slices. Otherwise `counts` of both halves,
        `num_features` and by sequence, under `real`, `synthetic` and `fill` (each ROI filled with its
        surrounding's mean), `frechet`, `kernel` and `kernel_error`.
    """
    slices, roi = repainted.slices, repainted.roi
    if len(np.unique(slices.patients)) < 2:
        return {"refused": "the slices are of one subject, so there is no other to compare with"}
    in_a = halves(slices.patients)
    a, b = counts = [int(in_a.sum()), int((~in_a).sum())]
    by_sequence, num_features = {}, 0
    for channel, (sequence, network) in enumerate(segmenters.items()):
        real = slices.images[..., channel]
        features = {"real": network.features(real, roi)}
        num_features = features["real"].shape[1]
        if min(counts) < (minimum := VECTORS_PER_FEATURE * num_features):
            return {
                "refused": f"with {num_features} features each half of the patients needs at least "
                f"{minimum} slices ({VECTORS_PER_FEATURE} a feature); there are {a} and {b}"
            }
        filled = np.stack(list(map(surrounding_mean, real, roi, slices.brain)))
        features["synthetic"] = network.features(repainted.samples[0, ..., channel], roi)
        features["fill"] = network.features(filled, roi)
        features = _standardized(features, by="real")
        by_sequence[sequence] = {
            name: _crosswise(features["real"], other, in_a, num_subsets, seed)
            for name, other in features.items()
        }
    return {"counts": counts, "num_features": num_features, "sequences": by_sequence}


def halves(patients: np.ndarray) -> np.ndarray:
    """bool [N], which slices are in the first of two halves of the patients with about equal counts.

    Args:
        patients: [N] of at least two patients.
    """
    parts, total = ([], []), collections.Counter(np.sort(patients).tolist())
    # The patient with most first, each to the half that has less.
    for name, _ in total.most_common():
        min(parts, key=lambda part: sum(total[other] for other in part)).append(name)
    return np.isin(patients, parts[0])


def intensities(
    components: Resynthesis, normal: Resynthesis
) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Values inside the ROIs.

    Args:
        components: slices whose components were repainted.
        normal: slices whose normal tissue was repainted.

    Returns:
        By tissue ("normal" and the components) and patient (real, synthetic), both float [pixels, Q], of
        the patients that have at least 50 pixels.
    """
    out = {}
    for tissue in ("normal", *COMPONENTS):
        repainted = normal if tissue == "normal" else components
        slices, out[tissue] = repainted.slices, {}
        inside = repainted.condition.roi_masks[..., CHANNELS.index(tissue)] > 0
        for patient in np.unique(slices.patients):
            chosen = inside & (slices.patients == patient)[:, None, None]
            if chosen.sum() >= _MIN_PIXELS:
                out[tissue][str(patient)] = slices.images[chosen], repainted.samples[0][chosen]
    return out


def intensity_distances(
    pixels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    sequences: tuple[str, ...],
    seed: int,
) -> list[dict[str, Any]]:
    """Wasserstein-1 distances between distributions of intensities, in the model's units.

    Args:
        pixels: see `intensities`.
        sequences: names of the channels.
        seed: of the choice of partners and of the intervals' resampling.

    Returns:
        A row for each tissue and sequence: `pooled`, real against synthetic pixels of all
        patients; `own`, each patient's real against its synthetic pixels, see `mean_with_interval`;
        `between`, each patient's real pixels against those of others (eight at most), see
        `mean_over_pairs`. None where fewer than two patients have the tissue.
    """
    rows = []
    for tissue, by_patient in pixels.items():
        count = len(by_patient)
        order = np.random.default_rng(seed).permutation(count).tolist()
        # Each with the next ones around a circle.
        steps = range(1, 1 + min(_MAX_PARTNERS, count - 1))
        circle = np.array([(n, (n + step) % count) for n in range(count) for step in steps])
        for channel, sequence in enumerate(sequences):
            row = {"tissue": tissue, "sequence": sequence, "num_subjects": count}
            rows.append(row | {"pooled": None, "own": None, "between": None})
            if count < 2:
                continue
            both = [list(by_patient.values())[n] for n in order]
            real, synthetic = ([pair[i][:, channel] for pair in both] for i in (0, 1))
            own = np.array(list(map(wasserstein_distance, real, synthetic)))
            between = np.array([wasserstein_distance(real[a], real[b]) for a, b in circle])
            pooled = wasserstein_distance(*map(np.concatenate, (real, synthetic)))
            rows[-1] |= {"num_pixels": sum(map(len, real)), "pooled": float(pooled)}
            rows[-1]["own"] = mean_with_interval(own, np.arange(count), seed)
            rows[-1]["between"] = mean_over_pairs(between, circle, seed)
    return rows


def tables(result: Mapping[str, Any]) -> str:
    """The part's section of the report, in Markdown."""
    features = "\n\n".join(_feature_table(*item) for item in result["features"].items())
    rows = []
    for row in result["intensities"]:
        pooled = "too few subjects" if row["pooled"] is None else f"{row['pooled']:.3f}"
        tissue, means = row["tissue"].replace("_", " "), (pooled, row["own"], row["between"])
        rows.append([tissue, row["sequence"], row["num_subjects"], *means])
    columns = ["tissue", "sequence", "subjects", "pooled", "same subject", "real, between subjects"]
    return report.section(
        "fidelity",
        result=result,
        features=features,
        table=report.table(columns, rows, num_text=2, digits=3),
    )


def _feature_table(task: str, measured: Mapping[str, Any]) -> str:
    if "refused" in measured:
        return f"No FID or KID for {task}: {measured['refused']}."
    rows, (a, b) = [], measured["counts"]
    for sequence, by_set in measured["sequences"].items():
        sets = [by_set[name] for name in ("real", "synthetic", "fill")]
        rows.append([sequence, "FID", *(f"{s['frechet']:.2f}" for s in sets)])
        kernel = [f"{s['kernel']:.4f} ± {s['kernel_error']:.4f}" for s in sets]
        rows.append([sequence, "KID", *kernel])
    columns = ["sequence", "distance (segmenter features)", "real", "repainted", "mean fill"]
    shown = report.table(columns, rows, num_text=2)
    features = f"{measured['num_features']} features"
    return f"{task.capitalize()}: {a} and {b} slices, {features}.\n\n{shown}"


def _crosswise(
    real: np.ndarray, other: np.ndarray, in_a: np.ndarray, num_subsets: int, seed: int
) -> dict[str, float]:
    """Distances of A's real features to B's others and of B's real ones to A's others, averaged."""
    real_a, real_b, other_a, other_b = real[in_a], real[~in_a], other[in_a], other[~in_a]

    def both_ways(distance, a: Any = np.s_[:], b: Any = np.s_[:]):
        return (distance(real_a[a], other_b[b]) + distance(real_b[b], other_a[a])) / 2

    kernel = functools.partial(both_ways, distances.kernel_distance)
    sizes = (len(real_a), len(real_b))
    return {
        "frechet": both_ways(distances.frechet_distance),
        "kernel": kernel(),
        "kernel_error": distances.half_subset_error(kernel, sizes, num_subsets, seed),
    }


def _standardized(features: Mapping[str, np.ndarray], by: str) -> dict[str, np.ndarray]:
    """Every set [N, D], shifted and scaled so that the set `by` has mean 0 and standard deviation 1."""
    mean, sd = features[by].mean(0, np.float64), features[by].std(0, np.float64)
    return {name: (values - mean) / np.where(sd > 0, sd, 1) for name, values in features.items()}


def _draw_histograms(path: Path, values, sequences: tuple[str, ...]) -> None:
    """Densities of real and synthetic intensities, a row for each tissue, a column for each sequence."""
    fig = Figure(figsize=(2.6 * len(sequences), 2.0 * len(values) + 0.4), layout="constrained")
    axes = fig.subplots(len(values), len(sequences), squeeze=False)
    for line, (tissue, by_subject) in zip(axes, values.items(), strict=True):
        line[0].set_ylabel(tissue.replace("_", " "))
        for channel, axis in enumerate(line):
            axis.set_yticks([])
            if axis in axes[0]:
                axis.set_title(sequences[channel].upper(), fontsize=10)
            if not by_subject:
                continue
            real, synthetic = (
                np.concatenate([pair[i][:, channel] for pair in by_subject.values()])
                for i in (0, 1)
            )
            low, high = np.quantile(np.concatenate([real, synthetic]), (0.001, 0.999))
            common = {"bins": np.linspace(low, high, _BINS + 1), "density": True}
            axis.hist(real, **common, color="0.75")
            axis.hist(synthetic, **common, histtype="step", color="C3")
    handles = [Patch(color="0.75", label="real"), Patch(fill=False, ec="C3", label="repainted")]
    fig.legend(handles=handles, loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    fig.supxlabel("intensity in the model's units", fontsize=9)
    with replacing(path) as partial:
        fig.savefig(partial, format="png", dpi=110)

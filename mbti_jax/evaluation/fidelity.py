"""Whether repainted tissue is distributed like real tissue: in a segmenter's features, in intensities.

Both are laid beside the same distance between real subjects, since no set of samples can be expected to
be nearer to real tissue than real tissue of other subjects is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from ml_collections import ConfigDict
from scipy.stats import wasserstein_distance

from mbti_jax.evaluation import own_anatomy, segmenter
from mbti_jax.evaluation.baselines import surrounding_mean
from mbti_jax.evaluation.distances import frechet_distance, half_subset_error, kernel_distance
from mbti_jax.evaluation.own_anatomy import Repainted
from mbti_jax.evaluation.segmenter import Segmenter
from mbti_jax.evaluation.setting import Setting
from mbti_jax.evaluation.statistics import bootstrap_interval, interval_text
from mbti_jax.io.files import replacing
from mbti_jax.rois.kinds import CHANNELS

# A covariance of D features has full rank from D + 1 vectors on; twice as many keep it from being so
# badly conditioned that the distance is mostly bias.
VECTORS_PER_FEATURE = 2
# Fewer pixels of a subject are no distribution.
_LEAST_PIXELS = 50
# Each subject is compared with so many others at most, so that large test sets take no hours.
_MOST_PARTNERS = 8
_BINS = 60


def run(setting: Setting, settings: ConfigDict, folder: Path) -> dict[str, Any]:
    """Measures components and normal tissue; a part of `evaluate`.

    Args:
        settings: `num_slices` with tumour whose components are repainted, `num_normal_slices` without,
            in which normal tissue is, of `least_brain` pixels; `num_steps`; `num_subsets` for the
            kernel distance's error; `segmenter`, see `segmenter.of_real_slices`.
        folder: gets the picture of the histograms.
    """
    segmenters = segmenter.of_real_slices(setting, settings.segmenter)
    sets = {
        kind: own_anatomy.repaint(
            setting,
            kind,
            box=False,
            num_slices=count,
            least_brain=settings.least_brain,
            num_steps=settings.num_steps,
        )
        for kind, count in (
            ("components", settings.num_slices),
            ("normal", settings.num_normal_slices),
        )
    }
    values = intensities(sets["components"], sets["normal"])
    _draw_histograms(folder / "histograms.png", values, setting.sequences)
    return {
        "num_steps": settings.num_steps,
        "guidance_weight": setting.inpainter.default_guidance_weight,
        "sizes": {own_anatomy.title(kind): found.sizes for kind, found in sets.items()},
        "features": {
            own_anatomy.title(kind): feature_distances(
                found, segmenters, settings.num_subsets, setting.seed
            )
            for kind, found in sets.items()
        },
        "intensities": intensity_distances(values, setting.sequences, setting.seed),
    }


def feature_distances(
    repainted: Repainted, segmenters: Mapping[str, Segmenter], num_subsets: int, seed: int
) -> dict[str, Any]:
    """Distances of the distributions of a segmenter's bottleneck features, sequence by sequence.

    The subjects are split into halves A and B. Real slices of A are compared with real ones of B, and
    with repainted ones of B; B's with A's likewise. So no slice meets its own context, both distances
    are between different subjects, and the sets, on whose size the Frechet distance depends, are the
    same. A slice's features are averaged over its ROI, since the context is real, and brought to mean 0
    and standard deviation 1 over all real slices, since their units mean nothing.

    Args:
        repainted: one sample a slice; more are not used.
        segmenters: by sequence, in the order of the channels.
        num_subsets: halves of the sets for the kernel distance's standard error.
        seed: of their choice.

    Returns:
        `refused`, a sentence, where there are too few slices. Otherwise `counts` of both halves,
        `num_features` and by sequence, under `real`, `synthetic` and `fill` (each ROI filled with its
        surrounding's mean), `frechet`, `kernel` and `kernel_error`.
    """
    slices, roi = repainted.slices, repainted.tasks.roi
    if len(np.unique(slices.subjects)) < 2:
        return {"refused": "the slices are of one subject, so there is no other to compare with"}
    in_a = halves(slices.subjects)
    counts = [int(in_a.sum()), int((~in_a).sum())]
    by_sequence = {}
    for channel, (sequence, network) in enumerate(segmenters.items()):
        real = slices.images[..., channel]
        features = {"real": network.features(real, roi)}
        num_features = features["real"].shape[1]
        least = VECTORS_PER_FEATURE * num_features
        if min(counts) < least:
            return {
                "refused": f"with {num_features} features each half of the subjects needs at least "
                f"{least} slices ({VECTORS_PER_FEATURE} a feature); there are {counts[0]} and "
                f"{counts[1]}"
            }
        filled = [
            surrounding_mean(image, inside, brain)
            for image, inside, brain in zip(real, roi, slices.brain, strict=True)
        ]
        features["synthetic"] = network.features(repainted.samples[0, ..., channel], roi)
        features["fill"] = network.features(np.stack(filled), roi)
        features = _standardised(features, by="real")
        by_sequence[sequence] = {
            name: _crosswise(features["real"], other, in_a, num_subsets, seed)
            for name, other in features.items()
        }
    return {"counts": counts, "num_features": num_features, "sequences": by_sequence}


def halves(subjects: np.ndarray) -> np.ndarray:
    """bool [N], which slices are in the first of two halves of the subjects with about equal counts.

    Args:
        subjects: [N] of at least two subjects.
    """
    names, counts = np.unique(subjects, return_counts=True)
    sizes, first = [0, 0], []
    # The largest subject first, each to the half that has less.
    for n in np.argsort(-counts, kind="stable"):
        half = int(sizes[1] < sizes[0])
        sizes[half] += counts[n]
        if half == 0:
            first.append(names[n])
    return np.isin(subjects, first)


def intensities(
    components: Repainted, normal: Repainted
) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Values inside the ROIs.

    Args:
        components: slices whose components were repainted.
        normal: slices in which normal tissue was.

    Returns:
        By tissue (names of `CHANNELS`) and subject (real, synthetic), both float [pixels, Q], of the
        subjects that have at least 50 pixels.
    """
    out = {}
    for channel, tissue in enumerate(CHANNELS[:4]):
        found = normal if tissue == "normal" else components
        inside = found.tasks.roi_masks[..., channel]
        out[tissue] = {}
        for subject in np.unique(found.slices.subjects):
            chosen = inside & (found.slices.subjects == subject)[:, None, None]
            if chosen.sum() >= _LEAST_PIXELS:
                pair = (found.slices.images[chosen], found.samples[0][chosen])
                out[tissue][str(subject)] = pair
    return out


def intensity_distances(
    values: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    sequences: tuple[str, ...],
    seed: int,
) -> list[dict[str, Any]]:
    """Wasserstein-1 distances between distributions of intensities, in the model's units.

    Args:
        values: as `intensities` returns them.
        sequences: names of the channels.
        seed: of the choice of partners and of the intervals' resampling.

    Returns:
        A row for each tissue and sequence: `pooled`, real against synthetic of all subjects together;
        `own`, of each subject's real against its synthetic pixels; `between`, of each subject's real
        against other subjects' real pixels (eight at most). The last two as {"mean", "low", "high"}
        over subjects. None where fewer than two subjects have the tissue.
    """
    rows = []
    for tissue, by_subject in values.items():
        subjects = np.array(list(by_subject))
        order = np.random.default_rng(seed).permutation(len(subjects))
        num_partners = min(_MOST_PARTNERS, len(subjects) - 1)
        for channel, sequence in enumerate(sequences):
            row = {"tissue": tissue, "sequence": sequence, "num_subjects": len(subjects)}
            rows.append(row | {"pooled": None, "own": None, "between": None})
            if len(subjects) < 2:
                continue
            pairs = [by_subject[subjects[n]] for n in order]
            real, synthetic = ([pair[i][:, channel] for pair in pairs] for i in (0, 1))
            own = [wasserstein_distance(a, b) for a, b in zip(real, synthetic, strict=True)]
            # Each with the next ones around a circle.
            between = [
                np.mean(
                    [
                        wasserstein_distance(values, real[(n + step) % len(real)])
                        for step in range(1, num_partners + 1)
                    ]
                )
                for n, values in enumerate(real)
            ]
            rows[-1] |= {
                "num_pixels": sum(map(len, real)),
                "pooled": float(wasserstein_distance(*map(np.concatenate, (real, synthetic)))),
                "own": _with_interval(own, seed),
                "between": _with_interval(between, seed),
            }
    return rows


def tables(result: Mapping[str, Any]) -> str:
    """The part's section of the report, in Markdown."""
    steps, weight = result["num_steps"], result["guidance_weight"]
    lines = [
        "## Fidelity of the distribution",
        "",
        "Distances between sets of slices in the bottleneck features of our own segmenters (one a "
        "sequence), **not** of an Inception network: FID (segmenter features) after Heusel et al. 2017 "
        "and KID (segmenter features), unbiased, after Binkowski et al. 2018, with its standard error "
        "from halves of the slices. Features are averaged over the ROI and standardised by the real "
        "slices. Subjects are split into two halves. Real slices of one are "
        "compared with real slices of the other (the floor), with its repainted slices, and with its "
        "slices whose ROI is filled with the mean around it, which should be far away. One sample a "
        f"slice, {steps} steps, w = {weight:g}.",
        "",
    ]
    for task, found in result["features"].items():
        if "refused" in found:
            lines += [f"No FID or KID for {task}: {found['refused']}.", ""]
            continue
        lines += [
            f"{task.capitalize()}: {found['counts'][0]} and {found['counts'][1]} slices, "
            f"{found['num_features']} features.",
            "",
            "| sequence | distance (segmenter features) | real | repainted | mean fill |",
            "|---|---|---|---|---|",
        ]
        for sequence, by_set in found["sequences"].items():
            sets = [by_set[name] for name in ("real", "synthetic", "fill")]
            frechet = " | ".join(f"{s['frechet']:.2f}" for s in sets)
            kernel = " | ".join(f"{s['kernel']:.4f} ± {s['kernel_error']:.4f}" for s in sets)
            lines += [f"| {sequence} | FID | {frechet} |", f"| {sequence} | KID | {kernel} |"]
        lines.append("")
    lines += [
        "Wasserstein distance between the intensities inside the ROI, in the model's units (brains "
        "span about 2): real against repainted pixels of all subjects together, of the same subject, "
        "and, for reference, real pixels of one subject against those of others. Means over subjects "
        "with 95% intervals.",
        "",
        "| tissue | sequence | subjects | all together | same subject | real, between subjects |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["intensities"]:
        cells = ["too few subjects", "-", "-"]
        if row["pooled"] is not None:
            between = [interval_text(**row[name]) for name in ("own", "between")]
            cells = [f"{row['pooled']:.3f}", *between]
        tissue = row["tissue"].replace("_", " ")
        lines.append(
            f"| {tissue} | {row['sequence']} | {row['num_subjects']} | {' | '.join(cells)} |"
        )
    lines += [
        "",
        "![Intensities inside the ROIs](fidelity/histograms.png)",
        "",
        "Repainted slices can be nearer than real ones, where the model paints the average and subjects "
        "differ. The features come from a network that learnt to find tumour and may miss what it did "
        "not need; at the ROI's border they see context. The standard error takes slices for "
        "independent, and slices of a subject are not. Intensities say nothing about shape and texture.",
    ]
    return "\n".join(lines)


def _crosswise(
    real: np.ndarray, other: np.ndarray, in_a: np.ndarray, num_subsets: int, seed: int
) -> dict[str, float]:
    """Distances of A's real features to B's others and of B's real ones to A's others, averaged."""
    real_a, real_b, other_a, other_b = real[in_a], real[~in_a], other[in_a], other[~in_a]

    def kernel(a, b):
        return (kernel_distance(real_a[a], other_b[b]) + kernel_distance(real_b[b], other_a[a])) / 2

    sizes = (len(real_a), len(real_b))
    return {
        "frechet": (frechet_distance(real_a, other_b) + frechet_distance(real_b, other_a)) / 2,
        "kernel": kernel(slice(None), slice(None)),
        "kernel_error": half_subset_error(kernel, sizes, num_subsets, seed),
    }


def _standardised(features: Mapping[str, np.ndarray], by: str) -> dict[str, np.ndarray]:
    """Every set [N, D] moved and scaled as brings the set `by` to mean 0 and standard deviation 1."""
    mean, sd = features[by].mean(0, np.float64), features[by].std(0, np.float64)
    return {name: (values - mean) / np.where(sd > 0, sd, 1) for name, values in features.items()}


def _with_interval(values: list[float], seed: int) -> dict[str, float | None]:
    """Mean and interval of numbers of which each subject has one."""
    low, high = bootstrap_interval(np.array(values), np.arange(len(values)), seed)
    return {"mean": float(np.mean(values)), "low": low, "high": high}


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
    FigureCanvasAgg(fig)
    with replacing(path) as beside:
        fig.savefig(beside, format="png", dpi=110)

"""Whether the model paints what it has seen: the nearest training patch of every repainted ROI.

A distance alone does not reveal a copy, since flat tissue is near to any flat tissue. So every repainted
ROI is compared with the real held-out tissue of the same ROI, which cannot have been copied: its
distances to the same training slices say how near is near by chance.

The distance is the root mean square difference in the model's units over the ROI, not a
correlation: a copy agrees in brightness and contrast too, and a correlation would find any two
ramps alike. But a smooth patch, as samplers tend to paint, has less noise of its own and is nearer
to everything than a real one. Hence also the isolation: the distance divided by the median over the
training patients of the distance to each one's nearest patch (similar to Carlini et al. 2023). A
copy is near to one subject and as far from the others as anything else; a smooth patch is near to
all.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mbti_jax.data.loader import evenly_spaced
from mbti_jax.evaluation import report, resynthesis
from mbti_jax.evaluation.patch_search import Patch, distance_at, search
from mbti_jax.evaluation.resynthesis import Resynthesis
from mbti_jax.evaluation.slices import LabeledSlices
from mbti_jax.evaluation.statistics import paired_difference
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.fields import Count
from mbti_jax.io import pictures

# A patch nearer than this share of the real held-out patches counts as near as a copy.
_NEAR = 0.01
_WHITE_DIFFERENCE = 0.5


@dataclasses.dataclass(frozen=True)
class MemorizationSettings(resynthesis.ResynthesisSettings):
    """Settings of the part.

    Attributes:
        num_rois: to search for, of the components and of normal tissue each.
        min_area: of an ROI to search for, in the model's pixels.
        num_training_slices: to search in, evenly spaced.
        num_pairs: to draw.
    """

    num_rois: Count
    min_area: Count
    num_training_slices: Count
    num_pairs: Count


def run(workbench: Workbench, settings: MemorizationSettings, folder: Path) -> dict[str, Any]:
    """Searches for repainted components and normal tissue, and draws the closest pairs.

    Raises:
        ValueError: no ROI is large enough.
    """
    result = workbench.record(settings.num_steps) | {"min_area": settings.min_area}
    if not workbench.held_out:
        return result | {
            "refused": "the model was not trained on this dataset's training split, as far as the "
            "checkpoint says, so the slices that it may have copied cannot be searched"
        }
    rows, pairs, searched = [], [], {}
    for kind, repainted in resynthesis.components_and_normal(workbench, settings).items():
        repainted = choose(repainted, settings.num_rois, settings.min_area)
        tumor, count = kind != "normal", settings.num_training_slices
        training, task = workbench.slices("train", count, with_tumor=tumor), resynthesis.title(kind)
        searched[task] = {
            "num_slices": len(training),
            "num_subjects": len(np.unique(training.subjects)),
            "num_rois": len(repainted.slices),
        }
        for channel, sequence in enumerate(workbench.sequences):
            matches = nearest(repainted, training, channel, f"{task}, {sequence}")
            compared = compare(matches, repainted.slices.patients, workbench.seed)
            rows.append({"task": task, "sequence": sequence, **compared})
            source = {"channel": channel, "repainted": repainted, "in": training}
            pairs += [source | pair for pair in pair_rows(matches, compared)]
    pairs = sorted(pairs, key=lambda pair: pair["to_threshold"])[: settings.num_pairs]
    _draw(folder / "closest.png", pairs, workbench.sequences)
    return result | {"searched": searched, "rows": rows, "num_pairs": len(pairs)}


def choose(repainted: Resynthesis, count: int, min_area: int) -> Resynthesis:
    """At most `count` of the slices, evenly spaced among those whose ROI is large enough.

    A few pixels look like a few pixels of many training slices.

    Raises:
        ValueError: no ROI has `min_area` pixels.
    """
    large = np.flatnonzero(repainted.roi.sum((1, 2)) >= min_area)
    if not len(large):
        raise ValueError(f"no ROI has {min_area} pixels; repaint more slices or set min_area")
    return repainted[large[evenly_spaced(len(large), count)]]


def nearest(
    repainted: Resynthesis, training: LabeledSlices, channel: int, name: str = "search"
) -> dict[str, dict[str, np.ndarray]]:
    """The nearest training patch of the repainted and of the real tissue in each ROI.

    Args:
        repainted: P slices and their first samples.
        training: slices to search in.
        channel: which sequence.
        name: of the progress bar.

    Returns:
        Under "synthetic" and "real": `distance` and `isolation`, float64 [P]; `row` of the training
        slice, `mirrored` and `corner` of the nearest place, [P].
    """
    sources = {"synthetic": repainted.samples[0], "real": repainted.slices.images}
    images = {name: slices[..., channel] for name, slices in sources.items()}
    regions, haystack = repainted.roi, training.images[..., channel]
    _, group = np.unique(training.patients, return_inverse=True)
    out = {}
    for source, slices in tqdm(images.items(), desc=name, leave=False):
        patches = [Patch.cut(*pair) for pair in zip(slices, regions, strict=True)]
        matches = search(patches, haystack)
        rows, patch = matches.distances.argmin(1), np.arange(len(patches))
        mirrored, corners = matches.mirrored[patch, rows], matches.corners[patch, rows]
        # Computed again, without the rounding of the search.
        distances = [
            distance_at(p.mirrored() if flip else p, haystack[row], tuple(corner))
            for p, row, flip, corner in zip(patches, rows, mirrored, corners, strict=True)
        ]
        by_subject = [matches.distances[:, group == n].min(1) for n in range(group.max() + 1)]
        out[source] = {
            "distance": np.array(distances),
            "isolation": np.array(distances) / np.maximum(np.median(by_subject, axis=0), 1e-6),
            "row": rows,
            "mirrored": mirrored,
            "corner": corners,
        }
    return out


def compare(
    matches: Mapping[str, Mapping[str, np.ndarray]], patients: np.ndarray, seed: int
) -> dict[str, Any]:
    """How near repainted ROIs are to training patches, compared with real held-out ones.

    Args:
        matches: of P ROIs, see `nearest`.
        patients: the patient of each slice, [P].
        seed: of the interval's resampling.

    Returns:
        `num_rois`; `chance`, the share to expect if synthetic and real distances have the same
        distribution, which exceeds 1% where ROIs are few; for `distance` and `isolation` the `real` and
        `synthetic` medians, the `threshold` (1st percentile of the real ones) and the `share` of
        synthetic ROIs below it; for distances also `difference`, synthetic minus real, as {"mean",
        "low", "high"} over patients.
    """
    count = len(patients)
    # The quantile lies at this rank between the ordered values, and rank k has k / (count + 1) below.
    rank = 1 + _NEAR * (count - 1)
    out = {"num_rois": count, "chance": rank / (count + 1)}
    for measure in ("distance", "isolation"):
        both = {source: matches[source][measure] for source in ("real", "synthetic")}
        threshold = float(np.quantile(both["real"], _NEAR))
        medians = {source: float(np.median(values)) for source, values in both.items()}
        share = float((both["synthetic"] < threshold).mean())
        out[measure] = {**medians, "threshold": threshold, "share": share}
    pair = (matches["synthetic"]["distance"], matches["real"]["distance"])
    out["distance"]["difference"] = paired_difference(*pair, patients, seed)
    return out


def pair_rows(
    matches: Mapping[str, Mapping[str, np.ndarray]], compared: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Synthetic ROIs and their matches, with the distance over the threshold of real ones."""
    synthetic, threshold = matches["synthetic"], max(compared["distance"]["threshold"], 1e-6)
    pairs = [
        dict(zip(synthetic, row, strict=True)) for row in zip(*synthetic.values(), strict=True)
    ]
    return [
        pair | {"n": n, "to_threshold": pair["distance"] / threshold}
        for n, pair in enumerate(pairs)
    ]


def tables(result: Mapping[str, Any]) -> str:
    """The part's section of the report, in Markdown."""
    if "refused" in result:
        return f"## Memorization\n\nNot measured: {result['refused']}."
    searched = "\n".join(
        f"- {task}: {sizes['num_rois']} ROIs of {result['min_area']} pixels and more, searched in "
        f"{sizes['num_slices']} training slices of {sizes['num_subjects']} subjects."
        for task, sizes in result["searched"].items()
    )
    rows = []
    for row in result["rows"]:
        near, isolated = row["distance"], row["isolation"]
        medians = [f"{m[name]:.3f}" for m in (near, isolated) for name in ("real", "synthetic")]
        shares = [f"{share:.1%}" for share in (near["share"], isolated["share"], row["chance"])]
        cells = [*medians[:2], near["difference"], shares[0], *medians[2:], *shares[1:]]
        rows.append([row["task"], row["sequence"], *cells])
    columns = ["task", "sequence", "distance, real", "repainted", "difference", "nearer"]
    columns += ["isolation, real", "repainted", "nearer", "chance"]
    return report.section(
        "memorization",
        result=result,
        searched=searched,
        table=report.table(columns, rows, num_text=2, digits=3),
    )


def _draw(path: Path, pairs: list[dict[str, Any]], sequences: tuple[str, ...]) -> None:
    """Repainted and training slice, their patches, and the difference, a row for each pair."""
    cells, labels = [], []
    for pair in pairs:
        repainted, n, channel = pair["repainted"], pair["n"], pair["channel"]
        sample, masks = repainted.samples[0, n, ..., channel], repainted.condition.roi_masks[n]
        patch = Patch.cut(sample, repainted.roi[n])
        height, width = patch.values.shape
        other, (y, x) = pair["in"].images[pair["row"], ..., channel], pair["corner"]
        if pair["mirrored"]:
            # Mirrored back, so that the match has the same orientation.
            other, x = other[:, ::-1], other.shape[1] - width - x
        moved = np.roll(masks, (y - patch.corner[0], x - patch.corner[1]), axis=(0, 1))
        copied = other[y : y + height, x : x + width]
        difference = np.where(patch.inside, np.abs(patch.values - copied), 0)
        marked = [
            pictures.with_rois(pictures.enlarge(pictures.gray(image)), pictures.enlarge(rois), 0.0)
            for image, rois in ((sample, masks), (other, moved))
        ]
        cut = [pictures.gray(np.where(patch.inside, v, -1)) for v in (patch.values, copied)]
        cells.append([*marked, *cut, pictures.gray(difference, 0.0, _WHITE_DIFFERENCE)])
        labels.append(f"{sequences[channel].upper()}  {pair['distance']:.3f}")
    pictures.figure(
        path,
        cells,
        rows=labels,
        columns=["repainted", "nearest training slice", "patch", "training patch", "difference"],
        title="The repainted ROIs closest to a training slice, with their distance",
        footnote=f"difference: black 0, white {_WHITE_DIFFERENCE:g} and above",
    )

"""Whether the model paints what it has seen: the nearest training patch of every repainted ROI.

A distance alone does not tell a copy, since flat tissue is near to any flat tissue. So every repainted
ROI is laid beside the real held-out tissue of the same ROI, which nobody can have copied: its distances
to the same training slices say how near is near by chance.

The distance is the root mean square difference in the model's units over the ROI, and not a
correlation: a copy is one in brightness and contrast too, and a correlation would find any two ramps
alike. But a smooth patch, as samplers like to paint, has less noise of its own and is nearer to
everything than a real one is. Therefore also the isolation: the distance divided by the median over the
training subjects of the distance to each one's nearest patch (in the manner of Carlini et al. 2023). A
copy is near to one subject and as far from the others as anything else; a smooth patch is near to all.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from mbti_jax.evaluation import own_anatomy
from mbti_jax.evaluation.own_anatomy import Repainted
from mbti_jax.evaluation.patch_search import Patch, distance_at, search
from mbti_jax.evaluation.setting import LabelledSlices, Setting
from mbti_jax.evaluation.statistics import interval_text, paired_difference
from mbti_jax.io import pictures

# Real held-out patches nearer than this share of them count as near as a copy.
_NEAR = 0.01
_WHITE_DIFFERENCE = 0.5


def run(setting: Setting, settings: ConfigDict, folder: Path) -> dict[str, Any]:
    """Searches for repainted components and normal tissue; a part of `evaluate`.

    Args:
        settings: `num_slices`, `num_normal_slices`, `least_brain` and `num_steps` of samples, as of
            `fidelity`, whose samples then serve both; `num_rois` of each of them to search for, of
            `least_area` pixels in the model's size; `num_training_slices` to search in, spread evenly;
            `num_pairs` to draw.
        folder: gets the picture of the closest pairs.

    Raises:
        ValueError: no ROI is large enough.
    """
    weight = setting.inpainter.default_guidance_weight
    result = {"num_steps": settings.num_steps, "guidance_weight": weight}
    result["least_area"] = settings.least_area
    if not setting.held_out:
        return result | {
            "refused": "the model was not trained on this dataset's training split, so the slices that "
            "it may have copied are not there to search"
        }
    rows, pairs, searched = [], [], {}
    for kind, count in (
        ("components", settings.num_slices),
        ("normal", settings.num_normal_slices),
    ):
        repainted = own_anatomy.repaint(
            setting,
            kind,
            box=False,
            num_slices=count,
            least_brain=settings.least_brain,
            num_steps=settings.num_steps,
        )
        repainted = choose(repainted, settings.num_rois, settings.least_area)
        training = setting.slices(
            "train", settings.num_training_slices, with_tumor=kind != "normal"
        )
        searched[own_anatomy.title(kind)] = {
            "num_slices": len(training),
            "num_subjects": len(np.unique(training.subjects)),
            "num_rois": len(repainted.slices),
        }
        for channel, sequence in enumerate(setting.sequences):
            name = f"{own_anatomy.title(kind)}, {sequence}"
            found = nearest(repainted, training, channel, name)
            rows.append(
                {
                    "task": own_anatomy.title(kind),
                    "sequence": sequence,
                    **compare(found, repainted.slices.subjects, setting.seed),
                }
            )
            for row in pair_rows(found, rows[-1]):
                pairs.append(row | {"channel": channel, "repainted": repainted, "in": training})
    pairs = sorted(pairs, key=lambda pair: pair["to_threshold"])[: settings.num_pairs]
    _draw(folder / "closest.png", pairs, setting.sequences)
    return result | {"searched": searched, "rows": rows, "num_pairs": len(pairs)}


def choose(repainted: Repainted, count: int, least_area: int) -> Repainted:
    """At most `count` of the slices, evenly spread over those whose ROI is large enough.

    A few pixels look like a few pixels of many a training slice.

    Raises:
        ValueError: no ROI has `least_area` pixels.
    """
    large = np.flatnonzero(repainted.tasks.roi.sum((1, 2)) >= least_area)
    if not len(large):
        raise ValueError(f"no ROI has {least_area} pixels; repaint more slices or set least_area")
    number = min(count, len(large))
    return repainted.take(large[((np.arange(number) + 0.5) * len(large) / number).astype(int)])


def nearest(
    repainted: Repainted, training: LabelledSlices, channel: int, name: str = "search"
) -> dict[str, dict[str, np.ndarray]]:
    """The nearest training patch of the repainted and of the real tissue in each ROI.

    Args:
        repainted: P slices and their first samples.
        training: slices to search in.
        channel: which sequence.
        name: what the progress bar says.

    Returns:
        Under "synthetic" and "real": `distance` and `isolation`, float64 [P]; `row` of the training
        slice, `mirrored` and `corner` of the nearest place, [P].
    """
    images = {
        "synthetic": repainted.samples[0, ..., channel],
        "real": repainted.slices.images[..., channel],
    }
    regions, haystack = repainted.tasks.roi, training.images[..., channel]
    _, group = np.unique(training.subjects, return_inverse=True)
    found = {}
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
        by_subject = np.stack(
            [matches.distances[:, group == n].min(1) for n in range(group.max() + 1)]
        )
        found[source] = {
            "distance": np.array(distances),
            "isolation": np.array(distances) / np.maximum(np.median(by_subject, axis=0), 1e-6),
            **{"row": rows, "mirrored": mirrored, "corner": corners},
        }
    return found


def compare(
    found: Mapping[str, Mapping[str, np.ndarray]], subjects: np.ndarray, seed: int
) -> dict[str, Any]:
    """How near repainted ROIs are to training patches, beside real held-out ones.

    Args:
        found: as `nearest` returns it, for P ROIs.
        subjects: whose slice each is, [P].
        seed: of the interval's resampling.

    Returns:
        `num_rois`; `chance`, the share to expect where synthetic and real distances are distributed
        alike, which exceeds 1% where ROIs are few; for `distance` and `isolation` the `real` and
        `synthetic` medians, the `threshold` (1st percentile of the real ones) and the `share` of
        synthetic ROIs below it; for distances also `difference`, synthetic minus real, as {"mean",
        "low", "high"} over subjects.
    """
    count = len(subjects)
    # The quantile lies at this place between the ordered values, and place k has k / (count + 1) below.
    place = 1 + _NEAR * (count - 1)
    out = {"num_rois": count, "chance": place / (count + 1)}
    for measure in ("distance", "isolation"):
        real, synthetic = found["real"][measure], found["synthetic"][measure]
        threshold = float(np.quantile(real, _NEAR))
        out[measure] = {
            "real": float(np.median(real)),
            "synthetic": float(np.median(synthetic)),
            "threshold": threshold,
            "share": float((synthetic < threshold).mean()),
        }
    pair = (found["synthetic"]["distance"], found["real"]["distance"])
    out["distance"]["difference"] = paired_difference(*pair, subjects, seed)
    return out


def pair_rows(found, compared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Synthetic ROIs and their matches, with the distance over the threshold of real ones."""
    synthetic, threshold = found["synthetic"], compared["distance"]["threshold"]
    return [
        {
            "n": n,
            "distance": float(distance),
            "isolation": float(synthetic["isolation"][n]),
            "to_threshold": float(distance) / max(threshold, 1e-6),
            "row": int(synthetic["row"][n]),
            "mirrored": bool(synthetic["mirrored"][n]),
            "corner": synthetic["corner"][n],
        }
        for n, distance in enumerate(synthetic["distance"])
    ]


def tables(result: Mapping[str, Any]) -> str:
    """The part's section of the report, in Markdown."""
    lines = ["## Memorisation", ""]
    if "refused" in result:
        return "\n".join([*lines, f"Not measured: {result['refused']}."])
    lines += [
        "The nearest training patch of every repainted ROI: root mean square difference over the ROI in "
        "the model's units, best over all shifts inside the slice and left-right mirroring, in the same "
        "sequence. Beside it that of the real tissue of the same held-out ROI, which cannot be copied. "
        f"{result['num_steps']} steps, w = {result['guidance_weight']:g}.",
        "",
    ]
    for task, sizes in result["searched"].items():
        lines.append(
            f"- {task}: {sizes['num_rois']} ROIs of {result['least_area']} pixels and more, searched in "
            f"{sizes['num_slices']} training slices of {sizes['num_subjects']} subjects."
        )
    lines += [
        "",
        "Isolation: the distance over the median of the distances to each training subject's nearest "
        "patch; low for a copy of one subject, and not for a patch that is merely smooth. Nearer: the "
        "share of repainted ROIs below the 1st percentile of the real ones, and the share that chance "
        "would give with so many ROIs.",
        "",
        "| task | sequence | distance, real | repainted | difference | nearer "
        "| isolation, real | repainted | nearer | chance |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        near, alone = row["distance"], row["isolation"]
        cells = [
            *(row["task"], row["sequence"], f"{near['real']:.3f}", f"{near['synthetic']:.3f}"),
            *(interval_text(**near["difference"]), f"{near['share']:.1%}"),
            *(f"{alone['real']:.3f}", f"{alone['synthetic']:.3f}", f"{alone['share']:.1%}"),
            f"{row['chance']:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Medians; the difference is a mean with its 95% interval over subjects.",
        "",
        f"![The {result['num_pairs']} closest pairs](memorisation/closest.png)",
        "",
        "Only whole ROIs were compared, not parts of them, and no rotations or top-down flips, which "
        "training also uses. A search through part of the training slices can miss copies and cannot "
        "invent any. Nothing here is a guarantee of privacy.",
    ]
    return "\n".join(lines)


def _draw(path: Path, pairs: list[dict[str, Any]], sequences: tuple[str, ...]) -> None:
    """Repainted and training slice, their patches, and the difference, a row for each pair."""
    cells, labels = [], []
    for pair in pairs:
        repainted, n, channel = pair["repainted"], pair["n"], pair["channel"]
        sample, masks = repainted.samples[0, n, ..., channel], repainted.tasks.roi_masks[n]
        patch = Patch.cut(sample, masks.any(-1))
        height, width = patch.values.shape
        other, (y, x) = pair["in"].images[pair["row"], ..., channel], pair["corner"]
        if pair["mirrored"]:
            # Mirrored back, so that what matches lies the same way round.
            other, x = other[:, ::-1], other.shape[1] - width - x
        there = np.roll(masks, (y - patch.corner[0], x - patch.corner[1]), axis=(0, 1))
        copied = other[y : y + height, x : x + width]
        difference = np.where(patch.inside, np.abs(patch.values - copied), 0)
        cells.append(
            [
                *(
                    pictures.with_rois(
                        pictures.enlarge(pictures.gray(image)), pictures.enlarge(rois), fill=0.0
                    )
                    for image, rois in ((sample, masks), (other, there))
                ),
                pictures.gray(np.where(patch.inside, patch.values, -1)),
                pictures.gray(np.where(patch.inside, copied, -1)),
                pictures.gray(difference, 0.0, _WHITE_DIFFERENCE),
            ]
        )
        labels.append(f"{sequences[channel].upper()}  {pair['distance']:.3f}")
    pictures.figure(
        path,
        cells,
        rows=labels,
        columns=[
            "repainted",
            "nearest training slice",
            "its patch",
            "training patch",
            "difference",
        ],
        title="The repainted ROIs closest to a training slice, with their distance",
        footnote=f"difference: black 0, white {_WHITE_DIFFERENCE:g} and above",
    )

"""Whether the model paints the tumour that it is asked for, where it is asked for.

Segmenters that learnt from real slices look at repainted ones. What they find is laid beside the
request, and beside what they find in real slices with the same tumours: their ratio is the figure, for a
segmenter of one sequence misses what the sequence does not show, whoever made the image.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mbti_jax.evaluation import segmenter
from mbti_jax.evaluation.requests import (
    KINDS,
    SCORES,
    Request,
    borrow,
    make_request,
    measure,
    segment,
)
from mbti_jax.evaluation.setting import Setting
from mbti_jax.evaluation.statistics import cell, mean_with_interval, ratio_of_means
from mbti_jax.io import pictures
from mbti_jax.rois.kinds import CHANNELS, COMPONENTS

# Below it a segmenter cannot tell on real slices either, and the ratio says nothing.
LEAST_REAL_SCORE = 0.3
_PLACES = {
    "own": "where the slice has its tumour",
    "elsewhere": "a borrowed tumour in a slice without",
}


def run(setting: Setting, settings: ConfigDict, folder: Path) -> dict[str, Any]:
    """Measures components, boxes and removal; a part of `evaluate`.

    Args:
        settings: `num_slices` of the test split with tumour and as many without; `num_steps`;
            `least_area` of a scored component and `least_brain` of a slice without tumour, in pixels;
            `segmenter`, see `segmenter.of_real_slices`.
        folder: gets a picture of best, median and worst for each request.
    """
    segmenters = segmenter.of_real_slices(setting, settings.segmenter)
    slices = setting.slices("test", settings.num_slices, with_tumor=True)
    hosts = setting.slices(
        "test", settings.num_slices, with_tumor=False, least_area=settings.least_brain
    )
    hosts, borrowed = borrow(slices.labels, hosts, setting.seed)
    rows, shown = [], []
    for kind in KINDS:
        places = {"own": make_request(kind, slices, slices.labels, settings.least_area)}
        if kind != "removal":
            places["elsewhere"] = make_request(kind, hosts, borrowed, settings.least_area)
        own = places["own"].slices
        real = _scores(places["own"], segment(segmenters, own.images), settings.least_area)
        for place, request in places.items():
            (painted,) = setting.repaint(
                request.slices,
                request.tasks,
                name=f"{KINDS[kind]}, {place}",
                num_steps=settings.num_steps,
            )
            found = segment(segmenters, painted)
            scores = _scores(request, found, settings.least_area)
            subjects = (request.slices.subjects, own.subjects)
            rows += [
                {"kind": kind, "place": place, "sequence": sequence, "score": score}
                | compare(scores[sequence][score], real[sequence][score], *subjects, setting.seed)
                for sequence in setting.sequences
                for score in SCORES[kind]
            ]
            shown.append(f"{kind}_{place}.png")
            title = KINDS[kind][0].upper() + KINDS[kind][1:]
            if kind != "removal":
                title += f"; {_PLACES[place]}"
            _draw(folder / shown[-1], request, painted, found, scores, title)
    return {
        "num_steps": settings.num_steps,
        "guidance_weight": setting.inpainter.default_guidance_weight,
        "segmenter": settings.segmenter.to_dict(),
        "least_area": settings.least_area,
        "sizes": {
            "own": {"slices": len(slices), "subjects": len(np.unique(slices.subjects))},
            "elsewhere": {"slices": len(hosts), "subjects": len(np.unique(hosts.subjects))},
        },
        "scores": rows,
        "pictures": shown,
    }


def compare(
    painted: np.ndarray,
    real: np.ndarray,
    painted_subjects: np.ndarray,
    real_subjects: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """Scores of repainted slices beside those of real slices.

    Args:
        painted: float [N], NaN where there is none.
        real: float [M], NaN where there is none.
        painted_subjects: [N].
        real_subjects: [M].
        seed: of the intervals' resampling.

    Returns:
        `painted` and `real`: {"mean", "low", "high", "count"}, or None where there is no score; and
        `ratio` of their means {"mean", "low", "high"}, None where the mean of the real slices is below
        `LEAST_REAL_SCORE`.
    """
    out: dict[str, Any] = {
        "painted": mean_with_interval(painted, painted_subjects, seed),
        "real": mean_with_interval(real, real_subjects, seed),
        "ratio": None,
    }
    if out["painted"] and out["real"] and out["real"]["mean"] >= LEAST_REAL_SCORE:
        there, real_there = ~np.isnan(painted), ~np.isnan(real)
        out["ratio"] = ratio_of_means(
            painted[there],
            painted_subjects[there],
            real[real_there],
            real_subjects[real_there],
            seed,
        )
    return out


def tables(result: Mapping[str, Any]) -> str:
    """The part's section of the report, in Markdown."""
    sizes, trained = result["sizes"], result["segmenter"]
    lines = [
        "## Tumour control",
        "",
        "Does the model paint what it is asked for? Segmenters, one a sequence, trained on "
        f"{trained['num_slices']} real slices of the training split ({trained['num_steps']} steps of "
        f"{trained['batch_size']}), segment slices of test subjects that were repainted "
        f"({result['num_steps']} steps, w = {result['guidance_weight']:g}). *Own place*: the request "
        f"is the slice's own tumour ({sizes['own']['slices']} slices of {sizes['own']['subjects']} "
        "subjects), whose surroundings - swelling, displaced tissue - stay visible. *Elsewhere*: a "
        "tumour of another slice, put into the brain of a slice without tumour "
        f"({sizes['elsewhere']['slices']} slices of {sizes['elsewhere']['subjects']} subjects), where "
        "nothing but the request tells the model of it. *Real*: the same segmenter on the real slices "
        "with their own tumours. Means over slices with 95% intervals over subjects.",
        "",
        "### Free-form components: Dice with the request",
        "",
        f"Components of at least {result['least_area']} pixels. Ratio: painted / real; - where the "
        f"segmenter's Dice on real slices is below {LEAST_REAL_SCORE:g}: the sequence (or a segmenter "
        "of this size) does not show the component, and the ratio would mean nothing.",
        "",
        "| sequence | component | slices | real | own place | ratio | elsewhere | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = {(r["kind"], r["place"], r["sequence"], r["score"]): r for r in result["scores"]}
    sequences = list(dict.fromkeys(r["sequence"] for r in result["scores"]))
    for sequence in sequences:
        for name in COMPONENTS:
            lines.append(_line(found, "components", sequence, name, name.replace("_", " ")))
    lines += [
        "",
        "### Boxes: IoU of the requested box with the box around what was segmented",
        "",
        "And how much of the box is tumour. A box says where, not what: its edges have to be touched by "
        "the tumour, while any share of it may be tumour. Connected parts below "
        f"{result['least_area']} pixels do not count for the box.",
        "",
        "| sequence | request | slices | real | own place | ratio | elsewhere | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in ("tumor_box", "edema_box"):
        what = KINDS[kind].split(",")[0]
        for score, label in (("iou", f"{what}: IoU"), ("share", f"{what}: share that is tumour")):
            lines += [_line(found, kind, sequence, score, label) for sequence in sequences]
    lines += [
        "",
        "### Removal: share of the former tumour that is still segmented as tumour",
        "",
        "| sequence | slices | before | after |",
        "|---|---|---|---|",
    ]
    for sequence in sequences:
        row = found["removal", "own", sequence, "share"]
        cells = (sequence, str(row["painted"]["count"]), cell(row["real"]), cell(row["painted"]))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"![{name[:-4]}](control/{name})" for name in result["pictures"]), ""]
    lines.append(
        "Best, median and worst by the mean score over sequences. None of this says that the tumours "
        "look right: a flat patch of the right brightness would be segmented, too (see fidelity)."
    )
    return "\n".join(lines)


def _scores(
    request: Request, found: Mapping[str, np.ndarray], least_area: int
) -> dict[str, dict[str, np.ndarray]]:
    return {sequence: measure(request, labels, least_area) for sequence, labels in found.items()}


def _line(found: Mapping, kind: str, sequence: str, score: str, label: str) -> str:
    own, elsewhere = (found[kind, place, sequence, score] for place in ("own", "elsewhere"))
    count = 0 if own["painted"] is None else own["painted"]["count"]
    cells = [sequence, label, str(count), cell(own["real"])]
    for row in (own, elsewhere):
        cells += [cell(row["painted"]), cell(row["ratio"])]
    return f"| {' | '.join(cells)} |"


def _draw(
    path: Path,
    request: Request,
    painted: np.ndarray,
    found: Mapping[str, np.ndarray],
    scores: Mapping[str, Mapping[str, np.ndarray]],
    title: str,
) -> None:
    """Request, and by sequence result and segmentation, of the best, median and worst slice."""
    first = SCORES[request.kind]
    kept = first if request.kind == "components" else first[:1]
    # Every slice of a request has a score.
    means = np.nanmean([scores[q][name] for q in found for name in kept], axis=0)
    ranked = np.argsort(-means if request.kind != "removal" else means)
    chosen = [ranked[0], ranked[len(ranked) // 2], ranked[-1]]
    cells, labels = [], []
    for n, rank in zip(chosen, ("best", "median", "worst"), strict=True):
        window = pictures.around(request.tasks.roi[n], margin=16)
        before = pictures.enlarge(pictures.gray(request.slices.images[n, ..., -1][window]))
        masks = pictures.enlarge(request.tasks.roi_masks[n][window])
        line = [before, pictures.with_rois(before, masks)]
        for channel, regions in enumerate(found.values()):
            after = pictures.enlarge(pictures.gray(painted[n, ..., channel][window]))
            seen = pictures.enlarge(_as_masks(regions[n])[window])
            line += [after, pictures.with_rois(after, seen, fill=0.2)]
        cells.append(line)
        labels.append(f"{rank}: {means[n]:.2f}")
    columns = [f"{list(found)[-1].upper()} before", "request"]
    for sequence in found:
        columns += [f"{sequence.upper()} painted", "segmented"]
    pictures.figure(
        path,
        cells,
        rows=labels,
        columns=columns,
        title=title,
        footnote="synthetic inside the ROIs, not for diagnosis",
    )


def _as_masks(labels: np.ndarray) -> np.ndarray:
    """uint8 [S, S] -> bool [S, S, 5]."""
    masks = np.zeros((*labels.shape, len(CHANNELS)), bool)
    for name, label in COMPONENTS.items():
        masks[..., CHANNELS.index(name)] = labels == label
    return masks

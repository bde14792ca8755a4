"""Whether the model paints the tumor that it is asked for, where it is asked for.

Segmenters trained on real slices segment repainted ones. Their label maps are compared with the request,
and the scores with those of real slices with the same tumors. The ratio of the two is what counts, since
a segmenter of one sequence misses what the sequence does not show, in real images too.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation.control_tasks import (
    KINDS,
    ControlTask,
    ControlTaskSettings,
    make_control_task,
    score,
    segment,
    transplant,
)
from mbti_jax.evaluation.report import table
from mbti_jax.evaluation.segmenter import real_segmenters
from mbti_jax.evaluation.statistics import cell, mean_with_interval, ratio_of_means
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.io import pictures
from mbti_jax.rois.kinds import COMPONENTS
from mbti_jax.rois.kinds import KINDS as ROI_KINDS

# Below it a segmenter does not see the component on real slices either, and the ratio means nothing.
MIN_REAL_SCORE = 0.3
_PLACES = {
    "own": "where the slice has its tumor",
    "elsewhere": "a transplanted tumor in a slice without",
}


@dataclasses.dataclass(frozen=True)
class ControlSettings(ControlTaskSettings):
    """Settings of the part.

    Attributes:
        num_steps: of the sampler.
    """

    num_steps: int


def run(workbench: Workbench, settings: ControlSettings, folder: Path) -> dict[str, Any]:
    """Measures components, boxes and removal, and draws best, median and worst of each task."""
    segmenters = real_segmenters(workbench, settings.segmenter)
    slices, hosts = settings.slices(workbench)
    hosts, transplanted = transplant(slices.labels, hosts, workbench.seed)
    sampling = Sampling(num_steps=settings.num_steps, seed=workbench.seed)
    min_area = settings.min_area
    rows, names = [], []
    for kind, asked in KINDS.items():
        tasks = {"own": make_control_task(kind, slices, slices.labels, min_area)}
        if kind != "removal":
            tasks["elsewhere"] = make_control_task(kind, hosts, transplanted, min_area)
        own = tasks["own"].slices
        real = _scores(tasks["own"], segment(segmenters, own.images), min_area)
        for place, task in tasks.items():
            name = f"{asked.title}, {place}"
            (painted,) = workbench.repaint(task.slices, task.condition, sampling, name=name)
            segmented = segment(segmenters, painted)
            scores = _scores(task, segmented, min_area)
            subjects = (task.slices.subjects, own.subjects)
            rows += [
                {"kind": kind, "place": place, "sequence": sequence, "score": score_name}
                | compare(
                    scores[sequence][score_name],
                    real[sequence][score_name],
                    *subjects,
                    workbench.seed,
                )
                for sequence in workbench.sequences
                for score_name in asked.scores
            ]
            names.append(f"{kind}_{place}.png")
            title = asked.title[0].upper() + asked.title[1:]
            if kind != "removal":
                title += f"; {_PLACES[place]}"
            _draw(folder / names[-1], task, painted, segmented, scores, title)
    return {
        "num_steps": settings.num_steps,
        "guidance_weight": workbench.inpainter.default_guidance_weight,
        "segmenter": dataclasses.asdict(settings.segmenter),
        "min_area": min_area,
        "sizes": {
            "own": {"slices": len(slices), "subjects": len(np.unique(slices.subjects))},
            "elsewhere": {"slices": len(hosts), "subjects": len(np.unique(hosts.subjects))},
        },
        "scores": rows,
        "pictures": names,
    }


def compare(
    painted: np.ndarray,
    real: np.ndarray,
    painted_subjects: np.ndarray,
    real_subjects: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """Scores of repainted slices compared with those of real slices.

    Args:
        painted: float [N], NaN for slices without a score.
        real: float [M], NaN for slices without a score.
        painted_subjects: [N].
        real_subjects: [M].
        seed: of the intervals' resampling.

    Returns:
        `painted` and `real`: {"mean", "low", "high", "count"}, or None without any score; and `ratio` of
        their means {"mean", "low", "high"}, None where the mean of the real slices is below
        `MIN_REAL_SCORE`.
    """
    out: dict[str, Any] = {
        "painted": mean_with_interval(painted, painted_subjects, seed),
        "real": mean_with_interval(real, real_subjects, seed),
        "ratio": None,
    }
    if out["painted"] and out["real"] and out["real"]["mean"] >= MIN_REAL_SCORE:
        scored, real_scored = ~np.isnan(painted), ~np.isnan(real)
        out["ratio"] = ratio_of_means(
            painted[scored],
            painted_subjects[scored],
            real[real_scored],
            real_subjects[real_scored],
            seed,
        )
    return out


def tables(result: Mapping[str, Any]) -> str:
    """The part's section of the report, in Markdown."""
    sizes, trained = result["sizes"], result["segmenter"]
    own, elsewhere = sizes["own"], sizes["elsewhere"]
    by_key = {(r["kind"], r["place"], r["sequence"], r["score"]): r for r in result["scores"]}
    sequences = list(dict.fromkeys(row["sequence"] for row in result["scores"]))
    columns = ["slices", "real", "own place", "ratio", "elsewhere", "ratio"]

    def cells(kind: str, sequence: str, score_name: str, label: str) -> list[str]:
        rows = [by_key[kind, place, sequence, score_name] for place in _PLACES]
        count = 0 if rows[0]["painted"] is None else rows[0]["painted"]["count"]
        scores = [text for row in rows for text in (cell(row["painted"]), cell(row["ratio"]))]
        return [sequence, label, str(count), cell(rows[0]["real"]), *scores]

    components = [
        cells("components", sequence, name, name.replace("_", " "))
        for sequence in sequences
        for name in COMPONENTS
    ]
    boxes = [
        cells(kind, sequence, score_name, f"{KINDS[kind].title.split(',')[0]}: {label}")
        for kind in ("tumor_box", "edema_box")
        for score_name, label in (("iou", "IoU"), ("share", "share that is tumor"))
        for sequence in sequences
    ]
    removal = []
    for sequence in sequences:
        row = by_key["removal", "own", sequence, "share"]
        count = str(row["painted"]["count"])
        removal.append([sequence, count, cell(row["real"]), cell(row["painted"])])
    images = "\n".join(f"![{name[:-4]}](control/{name})" for name in result["pictures"])
    return f"""## Tumor control

Does the model paint what it is asked for? Segmenters, one per sequence, trained on
{trained["num_slices"]} real slices of the training split ({trained["num_steps"]} steps of
{trained["batch_size"]}), segment slices of test subjects that were repainted ({result["num_steps"]}
steps, w = {result["guidance_weight"]:g}). *Own place*: the request is the slice's own tumor
({own["slices"]} slices of {own["subjects"]} subjects), whose surroundings (swelling, displaced tissue)
stay visible. *Elsewhere*: a tumor of another slice, put into the brain of a slice without tumor
({elsewhere["slices"]} slices of {elsewhere["subjects"]} subjects), where the request alone tells the
model about it. *Real*: the same segmenter on the real slices with their own tumors. Means over slices
with 95% intervals over subjects.

### Free-form components: Dice with the request

Components of at least {result["min_area"]} pixels. Ratio: painted / real; - where the segmenter's
Dice on real slices is below {MIN_REAL_SCORE:g}: the sequence (or a segmenter of this size) does not
show the component, and the ratio would mean nothing.

{table(["sequence", "component", *columns], components, num_text=2)}

### Boxes: IoU of the requested box with the box around what was segmented

The second score is how much of the box is tumor. A box says where, not what: the tumor has to touch its
edges, while any share of it may be tumor. Connected parts below {result["min_area"]} pixels do not count
for the box.

{table(["sequence", "request", *columns], boxes, num_text=2)}

### Removal: share of the former tumor that is still segmented as tumor

{table(["sequence", "slices", "before", "after"], removal)}

{images}

Best, median and worst by the mean score over sequences. None of this says that the tumors look right: a
flat patch of the right brightness would be segmented, too (see fidelity)."""


def _scores(
    task: ControlTask, segmented: Mapping[str, np.ndarray], min_area: int
) -> dict[str, dict[str, np.ndarray]]:
    return {sequence: score(task, labels, min_area) for sequence, labels in segmented.items()}


def _draw(
    path: Path,
    task: ControlTask,
    painted: np.ndarray,
    segmented: Mapping[str, np.ndarray],
    scores: Mapping[str, Mapping[str, np.ndarray]],
    title: str,
) -> None:
    """Request, and by sequence result and segmentation, of the best, median and worst slice."""
    ranked_by: Sequence[str] = KINDS[task.kind].scores
    if task.kind != "components":
        ranked_by = ranked_by[:1]
    # Every slice of a task has a score.
    means = np.nanmean([scores[q][name] for q in segmented for name in ranked_by], axis=0)
    ranked = np.argsort(-means if task.kind != "removal" else means)
    chosen = [ranked[0], ranked[len(ranked) // 2], ranked[-1]]
    cells, labels = [], []
    for n, rank in zip(chosen, ("best", "median", "worst"), strict=True):
        window = pictures.around(task.condition[n].roi[..., 0], margin=16)
        before = pictures.enlarge(pictures.gray(task.slices.images[n, ..., -1][window]))
        masks = pictures.enlarge(task.condition.roi_masks[n][window])
        line = [before, pictures.with_rois(before, masks)]
        for channel, label_maps in enumerate(segmented.values()):
            after = pictures.enlarge(pictures.gray(painted[n, ..., channel][window]))
            masks = np.stack([label_maps[n] == kind.label for kind in ROI_KINDS], axis=-1)
            line += [after, pictures.with_rois(after, pictures.enlarge(masks[window]), fill=0.2)]
        cells.append(line)
        labels.append(f"{rank}: {means[n]:.2f}")
    columns = [f"{list(segmented)[-1].upper()} before", "request"]
    for sequence in segmented:
        columns += [f"{sequence.upper()} painted", "segmented"]
    pictures.figure(
        path,
        cells,
        rows=labels,
        columns=columns,
        title=title,
        footnote="synthetic inside the ROIs, not for diagnosis",
    )

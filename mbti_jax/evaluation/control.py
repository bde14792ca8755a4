"""Whether the model paints the tumor that it is asked for, where it is asked for.

Segmenters trained on real slices segment repainted ones. Their label maps are compared with the request,
and the scores with those of real slices with the same tumors. The ratio of the two is what counts, since
a segmenter of one sequence misses what the sequence does not show, in real images too.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation import control_tasks as tasks
from mbti_jax.evaluation import report, segmenter, statistics
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.fields import Count
from mbti_jax.io import pictures
from mbti_jax.rois import kinds
from mbti_jax.rois.regions import REMOVAL_MARGIN_MM

_PLACES = {
    "own": "where the slice has its tumor",
    "elsewhere": "a transplanted tumor in a slice without",
}
# How a removal is asked for: the tumor's outline and a sample, or as the commands do.
_REMOVALS = {"own": "a sample", "preset": "the preset"}


@dataclasses.dataclass(frozen=True)
class ControlSettings(tasks.ControlTaskSettings):
    """Settings of the part.

    Attributes:
        num_steps: of the sampler.
    """

    num_steps: Count


def run(workbench: Workbench, settings: ControlSettings, folder: Path) -> dict[str, Any]:
    """Measures components, boxes and removal, and draws best, median and worst of each task."""
    inpainter = workbench.inpainter
    preset = Sampling(seed=workbench.seed, blend=True)
    # Before the segmenters are trained, in case that the model cannot.
    preset = preset.for_normal_tissue(inpainter.pipeline.process).of_single_slices
    preset = inpainter.resolve(preset)
    segmenters = segmenter.real_segmenters(workbench, settings.segmenter)
    slices, all_hosts = settings.slices(workbench)
    hosts, transplanted = tasks.transplant(slices.labels, all_hosts, workbench.seed)
    sampling = Sampling(num_steps=settings.num_steps, seed=workbench.seed)
    rows, rois, names, min_area = [], [], [], settings.min_area
    for kind, asked in tasks.KINDS.items():
        own = tasks.make_control_task(kind, slices, slices.labels, min_area)
        real_maps = tasks.segment(segmenters, own.slices.images)
        real, patients = own.scores(real_maps), own.slices.patients
        places = {"own": own}
        if kind == "removal":
            places["preset"] = own.with_margin(inpainter.window_mm / inpainter.image_size)
        else:
            places["elsewhere"] = tasks.make_control_task(kind, hosts, transplanted, min_area)
        for place, task in places.items():
            name = f"{asked.title}, {place}"
            drawn = preset if place == "preset" else sampling
            (painted,) = workbench.repaint(task.slices, task.condition, drawn, name=name)
            segmented = tasks.segment(segmenters, painted)
            scores = task.scores(segmented)
            for sequence, score in itertools.product(workbench.sequences, asked.scores):
                pair = (scores[sequence][score], task.slices.patients)
                real_pair = (real[sequence][score], patients)
                seen = (own.tumor_dice(real_maps[sequence]), patients)
                row = {"kind": kind, "place": place, "sequence": sequence, "score": score}
                guard = None if kind == "components" else seen
                rows.append(row | compare(pair, real_pair, workbench.seed, guard))
            roi, brain = task.condition.roi[..., 0], task.slices.brain
            counts = {"pixels": int(roi.sum()), "on_background": int((roi & ~brain).sum())}
            rois.append({"kind": kind, "place": place, **counts})
            names.append(f"{kind}_{place}.png")
            title = asked.title[0].upper() + asked.title[1:]
            title += f"; {_REMOVALS[place] if kind == 'removal' else _PLACES[place]}"
            _draw(folder / names[-1], task, painted, segmented, scores, title)
    marked = {
        name: {
            sequence: statistics.mean_with_interval(
                tasks.false_positives(maps, real_slices),
                real_slices.patients,
                workbench.seed,
                statistics.SHARE,
            )
            for sequence, maps in tasks.segment(segmenters, real_slices.images).items()
        }
        for name, real_slices in (("outside", slices), ("without", all_hosts))
    }
    return {
        **workbench.record(settings.num_steps),
        "segmenter": dataclasses.asdict(settings.segmenter),
        "min_area": min_area,
        "sizes": {"own": slices.sizes, "elsewhere": hosts.sizes},
        "scores": rows,
        "rois": rois,
        "false_positives": marked,
        "pictures": names,
    }


def compare(
    painted: statistics.Sample,
    real: statistics.Sample,
    seed: int,
    tumor_dice: statistics.Sample | None = None,
) -> dict[str, Any]:
    """Scores of repainted slices compared with those of real slices.

    Args:
        painted: (scores, patients), float [N] in [0, 1] and [N]; NaN for slices without a score.
        real: (scores, patients), float [M] and [M].
        seed: of the intervals' resampling.
        tumor_dice: (Dice, patients) of the segmented with the real tumor in real slices, for scores that
            a segmenter which marks everything would get right.

    Returns:
        `painted` and `real`: {"mean", "low", "high", "count"}, or None without any score; `tumor_dice`
        likewise, where it is given; and `ratio` of their means {"mean", "low", "high"}, None where
        the mean of the real slices, or of the Dice, is below `control_tasks.MIN_REAL_SCORE`.
    """
    samples = {"painted": painted, "real": real}
    if tumor_dice is not None:
        samples["tumor_dice"] = tumor_dice
    means = {
        k: statistics.mean_with_interval(*sample, seed, statistics.SHARE)
        for k, sample in samples.items()
    }
    references = [mean for name, mean in means.items() if name != "painted"]
    ratio = None
    if means["painted"] and all(m and m["mean"] >= tasks.MIN_REAL_SCORE for m in references):
        ratio = statistics.ratio_of_means(statistics.known(painted), statistics.known(real), seed)
    return {**means, "ratio": ratio}


def tables(result: Mapping[str, Any]) -> str:
    """The part's section of the report, in Markdown."""
    by_key = {(r["kind"], r["place"], r["sequence"], r["score"]): r for r in result["scores"]}
    sequences = list(dict.fromkeys(row["sequence"] for row in result["scores"]))
    columns = ["slices", "real", "own place", "ratio", "elsewhere", "ratio"]
    real_columns = ["Dice of tumor", "marked outside it", "marked without tumor"]

    def cells(sequence: str, label: str, kind: str, score: str) -> list[Any]:
        rows = [by_key[kind, place, sequence, score] for place in _PLACES]
        count = (rows[0]["painted"] or {"count": 0})["count"]
        numbers = [row[name] for row in rows for name in ("painted", "ratio")]
        return [sequence, label, count, rows[0]["real"], *numbers]

    components = [
        cells(sequence, name.replace("_", " "), "components", name)
        for sequence, name in itertools.product(sequences, kinds.COMPONENTS)
    ]
    scores = {"iou": "IoU", "share": "share that is tumor"}
    boxes = [
        cells(sequence, f"{tasks.KINDS[kind].title.split(',')[0]}: {scores[score]}", kind, score)
        for kind, score, sequence in itertools.product(
            ("tumor_box", "edema_box"), scores, sequences
        )
    ]
    on_background = "; ".join(
        f"{tasks.KINDS[roi['kind']].title} ({roi['place']}) {roi['on_background'] / roi['pixels']:.1%}"
        for roi in result["rois"]
    )
    removal, marked = [], result["false_positives"]
    for sequence in sequences:
        row, preset = (by_key["removal", how, sequence, "share"] for how in _REMOVALS)
        numbers = (row["tumor_dice"], marked["outside"][sequence], marked["without"][sequence])
        after = [number for one in (row, preset) for number in (one["painted"], one["ratio"])]
        removal.append([sequence, row["painted"]["count"], *numbers, row["real"], *after])
    return report.section(
        "control",
        result=result,
        min_real_score=tasks.MIN_REAL_SCORE,
        on_background=on_background,
        margin=REMOVAL_MARGIN_MM,
        components=report.table(["sequence", "component", *columns], components, num_text=2),
        boxes=report.table(["sequence", "request", *columns], boxes, num_text=2),
        removal=report.table(
            [
                *("sequence", "slices", *real_columns, "before"),
                *(f"{what}{how}" for how in _REMOVALS.values() for what in ("", "ratio, ")),
            ],
            removal,
        ),
        images="\n".join(f"![{name[:-4]}](control/{name})" for name in result["pictures"]),
    )


def _draw(
    path: Path,
    task: tasks.ControlTask,
    painted: np.ndarray,
    segmented: Mapping[str, np.ndarray],
    scores: Mapping[str, Mapping[str, np.ndarray]],
    title: str,
) -> None:
    """Request, and by sequence result and segmentation, of the best, median and worst slice."""
    ranked_by = tasks.KINDS[task.kind].scores
    ranked_by = ranked_by if task.kind == "components" else ranked_by[:1]
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
            masks = np.stack([label_maps[n][window] == kind.label for kind in kinds.KINDS], axis=-1)
            line += [after, pictures.with_rois(after, pictures.enlarge(masks), fill=0.2)]
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

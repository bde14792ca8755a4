"""Whether repainted slices train a segmenter as well as real ones do.

Segmenters learn from real slices, from repainted ones, or from both, with the same number of updates,
and are tested on real slices of subjects that neither they nor the generator have seen.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation import report, segmenter
from mbti_jax.evaluation.control_tasks import make_control_task, transplant
from mbti_jax.evaluation.labels import returned_labels
from mbti_jax.evaluation.slices import LabeledSlices
from mbti_jax.evaluation.statistics import (
    SHARE,
    cell,
    mean_with_interval,
    paired_difference,
    summary,
)
from mbti_jax.evaluation.workbench import PartSettings, Workbench
from mbti_jax.fields import Count, Interval
from mbti_jax.rois.kinds import COMPONENTS

SETS = ("real", "synthetic", "mixed")
# Of a model with a label head: painted in boxes and as mixed tumors, with the labels that it returns.
BOXES = "boxes"


@dataclasses.dataclass(frozen=True)
class DownstreamSettings(PartSettings):
    """Settings of the part.

    Attributes:
        num_slices: of the training split in the real set, and about as many in the synthetic one, a
            third of each kind.
        num_steps: of the sampler.
        num_seeds: trainings per segmenter.
        num_test_slices: with tumor.
        min_area: of a scored component, in the model's pixels.
        min_brain_area: of a slice without tumor, in the dataset's pixels.
        segmenter: size and training.
    """

    num_slices: Annotated[int, Interval(3)]
    num_steps: Count
    num_seeds: Count
    num_test_slices: Count
    min_area: Count
    min_brain_area: Count
    segmenter: segmenter.SegmenterSettings


def run(workbench: Workbench, settings: DownstreamSettings, folder: Path) -> dict[str, Any]:
    """Trains and tests the segmenters; writes nothing to `folder`."""
    segmenter.check_held_out(workbench.patients("train"), workbench.patients("test"))
    real = segmenter.training_slices(workbench, settings.num_slices)
    synthetic = synthetic_slices(workbench, settings)
    mixed = LabeledSlices.concatenate([real, synthetic])
    sets: dict[str, LabeledSlices] = dict(zip(SETS, (real, synthetic, mixed), strict=True))
    if workbench.inpainter.has_labels:
        sets[BOXES] = synthetic_slices(workbench, settings, boxes=True)
    slices = workbench.slices("test", settings.num_test_slices, with_tumor=True)
    test = make_control_task("components", slices, slices.labels, settings.min_area)
    rows = []
    for channel, sequence in enumerate(workbench.sequences):
        scores = collections.defaultdict(list)
        for (name, data), seed in itertools.product(sets.items(), range(settings.num_seeds)):
            learned = (data.images[..., channel], data.labels, settings.segmenter, seed)
            bar = f"{sequence}, {name}, seed {seed}"
            network = segmenter.cached_segmenter(workbench.folder, *learned, bar)
            scores[name].append(test.score(network.labels(test.slices.images[..., channel])))
        for component in COMPONENTS:
            dice = {name: np.stack([by[component] for by in scores[name]]) for name in sets}
            summary = summarize(dice, test.slices.patients, workbench.seed)
            rows.append({"sequence": sequence, "component": component} | summary)
    return {
        **workbench.record(settings.num_steps),
        "num_seeds": settings.num_seeds,
        "min_area": settings.min_area,
        "segmenter": dataclasses.asdict(settings.segmenter),
        "training_slices": {
            name: {"slices": len(s), "with_tumor": int((s.labels > 0).any((1, 2)).sum())}
            for name, s in sets.items()
        },
        "test_slices": len(test.slices),
        "test_subjects": len(np.unique(test.slices.subjects)),
        "scores": rows,
    }


def synthetic_slices(
    workbench: Workbench, settings: DownstreamSettings, boxes: bool = False
) -> LabeledSlices:
    """Repainted slices of the training split with their label maps.

    A third each: the slices' own tumors painted anew, component by component; tumors of other training
    slices in slices without; slices whose tumor was replaced by normal tissue. The label maps are those
    that they were painted after.

    Args:
        boxes: edema is a box around that of the slice, and other slices' tumors are mixed ones in boxes;
            the label maps are those that the model returns.
    """
    third, min_area = settings.num_slices // 3, settings.min_area
    with_tumor, hosts = workbench.with_and_without_tumor("train", third, settings.min_brain_area)
    moved = transplant(with_tumor.labels, hosts, workbench.seed)
    own, elsewhere = ("edema_box", "tumor_box") if boxes else ("components", "components")
    tasks = (
        make_control_task(own, with_tumor, with_tumor.labels, min_area),
        make_control_task(elsewhere, *moved, min_area),
        make_control_task("removal", with_tumor, with_tumor.labels, min_area),
    )
    sampling = Sampling(num_steps=settings.num_steps, seed=workbench.seed)
    parts = []
    for task in tasks:
        name = f"training slices, {task.kind}"
        samples = workbench.sampled(task.slices, task.condition, sampling, name=name)
        (images,) = samples.images
        labels = np.zeros_like(task.labels) if task.kind == "removal" else task.labels
        if boxes:
            labels = returned_labels(samples, task.condition, task.slices)
        parts.append(dataclasses.replace(task.slices, images=images, labels=labels))
    return LabeledSlices.concatenate(parts)


def summarize(
    dice: Mapping[str, np.ndarray], patients: np.ndarray, seed: int
) -> dict[str, dict[str, Any] | None]:
    """Dice by training set, and how it differs from that of real slices.

    Args:
        dice: float [seeds, N] for each of `SETS`, and perhaps `BOXES`, NaN in slices without the
            component.
        patients: [N].
        seed: of the intervals' resampling.

    Returns:
        For each set {"mean", "low", "high", "count", "seed_sd"}: mean over seeds and slices with its
        interval over patients, and the standard deviation of the seeds' means (None for one seed). For
        "synthetic - real" and "mixed - real", and "boxes - synthetic" where there is such a set,
        {"mean", "low", "high"}. All None without any Dice.
    """
    scored = np.isfinite(dice["real"][0])
    if not scored.any():
        return dict.fromkeys([*dice, *_differences(dice)])
    patients = patients[scored]
    dice = {name: values[:, scored] for name, values in dice.items()}
    out: dict[str, Any] = {}
    for name in dice:
        mean = mean_with_interval(dice[name].mean(0), patients, seed, SHARE) or {}
        out[name] = {**mean, "seed_sd": summary(dice[name].mean(1))["sd"]}
    for difference, (name, other) in _differences(dice).items():
        mean, other_mean = dice[name].mean(0), dice[other].mean(0)
        out[difference] = paired_difference(mean, other_mean, patients, seed)
    return out


def _differences(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Which sets are compared with which, by how that is called."""
    pairs = [(name, "synthetic" if name == BOXES else "real") for name in names if name != "real"]
    return {f"{name} - {other}": (name, other) for name, other in pairs}


def tables(result: Mapping[str, Any]) -> str:
    """The part's section of the report, in Markdown."""
    amounts = ", ".join(
        f"{name} {size['slices']} slices ({size['with_tumor']} with tumor)"
        for name, size in result["training_slices"].items()
    )
    rows, sets = [], list(result["training_slices"])
    for row in result["scores"]:
        means, differences = (
            [row[name] for name in sets],
            [row[name] for name in _differences(sets)],
        )
        sds = row["real"] and ", ".join(cell(mean["seed_sd"]) for mean in means)
        component = row["component"].replace("_", " ")
        rows.append([row["sequence"], component, *means, sds, *differences])
    spread = f"SD of seeds ({', '.join(sets)})"
    columns = ["sequence", "component", *sets, spread, *_differences(sets)]
    return report.section(
        "downstream",
        result=result,
        amounts=amounts,
        table=report.table(columns, rows, num_text=2),
    )

"""Whether repainted slices teach a segmenter what real ones do.

Segmenters learn from real slices, from repainted ones, or from both, with the same number of updates,
and are tested on real slices of subjects that neither they nor the generator have seen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mbti_jax.evaluation import segmenter
from mbti_jax.evaluation.requests import Request, borrow, make_request, measure
from mbti_jax.evaluation.setting import LabelledSlices, Setting
from mbti_jax.evaluation.statistics import cell, mean_with_interval, paired_difference
from mbti_jax.rois.kinds import COMPONENTS

SETS = ("real", "synthetic", "mixed")


def run(setting: Setting, settings: ConfigDict, folder: Path) -> dict[str, Any]:
    """Trains and tests; a part of `evaluate`, without pictures.

    Args:
        settings: `num_slices` of the training split in the real set and about as many in the synthetic
            one; `num_steps` of sampling; `least_brain` and `least_area` as in `control`;
            `num_test_slices`; `num_seeds` of training; `segmenter`, the fields of `Training`.
        folder: not used.
    """
    segmenter.check_held_out(setting.patients("train"), setting.patients("test"))
    training = segmenter.training_of(settings.segmenter)
    real = segmenter.training_slices(setting, settings.num_slices)
    synthetic = synthetic_slices(setting, settings)
    sets = {"real": real, "synthetic": synthetic, "mixed": LabelledSlices.joined(real, synthetic)}
    slices = setting.slices("test", settings.num_test_slices, with_tumor=True)
    test = make_request("components", slices, slices.labels, settings.least_area)
    scores = {}
    for channel, sequence in enumerate(setting.sequences):
        for name, learnt_from in sets.items():
            for seed in range(settings.num_seeds):
                network = segmenter.trained(
                    setting.folder,
                    learnt_from.images[..., channel],
                    learnt_from.labels,
                    training,
                    seed,
                    f"{sequence}, {name}, seed {seed}",
                )
                found = network.labels(test.slices.images[..., channel])
                scores[sequence, name, seed] = measure(test, found, settings.least_area)
    return {
        "num_steps": settings.num_steps,
        "guidance_weight": setting.inpainter.default_guidance_weight,
        "num_seeds": settings.num_seeds,
        "least_area": settings.least_area,
        "segmenter": settings.segmenter.to_dict(),
        "training_slices": {
            name: {"slices": len(s), "with_tumor": int((s.labels > 0).any((1, 2)).sum())}
            for name, s in sets.items()
        },
        "test_slices": len(test.slices),
        "test_subjects": len(np.unique(test.slices.subjects)),
        "scores": [
            {"sequence": sequence, "component": component}
            | summarise(
                {
                    name: np.stack(
                        [scores[sequence, name, n][component] for n in range(settings.num_seeds)]
                    )
                    for name in SETS
                },
                test.slices.subjects,
                setting.seed,
            )
            for sequence in setting.sequences
            for component in COMPONENTS
        ],
    }


def synthetic_slices(setting: Setting, settings: ConfigDict) -> LabelledSlices:
    """Repainted slices of the training split with the label maps that they were painted after.

    A third each: the slices' own tumours painted anew, component by component; tumours of other
    training slices in slices without; slices whose tumour was replaced by normal tissue. Boxes are left
    out, since nobody knows what is where in them.

    Args:
        settings: as of `run`.
    """
    third = settings.num_slices // 3
    with_tumor = setting.slices("train", third, with_tumor=True)
    hosts = setting.slices("train", third, with_tumor=False, least_area=settings.least_brain)
    placed = borrow(with_tumor.labels, hosts, setting.seed)
    requests = (
        make_request("components", with_tumor, with_tumor.labels, settings.least_area),
        make_request("components", *placed, settings.least_area),
        make_request("removal", with_tumor, with_tumor.labels, settings.least_area),
    )
    return LabelledSlices.joined(
        *(_painted(setting, request, settings.num_steps) for request in requests)
    )


def summarise(
    dice: Mapping[str, np.ndarray], subjects: np.ndarray, seed: int
) -> dict[str, dict[str, Any] | None]:
    """Dice by training set, and how it differs from that of real slices.

    Args:
        dice: float [seeds, N] for each of `SETS`, NaN in slices without the component.
        subjects: [N].
        seed: of the intervals' resampling.

    Returns:
        For each of `SETS` {"mean", "low", "high", "count", "seed_sd"}: mean over seeds and slices with
        its interval over subjects, and the standard deviation of the seeds' means (None for one seed).
        For "synthetic - real" and "mixed - real" {"mean", "low", "high"}. All None without any Dice.
    """
    names = [*SETS, "synthetic - real", "mixed - real"]
    there = np.isfinite(dice["real"][0])
    if not there.any():
        return dict.fromkeys(names)
    subjects = subjects[there]
    dice = {name: values[:, there] for name, values in dice.items()}
    out: dict[str, Any] = {}
    for name in SETS:
        by_seed = dice[name].mean(1)
        spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None
        out[name] = mean_with_interval(dice[name].mean(0), subjects, seed) | {"seed_sd": spread}
    for name in SETS[1:]:
        means = (dice[name].mean(0), dice["real"].mean(0))
        out[f"{name} - real"] = paired_difference(*means, subjects, seed)
    return out


def tables(result: Mapping[str, Any]) -> str:
    """The part's section of the report, in Markdown."""
    sizes, trained = result["training_slices"], result["segmenter"]
    amounts = ", ".join(
        f"{name} {size['slices']} slices ({size['with_tumor']} with tumour)"
        for name, size in sizes.items()
    )
    lines = [
        "## Downstream use",
        "",
        "Dice of segmenters on real slices of test subjects "
        f"({result['test_slices']} slices of {result['test_subjects']} subjects), after learning from "
        f"training slices: {amounts}. Synthetic slices ({result['num_steps']} steps, w = "
        f"{result['guidance_weight']:g}) are training slices with components painted where they were, "
        "with borrowed tumours where there was none, and with the tumour removed. All learn for "
        f"{trained['num_steps']} steps of {trained['batch_size']} slices, mixed too. Means over "
        f"{result['num_seeds']} seeds and slices with 95% intervals over subjects; the SD is that of "
        f"the seeds' means. Components of at least {result['least_area']} pixels.",
        "",
        "| sequence | component | real | synthetic | mixed | SD of seeds (real, synthetic, mixed) "
        "| synthetic - real | mixed - real |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["scores"]:
        cells = [row["sequence"], row["component"].replace("_", " ")]
        if row["real"] is None:
            cells += ["-"] * 6
        else:
            cells += [cell(row[name]) for name in SETS]
            spreads = [row[name]["seed_sd"] for name in SETS]
            cells.append(", ".join("-" if sd is None else f"{sd:.2f}" for sd in spreads))
            cells += [cell(row[f"{name} - real"]) for name in SETS[1:]]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "The synthetic slices use label maps, and outside the ROIs the tissue, of the same training "
        "subjects, so this is no gain of new anatomy. Segmenters of this size and so few updates do not "
        "show what a large one would gain, and slices without tumour are not scored.",
    ]
    return "\n".join(lines)


def _painted(setting: Setting, request: Request, num_steps: int) -> LabelledSlices:
    (images,) = setting.repaint(
        request.slices, request.tasks, name=f"training slices, {request.kind}", num_steps=num_steps
    )
    removed = request.kind == "removal"
    labels = np.zeros_like(request.labels) if removed else request.labels
    return LabelledSlices(images, labels, request.slices.subjects, request.slices.slice_indices)

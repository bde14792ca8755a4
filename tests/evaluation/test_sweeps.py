"""Comparisons of guidance and samplers: their scores on constructed slices, choices, and the parts."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_workbench import TINY_SEGMENTER, make_workbench
from matplotlib.image import imread
from resynthesized_slices import make_condition, make_slices

from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation import sweep_measures, sweeps
from mbti_jax.evaluation.control_tasks import make_control_task
from mbti_jax.evaluation.slices import LabeledSlices
from mbti_jax.rois.tumors import own_tumor

COMMON = {"num_slices": 2, "min_area": 2, "min_brain_area": 50, "segmenter": TINY_SEGMENTER}
GUIDANCE = sweeps.GuidanceSettings(
    **COMMON, kinds=("plain", "interval"), interval=(0.2, 0.8), weights=(0.0, 2.0), num_steps=2
)
STEPS = sweeps.StepsSettings(
    **COMMON,
    samplers=(("ddim", "trailing"), ("heun", "cubic")),
    evaluations=(1, 2, 3),
    reference=4,
    num_samples=2,
    guidance_weight=0.4,
)


def _healthy(seed=0):
    images = np.random.default_rng(seed).uniform(-1, 1, (2, 16, 16, 2)).astype(np.float32)
    slices = make_slices(images, np.zeros((2, 16, 16), np.uint8))
    roi = np.zeros((2, 16, 16), bool)
    roi[0, 3:9, 4:10] = roi[1, 5:12, 5:12] = True
    return slices, make_condition(roi, "normal")


def test_errors_and_texture_of_what_is_known():
    slices, condition = _healthy()
    scores = sweep_measures.healthy_scores(slices, condition, slices.images)
    values, subjects = scores["mae"]
    assert values.tolist() == [0] * 4
    assert subjects.tolist() == ["subject_0"] * 2 + ["subject_1"] * 2
    np.testing.assert_array_equal(scores["texture"][0], [1] * 4)
    # Half the contrast about 0.5: half the texture; a constant has none.
    halved = np.where(condition.roi, 0.5 + 0.5 * slices.images, slices.images)
    np.testing.assert_allclose(
        sweep_measures.healthy_scores(slices, condition, halved)["texture"][0], 0.5, 1e-5
    )
    moved = np.where(condition.roi, slices.images + 0.2, slices.images)
    scores = sweep_measures.healthy_scores(slices, condition, moved)
    np.testing.assert_allclose(scores["mae"][0], 0.1, rtol=1e-5)
    np.testing.assert_allclose(scores["texture"][0], 1, rtol=1e-5)
    flat = np.where(condition.roi, 0, slices.images)
    np.testing.assert_array_equal(
        sweep_measures.healthy_scores(slices, condition, flat)["texture"][0], 0
    )


def test_texture_is_the_mean_absolute_laplacian_by_hand():
    slices, condition = _healthy()
    painted = slices.images.copy()
    painted[0, 3:9, 4:10] *= np.random.default_rng(1).uniform(0, 2, (6, 6, 2))
    sums = np.zeros((2, 2))
    for y in range(4, 8):  # The ROI's pixels whose four neighbors are in it.
        for x in range(5, 9):
            for row, image in enumerate((painted[0], slices.images[0])):
                around = image[y - 1, x] + image[y + 1, x] + image[y, x - 1] + image[y, x + 1]
                sums[row] += np.abs(around - 4 * image[y, x])
    values, _ = sweep_measures.healthy_scores(slices, condition, painted)["texture"]
    np.testing.assert_allclose(values[:2], sums[0] / sums[1], rtol=1e-5)


def test_only_what_a_sequence_shows_is_scored():
    labels = np.zeros((2, 32, 32), np.uint8)
    labels[:, 8:16, 6:18] = 2
    labels[:, 10:14, 8:14] = 3
    slices = make_slices(np.zeros((2, 32, 32, 2), np.float32), labels)
    blind = SimpleNamespace(labels=lambda images: np.zeros(images.shape, np.uint8))
    no_core = SimpleNamespace(labels=lambda images: labels)
    shown = sweep_measures.visible_components({"t1": blind, "flair": no_core}, slices, 1)
    assert shown == {"dice": [["flair", "edema"], ["flair", "enhancement"]], "iou": ["flair"]}
    task = make_control_task("components", slices, labels, 1)
    found = {"t1": labels, "flair": np.where(labels == 2, 2, 0)}
    values, subjects = sweep_measures.control_scores(task, found, shown)["dice"]
    assert values.tolist() == [1, 1, 0, 0]
    assert subjects.tolist() == ["subject_0", "subject_1"] * 2
    nothing = {"dice": [], "iou": []}
    assert len(sweep_measures.control_scores(task, found, nothing)["dice"][0]) == 0


def test_boxes_around_everything_are_not_scored():
    """Two thirds of the slice are its box, so everything has an IoU of 0.67, and a Dice of 0.22."""
    labels = np.zeros((1, 32, 32), np.uint8)
    labels[:, 2:29, 3], labels[:, 2, 3:29], labels[:, 28, 3:29], labels[:, 2:29, 28] = 2, 2, 2, 2
    slices = make_slices(np.zeros((1, 32, 32, 1), np.float32), labels)
    everything = SimpleNamespace(labels=lambda images: np.full(images.shape, 2, np.uint8))
    assert sweep_measures.visible_components({"t1": everything}, slices, 1) == {
        "dice": [],
        "iou": [],
    }


def test_spread_saturation_and_intensities_of_what_is_known():
    slices, condition = _healthy()
    samples = np.stack([slices.images, slices.images + 0.2])
    values, patients = sweep_measures.spread_score(slices, condition, samples)["spread"]
    np.testing.assert_allclose(values, [0.2 / np.sqrt(2) / 2] * 4, rtol=1e-5)
    assert patients.tolist() == ["subject_0"] * 2 + ["subject_1"] * 2
    assert sweep_measures.spread_score(slices, condition, samples[:1]) == {}
    # A quarter of the first ROI's pixels at the upper end, and one pixel at the lower one.
    painted = np.zeros_like(slices.images)
    painted[0, 3:6, 4:7, 0], painted[1, 5, 5, 1] = 2.0, -1.0
    values, _ = sweep_measures.saturation_score(slices, condition, painted, (-1.0, 2.0))[
        "saturation"
    ]
    np.testing.assert_allclose(values, [9 / 36, 0, 0, 1 / 49])


def test_intensities_are_compared_with_those_of_the_same_component():
    """Between two points of mass the Wasserstein distance is that of the points."""
    labels = np.zeros((2, 16, 16), np.uint8)
    labels[:, 2:8, 2:8], labels[:, 9:13, 9:13] = 2, 3
    images = np.where(labels == 2, 0.4, -0.2)[..., None].astype(np.float32)
    real = make_slices(images, labels)
    task = make_control_task("components", real, labels, 1)
    painted = images.copy()
    painted[0, 2:8, 2:8] = 0.6
    values, patients = sweep_measures.intensity_score(task, painted, real)["intensities"]
    np.testing.assert_allclose(values, [0.1, 0, 0, 0], atol=1e-7)
    assert patients.tolist() == ["subject_0", "subject_1"] * 2


def _row(group, value, passes, *means, half=0.05):
    names = ("dice", "iou", "mae", "texture", "spread")
    ends = dict.fromkeys(("low", "high")) if half is None else None
    found = {
        name: None if m is None else {"mean": m, **(ends or {"low": m - half, "high": m + half})}
        for name, m in zip(names, means, strict=True)
    }
    row = {"group": group, "value": value, "evaluations": value, "network_passes": passes}
    return row | found | {"seconds": passes / 10}


def test_the_cheapest_setting_that_is_good_with_half_its_steps_too():
    reference = _row("ddim", 250, 500, 0.80, None, 0.20, 0.40, 0.10)
    rows = [
        _row("ddim", 5, 10, 0.78, None, 0.16, 0.30, 0.12),  # Too smooth.
        _row("unipc", 8, 16, 0.70, None, 0.20, 0.40, 0.10),  # Too little control.
        _row("ddim", 25, 50, 0.81, None, 0.21, 0.42, 0.11),
        _row("unipc", 5, 10, 0.79, None, 0.22, 0.38, 0.08),  # Good, but not with half its steps.
        _row("unipc", 2, 4, 0.79, None, 0.10, 0.20, 0.08),
        _row("unipc", 10, 20, 0.79, None, 0.22, 0.38, 0.08),
        reference,
    ]
    choice = sweeps.choose_steps(rows)
    assert choice == {
        "sampler": "unipc",
        "evaluations": 10,
        "passes": 20,
        "reference": "250 evaluations of ddim",
    }
    # Better is outside, too: less error than the reference is blur.
    assert sweeps.choose_steps([rows[0], reference])["sampler"] == "ddim"
    assert sweeps.choose_steps([rows[0], reference])["evaluations"] == 250
    # Without intervals nothing is told from anything.
    unknown = _row("ddim", 250, 500, 0.80, None, 0.20, 0.40, 0.10, half=None)
    assert sweeps.choose_steps([*rows[:-1], unknown])["evaluations"] == 250
    # At the same cost, the one nearest to the reference.
    nearer = [_row("dpmpp_2m", n, 2 * n, 0.80, None, 0.21, 0.39, 0.09) for n in (4, 10)]
    assert sweeps.choose_steps([*rows[:-1], *nearer, reference])["sampler"] == "dpmpp_2m"
    # One alone has no half that would say so.
    assert sweeps.choose_steps([*rows[:-1], nearer[1], reference])["sampler"] == "unipc"
    blind = [row | {"spread": None} for row in nearer]
    assert sweeps.choose_steps([*blind, reference])["evaluations"] == 250


def test_guidance_for_tumors_and_for_healthy_tissue():
    rows = [
        _row("plain", 0, 2, 0.5, 0.9, 0.03, 1, None),
        _row("plain", 9, 2, 0.9, 0.2, 0.09, 1, None),
        _row("projected", 1, 2, 0.8, 0.8, 0.04, 1, None),
    ]
    assert sweeps.choose_weight(rows) == {
        "tumor": "projected guidance with w = 1",
        "healthy": "plain guidance with w = 0",
    }
    blind = [row | {"dice": None, "iou": None} for row in rows]
    assert sweeps.choose_weight(blind)["tumor"] == "none can be told"


def test_numbers_of_evaluations_are_those_that_a_method_has():
    """Of n steps Heun's method takes 2 n - 1."""
    settings = STEPS.settings(seed=3)
    assert [(s.group, s.value, s.sampling.num_steps) for s in settings] == [
        ("ddim, trailing", 1, 1),
        ("ddim, trailing", 2, 2),
        ("ddim, trailing", 3, 3),
        ("heun, cubic", 1, 1),
        ("heun, cubic", 3, 2),
        ("ddim, trailing", 4, 4),
    ]
    assert {s.sampling.seed for s in settings} == {3}


def test_time_is_that_of_full_batches_once_compiled(monkeypatch):
    """A clock that only the sampler moves: 3 s at first, 0.5 s a step from then on."""
    clock = [0.0]
    calls = []

    def sample(images, condition, sampling):
        assert len(condition) == len(images)
        calls.append((images.shape, sampling.num_steps))
        clock[0] += 3 if len(calls) == 1 else 0.5 * sampling.num_steps
        return images

    monkeypatch.setattr(sweep_measures.time, "perf_counter", lambda: clock[0])
    inpainter = SimpleNamespace(batch_size=4, num_channels=1, sample=sample)
    slices, condition = _healthy()
    found = sweep_measures.seconds_per_image(inpainter, slices, condition, Sampling(8))
    assert found == {"seconds": 1.0, "extrapolated": False}
    assert calls == [((4, 16, 16, 1), 1), ((4, 16, 16, 1), 8)]
    found = sweep_measures.seconds_per_image(inpainter, slices, condition, Sampling(1000))
    assert found == {"seconds": 125.0, "extrapolated": True}
    assert calls[-1][1] == sweep_measures.MAX_TIMED_STEPS


@pytest.mark.parametrize(
    ("name", "sweep", "settings", "passes"),
    [
        # Guided in the interval only: of the two steps the first is noise alone.
        ("guidance", sweeps.GUIDANCE, GUIDANCE, [2, 4, 2, 3]),
        ("steps", sweeps.STEPS, STEPS, [2, 4, 6, 2, 6, 8]),
    ],
)
def test_a_part_measures_every_setting_and_draws_it(tmp_path, name, sweep, settings, passes):
    workbench = make_workbench(tmp_path)
    (tmp_path / name).mkdir()
    result = sweep.run(workbench, settings, tmp_path / name)
    result = json.loads(json.dumps(result, allow_nan=False))
    assert [row["network_passes"] for row in result["rows"]] == passes
    assert all(row["mae"]["mean"] > 0 and row["seconds"] > 0 for row in result["rows"])
    assert all((row["spread"] is not None) == (name == "steps") for row in result["rows"])
    text = sweep.tables(result)
    for setting in settings.settings(0):
        assert f"\n| {setting.group} | {setting.value:g} |" in text
    (link,) = re.findall(r"\]\((.*?)\)", text)
    assert imread(tmp_path / link).shape[-1] >= 3


def test_slices_sampled_in_one_call_are_what_they_are_alone(tmp_path):
    workbench = make_workbench(tmp_path)
    slices = workbench.slices("test", 2, with_tumor=True)
    parts = [
        own_tumor(slices.labels, slices.brain, "replace").condition(),
        make_condition(slices.labels > 0, "tumor", box=("tumor",)),
    ]
    sampling = Sampling(2)
    alone = [workbench.repaint(slices, part, sampling, name="alone") for part in parts]
    both = (LabeledSlices.concatenate([slices, slices]), Condition.concatenate(parts), sampling)
    numbers = np.array([0, 1, 0, 1])
    joined = workbench.repaint(*both, name="in one call", noise_numbers=numbers)
    np.testing.assert_array_equal(joined, np.concatenate(alone, axis=1))
    # With noise of their own they are not.
    own = workbench.repaint(*both, name="own")
    np.testing.assert_array_equal(own[:, :2], alone[0])
    assert (own[:, 2:] != alone[1]).any()

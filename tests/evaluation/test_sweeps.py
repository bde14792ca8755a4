"""Curves over guidance weight and steps: their scores on constructed slices, choices, and the parts."""

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
from mbti_jax.evaluation import sweeps
from mbti_jax.evaluation.control_tasks import make_control_task
from mbti_jax.evaluation.slices import LabeledSlices
from mbti_jax.rois.tumors import own_tumor

COMMON = {"num_slices": 2, "min_area": 2, "min_brain_area": 50, "segmenter": TINY_SEGMENTER}
GUIDANCE = sweeps.GuidanceSettings(**COMMON, weights=(0.0, 2.0), num_steps=2)
STEPS = sweeps.StepsSettings(**COMMON, steps=(1, 3), guidance_weight=0.4)


def _healthy(seed=0):
    images = np.random.default_rng(seed).uniform(-1, 1, (2, 16, 16, 2)).astype(np.float32)
    slices = make_slices(images, np.zeros((2, 16, 16), np.uint8))
    roi = np.zeros((2, 16, 16), bool)
    roi[0, 3:9, 4:10] = roi[1, 5:12, 5:12] = True
    return slices, make_condition(roi, "normal")


def test_errors_and_texture_of_what_is_known():
    slices, condition = _healthy()
    scores = sweeps.healthy_scores(slices, condition, slices.images)
    values, subjects = scores["mae"]
    assert values.tolist() == [0] * 4
    assert subjects.tolist() == ["subject_0"] * 2 + ["subject_1"] * 2
    np.testing.assert_array_equal(scores["texture"][0], [1] * 4)
    # Half the contrast about 0.5: half the texture; a constant has none.
    halved = np.where(condition.roi, 0.5 + 0.5 * slices.images, slices.images)
    np.testing.assert_allclose(
        sweeps.healthy_scores(slices, condition, halved)["texture"][0], 0.5, 1e-5
    )
    moved = np.where(condition.roi, slices.images + 0.2, slices.images)
    scores = sweeps.healthy_scores(slices, condition, moved)
    np.testing.assert_allclose(scores["mae"][0], 0.1, rtol=1e-5)
    np.testing.assert_allclose(scores["texture"][0], 1, rtol=1e-5)
    flat = np.where(condition.roi, 0, slices.images)
    np.testing.assert_array_equal(sweeps.healthy_scores(slices, condition, flat)["texture"][0], 0)


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
    values, _ = sweeps.healthy_scores(slices, condition, painted)["texture"]
    np.testing.assert_allclose(values[:2], sums[0] / sums[1], rtol=1e-5)


def test_only_what_a_sequence_shows_is_scored():
    labels = np.zeros((2, 32, 32), np.uint8)
    labels[:, 8:16, 6:18] = 2
    labels[:, 10:14, 8:14] = 3
    slices = make_slices(np.zeros((2, 32, 32, 2), np.float32), labels)
    blind = SimpleNamespace(labels=lambda images: np.zeros(images.shape, np.uint8))
    no_core = SimpleNamespace(labels=lambda images: labels)
    shown = sweeps.visible_components({"t1": blind, "flair": no_core}, slices, 1)
    assert shown == {"dice": [["flair", "edema"], ["flair", "enhancement"]], "iou": ["flair"]}
    task = make_control_task("components", slices, labels, 1)
    found = {"t1": labels, "flair": np.where(labels == 2, 2, 0)}
    values, subjects = sweeps.control_scores(task, found, shown)["dice"]
    assert values.tolist() == [1, 1, 0, 0]
    assert subjects.tolist() == ["subject_0", "subject_1"] * 2
    nothing = {"dice": [], "iou": []}
    assert len(sweeps.control_scores(task, found, nothing)["dice"][0]) == 0


def test_boxes_around_everything_are_not_scored():
    """Two thirds of the slice are its box, so everything has an IoU of 0.67, and a Dice of 0.22."""
    labels = np.zeros((1, 32, 32), np.uint8)
    labels[:, 2:29, 3], labels[:, 2, 3:29], labels[:, 28, 3:29], labels[:, 2:29, 28] = 2, 2, 2, 2
    slices = make_slices(np.zeros((1, 32, 32, 1), np.float32), labels)
    everything = SimpleNamespace(labels=lambda images: np.full(images.shape, 2, np.uint8))
    assert sweeps.visible_components({"t1": everything}, slices, 1) == {"dice": [], "iou": []}


def _row(value, dice, texture, mae, iou=None):
    means = {"dice": dice, "texture": texture, "mae": mae, "iou": iou}
    return {"value": value} | {k: None if m is None else {"mean": m} for k, m in means.items()}


def test_the_fewest_steps_that_are_as_good():
    rows = [
        _row(1, 0.70, 0.10, 0.01),  # Blurred, so with the least error.
        _row(5, 0.79, 0.80, 0.02),
        _row(10, 0.79, 0.88, 0.02),
        _row(50, 0.80, 0.90, 0.02),
    ]
    assert sweeps.choose_steps(rows) == {"steps": 10}
    assert sweeps.choose_steps(rows[::-1]) == {"steps": 10}
    assert sweeps.choose_steps([row | {"dice": None} for row in rows]) == {"steps": 10}
    # Good Dice and good texture never together: the most.
    assert sweeps.choose_steps([_row(1, 0.9, 0.1, 0.1), _row(9, 0.5, 0.9, 0.1)]) == {"steps": 9}
    # A blurred row that has the best Dice by chance does not decide.
    lucky = [_row(1, 0.31, 0.25, 0.08), _row(250, 0.26, 0.39, 0.06), _row(1000, 0.27, 0.35, 0.06)]
    assert sweeps.choose_steps(lucky) == {"steps": 250}


def test_weights_for_tumors_and_for_healthy_tissue():
    rows = [_row(0, 0.5, 1, 0.03, 0.9), _row(1, 0.8, 1, 0.04, 0.8), _row(9, 0.9, 1, 0.09, 0.2)]
    assert sweeps.choose_weight(rows) == {"tumor": 1, "healthy": 0}
    blind = [row | {"dice": None, "iou": None} for row in rows]
    assert sweeps.choose_weight(blind) == {"tumor": None, "healthy": 0}


def test_time_is_that_of_full_batches_once_compiled(monkeypatch):
    """A clock that only the sampler moves: 3 s at first, 0.5 s a step from then on."""
    clock = [0.0]
    calls = []

    def sample(images, condition, sampling):
        assert len(condition) == len(images)
        calls.append((images.shape, sampling.num_steps))
        clock[0] += 3 if len(calls) == 1 else 0.5 * sampling.num_steps
        return images

    monkeypatch.setattr(sweeps.time, "perf_counter", lambda: clock[0])
    inpainter = SimpleNamespace(batch_size=4, num_channels=1, sample=sample)
    slices, condition = _healthy()
    found = sweeps.seconds_per_image(inpainter, slices, condition, Sampling(8))
    assert found == {"seconds": 1.0, "extrapolated": False}
    assert calls == [((4, 16, 16, 1), 1), ((4, 16, 16, 1), 8)]
    found = sweeps.seconds_per_image(inpainter, slices, condition, Sampling(1000))
    assert found == {"seconds": 125.0, "extrapolated": True}
    assert calls[-1][1] == sweeps.MAX_TIMED_STEPS


@pytest.mark.parametrize(
    ("name", "sweep", "settings", "values"),
    [
        ("guidance", sweeps.GUIDANCE, GUIDANCE, GUIDANCE.weights),
        ("steps", sweeps.STEPS, STEPS, STEPS.steps),
    ],
)
def test_a_part_measures_every_value_and_draws_it(tmp_path, name, sweep, settings, values):
    workbench = make_workbench(tmp_path)
    (tmp_path / name).mkdir()
    result = sweep.run(workbench, settings, tmp_path / name)
    result = json.loads(json.dumps(result, allow_nan=False))
    assert [row["value"] for row in result["rows"]] == list(values)
    assert all(row["mae"]["mean"] > 0 and row["seconds"] > 0 for row in result["rows"])
    text = sweep.tables(result)
    for value in values:
        assert f"\n| {value:g} |" in text
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

"""Volumes painted by a model that sees neighboring slices."""

import copy
import dataclasses
import gc
import itertools

import jax
import numpy as np
import pytest
from synthetic_cases import write_case
from tiny_inpainter import IMAGE_SIZE, tiny_inpainter
from unet_cases import quick_jit

from mbti_jax import Rois, Sampling
from mbti_jax.diffusion.condition import Condition, Neighbors
from mbti_jax.diffusion.guidance import ClassifierFree
from mbti_jax.diffusion.noise import start_noise
from mbti_jax.diffusion.samplers.driver import SamplingCancelled
from mbti_jax.inference import checks
from mbti_jax.inference.forecast import forecast
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.stacks import neighbor_rows, seen_slices
from mbti_jax.interop.inference_checkpoint import write_export
from mbti_jax.rois.kinds import EDEMA, NORMAL, TUMOR
from tfds_brats.cases import read_case
from tfds_brats.search import find_cases

# Of six slices of a volume, 20 to 25, the third has no ROI.
NUMBERS = np.arange(20, 26)
SAMPLING = Sampling(3, seed=2, guidance=0.4, z_sigma_mm=0.0)


def stack(num_sequences=1) -> tuple[np.ndarray, Condition]:
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (6, IMAGE_SIZE, IMAGE_SIZE, num_sequences)).astype(np.float32)
    masks = np.zeros((6, IMAGE_SIZE, IMAGE_SIZE, 5), bool)
    for number in (0, 1, 3, 4, 5):
        masks[number, 4 : 9 + number, 5:11, 2] = True
    return images, Condition.stack([Rois(mask).condition() for mask in masks])


def volume(inpainter, images, condition, sampling=SAMPLING, numbers=NUMBERS, **options):
    return inpainter.sample(
        images, condition, sampling, slice_indices=numbers, slice_distance=1.0, **options
    )


@pytest.fixture(scope="module")
def seeing() -> Inpainter:
    return tiny_inpainter(neighbors=1, label_head=True)


def test_each_step_sees_the_neighbors_before_it(seeing):
    """DDIM's equation in float64 on the network's predictions, slice by slice, two steps of v."""
    images, condition = stack()
    found = volume(
        seeing, images, condition, Sampling(2, "ddim", seed=2, guidance=0.0, z_sigma_mm=0.0)
    ).images[0]
    process, params = seeing.pipeline.process, seeing._params
    apply = quick_jit(seeing.pipeline.apply)
    low, high = seeing.metadata["inference"]["x_0_bounds"]
    noise, _ = start_noise(2, [0] * 6, NUMBERS, images.shape[1:])
    roi = np.asarray(condition.roi)
    x_t = np.where(roi, noise, images)
    blank = np.zeros_like(x_t[:1])
    masks = np.concatenate([blank.repeat(5, -1), condition.roi_masks, blank.repeat(5, -1)])
    present = np.array([[0, 1], *[[1, 1]] * 4, [1, 0]], np.float32)
    for t, t_prev in ((999, 499), (499, -1)):
        padded = np.concatenate([blank, x_t, blank])
        neighbors = Neighbors(
            np.stack([padded[:-2], padded[2:]], 1), np.stack([masks[:-2], masks[2:]], 1), present
        )
        seen = dataclasses.replace(condition, neighbors=neighbors)
        v = np.asarray(apply(params, x_t, np.full(6, t), seen).image, np.float64)
        a, s = float(process.alpha(np.array(t))), float(process.sigma(np.array(t)))
        x_0 = np.clip(a * x_t - s * v, low, high)
        eps = (x_t - a * x_0) / s
        a_prev, s_prev = (float(f(np.array(t_prev))) for f in (process.alpha, process.sigma))
        x_t = np.where(roi, a_prev * x_0 + s_prev * eps, images).astype(np.float32)
    np.testing.assert_allclose(found, x_t, atol=1e-4)
    np.testing.assert_array_equal(found[2], images[2])


def test_a_volume_depends_neither_on_order_nor_on_batches(seeing):
    images, condition = stack()
    whole = volume(seeing, images, condition, samples=range(2))
    assert whole.images.shape == (2, 6, IMAGE_SIZE, IMAGE_SIZE, 1)
    assert whole.label_probabilities.shape == (2, 6, IMAGE_SIZE, IMAGE_SIZE, 4)
    roi = np.asarray(condition.roi)
    sums = np.where(roi[..., 0], whole.label_probabilities.sum(-1), 1)
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    # In another order other slices share a batch of 4.
    order = np.array([5, 2, 0, 4, 1, 3])
    mixed = volume(
        seeing, images[order], condition[order], numbers=NUMBERS[order], samples=range(2)
    )
    np.testing.assert_array_equal(mixed.images, whole.images[:, order])
    np.testing.assert_array_equal(mixed.label_probabilities, whole.label_probabilities[:, order])
    # A sample is the same alone.
    alone = volume(seeing, images, condition, samples=[1])
    np.testing.assert_array_equal(alone.images[0], whole.images[1])
    # All of it in one batch.
    large = Inpainter(seeing._params, seeing.metadata, batch_size=12)
    chunks = volume(large, images, condition, samples=range(2))
    np.testing.assert_allclose(chunks.images, whole.images, atol=1e-5)


def test_slices_reach_as_far_as_they_are_seen(seeing):
    """In one step a slice depends on its neighbors; far slices are painted as if alone."""
    images, condition = stack()
    one = Sampling(1, seed=2, guidance=0.0, z_sigma_mm=0.0)
    before = volume(seeing, images, condition, one).images[0]
    other = images.copy()
    other[2] += 0.3
    after = volume(seeing, other, condition, one).images[0]
    changed = (after != before).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, [False, True, True, True, False, False])
    painted = [0, 1, 3, 4, 5]
    apart = volume(seeing, images[painted], condition[painted], numbers=10 * NUMBERS[painted])
    single = seeing.sample(
        images[painted], condition[painted], SAMPLING, slice_indices=10 * NUMBERS[painted]
    )
    np.testing.assert_allclose(apart.images, single.images, atol=1e-5)
    np.testing.assert_allclose(apart.label_probabilities, single.label_probabilities, atol=1e-5)
    with pytest.raises(ValueError, match="numbers of their own"):
        volume(seeing, images, condition, numbers=[0] * 6)


def test_sequences_one_by_one_see_their_own_neighbors(seeing):
    images, condition = stack(num_sequences=2)
    both = volume(seeing, images, condition)
    for q in range(2):
        one = volume(seeing, images[..., q : q + 1], condition)
        np.testing.assert_array_equal(both.images[..., q : q + 1], one.images)


def test_one_progress_bar_and_cancelling(seeing):
    images, condition = stack()
    reports = []
    volume(seeing, images, condition, progress=lambda *numbers: reports.append(numbers))
    # Two batches in each of three steps.
    assert reports == [(done, 6) for done in range(1, 7)]
    asked = itertools.count()
    with pytest.raises(SamplingCancelled, match="step 2 of 3"):
        volume(seeing, images, condition, cancel=lambda: next(asked) == 3)


def test_rows_of_neighbors():
    """Against a search through all rows."""
    numbers, has_roi = np.array([7, 3, 4, 6, 9]), np.array([True, True, False, True, False])
    found = neighbor_rows(numbers, has_roi, 2, per_slice=2, num_samples=3, first_still=100)
    painted, still = [7, 3, 6], [4, 9]
    rows = [(s, k, q) for s in range(3) for k in painted for q in range(2)]
    kept = [(k, q) for k in still for q in range(2)]
    for row, (s, k, q) in enumerate(rows):
        for place, offset in enumerate((-2, -1, 1, 2)):
            other = k + offset
            if other in painted:
                expected = rows.index((s, other, q))
            else:
                expected = 100 + kept.index((other, q)) if other in still else -1
            assert found[row, place] == expected


def all_brain(depth: int) -> tuple[np.ndarray, np.ndarray]:
    """(brain in all slices of a volume, no pixel of them)."""
    brain = np.ones((depth, 20, 20), bool)
    return brain, ~brain


def test_slices_with_little_brain_are_not_there():
    brain, nothing = all_brain(8)
    brain[0] = brain[7] = False
    brain[6, 9:] = brain[6, :, 9:] = False  # 81 pixels
    found = seen_slices(brain, np.array([5, 4, 1, 2]), 1, nothing, nothing)
    np.testing.assert_array_equal(found, [1, 2, 3, 4, 5])
    # One that is painted is there, whatever it has.
    found = seen_slices(brain, np.array([6, 5]), 2, nothing, nothing)
    np.testing.assert_array_equal(found, [3, 4, 5, 6])
    np.testing.assert_array_equal(seen_slices(brain, np.array([4, 2]), 0, nothing, nothing), [2, 4])


def test_a_slice_alone_sees_no_neighbors():
    brain, nothing = all_brain(12)
    for neighbors, seen in ((1, [4, 8, 9, 10, 11]), (2, [4, 7, 8, 9, 10, 11])):
        found = seen_slices(brain, np.array([4, 9, 10]), neighbors, nothing, nothing)
        np.testing.assert_array_equal(found, seen)
    # Nor one that another one would see.
    found = seen_slices(brain, np.array([4, 6, 7]), 1, nothing, nothing)
    np.testing.assert_array_equal(found, [4, 6, 7, 8])


def test_what_normal_tissue_replaces_is_not_seen_beside_it():
    brain, normal = all_brain(12)
    normal[3:8, 5:9, 5:9] = True
    replaced = normal.copy()
    replaced[8, 8:12, 8:12] = True  # Tumor that reaches one pixel below the ROI of slice 7.
    replaced[9, 8:12, 8:12] = True
    # Of all slices with the ROI: slice 2 is healthy, slice 8 holds tumor.
    found = seen_slices(brain, np.arange(3, 8), 1, normal, replaced)
    np.testing.assert_array_equal(found, [2, 3, 4, 5, 6, 7])
    # Of some: those left out still hold what should go.
    np.testing.assert_array_equal(seen_slices(brain, np.array([5, 6]), 1, normal, replaced), [5, 6])
    # Beside a tumor that is painted, tumor is in place.
    nothing = np.zeros_like(normal)
    np.testing.assert_array_equal(
        seen_slices(brain, np.array([5, 6]), 1, nothing, replaced), [4, 5, 6, 7]
    )


@pytest.mark.parametrize(
    ("channel", "slices", "has_tumor", "seen"),
    [
        (NORMAL, (), False, True),
        (NORMAL, (), True, False),  # The segmentation has tumor there.
        (TUMOR, (), True, True),
        (NORMAL, (2, 3), False, False),  # Its own ROI is left out.
    ],
)
def test_a_tumor_beside_a_removal_is_not_seen(tmp_path, channel, slices, has_tumor, seen):
    """Whether the slice above what is painted, 4, matters to the one below it, 3."""
    write_case(tmp_path, "BraTS2021_00000")
    (files,) = find_cases(tmp_path, "brats2021")
    case = read_case(files)
    masks = np.zeros((6, 20, 24, 5), bool)
    masks[1:4, 8:13, 6:14, channel] = True
    masks[4, 8:13, 6:14, channel] = bool(slices)
    labels = np.zeros_like(case.labels)
    labels[7:10, 9:11, 4] = EDEMA * has_tumor
    case = dataclasses.replace(case, labels=labels)
    sampling = Sampling(1, guidance=0.0, z_sigma_mm=0.0)
    t1 = case.images["t1"].copy()
    t1[3:10, 4:9, 4] = t1[3:10, 4:9, 4][::-1]
    other = dataclasses.replace(case, images={**case.images, "t1": t1})
    first, second = (
        tiny_inpainter(4, neighbors=1).inpaint_volume(one, Rois(masks), sampling, slices=slices)[0]
        for one in (case, other)
    )
    assert (first.values["t2"][3] != second.values["t2"][3]).any() == seen


@pytest.mark.parametrize(("trained", "far"), [(None, 1.3), (2.0, 1.0), (2.0, 2.6)])
def test_slices_at_another_distance_are_painted_one_by_one_and_said_to_be(tmp_path, trained, far):
    write_case(tmp_path, "BraTS2021_00000")
    (files,) = find_cases(tmp_path, "brats2021")
    seeing = tiny_inpainter(4, neighbors=1)
    metadata = copy.deepcopy(seeing.metadata)
    if trained is not None:
        metadata["contract"]["data"]["slice_distance_mm"] = trained
    # Volumes have the noise of training.
    metadata["contract"]["diffusion"]["z_sigma"] = 1.5
    z_sigma_mm = 1.5 * (trained or 1.0)
    inpainter = Inpainter(seeing._params, metadata, seeing.batch_size)
    masks = np.zeros((6, 20, 24, 5), bool)
    masks[1:4, 8:13, 6:14, 0] = True
    rois, sampling = Rois(masks), Sampling(1, guidance=0.0, z_sigma_mm=None)

    def painted(model, distance):
        case = read_case(files)
        affine = case.affine @ np.diag([1, 1, distance, 1])
        (result,) = model.inpaint_volume(dataclasses.replace(case, affine=affine), rois, sampling)
        return result

    near = painted(inpainter, 1.2 * (trained or 1.0))
    assert near.details["neighbors"] == 1 and near.details["sampling"]["z_sigma_mm"] == z_sigma_mm
    assert not any("apart" in warning for warning in near.details["warnings"])
    assert near.details["geometry"]["spacing_mm"] == [1, 1, 1.2 * (trained or 1.0)]
    result = painted(inpainter, far)
    assert result.details["neighbors"] == 0
    assert result.details["sampling"]["z_sigma_mm"] == z_sigma_mm
    (warning,) = (text for text in result.details["warnings"] if "apart" in text)
    assert f"lie {far:.3g} mm" in warning and f"from {trained or 1:.3g} mm" in warning
    # As the same network without neighbors paints it.
    metadata["contract"]["model"]["neighbors"] = 0
    sampling = dataclasses.replace(sampling, z_sigma_mm=z_sigma_mm)
    params = {name: leaf for name, leaf in seeing._params.items() if name != "neighbors_in"}
    alone = painted(Inpainter(params, metadata, seeing.batch_size), far)
    for name, values in alone.values.items():
        np.testing.assert_array_equal(result.values[name], values)


def test_cases_are_painted_as_volumes(tmp_path):
    write_case(tmp_path, "BraTS2021_00000")
    (files,) = find_cases(tmp_path, "brats2021")
    case = read_case(files)
    inpainter = tiny_inpainter(4, neighbors=1)
    masks = np.zeros((6, 20, 24, 5), bool)
    masks[1:4, 8:13, 6:14, 0] = True
    rois = Rois(masks)
    sampling = Sampling(2, guidance=ClassifierFree(0.0), z_sigma_mm=0.0)
    first, second = inpainter.inpaint_volume(case, rois, sampling, samples=range(2))
    assert first.details["slices"] == [1, 2, 3]
    assert first.details["neighbors"] == 1
    # It was trained with independent noise: it sees no neighbors whose noise is not.
    (shared,) = inpainter.inpaint_volume(case, rois, dataclasses.replace(sampling, z_sigma_mm=None))
    assert shared.details["neighbors"] == 0
    assert shared.details["sampling"]["z_sigma_mm"] == 2.0
    inside = masks.any(-1)
    assert all((first.values[name] != second.values[name])[inside].all() for name in first.values)
    # What is not repainted is seen as it is: slice 4 by the one below, and slice 0, which has less brain
    # than the slices of a dataset, by none.
    one_step = dataclasses.replace(sampling, num_steps=1)
    (base,) = inpainter.inpaint_volume(case, rois, one_step)
    for number, expected in ((4, [False, False, True]), (0, [False, False, False])):
        t1 = case.images["t1"].copy()
        t1[3:10, 4:9, number] = t1[3:10, 4:9, number][::-1]
        changed = dataclasses.replace(case, images={**case.images, "t1": t1})
        (other,) = inpainter.inpaint_volume(changed, rois, one_step)
        differs = (other.values["t2"] != base.values["t2"])[1:4].any((1, 2))
        assert differs.tolist() == expected
    # One slice alone is painted as one.
    (alone,) = inpainter.inpaint_volume(case, rois, sampling, slices=[2])
    assert alone.rois.union.any((1, 2)).tolist() == [k == 2 for k in range(6)]
    assert alone.details["neighbors"] == 0
    cut = {name: np.where(np.arange(6) == 2, values, 0) for name, values in case.images.items()}
    lonely = case.repainted(cut, case.labels)
    (same,) = inpainter.inpaint_volume(lonely, rois, sampling, slices=[2])
    np.testing.assert_array_equal(same.values["t2"][2], alone.values["t2"][2])
    mean = inpainter.inpaint_volume(
        case, rois, dataclasses.replace(sampling, estimate="mean"), samples=range(2)
    )[0]
    for name in first.values:
        pair = np.stack([first.values[name], second.values[name]])[:, inside]
        np.testing.assert_allclose(mean.values[name][inside], pair.mean(0), rtol=1e-6)
        np.testing.assert_allclose(mean.std[name][inside], pair.std(0, ddof=1), rtol=1e-4)


def test_what_a_volume_will_cost(seeing):
    # 9 images are 3 batches of 4; each of 5 steps evaluates the guided network once, in two passes.
    cost = forecast(seeing, Sampling(5, guidance=0.4, z_sigma_mm=0.0), 9, 1.0)
    assert (cost.batches, cost.evaluations, cost.network_passes) == (3, 5, 10)
    assert cost.seconds > 0
    # Painted one by one, a batch at a time is on the devices.
    far = forecast(seeing, Sampling(5, guidance=0.0, z_sigma_mm=0.0), 9, 6.0)
    assert cost.device_bytes == 3 * far.device_bytes
    assert str(cost).startswith("3 batches of 5 evaluations, about ")


@pytest.mark.parametrize("sampler", ["ddim", "unipc"])
def test_the_memory_that_is_stated_is_what_lies_on_the_device(seeing, sampler):
    numbers = np.arange(40)
    images = np.zeros((40, IMAGE_SIZE, IMAGE_SIZE, 1), np.float32)
    masks = np.zeros((40, IMAGE_SIZE, IMAGE_SIZE, 5), bool)
    masks[:, 4:9, 5:11, 2] = True
    condition = Condition.stack([Rois(mask).condition() for mask in masks])
    sampling = Sampling(3, sampler, guidance=0.4, z_sigma_mm=0.0)
    # Arrays of earlier tests may lie about.
    gc.collect()
    before, most = sum(array.nbytes for array in jax.live_arrays()), 0

    def look(done, total):
        nonlocal most
        most = max(most, sum(array.nbytes for array in jax.live_arrays()) - before)

    volume(seeing, images, condition, sampling, numbers, progress=look)
    stated = forecast(seeing, sampling, 40, 1.0).device_bytes
    assert 0.85 < most / stated < 1.15


@pytest.mark.parametrize("names", ["mbti_jax", "guided_diffusion"])
def test_exports_keep_the_neighbors(seeing, tmp_path, names):
    params = jax.device_get(seeing._params)
    write_export(tmp_path / "model", params, seeing.metadata, {}, names)
    again = Inpainter.load(tmp_path / "model")
    assert again.neighbors == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again._params), params)


@pytest.mark.parametrize(
    ("spacing", "sees", "said"),
    [
        ((1.0, 1.0, 1.0), True, []),
        ((0.81, 1.24, 1.2), True, []),
        ((3.0, 1.0, 1.0), False, ["3 x 1 mm"]),
        ((0.5, 0.5, 6.0), True, ["0.5 x 0.5 mm", "6 mm apart"]),
        # Slices by themselves are painted alike at any distance.
        ((1.0, 1.0, 6.0), False, []),
    ],
)
def test_voxels_of_another_size_than_in_training(spacing, sees, said):
    warnings = checks.voxel_sizes(spacing, 1.0, 1.0, sees)
    assert [text in warning for text, warning in zip(said, warnings, strict=True)] == [True] * len(
        said
    )
    assert not checks.voxel_sizes((3.0, 3.0, 1.0), None, 1.0, sees)

"""Segmenters: what they learn, what is kept of them, and what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation_workbench import make_workbench
from scipy.special import log_softmax, softmax

from mbti_jax.evaluation import segmenter
from mbti_jax.evaluation.overlap import dice
from mbti_jax.evaluation.segmenter import RealSegmenterSettings, SegmenterSettings

SIZE = 16
# The same for all tests, so that most share one compiled update.
TINY = SegmenterSettings(model_channels=8, num_steps=2, batch_size=2, learning_rate=1e-3)
REAL = RealSegmenterSettings(**dataclasses.asdict(TINY), num_slices=6, seed=0)
COUNT = 6


def _separable(count, seed=0):
    """Rectangles whose label is their brightness, on a dark brain."""
    rng = np.random.default_rng(seed)
    images = np.full((count, SIZE, SIZE), -1, np.float32)
    images[:, 1:-1, 1:-1] = -0.5
    labels = np.zeros((count, SIZE, SIZE), np.uint8)
    for n in range(count):
        for label in range(1, 4):
            y, x = 4 * label - 2, rng.integers(2, 8)
            labels[n, y : y + 3, x : x + 6] = label
            images[n, y : y + 3, x : x + 6] = 0.5 * label
    return images, labels


def _leaves(trained):
    return jax.device_get(jax.tree.leaves(trained.params))


def test_learns_what_brightness_tells():
    settings = dataclasses.replace(TINY, num_steps=150, batch_size=8, learning_rate=1e-2)
    trained = segmenter.train(*_separable(32), settings, seed=0)
    images, labels = _separable(8, seed=1)
    found = trained.labels(images)
    assert found.dtype == np.uint8
    for label in range(4):
        assert dice(found == label, labels == label) > 0.9


def test_the_loss_is_weighted_cross_entropy_and_soft_dice():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 4, 4, 4)).astype(np.float32)
    labels = rng.integers(0, 3, (2, 4, 4)).astype(np.uint8)  # Without component 3.
    log_shares = np.take_along_axis(log_softmax(logits, -1), labels[..., None].astype(int), -1)
    weights = np.array([1, 2, 5, 4], np.float32)
    entropy = -np.average(log_shares[..., 0], weights=weights[labels])
    shares = softmax(logits, -1)
    expected = []
    for label in (1, 2, 3):
        share, truth = shares[..., label], labels == label
        expected.append((2 * share[truth].sum() + 1) / (share.sum() + truth.sum() + 1))
    loss = segmenter.segmentation_loss(*map(jnp.asarray, (logits, labels, weights)))
    assert loss == pytest.approx(entropy + 1 - np.mean(expected), rel=1e-5)


def test_a_slice_is_segmented_alone_as_among_others():
    trained = segmenter.train(*_separable(COUNT), TINY, seed=0)
    images, _ = _separable(19)  # More than are segmented at once.
    many, features = trained.labels(images), trained.features(images)
    assert many.shape == images.shape
    assert features.shape == (19, 2 * TINY.model_channels)
    for n in (0, 18):
        np.testing.assert_array_equal(trained.labels(images[n : n + 1])[0], many[n])
        np.testing.assert_allclose(trained.features(images[n : n + 1])[0], features[n], rtol=1e-4)


def test_features_are_the_means_of_the_middle_block():
    """The bias of the block's last layer moves its output, and so the mean, by as much."""
    images, labels = _separable(COUNT)
    trained = segmenter.train(images, labels, TINY, seed=0)
    params = jax.device_get(trained.params)
    block = params["middle_block_2"]["out_layers_3"]
    block["bias"] = block["bias"] + np.arange(2 * TINY.model_channels)
    moved = segmenter.Segmenter(params, TINY, SIZE)
    np.testing.assert_allclose(
        moved.features(images) - trained.features(images),
        np.tile(np.arange(2 * TINY.model_channels), (COUNT, 1)),
        atol=1e-4,
    )


def test_features_of_a_region_and_of_the_rest_make_those_of_the_slice():
    images, labels = _separable(COUNT)
    trained = segmenter.train(images, labels, TINY, seed=0)
    region = np.random.default_rng(0).uniform(size=images.shape) < 0.3
    share = region.mean((1, 2))[:, None]
    parts = share * trained.features(images, region) + (1 - share) * trained.features(
        images, ~region
    )
    np.testing.assert_allclose(parts, trained.features(images), rtol=1e-3, atol=1e-4)
    assert np.abs(trained.features(images, region) - trained.features(images)).max() > 1e-2


def test_what_is_kept_is_what_would_be_trained_again(tmp_path):
    images, labels = _separable(COUNT)
    first = segmenter.cached_segmenter(tmp_path, images, labels, TINY, seed=1)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    kept = segmenter.cached_segmenter(tmp_path, images, labels, TINY, seed=1)
    assert path.stat().st_mtime_ns == written
    again = segmenter.train(images, labels, TINY, seed=1)
    for a, b, c in zip(*map(_leaves, (first, kept, again)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert jax.tree.structure(kept.params) == jax.tree.structure(first.params)


@pytest.mark.parametrize("changed", ["seed", "image", "label", "steps"])
def test_other_data_or_settings_are_trained_anew(tmp_path, changed):
    images, labels = _separable(COUNT)
    segmenter.cached_segmenter(tmp_path, images, labels, TINY, seed=1)
    settings, seed = TINY, 1
    if changed == "seed":
        seed = 2
    elif changed == "image":
        images[0, 3, 3] += 0.1
    elif changed == "label":
        labels[0, 3, 3] = 3
    else:
        settings = dataclasses.replace(TINY, num_steps=3)
    segmenter.cached_segmenter(tmp_path, images, labels, settings, seed)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_file_is_named(tmp_path):
    images, labels = _separable(COUNT)
    segmenter.cached_segmenter(tmp_path, images, labels, TINY, seed=1)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=path.name):
        segmenter.cached_segmenter(tmp_path, images, labels, TINY, seed=1)


def test_nobody_is_scored_by_what_has_learned_from_them():
    segmenter.check_held_out(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="such as b"):
        segmenter.check_held_out(["a", "b"], np.array(["c", "b"]))


def test_overlapping_splits_are_refused(tmp_path, monkeypatch):
    workbench = make_workbench(tmp_path)
    patients = workbench.patients
    monkeypatch.setattr(workbench, "patients", lambda split: patients("test"))
    with pytest.raises(ValueError, match="trained on them"):
        segmenter.real_segmenters(workbench, REAL)


def test_one_segmenter_a_sequence(tmp_path):
    workbench = make_workbench(tmp_path)
    found = segmenter.real_segmenters(workbench, REAL)
    assert tuple(found) == workbench.sequences
    assert len(list(workbench.folder.iterdir())) == len(found)
    slices = segmenter.training_slices(workbench, COUNT)
    assert (slices.labels > 0).any((1, 2)).sum() == 4
    assert not set(slices.subjects) & set(workbench.slices("test", 9, with_tumor=True).subjects)


def test_a_cavity_is_background():
    labels = np.arange(5, dtype=np.uint8)
    np.testing.assert_array_equal(segmenter.component_labels(labels), [0, 1, 2, 3, 0])

"""Label maps of repainted slices: a network whose labels are known, and what the request says alone."""

import json

import numpy as np
import pytest
from labeling_inpainter import THRESHOLDS, labeling_inpainter
from tiny_inpainter import make_mask, make_slice, tiny_inpainter

from mbti_jax import Rois, Sampling
from mbti_jax.diffusion.condition import Condition


@pytest.mark.parametrize(
    ("rois", "box"),
    [({"tumor": make_mask((16, 16), (3, 4, 11, 12))}, ("tumor",)),
     ({"edema": np.pad(np.ones((8, 8)), 4)}, ())],
)  # fmt: skip
def test_labels_are_those_of_the_painted_intensities(rois, box):
    """Whatever the guidance, several samples: a pixel's label is what its painted value says."""
    image = make_slice((16, 16), dtype=np.float32)
    kept = np.zeros((16, 16), int)
    kept[9:] = 4
    rois = Rois.of(rois, image.shape, box)
    result = labeling_inpainter().inpaint(
        image, rois, Sampling(4, guidance=2.0), num_samples=3, intensity_range=(0, 900), labels=kept
    )
    inside = rois.union
    painted = result.images / 450 - 1
    expected = np.where(inside, np.digitize(painted, THRESHOLDS), kept)
    np.testing.assert_array_equal(result.labels, expected)
    assert set(np.unique(result.labels[:, inside])) == {0, 1, 2, 3}
    assert result.labels.dtype == np.uint8
    np.testing.assert_array_equal(
        result.label_probabilities.argmax(-1)[:, inside], expected[:, inside]
    )
    np.testing.assert_allclose(
        result.label_probabilities.sum(-1), inside + np.zeros((3, 1, 1)), atol=1e-6
    )
    record = result.provenance["labels"]
    json.dumps(record, allow_nan=False)
    assert (record["inside"], record["outside"]) == ("painted", "kept")
    assert record["pixels"]["resection_cavity"] == {"kept": 3 * int(((kept == 4) & ~inside).sum())}
    assert record["pixels"]["edema"] == {"painted": int((expected[:, inside] == 2).sum())}
    share = None if box else (expected[:, inside] == 2).mean()
    assert record["equal_to_request"] == (None if box else pytest.approx(share))


def test_labels_depend_neither_on_the_batch_nor_on_chunks():
    inpainter = tiny_inpainter(label_head=True)
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (5, 16, 16, 1)).astype(np.float32)
    masks = np.zeros((5, 16, 16, 5), bool)
    masks[:, 4:12, 5:11, 4] = True
    condition = Condition.stack([Rois(mask, ("tumor",)).condition() for mask in masks])
    sampling = Sampling(3, seed=2)
    together = inpainter.sample(images, condition, sampling, slice_indices=range(5))
    alone = inpainter.sample(images[3:4], condition[3:4], sampling, slice_indices=[3])
    np.testing.assert_array_equal(
        alone.label_probabilities[:, 0], together.label_probabilities[:, 3]
    )
    assert np.ptp(together.label_probabilities[:, :, 4:12, 5:11]) > 0.1
    np.testing.assert_allclose(together.label_probabilities.sum(-1), 1, atol=1e-5)


def test_sequences_painted_one_by_one_share_one_label_map():
    """The mean of what each of them says; images are those of a call without the others."""
    inpainter = tiny_inpainter(label_head=True)
    images = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    masks = np.zeros((2, 16, 16, 5), bool)
    masks[:, 4:12, 5:11, 2] = True
    condition = Condition.stack([Rois(mask).condition() for mask in masks])
    together = inpainter.sample(images, condition, Sampling(2), samples=range(2))
    each = [
        inpainter.sample(images[..., q : q + 1], condition, Sampling(2), samples=range(2))
        for q in range(3)
    ]
    expected = np.mean([one.label_probabilities for one in each], axis=0)
    assert together.label_probabilities.shape == (2, 2, 16, 16, 4)
    np.testing.assert_allclose(together.label_probabilities, expected, atol=1e-6)


def test_without_a_head_the_request_is_the_label_map_where_it_says_all():
    image, mask = make_slice(), make_mask()
    kept = np.full(image.shape, 3)
    result = tiny_inpainter().inpaint(
        image, {"edema": mask}, Sampling(1), num_samples=2, labels=kept
    )
    np.testing.assert_array_equal(result.labels, [np.where(mask, 2, 3)] * 2)
    assert result.label_probabilities is None
    assert result.provenance["labels"]["inside"] == "requested"
    box = Rois.of({"edema": mask}, image.shape, ("edema",))
    for rois, what in ((box, "a box of edema"), ({"tumor": mask}, "a mixed tumor")):
        result = tiny_inpainter().inpaint(image, rois, Sampling(1))
        assert result.labels is None and result.label_probabilities is None
        assert what in result.provenance["labels"]["reason"]
        assert "label head" in result.provenance["labels"]["reason"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((3, 3), int), "shape"),
        (np.full((40, 36), 5), r"hold \[5\]"),
        (np.zeros((40, 36)), "float64"),
    ],
)
def test_labels_that_are_none_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_inpainter().inpaint(make_slice(), {"edema": make_mask()}, Sampling(1), labels=labels)

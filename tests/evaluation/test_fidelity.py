"""Fidelity on sets whose distances are known."""

import json
import re

import numpy as np
import pytest
from evaluation_workbench import TINY_SEGMENTER, make_workbench
from matplotlib.image import imread
from resynthesized_slices import make_resynthesis

from mbti_jax.evaluation import fidelity

SETTINGS = fidelity.FidelitySettings(
    num_slices=6,
    num_normal_slices=2,
    min_brain_area=100,
    num_steps=2,
    num_subsets=5,
    segmenter=TINY_SEGMENTER,
)


class Means:
    """In the place of a segmenter: a region's mean in each of `count` equal bands of a slice."""

    def __init__(self, count):
        self._count = count

    def features(self, images, regions):
        bands = [np.split(array, self._count, axis=1) for array in (images, regions)]
        return np.stack(
            [
                (image * region).sum((1, 2)) / np.maximum(region.sum((1, 2)), 1)
                for image, region in zip(*bands, strict=True)
            ],
            axis=1,
        )


def _repainted(seed=0, num_slices=24, size=8, shift=0.0, num_subjects=6):
    rng = np.random.default_rng(seed)
    subjects = [f"s{n % num_subjects}" for n in range(num_slices)]
    images = rng.normal(0, 0.3, (num_slices, size, size, 2)) + rng.normal(
        0, 0.2, (num_slices, 1, 1, 2)
    )
    inside = np.zeros((num_slices, size, size), bool)
    inside[:, 1:7, 1:7] = True
    return make_resynthesis(images, images[None] + shift, inside, subjects)


def test_halves_share_no_subject_and_have_like_counts():
    subjects = np.repeat(["a", "b", "c", "d"], [7, 5, 4, 2])
    first = fidelity.halves(subjects)
    assert not {*subjects[first]} & {*subjects[~first]}
    assert first.sum() == 9


def test_samples_equal_to_the_real_slices_are_as_far_as_real_ones():
    found = fidelity.feature_distances(_repainted(), {"t1": Means(2), "t2": Means(2)}, 20, 0)
    assert found["num_features"] == 2
    assert found["counts"] == [12, 12]
    for by_set in found["sequences"].values():
        assert by_set["synthetic"] == by_set["real"]
        assert by_set["fill"] != by_set["real"]


def test_frechet_distance_of_moved_samples():
    """One feature: (difference of means)^2 + (difference of deviations)^2, in units of its deviation."""
    repainted = _repainted(shift=0.5)
    found = fidelity.feature_distances(repainted, {"t1": Means(1)}, 20, 0)["sequences"]["t1"]
    first = fidelity.halves(repainted.slices.subjects)
    means = repainted.slices.images[:, 1:7, 1:7, 0].mean((1, 2))
    moved, means = 0.5 / means.std(), means / means.std()
    a, b = means[first], means[~first]
    spread = (a.std(ddof=1) - b.std(ddof=1)) ** 2
    expected = [(a.mean() - b.mean() - moved) ** 2, (b.mean() - a.mean() - moved) ** 2]
    assert found["synthetic"]["frechet"] == pytest.approx(np.mean(expected) + spread, rel=1e-6)
    assert found["real"]["frechet"] == pytest.approx((a.mean() - b.mean()) ** 2 + spread, rel=1e-6)
    assert (
        found["synthetic"]["kernel"] > found["real"]["kernel"] + 3 * found["real"]["kernel_error"]
    )


def test_too_few_slices_for_the_features_are_refused():
    found = fidelity.feature_distances(_repainted(), {"t1": Means(8)}, 20, 0)
    assert set(found) == {"refused"}
    assert "8 features" in found["refused"]
    assert "at least 16 slices" in found["refused"]
    assert "12 and 12" in found["refused"]


def test_slices_of_one_subject_are_refused():
    found = fidelity.feature_distances(_repainted(num_subjects=1), {"t1": Means(1)}, 20, 0)
    assert "one subject" in found["refused"]


def _pixels(real, synthetic, count=60):
    return np.full((count, 1), real), np.full((count, 1), synthetic)


def test_intensity_distances_of_constant_tissue():
    values = {"edema": {"a": _pixels(0.0, 0.5), "b": _pixels(1.0, 0.8), "c": _pixels(4.0, 4.6)}}
    (row,) = fidelity.intensity_distances(values, ("t1",), seed=0)
    assert (row["tissue"], row["sequence"], row["num_subjects"]) == ("edema", "t1", 3)
    assert row["own"]["mean"] == pytest.approx((0.5 + 0.2 + 0.6) / 3)
    assert row["between"]["mean"] == pytest.approx((2.5 + 2 + 3.5) / 3)
    # In order: 0 to 0.5, 1 to 0.8, 4 to 4.6.
    assert row["pooled"] == pytest.approx((0.5 + 0.2 + 0.6) / 3)


def test_pooled_distance_ignores_whose_pixels_they_are():
    values = {"edema": {"a": _pixels(0.0, 1.0), "b": _pixels(1.0, 0.0)}}
    (row,) = fidelity.intensity_distances(values, ("t1",), seed=0)
    assert row["pooled"] == 0
    assert row["own"]["mean"] == row["between"]["mean"] == 1


def test_tissue_of_one_subject_has_no_distances():
    (row,) = fidelity.intensity_distances({"edema": {"a": _pixels(0.0, 1.0)}}, ("t1",), seed=0)
    assert row["pooled"] is row["own"] is row["between"] is None


def test_intensities_are_those_inside_the_tissue():
    components = _repainted(shift=0.25)
    masks = np.zeros_like(components.condition.roi_masks)
    masks[..., 2] = components.roi  # Edema: 4 slices of 36 pixels a subject.
    masks[0, 2, 2, 3] = True  # Enhancement in one pixel.
    object.__setattr__(components.condition, "roi_masks", masks)
    found = fidelity.intensities(components, _repainted())
    assert list(found) == ["normal", "necrotic_core", "edema", "enhancement"]
    assert len(found["edema"]) == 6
    real, synthetic = found["edema"]["s1"]
    of_s1 = (components.slices.subjects == "s1") & True
    assert np.sort(real[:, 0]) == pytest.approx(
        np.sort(components.slices.images[of_s1][:, 1:7, 1:7, 0].ravel())
    )
    assert synthetic == pytest.approx(real + 0.25)
    assert found["necrotic_core"] == found["enhancement"] == {}


def test_the_part_says_why_it_refuses(tmp_path, monkeypatch):
    workbench = make_workbench(tmp_path)

    def networks(workbench, settings):
        assert settings == SETTINGS.segmenter
        return {sequence: Means(16) for sequence in workbench.sequences}

    monkeypatch.setattr(fidelity.segmenter, "real_segmenters", networks)
    monkeypatch.setattr(fidelity, "_MIN_PIXELS", 5)  # The slices are of 16 x 16 pixels.
    (tmp_path / "fidelity").mkdir()
    result = fidelity.run(workbench, SETTINGS, tmp_path / "fidelity")
    text = fidelity.tables(json.loads(json.dumps(result, allow_nan=False)))
    assert text.count("No FID or KID") == 2
    assert text.count("with 16 features") == 2
    assert len(result["intensities"]) == 4 * len(workbench.sequences)
    edema = [row for row in result["intensities"] if row["tissue"] == "edema"]
    assert all(row["num_subjects"] == 2 and row["pooled"] > 0 for row in edema)
    for link in re.findall(r"\]\((.*?)\)", text):
        assert imread(tmp_path / link).shape[-1] >= 3


def test_the_table_names_the_features():
    features = fidelity.feature_distances(_repainted(shift=0.5), {"t1": Means(1)}, 20, 0)
    result = {
        "num_steps": 25,
        "guidance_weight": 0.4,
        "features": {"tumor components, free-form": features},
        "intensities": fidelity.intensity_distances(
            {"edema": {"a": _pixels(0.0, 0.5), "b": _pixels(1.0, 0.8)}}, ("t1",), 0
        ),
    }
    text = fidelity.tables(result)
    assert f"| t1 | FID | {features['sequences']['t1']['real']['frechet']:.2f} |" in text
    assert "distance (segmenter features)" in text
    assert "| edema | t1 | 2 | 0.350 | 0.350 " in text

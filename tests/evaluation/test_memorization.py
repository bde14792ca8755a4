"""Copies of training patches are flagged; independent and smooth patches are not."""

import json
import re

import numpy as np
import pytest
from evaluation_workbench import make_workbench
from matplotlib.image import imread
from resynthesized_slices import make_resynthesis, make_slices
from scipy.ndimage import gaussian_filter

from mbti_jax.evaluation import memorization

SIZE, NUM_ROIS, NUM_SUBJECTS = 32, 12, 6


def _textures(seed, count):
    """Slices [count, S, S, 1] of smooth random texture with noise on it."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=(count, SIZE, SIZE)), (0, 2, 2))
    noise = 0.1 * rng.normal(size=smooth.shape)
    return (0.3 * smooth / smooth.std() + noise).astype(np.float32)[..., None]


def _regions():
    inside = np.zeros((NUM_ROIS, SIZE, SIZE), bool)
    inside[:, 10:20, 12:19] = True
    inside[:, 10:12, 12:14] = False
    return inside


def _training():
    subjects = [f"t{n % NUM_SUBJECTS}" for n in range(3 * NUM_SUBJECTS)]
    return make_slices(_textures(1, len(subjects)), np.zeros((18, SIZE, SIZE), np.uint8), subjects)


def _compared(samples):
    """(found, compared) of samples [N, S, S, 1] painted into slices of other subjects."""
    repainted = make_resynthesis(_textures(2, NUM_ROIS), samples[None], _regions())
    found = memorization.nearest(repainted, _training(), channel=0)
    return found, memorization.compare(found, repainted.slices.subjects, seed=0)


@pytest.mark.parametrize("mirror", [False, True])
def test_copied_training_patches_are_flagged(mirror):
    """Each ROI holds what a training slice has three rows lower and two columns to the left."""
    training = _training()
    rows = np.arange(NUM_ROIS) + 3
    copies = training.images[rows]
    if mirror:
        copies = copies[:, :, ::-1]
    found, compared = _compared(np.roll(copies, (-3, 2), axis=(1, 2)))
    assert (found["synthetic"]["row"] == rows).all()
    assert (found["synthetic"]["mirrored"] == mirror).all()
    column = SIZE - 7 - 10 if mirror else 10
    assert (found["synthetic"]["corner"] == (13, column)).all()
    assert found["synthetic"]["distance"] == pytest.approx(0, abs=1e-6)
    for measure in ("distance", "isolation"):
        assert compared[measure]["share"] == 1
        assert compared[measure]["threshold"] > 0.1
    assert compared["distance"]["difference"]["high"] < -0.1


def test_copies_with_a_little_noise_are_flagged():
    copies = _training().images[:NUM_ROIS] + np.random.default_rng(5).normal(
        0, 0.02, (NUM_ROIS, SIZE, SIZE, 1)
    )
    found, compared = _compared(copies.astype(np.float32))
    assert found["synthetic"]["distance"] == pytest.approx(0.02, rel=0.3)
    assert compared["distance"]["share"] == compared["isolation"]["share"] == 1


def test_independent_patches_are_not_flagged():
    _, compared = _compared(_textures(4, NUM_ROIS))
    assert compared["distance"]["share"] <= 2 / NUM_ROIS
    assert compared["isolation"]["share"] <= 2 / NUM_ROIS
    difference = compared["distance"]["difference"]
    assert difference["low"] < 0 < difference["high"]


def test_smooth_patches_are_near_to_everything_and_not_isolated():
    _, compared = _compared(np.zeros((NUM_ROIS, SIZE, SIZE, 1), np.float32))
    assert compared["distance"]["share"] == 1
    assert compared["isolation"]["share"] == 0


def test_the_share_of_chance_is_that_of_random_distances():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(4000):
        draws = {
            source: {name: rng.gamma(4, 1, 20) for name in ("distance", "isolation")}
            for source in ("real", "synthetic")
        }
        threshold = np.quantile(draws["real"]["distance"], 0.01)
        shares.append((draws["synthetic"]["distance"] < threshold).mean())
    compared = memorization.compare(draws, np.arange(20), seed=0)
    assert compared["distance"]["share"] == shares[-1]
    # The quantile is interpolated in a tail that is not straight.
    assert compared["chance"] == pytest.approx(np.mean(shares), rel=0.1)


def test_real_tissue_compared_with_itself_is_at_its_own_quantile():
    found, compared = _compared(_textures(2, NUM_ROIS))
    assert (found["synthetic"]["distance"] == found["real"]["distance"]).all()
    assert compared["distance"]["share"] == pytest.approx(1 / NUM_ROIS)
    assert compared["distance"]["threshold"] == np.quantile(found["real"]["distance"], 0.01)


SETTINGS = memorization.MemorizationSettings(
    num_slices=6,
    num_normal_slices=2,
    min_brain_area=100,
    num_steps=2,
    num_rois=3,
    min_area=4,
    num_training_slices=5,
    num_pairs=3,
)


def test_the_part_states_what_was_searched_and_draws_the_closest(tmp_path):
    workbench = make_workbench(tmp_path)
    (tmp_path / "memorization").mkdir()
    result = memorization.run(workbench, SETTINGS, tmp_path / "memorization")
    text = memorization.tables(json.loads(json.dumps(result, allow_nan=False)))
    assert len(result["rows"]) == 2 * len(workbench.sequences)
    assert "3 ROIs of 4 pixels and more, searched in 5 training slices of 5 subjects" in text
    for row in result["rows"]:
        # Random weights paint nothing that was in any training slice.
        assert row["distance"]["share"] == 0
        assert row["distance"]["synthetic"] > row["distance"]["real"] > 0
    (link,) = re.findall(r"\]\((.*?)\)", text)
    assert imread(tmp_path / link).shape[-1] >= 3


def test_small_rois_are_left_out():
    inside = _regions()
    inside[::2, 11:] = False  # 5 pixels are left of 66.
    images = _textures(2, NUM_ROIS)
    repainted = make_resynthesis(images, images[None], inside)
    chosen = memorization.choose(repainted, 3, min_area=6)
    assert chosen.slices.subjects.tolist() == ["subject_3", "subject_7", "subject_11"]
    assert (chosen.samples[0] == images[[3, 7, 11]]).all()
    with pytest.raises(ValueError, match="no ROI has 67 pixels"):
        memorization.choose(repainted, 3, min_area=67)


def test_a_model_of_other_data_is_not_judged(tmp_path):
    workbench = make_workbench(tmp_path, held_out=False)
    result = memorization.run(workbench, SETTINGS, tmp_path)
    text = memorization.tables(result)
    assert "Not measured: the model was not trained on this dataset" in text

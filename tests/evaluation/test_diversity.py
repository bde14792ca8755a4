"""Diversity against closed forms, constructed ensembles and the metrics of the inpainting challenge."""

import json
import math
import re

import numpy as np
import pytest
from evaluation_workbench import make_workbench
from matplotlib.image import imread
from resynthesized_slices import make_resynthesis
from skimage.metrics import structural_similarity

from mbti_jax.evaluation import diversity
from mbti_jax.evaluation.diversity import (
    DiversitySettings,
    measure,
    pairwise_ssim,
    ssim,
    variance_and_error,
)
from mbti_jax.evaluation.metrics import ssim_map


def _image(seed, shape=(40, 36)):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def _disk(size=24, radius=8):
    y, x = np.mgrid[:size, :size] - size // 2
    return np.hypot(y, x) < radius


@pytest.mark.parametrize(
    "region", [np.s_[12:20, 9:22], np.s_[0:1, 0:1], np.s_[38:40, 20:36], np.s_[0:40, 0:36]]
)
def test_ssim_inside_a_region_is_that_of_the_whole_slice(region):
    a, b = _image(1), _image(2)
    inside = np.zeros(a.shape, bool)
    inside[region] = True
    _, whole = structural_similarity(
        a, b, data_range=2, gaussian_weights=True, use_sample_covariance=False, full=True
    )
    assert ssim(a, b, inside) == pytest.approx(whole[inside].mean(), rel=1e-12)


def test_ssim_is_that_of_the_challenge_away_from_the_border():
    a, b = _image(1), _image(2)
    a[0, 0], a[-1, -1] = -1, 1  # The challenge's takes the range from the images.
    inside = np.zeros(a.shape, bool)
    inside[10:28, 12:20] = True
    expected = ssim_map(a, b, window_axes=(0, 1))[inside].mean()
    assert ssim(a, b, inside) == pytest.approx(expected, rel=1e-9)


def test_the_mean_is_over_all_pairs():
    samples = np.stack([_image(seed, (24, 24)) for seed in range(3)])
    pairs = [ssim(samples[i], samples[j], _disk()) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert pairwise_ssim(samples, _disk()) == pytest.approx(np.mean(pairs))


def test_variance_and_error_by_hand():
    samples = np.array([[[1.0, 9]], [[3.0, 9]]])
    inside = np.array([[True, False]])
    assert variance_and_error(samples, np.array([[5.0, 0]]), inside) == (2.0, 9.0)


def test_samples_that_are_all_the_same():
    inside = np.repeat(_disk()[None], 2, 0)
    images = np.stack([_image(n, (24, 24, 1)) for n in range(2)])
    repainted = make_resynthesis(images, np.repeat(-images[None], 4, 0), inside)
    found = measure(repainted, ("t1",), seed=0)["t1"]
    assert found["ssim"]["mean"] == pytest.approx(1)
    assert found["sd"]["mean"] == 0
    assert found["spread_to_error"] == 0
    assert found["ssim_real"]["mean"] < 0.5


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_spread_and_error_of_an_ensemble(share):
    """Truth ~ N(m, s), R samples ~ N(m, share * s): both expectations are known."""
    rng = np.random.default_rng(3)
    count, size, sd, slices = 8, 24, 0.2, 12
    inside = np.repeat(_disk(size)[None], slices, 0)
    middle = rng.uniform(-1, 1, (slices, size, size, 2))
    images = middle + rng.normal(0, sd, middle.shape)
    samples = middle + rng.normal(0, share * sd, (count, *middle.shape))
    found = measure(make_resynthesis(images, samples, inside), ("t1", "t2"), seed=0)
    error = 1 + share**2 / count
    expected = math.sqrt((1 + 1 / count) * share**2 / error)
    # Mean of the standard deviation of 8 normal values (Cochran's theorem).
    bias = math.sqrt(2 / (count - 1)) * math.gamma(count / 2) / math.gamma((count - 1) / 2)
    for sequence in ("t1", "t2"):
        assert found[sequence]["spread_to_error"] == pytest.approx(expected, rel=0.05)
        assert found[sequence]["sd"]["mean"] == pytest.approx(bias * share * sd, rel=0.02)
        low, high = found[sequence]["sd"]["low"], found[sequence]["sd"]["high"]
        assert low < found[sequence]["sd"]["mean"] < high


def test_one_sample_has_no_diversity():
    images = _image(0, (1, 24, 24, 1))
    with pytest.raises(ValueError, match="num_samples"):
        measure(make_resynthesis(images, images[None], _disk()[None]), ("t1",), seed=0)


def test_the_part_measures_every_task_and_draws_it(tmp_path):
    workbench = make_workbench(tmp_path)
    settings = DiversitySettings(num_slices=2, num_samples=2, num_steps=2, min_brain_area=100)
    (tmp_path / "diversity").mkdir()
    result = diversity.run(workbench, settings, tmp_path / "diversity")
    assert len(result["tasks"]) == 6
    text = diversity.tables(json.loads(json.dumps(result, allow_nan=False)))
    for task in result["tasks"]:
        assert set(task["sequences"]) == set(workbench.sequences)
        assert text.count(f"| {task['task']} |") == len(workbench.sequences)
        for found in task["sequences"].values():
            # Random weights: samples neither alike nor like the slice.
            assert found["sd"]["mean"] > 0
            assert found["ssim"]["mean"] < 0.99
    for link in re.findall(r"\]\((.*?)\)", text):
        assert imread(tmp_path / link).shape[-1] >= 3

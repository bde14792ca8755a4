"""Samplings that are refused; samples that are not finite are an error."""

import numpy as np
import pytest

from mbti_jax.diffusion import samplers, sampling
from mbti_jax.diffusion.consistency import Consistency
from mbti_jax.diffusion.processes import Gaussian, RectifiedFlow, Regression
from mbti_jax.diffusion.sampling import NonFiniteSampleError, Sampling, check_finite, has_mean
from mbti_jax.diffusion.schedule import make_schedule
from mbti_jax.fields import FieldError


def test_finite_samples_come_back_as_they_are():
    samples = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 2, 3)
    assert check_finite(samples, Sampling()) is samples


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_an_error_that_says_how_it_was_drawn(value):
    samples = np.zeros((2, 50), np.float32)
    samples[1, :3] = value
    with pytest.raises(NonFiniteSampleError, match=r"3 of 100 .*guidance_weight=7.5") as error:
        check_finite(samples, Sampling(num_steps=9, guidance=7.5))
    assert "num_steps=9" in str(error.value)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"estimate": "median"}, "estimate must be one of sample, mean, near_mean, not 'median'"),
        ({"mean_passes": 1}, "mean_passes is of the estimate mean, not of sample"),
        ({"estimate": "mean", "mean_passes": 0}, "mean_passes must be 1, or None"),
        ({"estimate": "mean", "mean_passes": 2}, "mean_passes must be 1, or None"),
        ({"estimate": "mean", "mean_passes": "1"}, "mean_passes must be 1, or None"),
        ({"estimate": "mean", "mean_passes": 1, "spacing": "ddim"}, "spacing must be trailing"),
        ({"estimate": "mean", "mean_passes": 1, "spacing": (5, 1)}, "spacing must be trailing"),
    ],
)
def test_means_refused(fields, sentence):
    with pytest.raises(FieldError, match=sentence):
        Sampling(**fields)


def test_a_mean_is_one_of_several_samples_or_of_one_pass():
    with pytest.raises(FieldError, match="num_samples must be at least 2 for their mean"):
        Sampling(estimate="mean").check_num_samples(1)
    with pytest.raises(FieldError, match="num_samples must be 1 with mean_passes, not 4"):
        Sampling(estimate="mean", mean_passes=1).check_num_samples(4)
    Sampling(estimate="mean").check_num_samples(2)
    Sampling(estimate="mean", mean_passes=1).check_num_samples(1)
    Sampling().check_num_samples(1)


def test_records_of_samples_are_those_of_before_there_were_means():
    assert not {"estimate", "mean_passes"} & Sampling().record().keys()
    record = Sampling(50, estimate="mean", mean_passes=1).record()
    assert (record["estimate"], record["mean_passes"], record["num_steps"]) == ("mean", 1, 1)


def test_of_few_timesteps_there_are_no_more_steps_than_these():
    assert Sampling().resolved(Regression()).num_steps == 1
    assert Sampling().resolved(RectifiedFlow(num_timesteps=5)).num_steps == 5
    assert Sampling().resolved(RectifiedFlow()).num_steps == 8


def test_samples_near_the_mean_leave_out_the_times_between():
    process = RectifiedFlow()
    found = Sampling(5, spacing="trailing", estimate="near_mean").resolved(process)
    # In a flow t + 1 is the noise share, in thousandths.
    assert found.spacing == (999, 498, 373, 249, 124)
    assert found.num_steps == 5 and found.resolved(process) == found
    record = found.record()
    assert record["estimate"] == "near_mean" and "mean_passes" not in record
    cubic = Sampling(estimate="near_mean").resolved(Gaussian(make_schedule("linear"), "v"))
    assert cubic.spacing[0] == 999 and 200 < cubic.spacing[1] < 300 and cubic.num_steps == 8
    for steps in (1, 501):
        with pytest.raises(
            FieldError, match=f"num_steps must be between 2 and 500 .*, not {steps}"
        ):
            Sampling(steps, estimate="near_mean").resolved(process)
    with pytest.raises(FieldError, match="estimate is not for a model tuned for few steps"):
        Sampling(estimate="near_mean").resolved(Consistency(process))
    assert has_mean(process) and not has_mean(Consistency(process)) and not has_mean(Regression())


@pytest.mark.parametrize(
    ("fields", "recommended", "expected"),
    [
        ({}, {}, (7, "unipc", "cubic")),
        ({"num_steps": 3}, {}, (3, "unipc", "cubic")),
        ({"sampler": "ddim"}, {}, (20, "ddim", "trailing")),
        ({"sampler": "heun"}, {"num_steps": 3}, (5, "heun", "cubic")),
        ({"sampler": "ddim", "spacing": "cubic"}, {}, (20, "ddim", "cubic")),
        ({"eta": 0.5}, {}, (20, "ddim", "trailing")),
        ({}, {"num_steps": 2, "sampler": "euler"}, (2, "euler", "trailing")),
        ({}, {"spacing": "trailing"}, (7, "unipc", "trailing")),
        ({"sampler": "dpmpp_2m"}, {"spacing": "trailing"}, (8, "dpmpp_2m", "cubic")),
        ({"eta": 0.5}, {"sampler": "unipc", "spacing": "cubic"}, (20, "ddim", "trailing")),
        ({"estimate": "mean", "mean_passes": 1}, {}, (1, "unipc", "trailing")),
    ],
)
def test_what_is_left_open_follows_from_checkpoint_sampler_and_eta(
    monkeypatch, fields, recommended, expected
):
    for name, steps in {"unipc": 7, "dpmpp_2m": 8, "ddim": 20, "heun": 5}.items():
        monkeypatch.setattr(samplers.method(name), "STEPS", steps)
    monkeypatch.setitem(sampling.DEFAULTS, "sampler", "unipc")
    found = Sampling(**fields).resolved(RectifiedFlow(), recommended)
    assert (found.num_steps, found.sampler, found.spacing) == expected

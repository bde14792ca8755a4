"""The diffusion process against guided-diffusion's numbers and float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import kstest, norm, uniform

from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.process_settings import ProcessSettings
from mbti_jax.diffusion.processes import (
    FLOW_PREDICTIONS,
    PREDICTIONS,
    Gaussian,
    RectifiedFlow,
    squared_error_terms,
)
from mbti_jax.diffusion.schedule import Schedule, make_schedule
from mbti_jax.fields import FieldError

SCHEDULES = ("linear", "cosine")


@pytest.fixture(autouse=True)
def strict_types():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def relative_l2(value, reference):
    return np.linalg.norm(value - reference) / np.linalg.norm(reference)


def assert_parity(value, golden, name):
    value = np.asarray(value).transpose(0, 3, 1, 2)
    close = np.allclose(value, golden, rtol=0, atol=1e-8)
    assert close or relative_l2(value, golden) <= 1e-6, name


@pytest.fixture
def batch():
    """x_0, eps, t and roi of six examples, both ends of the process among them."""
    rng = np.random.default_rng(0)
    x_0 = rng.uniform(-1, 1, (6, 8, 8, 2)).astype(np.float32)
    eps = rng.standard_normal((6, 8, 8, 2)).astype(np.float32)
    roi = (rng.random((6, 8, 8, 1)) < 0.5).astype(np.float32)
    return x_0, eps, np.array([0, 1, 250, 500, 998, 999], np.int32), roi


def float64_factors(name, t):
    alpha = make_schedule(name).alphas_cumprod[t].reshape(-1, 1, 1, 1)
    return np.sqrt(alpha), np.sqrt(1 - alpha)


def posterior(process, x_0, x_t, t):
    """Mean and variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, equations 6 and 7), float64."""
    t = np.asarray(t)
    alpha, alpha_prev = process.alpha(t) ** 2, process.alpha(t - 1) ** 2
    beta = 1 - alpha / alpha_prev
    of_x_0 = np.sqrt(alpha_prev) * beta / (1 - alpha)
    of_x_t = np.sqrt(1 - beta) * (1 - alpha_prev) / (1 - alpha)
    of_x_0, of_x_t, variance = (
        values.reshape(-1, 1, 1, 1)
        for values in (of_x_0, of_x_t, beta * (1 - alpha_prev) / (1 - alpha))
    )
    return of_x_0 * np.asarray(x_0) + of_x_t * np.asarray(x_t), variance


def test_parity_with_guided_diffusion(goldens):
    files = sorted(goldens.glob("schedule*.npz"))
    assert files, f"no schedule*.npz in {goldens}"
    for file in files:
        with np.load(file) as arrays:
            golden = dict(arrays)
        for name in sorted({key.split("/")[0] for key in golden if key.endswith("/q_sample")}):
            diffusion = Gaussian(make_schedule(name, len(golden[f"{name}/betas"])))
            x_0, eps = (golden[f"{name}/{k}"].transpose(0, 2, 3, 1) for k in ("x0", "noise"))
            t = jnp.asarray(golden[f"{name}/t"], jnp.int32)
            x_t = diffusion.corrupt(x_0, eps, t, np.ones_like(x_0[..., :1]))
            assert_parity(x_t, golden[f"{name}/q_sample"], f"{file.name}: {name} q_sample")
            mean, variance = posterior(diffusion, x_0, x_t, t)
            variance = np.broadcast_to(variance, mean.shape)
            for key, value in (("posterior_mean", mean), ("posterior_variance", variance)):
                assert_parity(value, golden[f"{name}/{key}"], f"{file.name}: {name} {key}")


@pytest.mark.parametrize("name", SCHEDULES)
def test_q_sample_noises_the_roi_and_nothing_else(name, batch):
    x_0, eps, t, roi = batch
    x_t = np.asarray(Gaussian(make_schedule(name)).corrupt(x_0, eps, t, roi))
    a, s = float64_factors(name, t)
    inside = np.broadcast_to(roi > 0, x_0.shape)
    np.testing.assert_array_equal(x_t[~inside], x_0[~inside])
    np.testing.assert_allclose(x_t[inside], (a * x_0 + s * eps)[inside], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_is_bayes_rule(name, batch):
    """q(x_{t-1} | x_t, x_0) as the product of two Gaussians in x_{t-1}, in float64."""
    x_0, eps, t, _ = batch
    schedule = make_schedule(name)
    beta = schedule.betas[t].reshape(-1, 1, 1, 1)[1:]  # at t = 0 the prior is a point
    alpha_prev = schedule.alphas_cumprod[t - 1].reshape(-1, 1, 1, 1)[1:]
    mean, variance = posterior(Gaussian(schedule), x_0, eps, t)  # any x_t will do
    np.testing.assert_array_equal(mean[0], x_0[0])
    assert variance[0].item() == 0
    precision = 1 / (1 - alpha_prev) + (1 - beta) / beta
    expected = np.sqrt(alpha_prev) / (1 - alpha_prev) * x_0[1:] + np.sqrt(1 - beta) / beta * eps[1:]
    np.testing.assert_allclose(variance[1:], 1 / precision, rtol=1e-6)
    np.testing.assert_allclose(mean[1:], expected / precision, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_predictions_convert_to_the_image(name, prediction, batch):
    x_0, eps, t, _ = batch
    diffusion = Gaussian(make_schedule(name), prediction)
    a, s = float64_factors(name, t)
    target = diffusion.target(x_0, eps, t)
    expected = {"eps": eps, "v": a * eps - s * x_0, "x_0": x_0}[prediction]
    np.testing.assert_allclose(target, expected, rtol=1e-5, atol=1e-6)

    x_t = diffusion.corrupt(x_0, eps, t, np.ones_like(x_0[..., :1]))
    # x_0 from eps is as good as float32 allows: x_t is known to one part in 2^24, of which a_t x_0 is
    # a small share late in the process. From v it is exact at every timestep.
    share = a if prediction == "eps" else 1.0
    error = np.abs(np.asarray(diffusion.to_x_0(target, x_t, t)) - x_0)
    assert np.all(error <= 2e-6 / share + 1e-5 * np.abs(x_0)), error.max()


@pytest.mark.parametrize("name", SCHEDULES)
def test_alpha_and_sigma_at_real_times(name):
    """The tables at integers, the clean image at -1, and in between what lies between."""
    schedule = make_schedule(name)
    process = Gaussian(schedule)
    t = np.array([-1, 0, 17, 500, 999])
    alpha_bar = np.append(1.0, schedule.alphas_cumprod)[t + 1]
    for times in (t, t.astype(float)):
        np.testing.assert_allclose(process.alpha(times) ** 2, alpha_bar, rtol=1e-12)
        np.testing.assert_allclose(process.sigma(times) ** 2, 1 - alpha_bar, atol=1e-12)
    between = np.linspace(-1, 999, 4001)
    assert np.all(np.diff(process.alpha(between)) < 0)
    np.testing.assert_allclose(process.alpha(between) ** 2 + process.sigma(between) ** 2, 1)
    on_device = process.alpha(jnp.asarray(between, jnp.float32))
    np.testing.assert_allclose(on_device, process.alpha(between), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_last_timestep_is_finite_in_values_and_gradients(name, batch):
    x_0, eps, t, roi = batch
    for prediction in PREDICTIONS:
        diffusion = Gaussian(make_schedule(name), prediction)

        def loss(output, diffusion=diffusion):
            x_t = diffusion.corrupt(x_0, eps, t, roi)
            return jnp.mean(diffusion.to_x_0(output, x_t, t) ** 2)

        value, gradient = jax.value_and_grad(loss)(jnp.asarray(eps))
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


def test_one_example_and_a_batch_are_the_same_function(batch):
    x_0, eps, t, roi = batch
    diffusion = Gaussian(make_schedule("cosine"), "v")
    for method in (diffusion.target, lambda *args: diffusion.corrupt(*args, roi[2])):
        np.testing.assert_allclose(
            method(x_0[2], eps[2], t[2]), method(x_0[2:3], eps[2:3], t[2:3])[0], rtol=1e-6
        )


def test_unknown_prediction_is_an_error():
    with pytest.raises(ValueError, match="'score'"):
        Gaussian(make_schedule("linear"), "score")


def test_roi_is_the_union_of_the_masks():
    masks = np.zeros((6, 8, 8, 5), np.float32)
    masks[0, 1, 2, 0] = masks[0, 1, 2, 4] = masks[3, 4, 5, 3] = 1
    roi = np.asarray(Condition(masks, np.ones((6, 5), np.float32)).roi)
    assert roi.shape == (6, 8, 8, 1)
    assert list(zip(*roi.nonzero(), strict=True)) == [(0, 1, 2, 0), (3, 4, 5, 0)]


def test_loss_is_the_mean_over_roi_pixels_and_sequences(batch):
    prediction, target, _, roi = batch
    weight = np.array([1, 1, 0, 1, 1, 0], np.float32)
    sums, counts = squared_error_terms(prediction, target, roi, weight)
    inside = np.broadcast_to(roi > 0, target.shape).copy()
    inside[weight == 0] = False
    expected = np.mean((prediction.astype(np.float64) - target)[inside] ** 2)
    assert float(sums.sum() / counts.sum()) == pytest.approx(expected, rel=1e-6)
    assert float(counts.sum()) == inside.sum()
    # Any split of the batch adds up to the same two numbers.
    arrays = (prediction, target, roi, weight)
    parts = [squared_error_terms(*(a[i : i + 2] for a in arrays)) for i in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate([p[0] for p in parts]), sums)
    np.testing.assert_array_equal(np.concatenate([p[1] for p in parts]), counts)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_target_outside_the_roi_changes_neither_loss_nor_gradient(prediction, batch):
    """Through a network that mixes all pixels, so that leaks would show."""
    x_0, eps, t, roi = batch
    diffusion = Gaussian(make_schedule("cosine"), prediction)
    mix = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32) / 8

    @jax.jit
    def loss_and_gradient(mix, x_t, target):
        def loss(mix):
            output = jnp.einsum("pq,bqc->bpc", mix, x_t.reshape(6, 64, 2)).reshape(x_t.shape)
            sums, counts = squared_error_terms(output, target, roi, jnp.ones(6))
            return jnp.sum(sums) / jnp.sum(counts)

        return jax.value_and_grad(loss)(mix)

    x_t = diffusion.corrupt(x_0, eps, t, roi)
    target = np.array(diffusion.target(x_0, eps, t))
    changed = np.where(roi > 0, target, 1e3 * target + 7)
    before, after = loss_and_gradient(mix, x_t, target), loss_and_gradient(mix, x_t, changed)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    # The same change inside the roi does show.
    moved = loss_and_gradient(mix, x_t, np.where(roi > 0, 1e3 * target + 7, target))
    assert moved[0] > 10 * before[0]


def test_zero_terminal_snr_is_the_papers_algorithm():
    """Lin et al. 2024, algorithm 1, line by line."""
    for name in SCHEDULES:
        before = make_schedule(name)
        after = before.with_zero_terminal_snr()
        root = np.sqrt(before.alphas_cumprod)
        wanted = (root - root[-1]) * root[0] / (root[0] - root[-1])
        np.testing.assert_allclose(np.sqrt(after.alphas_cumprod), wanted, rtol=1e-9)
        assert after.alphas_cumprod[-1] == 0
        assert after.betas[-1] == 1
        assert after.alphas_cumprod[0] == pytest.approx(before.alphas_cumprod[0], rel=1e-12)
    with pytest.raises(ValueError, match="at least two timesteps"):
        Schedule(np.array([0.5])).with_zero_terminal_snr()
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        Schedule(np.array([0.5, 1.0]))


def test_zero_terminal_snr_does_not_go_with_eps():
    schedule = make_schedule("linear").with_zero_terminal_snr()
    with pytest.raises(FieldError, match="prediction must be v or x_0 with zero terminal SNR"):
        Gaussian(schedule, "eps")
    # At the last timestep v is -x_0 and x_t is noise.
    x_0, eps = np.float32([[[[0.3]]]]), np.float32([[[[-1.2]]]])
    process, t = Gaussian(schedule, "v"), np.array([999])
    assert process.corrupt(x_0, eps, t, np.ones((1, 1, 1, 1))) == eps
    assert process.target(x_0, eps, t) == -x_0
    assert process.to_x_0(-x_0, eps, t) == x_0


@pytest.mark.parametrize("prediction", FLOW_PREDICTIONS)
def test_a_flow_goes_straight_from_image_to_noise(prediction, batch):
    x_0, eps, _, roi = batch
    process = RectifiedFlow(prediction)
    tau = np.array([0, 0.001, 0.25, 0.5, 0.999, 1])
    t = jnp.asarray(1000 * tau - 1, jnp.float32)
    x_t = np.asarray(process.corrupt(x_0, eps, t, roi))
    inside = np.broadcast_to(roi > 0, x_0.shape)
    share = tau.reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(x_t[~inside], x_0[~inside])
    straight = (1 - share) * x_0 + share * eps
    np.testing.assert_allclose(x_t[inside], straight[inside], rtol=0, atol=1e-6)
    target = process.target(x_0, eps, t)
    np.testing.assert_array_equal(target, {"v": eps - x_0, "x_0": x_0}[prediction])
    # Exact at every time, the noisiest among them.
    recovered = process.to_x_0(target, process.corrupt(x_0, eps, t, np.ones_like(roi)), t)
    np.testing.assert_allclose(recovered, x_0, rtol=0, atol=1e-6)


def test_times_of_a_flow_are_drawn_as_stated():
    keys = jax.random.split(jax.random.key(0), 20_000)
    for name, distribution in (("uniform", uniform()), ("logit_normal", norm())):
        t = jax.vmap(RectifiedFlow("v", name).draw_time)(keys)
        tau = (np.asarray(t, np.float64) + 1) / 1000
        assert tau.min() > 0
        assert tau.max() <= 1
        sample = tau if name == "uniform" else logit(tau)
        assert kstest(sample, distribution.cdf).pvalue > 1e-3


def test_a_flow_refuses_what_it_does_not_know():
    with pytest.raises(FieldError, match="prediction must be one of v, x_0 for this process"):
        RectifiedFlow("eps")
    flow = {"process": "flow", "prediction": "v"}
    assert ProcessSettings(**flow).make() == RectifiedFlow()
    for name, value in (("schedule", "cosine"), ("zero_terminal_snr", True)):
        with pytest.raises(FieldError) as error:
            ProcessSettings(**flow, **{name: value})
        assert error.value.field == name

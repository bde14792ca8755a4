"""Consistency tuning and sampling against Gaussian images, whose paths are known.

Where x_0 ~ N(m, v), the path through x_t ends in m + sqrt(v) (x_t - a m) / sqrt(a^2 v + s^2), and the
mean of the images that x_t may have come from is m + a v (x_t - a m) / (a^2 v + s^2).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.consistency import Consistency
from mbti_jax.diffusion.guidance import Unguided
from mbti_jax.diffusion.output import Output
from mbti_jax.diffusion.process_settings import ProcessSettings
from mbti_jax.diffusion.processes import Gaussian, RectifiedFlow, like
from mbti_jax.diffusion.samplers.driver import Sampler
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.diffusion.schedule import make_schedule
from mbti_jax.fields import FieldError

MEAN, VARIANCE = 0.4, 0.25
PROCESSES = {
    "eps": Gaussian(make_schedule("linear"), "eps"),
    "v": Gaussian(make_schedule("cosine"), "v"),
    "x_0": Gaussian(make_schedule("linear").with_zero_terminal_snr(), "x_0"),
    "flow": RectifiedFlow("v"),
}


def line(process, t, root):
    """(alpha, sigma, slope): the estimate of x_0 is m + slope (x_t - alpha m)."""
    a, s = process.alpha(t), process.sigma(t)
    total = a**2 * VARIANCE + s**2
    return a, s, np.sqrt(VARIANCE) / jnp.sqrt(total) if root else a * VARIANCE / total


def prediction_of(process, x_t, t, x_0):
    """The prediction that means x_0."""
    a, s = like(process.alpha(t), x_t), like(process.sigma(t), x_t)
    return process.target(x_0, (x_t - a * x_0) / s, t)


def network(process, root):
    """(x_t, t) -> prediction: of where the path ends, or of the mean."""

    def predict(x_t, t):
        a, _, slope = (like(x, x_t) for x in line(process, t, root))
        return prediction_of(process, x_t, t, MEAN + slope * (x_t - a * MEAN))

    return predict


def images(count, seed=0):
    """x_0, eps [count, 1, 1, 1] and an ROI of all of them."""
    x_0, eps = jax.random.normal(jax.random.key(seed), (2, count, 1, 1, 1))
    return MEAN + np.sqrt(VARIANCE) * x_0, eps, jnp.ones((count, 1, 1, 1))


@pytest.mark.parametrize("name", PROCESSES)
def test_what_it_trains_towards_is_the_end_of_the_path(name):
    """The mean target, given x_t, is what the network returns that knows the ends; to second order.

    Given x_t, x_0 is normal with mean c and variance V, and x_r = a_r x_0 + s_r (x_t - a x_0) / s.
    """
    process = PROCESSES[name]
    t, x_t, errors = jnp.array([600.0]), jnp.full((1, 1, 1, 1), 1.1), []
    a, s, slope = (float(x[0]) for x in line(process, t, root=False))
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    spread = np.sqrt(VARIANCE * s**2 / (a**2 * VARIANCE + s**2))
    x_0 = MEAN + slope * (1.1 - a * MEAN) + spread * nodes
    eps = (1.1 - a * x_0) / s
    x_0, eps = (jnp.asarray(x, jnp.float32).reshape(-1, 1, 1, 1) for x in (x_0, eps))
    times, roi = jnp.full(20, 600.0), jnp.ones((20, 1, 1, 1))
    tuned, ends = Consistency(process), network(process, root=True)

    def predict(x_t, t):
        """What means the end once a prediction of x_0 is blended with x_t."""
        end = process.to_x_0(ends(x_t, t), x_t, t)
        if name != "x_0":
            return ends(x_t, t)
        a, s = (like(x, x_t) for x in (process.alpha(t), process.sigma(t)))
        k = (0.05 * a) ** 2 / ((0.05 * a) ** 2 + s**2)
        return (end - k * x_t / a) / (1 - k)

    for step in (2, 3):
        targets = tuned.training_target(predict, x_0, eps, times, roi, jnp.int32(step))
        mean = float(np.sum(np.asarray(targets).ravel() * weights) / weights.sum())
        errors.append(abs(mean - float(predict(x_t, t).item())))
    # A gap of 1/8, then of 1/16.
    assert errors[0] < 0.05
    assert 3 < errors[0] / errors[1] < 5, errors


def test_the_gap_is_halved_and_bounded_and_ends_at_the_image():
    process, seen = RectifiedFlow("v"), []

    def predict(x_r, r):
        seen.append((np.asarray(x_r), np.asarray(r)))
        return jnp.zeros_like(x_r)

    x_0, eps, roi = images(3)
    t = jnp.array([999.0, 499.0, 0.5])
    tuned = Consistency(process, halve_every=10)
    for step in (0, 9, 10, 35, 69, 10_000, None):
        step = None if step is None else jnp.int32(step)
        target = tuned.training_target(predict, x_0, eps, t, roi, step)
    gaps = [1 - (r[0] + 1) / 1000 for _, r in seen]
    np.testing.assert_allclose(gaps, [1 / 2, 1 / 2, 1 / 4, 1 / 16, 1 / 128, 1 / 256, 1 / 256])
    # The same x_0 and noise at both times, and none of it once the time before is less than 0.
    x_r, r = seen[0]
    np.testing.assert_allclose(x_r, process.corrupt(x_0, eps, jnp.asarray(r), roi))
    first = tuned.training_target(predict, x_0, eps, t, roi, jnp.int32(0))
    np.testing.assert_allclose(first[2], (eps - x_0)[2], rtol=1e-3)
    assert abs(first[0] - (eps - x_0)[0]).item() > 1e-2
    assert target.shape == x_0.shape


@pytest.mark.parametrize("name", PROCESSES)
def test_every_path_hangs_on_its_image(name):
    """As the noise vanishes x_t itself is the estimate, whatever the network predicts within reason."""
    process = Consistency(PROCESSES[name])
    t, x_t = jnp.array([-0.999, 0.0, 900.0]), jnp.full((3, 1, 1, 1), 0.3)
    first, second = (process.to_x_0(jnp.full_like(x_t, p), x_t, t).ravel() for p in (-1.0, 1.0))
    reach = np.abs(first - second)
    assert reach[0] < 0.02
    assert reach[1] < 0.15
    assert reach[2] > 0.5
    if name == "x_0":
        # A measurement of noise s / a, and an estimate with an error of 0.05, by their precisions.
        a, s = float(process.alpha(t)[1]), float(process.sigma(t)[1])
        weights = np.array([(a / s) ** 2, 1 / 0.05**2])
        wanted = np.average([0.3 / a, 1.0], weights=weights)
        assert float(second[1]) == pytest.approx(wanted, rel=1e-4)


def test_no_gradient_flows_through_the_target():
    x_0, eps, roi = images(4)
    t = jnp.full(4, 500.0)

    def total(scale):
        def predict(x_r, r):
            return scale * x_r

        return Consistency(RectifiedFlow("v")).training_target(predict, x_0, eps, t, roi).sum()

    assert jax.grad(total)(1.3) == 0


def test_tuning_from_the_diffusion_solution_makes_one_step_better():
    """A network of one slope for each of 32 times starts as the exact diffusion model."""
    process = PROCESSES["flow"]
    tuned = Consistency(process, halve_every=300)
    knots = jnp.linspace(-1, 999, 33)

    def predict(slopes, x_t, t):
        slope = like(jnp.interp(t.astype(jnp.float32), knots, slopes), x_t)
        a = like(process.alpha(t), x_t)
        return prediction_of(process, x_t, t, MEAN + slope * (x_t - a * MEAN))

    slopes = jnp.asarray(line(process, knots[1:], root=False)[2])
    slopes = jnp.concatenate([jnp.ones(1), slopes])
    optimizer = optax.adam(0.01)

    def update(state, step):
        slopes, opt_state = state
        key = jax.random.fold_in(jax.random.key(7), step)
        time_key, image_key = jax.random.split(key)
        t = jax.vmap(process.draw_time)(jax.random.split(time_key, 256)).astype(jnp.float32)
        x_0, eps = jax.random.normal(image_key, (2, 256, 1, 1, 1))
        x_0, roi = MEAN + np.sqrt(VARIANCE) * x_0, jnp.ones((256, 1, 1, 1))

        def loss(slopes):
            own = functools.partial(predict, slopes)
            target = tuned.training_target(own, x_0, eps, t, roi, step)
            return jnp.mean((own(process.corrupt(x_0, eps, t, roi), t) - target) ** 2)

        updates, opt_state = optimizer.update(jax.grad(loss)(slopes), opt_state)
        return (optax.apply_updates(slopes, updates), opt_state), None

    state = (slopes, optimizer.init(slopes))
    (after, _), _ = jax.jit(lambda s: jax.lax.scan(update, s, jnp.arange(1500)))(state)
    x_T = images(64, seed=3)[1]
    condition = Condition(np.ones((64, 1, 1, 5), np.float32), np.ones((64, 5), np.float32))
    keys = jax.random.split(jax.random.key(0), 64)
    sampler = Sampler(lambda *arguments: Output(predict(*arguments[:3])), tuned)

    def one_step(slopes):
        sampling = Sampling(1, guidance=Unguided())
        return np.asarray(sampler(slopes, x_T, 0 * x_T, condition, keys, sampling).x_0)

    a, _, slope = line(process, jnp.array([999.0]), root=True)
    ends = MEAN + slope[0] * (x_T - a[0] * MEAN)
    before, now = (np.sqrt(np.mean((one_step(s) - ends) ** 2)) for s in (slopes, after))
    # One step of the diffusion model ends at the mean: all of the deviation is missing.
    assert before == pytest.approx(np.sqrt(VARIANCE * np.mean(np.asarray(x_T) ** 2)), rel=0.1)
    assert now < 0.25 * before, (before, now)


def test_steps_of_the_sampler_draw_fresh_noise():
    """From the exact ends, one step and four are samples of N(m, v); four forget where they began."""
    process, count = Consistency(PROCESSES["flow"]), 4096

    def apply(params, x_t, t, condition):
        return Output(network(PROCESSES["flow"], root=True)(x_t, t))

    condition = Condition(np.ones((count, 1, 1, 5), np.float32), np.ones((count, 5), np.float32))
    keys = jax.random.split(jax.random.key(5), count)
    x_T = images(count, seed=4)[1]
    sampler = Sampler(apply, process)
    for steps, forgotten in ((1, False), (4, True)):
        sampling = Sampling(steps, guidance=Unguided())
        assert sampler.passes(sampling) == {"evaluations": steps, "network_passes": steps}
        out = np.asarray(sampler((), x_T, 0 * x_T, condition, keys, sampling).x_0).ravel()
        error = 4.5 / np.sqrt(count)
        assert abs(out.mean() - MEAN) < error * np.sqrt(VARIANCE)
        assert abs(out.var() / VARIANCE - 1) < 1.5 * error
        correlation = np.corrcoef(out, np.asarray(x_T).ravel())[0, 1]
        assert abs(correlation) < 0.5 if forgotten else correlation > 0.999


def test_a_tuned_model_takes_no_solver_and_an_untuned_one_no_consistency():
    tuned, untuned = Consistency(PROCESSES["flow"]), PROCESSES["flow"]
    with pytest.raises(FieldError, match="'unipc' does not fit this model; consistency does"):
        tuned.check_sampler("unipc")
    with pytest.raises(FieldError, match="'consistency' does not fit this model; ddim, dpmpp_2m"):
        untuned.check_sampler("consistency")
    assert Sampling().resolved(tuned).sampler == "consistency"
    mean = Sampling(estimate="mean", mean_passes=1)
    assert mean.resolved(untuned, {"num_steps": 9, "spacing": "cubic"}).spacing == "trailing"
    with pytest.raises(FieldError, match="mean_passes is not for a model tuned for few steps"):
        mean.resolved(tuned)
    assert Sampling().resolved(untuned).sampler == "unipc"


def test_settings_of_the_objective():
    made = ProcessSettings(prediction="v", objective="consistency", halve_every=7).make()
    assert isinstance(made, Consistency)
    assert (made.halve_every, made.num_timesteps, made.process.prediction) == (7, 1000, "v")
    for fields in ({"objective": "consistency"}, {"halve_every": 3}):
        with pytest.raises(FieldError, match="halve_every is at least 1 for consistency"):
            ProcessSettings(**fields)
    regression = {"process": "regression", "prediction": "x_0", "num_timesteps": 1}
    with pytest.raises(FieldError, match="objective consistency is not for a regression"):
        ProcessSettings(**regression, drop_condition=0.0, objective="consistency", halve_every=1)

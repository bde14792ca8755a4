"""Every sampling method on every process, against closed forms of the path from noise to image.

Where x_0 ~ N(m, v), pixel by pixel, its mean given x_t is m + g (x_t - a m), g = a v / (a^2 v + s^2),
and (x_t - a m) / sqrt(a^2 v + s^2), which is standard normal at every time, is constant along the path.
"""

import functools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mbti_jax.diffusion import samplers
from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.consistency import Consistency
from mbti_jax.diffusion.guidance import ClassifierFree, Unguided
from mbti_jax.diffusion.output import Output
from mbti_jax.diffusion.processes import Gaussian, RectifiedFlow, like
from mbti_jax.diffusion.samplers import ddim, dpmpp_2m, heun, unipc
from mbti_jax.diffusion.samplers.driver import Sampler
from mbti_jax.diffusion.sampling import NEAR_MEAN, Sampling
from mbti_jax.diffusion.schedule import Schedule, make_schedule, trailing_timesteps
from mbti_jax.fields import FieldError

# UniPC's corrector raises the order of its predictor by one.
ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpmpp_2m": 2, "unipc": 3}
PROCESSES = {
    "linear": Gaussian(make_schedule("linear"), "x_0"),
    "cosine": Gaussian(make_schedule("cosine"), "x_0"),
    "zero_snr": Gaussian(make_schedule("linear").with_zero_terminal_snr(), "x_0"),
    "flow": RectifiedFlow("x_0"),
}
MEAN = np.linspace(-0.9, 0.9, 12).reshape(1, 2, 3, 2)
VARIANCE = np.linspace(0.01, 0.6, 12).reshape(1, 2, 3, 2)
CONDITION = Condition(np.ones((1, 2, 3, 5), np.float32), np.ones((1, 5), np.float32))
KEYS = jax.random.split(jax.random.key(0), 1)


@pytest.fixture(autouse=True)
def strict_types():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def estimate_of(process, x_t, t, variance):
    """E[x_0 | x_t], for numpy arrays and JAX arrays."""
    a, s = like(process.alpha(t), x_t), like(process.sigma(t), x_t)
    return MEAN + a * variance / (a**2 * variance + s**2) * (x_t - a * MEAN)


def at_time(process, t, z, variance=VARIANCE):
    """The point at time t of the path whose constant is z."""
    a, s = process.alpha(np.array(t)), process.sigma(np.array(t))
    return a * MEAN + np.sqrt(a**2 * variance + s**2) * z


def walk(process, method, t, x_T, variance=VARIANCE):
    """Where a method goes from x_T: the points before each of its rows and the last one, in float64."""
    method = samplers.METHODS[method]
    rows = method.table(process, np.asarray(t), 0.0)
    carry = jax.tree.map(np.asarray, method.start(x_T.astype(np.float64)))
    points = [x_T]
    for number, time in enumerate(rows.t):
        row = jax.tree.map(lambda column, number=number: column[number], rows)
        x_0 = estimate_of(process, points[-1], np.asarray(time)[None], variance)
        carry, x_t = method.step(carry, points[-1], x_0, row)
        carry = jax.tree.map(np.asarray, carry)
        points.append(np.asarray(x_t))
    return points


def noise(seed=0):
    return np.random.default_rng(seed).standard_normal(MEAN.shape)


@functools.cache
def sampler(process):
    def apply(params, x_t, t, condition):
        return Output(estimate_of(PROCESSES[process], x_t, t, VARIANCE))

    return Sampler(apply, PROCESSES[process])


def draw(process, method, steps, spacing="trailing", **options):
    sampling = Sampling(steps, method, spacing, guidance=Unguided(), **options)
    x_T = noise().astype(np.float32)
    return sampler(process)((), x_T, 0 * x_T, CONDITION, KEYS, sampling, chunk=1000).x_0


@pytest.mark.parametrize(("method", "order"), ORDERS.items())
@pytest.mark.parametrize("process", PROCESSES)
def test_order_of_convergence(process, method, order):
    """The slope of log error over log steps, on the part of the path where steps become small.

    At its ends they do not, in lambda: there is always one from -inf and one to inf.
    """
    process, z, steps, errors = PROCESSES[process], noise(), (80, 160), []
    for count in steps:
        t = np.linspace(900, 100, count + 1).astype(int)
        made = walk(process, method, t, at_time(process, 900, z))[-2]
        errors.append(np.linalg.norm(made - at_time(process, 100, z)))
    slope = math.log2(errors[0] / errors[1])
    assert order - 0.2 < slope < order + 0.2, errors


@pytest.mark.parametrize("process", PROCESSES)
def test_whole_paths_end_where_they_should(process):
    process, z = PROCESSES[process], noise()
    last = process.num_timesteps - 1
    image, x_T = at_time(process, -1, z), at_time(process, last, z)
    for method, order in ORDERS.items():
        for steps in (50, 200):
            error = np.abs(walk(process, method, trailing_timesteps(steps), x_T)[-1] - image).max()
            assert error < (2.5 / steps if order == 1 else 40 / steps**2), (method, steps)


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("process", PROCESSES)
def test_a_point_mass_is_recovered(process, method):
    """With v = 0 every estimate is the image itself, and the last step ends there."""
    for steps in (1, 2, 3, 10):
        points = walk(PROCESSES[process], method, trailing_timesteps(steps), noise(steps), 0.0)
        np.testing.assert_allclose(points[-1], MEAN, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ORDERS)
def test_a_flow_is_a_gaussian_process_in_other_coordinates(method):
    """y = x_t / (a + s) of a Gaussian process is the flow at tau = s / (a + s), and x_0 is x_0.

    So with the same alpha / sigma at every time each method makes the same image, by way of the same
    points. Here the Gaussian process has the flow's, and both end in noise alone.
    """
    tau = np.arange(1, 41) / 40
    alpha_bar = (1 - tau) ** 2 / ((1 - tau) ** 2 + tau**2)
    betas = 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    gaussian = Gaussian(Schedule(betas, zero_terminal_snr=True), "x_0")
    t, x_T = [39, 30, 22, 15, 9, 4, 1], noise(3)
    straight = walk(RectifiedFlow("x_0", num_timesteps=40), method, t, x_T)
    curved = walk(gaussian, method, t, x_T)
    times = samplers.METHODS[method].table(gaussian, np.array(t), 0.0).t
    scale = np.append(gaussian.alpha(times) + gaussian.sigma(times), 1.0)
    for flow, other, factor in zip(straight, curved, scale, strict=True):
        np.testing.assert_allclose(other / factor, flow, rtol=0, atol=1e-5)
    np.testing.assert_allclose(curved[-1], straight[-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ORDERS)
def test_the_driver_runs_the_rows(method):
    for process in ("flow", "cosine") if method == "unipc" else ("flow",):
        x_T = noise().astype(np.float32)
        made = draw(process, method, 5)
        wanted = walk(PROCESSES[process], method, trailing_timesteps(5), x_T)[-1]
        np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ORDERS)
def test_the_mean_in_one_pass_is_the_mean(method):
    """Noise alone says nothing of the image, so its estimate is the mean of all."""
    made = draw("flow", method, 50, estimate="mean", mean_passes=1)
    np.testing.assert_allclose(made, np.broadcast_to(MEAN, made.shape), rtol=0, atol=1e-6)


@pytest.mark.parametrize("process", PROCESSES)
def test_samples_near_the_mean_end_where_they_should(process):
    """From the first estimate straight to a noise share, and along the path from there."""
    made = draw(process, "dpmpp_2m", 120, estimate="near_mean")
    process, x_T = PROCESSES[process], noise()
    t = np.arange(process.num_timesteps - 1)
    first = t[process.noise_share(t) < NEAR_MEAN][-1:]
    (a, s), (last_a, last_s) = (
        (process.alpha(time), process.sigma(time)) for time in (first, np.array([999]))
    )
    guess = estimate_of(process, 0 * x_T, np.array([999]), VARIANCE)
    start = a * guess + s * (x_T - last_a * guess) / last_s
    share = (start - a * MEAN) / np.sqrt(a**2 * VARIANCE + s**2)
    np.testing.assert_allclose(made, MEAN + np.sqrt(VARIANCE) * share, rtol=0, atol=0.01)
    # Nearer to the mean than a sample.
    assert np.linalg.norm(made - MEAN) < 0.99 * np.linalg.norm(np.sqrt(VARIANCE) * x_T)


@pytest.mark.parametrize(("weight", "passes"), [(0.0, 1), (0.4, 2)])
def test_the_mean_in_one_pass_is_one_pass_unless_it_is_guided(weight, passes):
    seen = []

    def apply(params, x_t, t, condition):
        seen.append(len(x_t))
        return Output(0.0 * x_t)

    sampling = Sampling(guidance=weight, estimate="mean", mean_passes=1)
    counting, x_T = Sampler(apply, PROCESSES["flow"]), noise().astype(np.float32)
    counting((), x_T, 0 * x_T, CONDITION, KEYS, sampling)
    assert {*seen} == {passes * len(x_T)}
    counts = {"evaluations": 1, "network_passes": passes}
    assert counting.passes(sampling) == counts


@pytest.mark.parametrize(
    ("fields", "zeros"),
    [
        ({"num_steps": 5}, 0),
        ({"num_steps": 5, "estimate": "near_mean"}, 1),
        ({"estimate": "mean", "mean_passes": 1}, 1),
        ({"num_steps": 5, "estimate": "mean"}, 0),
        ({"spacing": (999, 300, 20), "estimate": "near_mean"}, 1),
        # It is noise alone at the last time only.
        ({"spacing": (800, 300, 20), "estimate": "near_mean"}, 0),
    ],
)
@pytest.mark.parametrize("method", ORDERS)
def test_a_first_estimate_that_stands_for_the_mean_is_made_of_zeros(method, fields, zeros):
    """A network that lets noise through paints none of it; beside the ROI it sees the image."""
    roi_masks = np.zeros((1, 2, 3, 5), np.float32)
    roi_masks[:, :, :2, 1] = 1
    roi, context = roi_masks.any(-1, keepdims=True), noise(1).astype(np.float32)
    seen = []

    def apply(params, x_t, t, condition):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x_t, ordered=True)
        return Output(0.5 * x_t)

    x_T = noise().astype(np.float32)
    sampling = Sampling(sampler=method, guidance=Unguided(), **fields)
    condition = Condition(roi_masks, np.ones((1, 5), np.float32))
    made = Sampler(apply, PROCESSES["cosine"])((), x_T, context, condition, KEYS, sampling)
    jax.effects_barrier()
    first, *later = seen
    np.testing.assert_array_equal(first, np.where(roi, 0 if zeros else x_T, context))
    assert all((x[roi[..., 0]] != 0).all() for x in later)
    if fields.get("mean_passes"):
        np.testing.assert_array_equal(made.x_0, np.where(roi, 0, context))


def test_euler_is_ddim_without_noise():
    for process in PROCESSES.values():
        t = np.array([999, 500, 20])
        tables = samplers.method("euler").table(process, t, 0.0), ddim.table(process, t, 0.0)
        jax.tree.map(np.testing.assert_array_equal, *tables)


@pytest.mark.parametrize("process", PROCESSES)
def test_ancestral_noise_is_that_of_the_posterior(process):
    """DDIM with eta = 1 draws from q(x_t_prev | x_t, x_0): two Gaussians multiplied, in float64."""
    process = PROCESSES[process]
    t = np.array([999, 700, 300, 50])
    rows = ddim.table(process, t, 1.0)
    a, s = process.alpha(t[:-1]), process.sigma(t[:-1])
    b, u = process.alpha(t[1:]), process.sigma(t[1:])
    # x_t = (a / b) x_t_prev + noise, and x_t_prev = b x_0 + u eps.
    ratio = a / b
    added = s**2 - ratio**2 * u**2
    variance = 1 / (1 / u**2 + ratio**2 / added)
    np.testing.assert_allclose(rows.noise[:-1], np.sqrt(variance), rtol=1e-6)
    np.testing.assert_allclose(rows.x_t_factor[:-1], variance * ratio / added, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(rows.x_0_factor[:-1], variance * b / u**2, rtol=1e-5)


def exponential_integral(process, start, end, estimate):
    """s' int e^l x_0(l) dl between two times, by quadrature in float64."""
    low, high = process.half_log_snr(np.array([start, end]))
    nodes, weights = np.polynomial.legendre.leggauss(40)
    level = low + (high - low) * (nodes + 1) / 2
    integral = (high - low) / 2 * np.sum(weights * np.exp(level) * estimate(level))
    return process.sigma(np.array(end)) * integral


@pytest.mark.parametrize("process", PROCESSES)
def test_the_corrector_integrates_parabolas_exactly(process):
    process = PROCESSES[process]
    t = np.array([999, 800, 620, 410, 90])
    rows = unipc.table(process, t, 0.0)
    s = process.sigma(t)
    level = process.half_log_snr(t)
    for k, power in ((3, 0), (3, 1), (3, 2), (4, 2)):

        def estimate(level, power=power):
            return level**power

        m, x = estimate(level), 0.7
        made = rows.x_c_factor[k] * x + rows.m_factor[k] * m[k]
        made += rows.m1_factor[k] * m[k - 1] + rows.m2_factor[k] * m[k - 2]
        wanted = s[k] / s[k - 1] * x + exponential_integral(process, t[k - 1], t[k], estimate)
        assert made == pytest.approx(wanted, rel=2e-5)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_predictor_is_the_papers(process):
    """DPM-Solver++(2M), equation by equation (Lu et al. 2022, algorithm 2)."""
    process = PROCESSES[process]
    t = np.array([900, 700, 620, 410, 90])
    rows = dpmpp_2m.table(process, t, 0.0)
    level, a, s = process.half_log_snr(t), process.alpha(t), process.sigma(t)
    for i in (1, 2, 3):
        h, h_before = level[i + 1] - level[i], level[i] - level[i - 1]
        r = h_before / h
        m, m_before, x = (np.full((1, 1, 1, 1), value) for value in (0.3, -0.2, 0.9))
        d = (1 + 1 / (2 * r)) * m - 1 / (2 * r) * m_before
        wanted = s[i + 1] / s[i] * x - a[i + 1] * (np.exp(-h) - 1) * d
        row = jax.tree.map(lambda column, i=i: column[i], rows)
        _, made = dpmpp_2m.step(m_before, x, m, row)
        np.testing.assert_allclose(made, wanted, rtol=1e-5)


def test_evaluations_and_passes_are_those_that_happen():
    calls = []

    def counting(params, x_t, t, condition):
        jax.debug.callback(lambda t: calls.append(t.tolist()), t, ordered=True)
        return Output(x_t)

    draw = Sampler(counting, PROCESSES["flow"])
    x_T = noise().astype(np.float32)
    for method, guidance, evaluations, per_evaluation in (
        ("unipc", ClassifierFree(0.4), 4, 2),
        ("heun", Unguided(), 7, 1),
    ):
        calls.clear()
        sampling = Sampling(4, sampler=method, guidance=guidance)
        draw((), x_T, np.zeros_like(x_T), CONDITION, KEYS, sampling, chunk=3)
        jax.effects_barrier()
        passes = {"evaluations": evaluations, "network_passes": evaluations * per_evaluation}
        assert draw.passes(sampling) == passes
        assert len(calls) == evaluations
        assert sum(map(len, calls)) == passes["network_passes"]
    times = [999, 749, 749, 499, 499, 249, 249]
    np.testing.assert_array_equal(
        heun.table(PROCESSES["flow"], np.array([999, 749, 499, 249]), 0.0).t, times
    )


@pytest.mark.parametrize("method", ORDERS)
def test_settings_of_a_method_compile_nothing(method, caplog):
    draw("flow", method, 3)
    with jax.log_compiles(), caplog.at_level(logging.DEBUG):
        for steps in (1, 2, 10, 1000):
            draw("flow", method, steps)
        draw("flow", method, 5, spacing="ddim")
        draw("flow", method, 3, spacing=(900, 20, 3))
        if samplers.METHODS[method].TAKES_ETA:
            draw("flow", method, 3, eta=0.5)
    assert not [r.message for r in caplog.records if "Finished XLA compilation" in r.message]


def test_unknown_samplers_and_eta_are_errors_where_they_are_set():
    with pytest.raises(FieldError, match=r"sampler must be one of ddim, .*, not 'ddpm'"):
        Sampling(sampler="ddpm")
    with pytest.raises(FieldError, match=r"eta is 0 for the sampler unipc, not 0.5; ddim"):
        Sampling(sampler="unipc", eta=0.5)
    with pytest.raises(FieldError, match="num_steps must be a whole number from 1"):
        Sampling(0)


def test_a_sampler_that_does_not_fit_the_process_is_an_error_that_names_those_that_do():
    class Picky(RectifiedFlow):
        samplers = ("ddim", "euler")

    draw = Sampler(lambda params, x_t, t, condition: x_t, Picky())
    sampling = Sampling(4, sampler="heun", guidance=0.0)
    with pytest.raises(FieldError, match="'heun' does not fit this model; ddim, euler do"):
        draw((), noise(), noise(), CONDITION, KEYS, sampling)


def test_methods_are_what_a_process_may_name():
    for process in PROCESSES.values():
        assert set(process.samplers) == ORDERS.keys()
        # Estimates of where a path ends and of the mean of all images are not the same.
        assert Consistency(process).samplers == ("consistency",)
    assert samplers.METHODS.keys() == {*ORDERS, "consistency"}


@pytest.mark.parametrize("method", ["heun", "unipc"])
def test_what_a_method_remembers_lies_where_the_images_lie(method, caplog):
    """Otherwise the second chunk would need another program than the first."""
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    place = NamedSharding(mesh, PartitionSpec("data"))
    x_T = noise().astype(np.float32)
    four = jax.tree.map(lambda x: np.concatenate([x] * 4), (x_T, 0 * x_T, CONDITION))
    x_T, context, condition = jax.device_put(four, place)
    keys = jax.device_put(jnp.concatenate([KEYS] * 4), place)
    sampling = Sampling(4, method, "trailing", guidance=Unguided())
    with jax.log_compiles(), caplog.at_level(logging.DEBUG):
        out = sampler("flow")((), x_T, context, condition, keys, sampling, chunk=1).x_0
    compiled = [r for r in caplog.records if "XLA compilation of jit(_steps" in r.message]
    assert len(compiled) == 1
    assert out.sharding.is_equivalent_to(place, out.ndim)
    np.testing.assert_allclose(out[1:2], draw("flow", method, 4), rtol=0, atol=1e-6)

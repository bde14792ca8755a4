"""The sampler against closed forms, and what it promises about noise, chunks and compilation."""

import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from loose_arrays import make_sampler

from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.noise import noise_for
from mbti_jax.diffusion.output import Output
from mbti_jax.diffusion.processes import Gaussian
from mbti_jax.diffusion.samplers import ddim
from mbti_jax.diffusion.samplers.driver import Sampler, SamplingCancelled
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.diffusion.schedule import ddim_timesteps, make_schedule, trailing_timesteps

SIZE, CHANNELS = 6, 2


@pytest.fixture(autouse=True)
def strict_types():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def a_network(params, x, t, class_vector):
    """Any network: mixes neighbors, and image, masks, time and class all matter."""
    image, masks = x[..., :CHANNELS], x[..., CHANNELS:]
    near = image + jnp.roll(image, 1, axis=1) - jnp.roll(image, 1, axis=2)
    classes = jnp.sum(masks * class_vector[:, None, None, :], axis=-1, keepdims=True)
    time = t.astype(jnp.float32)[:, None, None, None] / 1000
    return jnp.sin(params * near + time) + 0.1 * classes


def problem(batch=4, seed=0):
    """x_T, context, roi_masks, class_vector and keys of `batch` slices."""
    rng = np.random.default_rng(seed)
    x_T, keys = noise_for(seed, [0] * batch, range(batch), (SIZE, SIZE, CHANNELS))
    context = rng.uniform(-1, 1, x_T.shape).astype(np.float32)
    roi_masks = (rng.random((batch, SIZE, SIZE, 5)) < 0.15).astype(np.float32)
    return x_T, context, roi_masks, rng.integers(1, 4, (batch, 5)).astype(np.float32), keys


def inside_roi(roi_masks):
    shape = (*roi_masks.shape[:3], CHANNELS)
    return np.broadcast_to(roi_masks.max(axis=-1, keepdims=True) > 0, shape)


@pytest.fixture(scope="module")
def sampler():
    diffusion = Gaussian(make_schedule("cosine"), "v")
    return make_sampler(a_network, diffusion)


def plain_ddim(x_T, context, roi_masks, class_vector, *, timesteps, weight, eta, clip, noise):
    """Song et al. 2021, equations 12 and 16, step by step in float64, with a_network predicting v.

    `noise(t)` is the standard normal noise of the step from t.
    """
    roi = inside_roi(roi_masks)
    alphas = make_schedule("cosine").alphas_cumprod
    network = jax.jit(a_network)
    x_t = np.where(roi, x_T, context).astype(np.float64)
    for t, t_prev in zip(timesteps, [*timesteps[1:], None], strict=True):
        alpha, alpha_prev = alphas[t], 1.0 if t_prev is None else alphas[t_prev]
        x = np.concatenate([x_t, roi_masks], axis=-1).astype(np.float32)
        times = np.full(len(x), t, np.int32)
        v = np.asarray(network(1.5, x, times, class_vector), np.float64)
        v_null = np.asarray(network(1.5, x, times, np.zeros_like(class_vector)), np.float64)
        v = (1 + weight) * v - weight * v_null
        x_0 = np.clip(np.sqrt(alpha) * x_t - np.sqrt(1 - alpha) * v, *clip)
        eps = (x_t - np.sqrt(alpha) * x_0) / np.sqrt(1 - alpha)
        sigma = eta * np.sqrt((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev))
        mean = np.sqrt(alpha_prev) * x_0 + np.sqrt(1 - alpha_prev - sigma**2) * eps
        x_t = np.where(roi, mean + sigma * noise(t), context)
    return x_t


@pytest.mark.parametrize(
    ("steps", "weight", "eta", "clip"),
    [
        (1, 0.0, 0.0, (-math.inf, math.inf)),
        (7, 0.4, 0.0, (-math.inf, math.inf)),
        (7, 3.0, 0.0, (-1.0, 0.5)),
        (25, 0.4, 1.0, (-1.0, 2.5)),
        (25, 0.0, 0.3, (-math.inf, math.inf)),
    ],
)
def test_steps_are_the_papers_equations(sampler, steps, weight, eta, clip):
    x_T, context, roi_masks, class_vector, keys = problem()
    options = {"timesteps": trailing_timesteps(steps), "weight": weight, "eta": eta, "clip": clip}
    out = sampler(1.5, x_T, context, roi_masks, class_vector, keys, **options)

    def noise(t):  # an example's key and the timestep, and nothing else
        fold = [jax.random.fold_in(key, t) for key in keys]
        return np.stack([jax.random.normal(key, x_T.shape[1:]) for key in fold])

    expected = plain_ddim(x_T, context, roi_masks, class_vector, noise=noise, **options)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(
        np.asarray(out)[~inside_roi(roi_masks)], context[~inside_roi(roi_masks)]
    )


@pytest.mark.parametrize(
    ("schedule", "prediction"), [("linear", "eps"), ("cosine", "eps"), ("cosine", "v")]
)
def test_an_exact_denoiser_recovers_the_image(schedule, prediction):
    """The network that knows x_0 (its parameters) and returns exactly the eps or v of x_t."""
    diffusion = Gaussian(make_schedule(schedule), prediction)
    alphas = jnp.asarray(diffusion.schedule.alphas_cumprod, jnp.float32)

    def knowing(x_0, x, t, class_vector):
        x_0 = jnp.repeat(x_0, 2, axis=0)  # guidance runs each example twice
        alpha = alphas[t].reshape(-1, 1, 1, 1)
        a, s = jnp.sqrt(alpha), jnp.sqrt(1 - alpha)
        eps = (x[..., :CHANNELS] - a * x_0) / s
        return eps if prediction == "eps" else a * eps - s * x_0

    sampler = make_sampler(knowing, diffusion)
    x_T, context, roi_masks, class_vector, keys = problem()
    x_0 = np.random.default_rng(9).uniform(-1, 1, x_T.shape).astype(np.float32)
    expected = np.where(inside_roi(roi_masks), x_0, context)
    for steps in (2, 10, 1000):
        for eta in (0.0, 1.0):
            out = sampler(
                x_0, x_T, context, roi_masks, class_vector, keys,
                timesteps=trailing_timesteps(steps), weight=0.4, eta=eta,
            )  # fmt: skip
            np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4)


def test_context_is_returned_bit_for_bit():
    x_T, context, roi_masks, class_vector, keys = problem()
    outside = ~inside_roi(roi_masks)
    context[outside] = np.resize(np.float32([-0.0, -1.0, 1e-42, 3e38, np.nan]), outside.sum())
    # A network that ignores the context, so that its odd values stay where they are.
    quiet = make_sampler(
        lambda _, x, *rest: jnp.zeros_like(x[..., :CHANNELS]),
        Gaussian(make_schedule("linear"), "x_0"),
    )
    x_T = jnp.where(outside, jnp.nan, x_T)
    options = {"timesteps": trailing_timesteps(5), "weight": 0.0, "eta": 1.0}
    out = np.asarray(quiet((), x_T, context, roi_masks, class_vector, keys, **options))
    np.testing.assert_array_equal(out[outside].view(np.uint32), context[outside].view(np.uint32))
    np.testing.assert_array_equal(out[~outside], 0)


def test_result_does_not_depend_on_batch_or_chunks(sampler):
    arrays = problem()
    options = {"timesteps": trailing_timesteps(23), "weight": 0.4, "eta": 1.0}
    whole = np.asarray(sampler(1.5, *arrays, **options))
    for chunk in (1, 7, 23, 1000):
        np.testing.assert_array_equal(sampler(1.5, *arrays, chunk=chunk, **options), whole)
    batch = np.array([3, 0])
    part = sampler(1.5, *(array[batch] for array in arrays), **options)
    np.testing.assert_allclose(part, whole[batch], rtol=0, atol=1e-4)


def compilations(caplog):
    return [r.message for r in caplog.records if "Finished XLA compilation" in r.message]


def test_only_shapes_compile(caplog):
    diffusion = Gaussian(make_schedule("linear"))
    sampler = make_sampler(a_network, diffusion)
    arrays = problem()
    with jax.log_compiles(), caplog.at_level(logging.DEBUG):
        sampler(1.5, *arrays, timesteps=trailing_timesteps(3), weight=0.4)
        assert any("_steps" in message for message in compilations(caplog))
        caplog.clear()
        for steps in (1, 10, 100):
            for weight in (0.1, 3.5, np.array([0, 1, 2, 3])):
                sampler(
                    1.5, *arrays, timesteps=trailing_timesteps(steps), weight=weight,
                    eta=steps / 100, clip=(-1, steps), chunk=steps + 3,
                )  # fmt: skip
        sampler(1.5, *arrays, timesteps=ddim_timesteps(10), weight=1, chunk=3)
        assert compilations(caplog) == []


def test_network_runs_once_a_step():
    calls = []

    def counting(params, x, t, *rest):
        jax.debug.callback(lambda t: calls.append(t), t[0], ordered=True)
        return jnp.zeros_like(x[..., :CHANNELS])

    sampler = make_sampler(counting, Gaussian(make_schedule("linear"), "x_0"))
    timesteps = trailing_timesteps(13)
    sampler((), *problem(), timesteps=timesteps, weight=0.0, chunk=5).block_until_ready()
    jax.effects_barrier()
    np.testing.assert_array_equal(calls, timesteps)


def test_sharded_batch_stays_on_its_devices(sampler, caplog):
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    arrays = problem()
    options = {"timesteps": trailing_timesteps(9), "weight": 0.4, "eta": 1.0, "chunk": 2}
    expected = sampler(1.5, *arrays, **options)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    params = jax.device_put(jnp.float32(1.5), NamedSharding(mesh, PartitionSpec()))
    sharded = jax.device_put(arrays, sharding)
    with jax.log_compiles(), caplog.at_level(logging.DEBUG):
        out = sampler(params, *sharded, **options)
    assert sum("_steps" in message for message in compilations(caplog)) == 1, caplog.text
    assert out.sharding.is_equivalent_to(sharding, out.ndim)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4)


def test_progress_and_inputs_left_intact(sampler):
    arrays, reports = problem(), []
    options = {"timesteps": trailing_timesteps(10), "weight": 0.4, "chunk": 4}
    out = sampler(1.5, *arrays, progress=lambda *report: reports.append(report), **options)
    assert reports == [(4, 10), (8, 10), (10, 10)]
    np.testing.assert_array_equal(sampler(1.5, *arrays, **options), out)


def test_cancel_ends_the_sampling(sampler):
    answers, reports = iter([False, False, True]), []
    with pytest.raises(SamplingCancelled):
        sampler(
            1.5, *problem(), timesteps=trailing_timesteps(100), weight=0.4, chunk=5,
            progress=lambda *report: reports.append(report), cancel=lambda: next(answers),
        )  # fmt: skip
    assert reports == [(5, 100)]


def test_noise_is_a_function_of_seed_sample_and_slice():
    shape = (8, 8, 2)
    x_T, keys = noise_for(7, [0, 0, 1, 1], [3, 4, 3, 4], shape)
    assert x_T.dtype == jnp.float32
    other_batch, other_keys = noise_for(7, [5, 1, 5, 5], [9, 3, 8, 7], shape)
    np.testing.assert_array_equal(other_batch[1], x_T[2])
    assert other_keys[1] == keys[2]
    other_seed, _ = noise_for(8, [0, 0, 1, 1], [3, 4, 3, 4], shape)
    steps = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 999), shape))(keys)
    # Starts, another seed's starts and the noise of a step: all different, and not correlated.
    rows = np.concatenate([x_T, other_seed, steps]).reshape(12, -1)
    correlation = np.corrcoef(rows) - np.eye(12)
    assert np.abs(correlation).max() < 4.5 / math.sqrt(rows.shape[1])
    many, _ = noise_for(0, range(4096), [0] * 4096, (4, 4, 2))
    assert abs(np.mean(many)) < 4.5 / math.sqrt(many.size)
    assert abs(np.var(many) - 1) < 4.5 * math.sqrt(2 / many.size)


def test_ancestral_steps_are_the_posterior():
    """eta = 1 over every timestep is q(x_{t-1} | x_t, x_0) of Ho et al. 2020, equation 7."""
    process = Gaussian(make_schedule("cosine"))
    t = np.arange(999, -1, -1)
    table = ddim.table(process, t, 1.0)
    alpha, alpha_prev = process.alpha(t) ** 2, process.alpha(t - 1) ** 2
    beta = process.schedule.betas[t]
    of_x_0 = np.sqrt(alpha_prev) * beta / (1 - alpha)
    of_x_t = np.sqrt(1 - beta) * (1 - alpha_prev) / (1 - alpha)
    np.testing.assert_allclose(table.x_0_factor, of_x_0, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(table.x_t_factor, of_x_t, rtol=1e-6, atol=1e-9)
    variance = beta * (1 - alpha_prev) / (1 - alpha)
    np.testing.assert_allclose(table.noise**2, variance, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timesteps": []}, "num_steps"),
        ({"timesteps": [1000, 1]}, "descend"),
        ({"timesteps": [5, 5]}, "descend"),
        ({"timesteps": [1, 2]}, "descend"),
        ({"timesteps": [5, -1]}, "descend"),
        ({"timesteps": [5.0, 1.0]}, "integers"),
        ({"eta": 1.5}, "eta"),
        ({"clip": (1.0, 1.0)}, "clip"),
        ({"chunk": 0}, "chunk"),
        ({"x_T": np.zeros((3, SIZE, SIZE, CHANNELS), np.float32)}, "x_T must have shape"),
        ({"roi_masks": np.zeros((4, SIZE, 1, 5), np.float32)}, "roi_masks must have shape"),
        ({"class_vector": np.zeros((1, 5), np.float32)}, "class_vector must have shape"),
    ],
)
def test_wrong_arguments_are_errors(sampler, change, message):
    names = ("x_T", "context", "roi_masks", "class_vector", "keys")
    arguments = dict(zip(names, problem(), strict=True))
    arguments |= {"timesteps": [999, 1], "weight": 0.4} | change
    with pytest.raises(ValueError, match=message):
        sampler(1.5, **arguments)


@pytest.mark.parametrize("chunk", [2, 10])
def test_label_logits_are_the_conditional_pass_of_the_last_row(chunk):
    """Whatever chunks the rows ran in; of three examples the second one's class vector is another."""

    def apply(params, x_t, t, condition):
        logits = (
            condition.class_vector[:, None, None, :4] * x_t[..., :1] + t[:, None, None, None] / 1000
        )
        return Output(jnp.zeros_like(x_t), logits)

    x_T, context, roi_masks, class_vector, keys = problem(3)
    condition = Condition(roi_masks, class_vector)
    sampling = Sampling(spacing=(999, 400, 7), guidance=2.0)
    process = Gaussian(make_schedule("linear"), "x_0")
    out = Sampler(apply, process)((), x_T, context, condition, keys, sampling, chunk=chunk)
    roi = inside_roi(roi_masks)
    x_t = np.where(roi, x_T, context)
    alphas = process.schedule.alphas_cumprod
    # DDIM of an x_0 that is 0: only the noise shrinks.
    for t, t_prev in ((999, 400), (400, 7)):
        x_t = np.where(roi, np.sqrt((1 - alphas[t_prev]) / (1 - alphas[t])) * x_t, context)
    expected = class_vector[:, None, None, :4] * x_t[..., :1] + 0.007
    np.testing.assert_allclose(out.label_logits, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(out.x_0, np.where(roi, 0, context))

"""Condition dropout and classifier-free guidance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from loose_arrays import as_apply, guided

from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.guidance import (
    ClassifierFree,
    Limited,
    Projected,
    Rescaled,
    Unguided,
    drop_condition,
    make_guidance,
    with_weight,
)
from mbti_jax.diffusion.processes import Gaussian, RectifiedFlow
from mbti_jax.diffusion.samplers.driver import Sampler
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.diffusion.schedule import make_schedule
from mbti_jax.fields import FieldError


@pytest.fixture(autouse=True)
def strict_types():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def network(params, x, t, class_vector):
    """Not linear, and no example is like another: image, masks, time and class all matter."""
    image, masks = x[..., :2], x[..., 2:]
    class_part = jnp.sum(masks * class_vector[:, None, None, :], -1, keepdims=True)
    time_part = t.astype(jnp.float32)[:, None, None, None] / 1000
    return jnp.sin(params * image + time_part) + jnp.cos(class_part * image)


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    x_t = rng.standard_normal((8, 4, 4, 2)).astype(np.float32)
    t = np.array([0, 1, 10, 100, 300, 600, 900, 999], np.int32)
    roi_masks = (rng.random((8, 4, 4, 5)) < 0.3).astype(np.float32)
    class_vector = rng.integers(1, 4, (8, 5)).astype(np.float32)
    return x_t, t, roi_masks, class_vector


@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_guidance_is_the_formula(schedule, prediction, inputs):
    """(1 + w) P(c) - w P(0) from two separate passes, for another w in every example."""
    x_t, t, roi_masks, class_vector = inputs
    diffusion = Gaussian(make_schedule(schedule), prediction)
    weight = np.array([0, 0.4, 1, 3, 0, 0.4, 1, 40], np.float32)
    x_0 = guided(network, diffusion)(2.0, x_t, t, roi_masks, class_vector, weight)

    x = np.concatenate([x_t, roi_masks], axis=-1)
    conditional = np.asarray(network(2.0, x, t, class_vector), np.float64)
    unconditional = np.asarray(network(2.0, x, t, np.zeros_like(class_vector)), np.float64)
    w = weight.reshape(-1, 1, 1, 1)
    output = (1 + w) * conditional - w * unconditional
    alpha = diffusion.schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    a, s = np.sqrt(alpha), np.sqrt(1 - alpha)
    expected = {"eps": (x_t - s * output) / a, "v": a * x_t - s * output, "x_0": output}[prediction]
    for value, wanted in zip(np.asarray(x_0), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_no_weight_is_the_conditional_network(inputs):
    x_t, t, roi_masks, class_vector = inputs
    diffusion = Gaussian(make_schedule("cosine"), "v")
    x_0 = guided(network, diffusion)(2.0, x_t, t, roi_masks, class_vector, jnp.zeros(8))
    output = network(2.0, np.concatenate([x_t, roi_masks], axis=-1), t, class_vector)
    np.testing.assert_allclose(x_0, diffusion.to_x_0(output, x_t, t), rtol=1e-6, atol=1e-6)


def test_both_passes_are_one_batch_and_one_call(inputs):
    x_t, t, roi_masks, class_vector = inputs
    calls = []

    def recording(params, x, t, class_vector):
        calls.append((x, t, class_vector))
        return network(params, x, t, class_vector)

    denoise = guided(recording, Gaussian(make_schedule("linear")))
    denoise(2.0, x_t, t, roi_masks, class_vector, jnp.ones(8))
    ((x, times, classes),) = calls
    assert x.shape == (16, 4, 4, 7)
    np.testing.assert_array_equal(x[0::2], x[1::2])
    np.testing.assert_array_equal(times, np.repeat(t, 2))
    np.testing.assert_array_equal(classes[0::2], class_vector)
    np.testing.assert_array_equal(classes[1::2], 0)


def test_sharded_batch_needs_no_communication(inputs):
    if jax.device_count() < 2:
        pytest.skip("needs at least two devices")
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    arrays = jax.device_put((*inputs, jnp.ones(8)), sharding)
    denoise = guided(network, Gaussian(make_schedule("linear")))
    program = jax.jit(denoise).lower(2.0, *arrays).compile()
    for operation in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert operation not in program.as_text()
    x_0 = program(2.0, *arrays)
    assert x_0.sharding.is_equivalent_to(sharding, x_0.ndim)
    np.testing.assert_allclose(x_0, denoise(2.0, *inputs, jnp.ones(8)), rtol=1e-4, atol=1e-5)


def test_condition_is_dropped_whole_and_at_the_given_rate():
    count = 10_000
    keys = jax.random.split(jax.random.key(0), count)
    class_vector = np.tile(np.array([1, 2, 3, 1, 2], np.float32), (count, 1))
    condition = Condition(np.zeros((count, 1, 1, 5)), class_vector)
    kept = np.asarray(drop_condition(keys, condition, 0.1).class_vector)
    dropped = np.all(kept == 0, axis=1)
    np.testing.assert_array_equal(kept[~dropped], class_vector[~dropped])
    standard_error = np.sqrt(0.1 * 0.9 / count)
    assert abs(dropped.mean() - 0.1) < 4 * standard_error
    np.testing.assert_array_equal(drop_condition(keys, condition, 0.0).class_vector, class_vector)
    np.testing.assert_array_equal(drop_condition(keys, condition, 1.0).class_vector, 0)


def test_dropout_of_an_example_does_not_depend_on_its_batch():
    keys = jax.random.split(jax.random.key(3), 64)
    condition = Condition(np.zeros((64, 1, 1, 5)), np.ones((64, 5), np.float32))
    whole = drop_condition(keys, condition, 0.5).class_vector
    spans = [slice(i, i + 7) for i in range(0, 64, 7)]
    parts = [drop_condition(keys[span], condition[span], 0.5).class_vector for span in spans]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def estimates(inputs, process):
    """c and n, the estimates with and without the class vector, and the ROI, in float64."""
    x_t, t, roi_masks, class_vector = inputs
    x = np.concatenate([x_t, roi_masks], axis=-1)
    outputs = (network(2.0, x, t, classes) for classes in (class_vector, 0 * class_vector))
    c, n = (np.asarray(process.to_x_0(np.asarray(o), x_t, t), np.float64) for o in outputs)
    return c, n, roi_masks.max(-1) > 0


def denoised(guidance, inputs, process, image_network=network):
    x_t, t, roi_masks, class_vector = inputs
    batched = jax.tree.map(lambda x: np.broadcast_to(np.float32(x), (len(x_t),)), guidance)
    predict = functools.partial(as_apply(image_network), 2.0)
    condition = Condition(roi_masks, class_vector)
    out = batched.denoise(predict, process, jnp.asarray(x_t), jnp.asarray(t), condition)
    return np.asarray(out.x_0, np.float64)


PROCESS = Gaussian(make_schedule("cosine"), "v")
WEIGHTS = np.array([0, 0.4, 1, 3, 0, 0.4, 8, 40])


def test_projected_guidance_is_the_papers_by_hand(inputs):
    """Sadat et al. 2024, section 3, with vectors of what lies inside the ROI."""
    c, n, roi = estimates(inputs, PROCESS)
    for damping, max_rms in ((1.0, 0.2), (0.3, 0.05), (0.0, 100.0)):
        found = denoised(Projected(WEIGHTS, damping, max_rms), inputs, PROCESS)
        for i in range(len(c)):
            update, direction = (c - n)[i][roi[i]].ravel(), c[i][roi[i]].ravel()
            bound = max_rms * np.sqrt(update.size)
            update = update * min(1, bound / np.linalg.norm(update))
            unit = direction / np.linalg.norm(direction)
            parallel = (update @ unit) * unit
            changed = (update - parallel) + (1 - damping) * parallel
            wanted = direction + WEIGHTS[i] * changed
            np.testing.assert_allclose(found[i][roi[i]].ravel(), wanted, rtol=2e-4, atol=2e-5)


def test_without_damping_and_bound_projected_guidance_is_plain(inputs):
    plain = denoised(ClassifierFree(WEIGHTS), inputs, PROCESS)
    roi = np.broadcast_to(inputs[2].max(-1, keepdims=True) > 0, plain.shape)
    for other in (Projected(WEIGHTS, 0.0, 1e6), Rescaled(WEIGHTS, 0.0)):
        found = denoised(other, inputs, PROCESS)
        np.testing.assert_allclose(found[roi], plain[roi], rtol=1e-4, atol=1e-4)


def test_rescaled_guidance_has_the_deviations_of_the_conditional_estimate(inputs):
    c, n, roi = estimates(inputs, PROCESS)
    w = WEIGHTS.reshape(-1, 1, 1, 1)
    g = (1 + w) * c - w * n
    for rescale in (1.0, 0.7):
        found = denoised(Rescaled(WEIGHTS, rescale), inputs, PROCESS)
        for i in range(len(c)):
            for channel in range(2):
                of_c, of_g, made = (x[i, ..., channel][roi[i]] for x in (c, g, found))
                assert made.mean() == pytest.approx(of_g.mean(), rel=1e-4, abs=1e-4)
                wanted = rescale * of_c.std() + (1 - rescale) * of_g.std()
                assert made.std() == pytest.approx(wanted, rel=1e-4)
                shape = (made - made.mean()) / made.std() - (of_g - of_g.mean()) / of_g.std()
                np.testing.assert_allclose(shape, 0, atol=1e-3)


@pytest.mark.parametrize("guidance", [Projected(3.0, 1.0, 0.1), Rescaled(3.0, 1.0)])
def test_the_context_has_no_part_in_it(guidance, inputs):
    """Through a network that treats every pixel alone, other pixels outside change nothing inside."""
    x_t, *rest = inputs
    roi = np.broadcast_to(inputs[2].max(-1, keepdims=True) > 0, x_t.shape)
    moved = np.where(roi, x_t, 50 * x_t + 7).astype(np.float32)
    before, after = (denoised(guidance, (x, *rest), PROCESS) for x in (x_t, moved))
    np.testing.assert_array_equal(before[roi], after[roi])
    changed = np.where(roi, x_t + 1, x_t).astype(np.float32)
    assert (denoised(guidance, (changed, *rest), PROCESS)[roi] != before[roi]).mean() > 0.9


def test_an_update_of_zero_and_an_estimate_of_zero_are_finite(inputs):
    def black(params, x, t, class_vector):
        return jnp.zeros_like(x[..., :2])

    process = Gaussian(make_schedule("cosine"), "x_0")
    for guidance in (Projected(8.0), Rescaled(8.0)):
        np.testing.assert_array_equal(denoised(guidance, inputs, process, black), 0)


@pytest.mark.parametrize("inner", [ClassifierFree(3.0), Projected(3.0), Rescaled(3.0)])
def test_limited_guidance_guides_inside_its_interval(inner, inputs):
    share = PROCESS.noise_share(inputs[1])
    inside = (share >= 0.3) & (share <= 0.8)
    assert 0 < inside.sum() < len(inside)
    found = denoised(Limited(inner, 0.3, 0.8), inputs, PROCESS)
    guided_there = denoised(inner, inputs, PROCESS)
    alone = denoised(Unguided(), inputs, PROCESS)
    where = np.broadcast_to(inputs[2].max(-1, keepdims=True) > 0, found.shape)
    for i in range(len(found)):
        wanted = guided_there[i] if inside[i] else alone[i]
        np.testing.assert_allclose(found[i][where[i]], wanted[where[i]], rtol=1e-4, atol=1e-5)


def test_passes_that_change_nothing_are_saved_and_counted(inputs):
    """In the compiled loop of a sampler; the trajectory is that of a loop by hand."""
    calls, process = [], RectifiedFlow("x_0", num_timesteps=100)

    def counting(params, x, t, class_vector):
        jax.debug.callback(lambda t: calls.append(t.tolist()), t, ordered=True)
        return network(params, x, t, class_vector)

    x_T, _, roi_masks, class_vector = (array[:1] for array in inputs)
    condition, context = Condition(roi_masks, class_vector), 0 * x_T
    keys = jax.random.split(jax.random.key(0), 1)
    sampler = Sampler(as_apply(counting), process)
    for guidance, low, high, count in (
        (Limited(ClassifierFree(1.0), 0.25, 0.7), 0.25, 0.7, 15),
        (Limited(ClassifierFree(1.0), 0.0, 0.25), 0.0, 0.25, 12),
        (Limited(ClassifierFree(1.0), 0.91, 0.99), 0.91, 0.99, 10),
        (ClassifierFree(1.0), 0.0, 1.0, 20),
        # The step's share of the noise is never above 1: w = 0 everywhere.
        (ClassifierFree(0.0), 2.0, 2.0, 10),
        (Projected(0.0), 2.0, 2.0, 10),
        (Limited(Rescaled(0.0), 0.0, 1.0), 2.0, 2.0, 10),
    ):
        calls.clear()
        sampling = Sampling(10, "ddim", "trailing", guidance=guidance)
        out = sampler(2.0, x_T, context, condition, keys, sampling).x_0
        jax.effects_barrier()
        assert sampler.passes(sampling) == {"evaluations": 10, "network_passes": count}
        assert sum(map(len, calls)) == count
        roi, x = (
            roi_masks.max(-1, keepdims=True) > 0,
            np.where(roi_masks.max(-1, keepdims=True) > 0, x_T, 0),
        )
        for step in range(10, 0, -1):
            t = np.array([10 * step - 1])
            both = np.concatenate([x, roi_masks], axis=-1).astype(np.float32)
            c, n = (np.asarray(network(2.0, both, t, k)) for k in (class_vector, 0 * class_vector))
            # In hundredths: step 7 of 10 is at 0.7, inside [0.25, 0.7].
            w = 1.0 if 100 * low - 1e-9 <= 10 * step <= 100 * high + 1e-9 else 0.0
            x = np.where(roi, x * (step - 1) / step + ((1 + w) * c - w * n) / step, 0)
        np.testing.assert_allclose(out, x, rtol=0, atol=1e-3 * np.abs(x).max())


def test_numbers_of_a_guidance_are_traced(inputs):
    x_t, t, roi_masks, class_vector = inputs
    predict = functools.partial(as_apply(network), 2.0)

    @jax.jit
    def denoise(guidance):
        condition = Condition(roi_masks, class_vector)
        return guidance.denoise(predict, PROCESS, jnp.asarray(x_t), jnp.asarray(t), condition).x_0

    for guidance in (
        Limited(Projected(1.0), 0.2, 0.7),
        Limited(Projected(8.0, 0.5, 3.0), 0.0, 0.4),
    ):
        made = denoise(jax.tree.map(lambda x: np.full(len(x_t), x, np.float32), guidance))
        wanted = denoised(guidance, inputs, PROCESS)
        np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    assert denoise._cache_size() == 1


def test_guidances_are_made_from_names_and_numbers():
    assert make_guidance("plain", 0.4) == ClassifierFree(0.4)
    assert make_guidance("plain", None, (0.2, 0.7)) == Limited(ClassifierFree(None), 0.2, 0.7)
    defaults = {"damping": 1.0, "max_rms": Projected(0).max_rms, "rescale": 0.7}
    assert make_guidance("rescaled", 8.0, **defaults) == Rescaled(8.0)
    made = make_guidance("projected", 8.0, **defaults | {"damping": 0.5})
    assert made == Projected(8.0, 0.5)
    assert with_weight(Limited(made, 0.1, 0.2), 3.0) == Limited(made, 0.1, 0.2)
    assert with_weight(Limited(Rescaled(None), 0.1, 0.2), 3.0) == Limited(Rescaled(3.0), 0.1, 0.2)
    assert with_weight(None, 3.0) == ClassifierFree(3.0)
    record = Sampling(guidance=Limited(made, 0.1, 0.2)).record()
    assert {name: value for name, value in record.items() if name.startswith("guidance")} == {
        "guidance": "projected",
        "guidance_weight": 8.0,
        "guidance_damping": 0.5,
        "guidance_max_rms": Projected(0).max_rms,
        "guidance_interval": [0.1, 0.2],
    }
    # As it always was.
    assert Sampling(guidance=0.4).record()["guidance_weight"] == 0.4
    assert "guidance" not in Sampling(guidance=0.4).record()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: make_guidance("autoguidance", 1.0),
            "guidance must be one of plain, projected, res",
        ),
        (lambda: make_guidance("plain", 1.0, (0.7, 0.2)), "guidance_interval must go from a lower"),
        (lambda: make_guidance("plain", 1.0, (0.2, 0.2)), "guidance_interval must go from a lower"),
        (lambda: make_guidance("plain", 1.0, (-0.1, 0.2)), "guidance_interval must lie in"),
        (lambda: make_guidance("plain", 1.0, (0.2,)), "guidance_interval must be two"),
        (lambda: make_guidance("projected", 1.0, damping=-0.5), "guidance_damping must lie in"),
        (lambda: make_guidance("projected", 1.0, max_rms=0.0), "guidance_max_rms must be above 0"),
        (lambda: make_guidance("plain", 1.0, damping=0.5), "guidance_damping is not of plain"),
        (lambda: make_guidance("rescaled", 1.0, rescale=1.5), "guidance_rescale must lie in"),
        (lambda: Sampling(guidance=Projected(1e9)), "guidance_weight must lie in"),
        (lambda: Sampling(guidance=Limited(Projected(1.0), 0.9, 0.1)), "guidance_interval must go"),
        (lambda: Sampling(guidance=Projected(1.0, damping=-1)), "guidance_damping must lie in"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_name(make, message):
    with pytest.raises(FieldError, match=message):
        make()

"""The UNet against the authors' published network (goldens) and against its own contract."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from scipy.signal import correlate
from unet_cases import (
    assert_gradient_norms_match,
    loss_out_grads,
    quick_jit,
    random_inputs,
    random_params,
    relative_l2,
    run_unet,
    small_unet,
)

from mbti_jax.diffusion.condition import Condition, Neighbors
from mbti_jax.interop.names import from_guided_diffusion, to_guided_diffusion
from mbti_jax.models.blocks import depth_to_space, group_norm, space_to_depth, timestep_embedding
from mbti_jax.models.choices import override
from mbti_jax.models.parameters import init_params, param_shapes
from mbti_jax.models.unet import UNet


def read_golden(file):
    with np.load(file) as arrays:
        golden = dict(arrays)
    config = json.loads(str(golden["config"]))
    x = golden["x"].transpose(0, 2, 3, 1)
    class_vector = golden.get("y", np.zeros((len(x), 0), np.float32))
    state_dict = {k.removeprefix("param/"): v for k, v in golden.items() if k.startswith("param/")}
    return config, state_dict, (x, golden["t"], class_vector), golden


def test_parity_with_the_published_network(goldens):
    files = sorted(goldens.glob("unet_*.npz"))
    assert files, f"no unet_*.npz in {goldens}"
    for file in files:
        config, state_dict, inputs, golden = read_golden(file)
        model = UNet(**config)
        params = from_guided_diffusion(state_dict, model)
        (loss, out), grads = loss_out_grads(model)(params, inputs)
        error = relative_l2(np.transpose(out, (0, 3, 1, 2)), golden["out"])
        assert error < 1e-5, f"{file.name}: output off by {error}"
        assert loss == pytest.approx(float(golden["loss"]), rel=1e-5), file.name
        norms = {k: np.linalg.norm(v) for k, v in to_guided_diffusion(grads).items()}
        expected = {k: float(golden[f"grad_norm/{k}"]) for k in state_dict}
        assert_gradient_norms_match(norms, expected, file.name)


@pytest.fixture(scope="module")
def small():
    """(model, params, inputs, result of loss_out_grads), compiled once."""
    model = small_unet(resblock_updown=True, use_scale_shift_norm=True)
    params, inputs = random_params(model), random_inputs(model)
    return model, params, inputs, loss_out_grads(model)(params, inputs)


def test_remat_changes_no_number(small):
    model, params, inputs, ((_, out), grads) = small
    (_, out_remat), grads_remat = loss_out_grads(model.clone(remat=True))(params, inputs)
    np.testing.assert_allclose(out_remat, out, rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(grads_remat), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_bfloat16_is_close_and_keeps_float32_outside(small):
    model, params, inputs, ((_, out), _) = small
    step = loss_out_grads(model.clone(dtype="bfloat16"))
    (_, out_bf16), grads = jax.eval_shape(step, params, inputs)
    assert {x.dtype for x in jax.tree.leaves((out_bf16, grads))} == {jnp.dtype("float32")}
    run_bf16 = functools.partial(run_unet, model.clone(dtype="bfloat16"))
    out_bf16 = quick_jit(run_bf16)(params, *inputs)
    assert 1e-4 < relative_l2(out_bf16, out) < 3e-2


def test_dropout_acts_only_in_training(small):
    model, params, inputs, ((_, out), _) = small
    run = functools.partial(run_unet, model.clone(dropout=0.5))
    apply = quick_jit(run, static_argnames="deterministic")
    first, again, other = (
        apply(params, *inputs, deterministic=False, rngs={"dropout": jax.random.key(k)})
        for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert relative_l2(first, out) > 0.1
    assert relative_l2(first, other) > 0.1
    np.testing.assert_allclose(apply(params, *inputs), out, rtol=1e-5, atol=1e-5)


def test_integer_timesteps_equal_float_ones():
    t = np.array([0, 1, 500, 999])
    np.testing.assert_array_equal(timestep_embedding(t, 32), timestep_embedding(t.astype("f"), 32))


def test_timestep_embedding_against_float64():
    t = np.array([0, 0.5, 999.0])
    frequencies = 10_000.0 ** (-np.arange(8) / 8)
    angles = t[:, None] * frequencies
    expected = np.concatenate([np.cos(angles), np.sin(angles), np.zeros((3, 1))], axis=1)
    embedding = timestep_embedding(t.astype(np.float32), 17)
    np.testing.assert_allclose(embedding, expected, atol=2e-4)


@pytest.mark.parametrize("how", ["written", "one_pass", "plain"])
@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_group_norm_against_float64_and_flax(mean, how):
    rng = np.random.default_rng(0)
    x = (mean + rng.standard_normal((2, 5, 7, 12)) * np.geomspace(0.1, 10, 12)).astype(np.float32)
    weight, bias = rng.standard_normal((2, 2, 12))
    groups = x.astype(np.float64).reshape(2, 35, 4, 3)
    centered = groups - groups.mean((1, 3), keepdims=True)
    normed = (centered / np.sqrt((centered**2).mean((1, 3), keepdims=True) + 1e-5)).reshape(x.shape)
    expected = normed * weight[:, None, None, :] + bias[:, None, None, :]
    with override(group_norm=how):
        got = group_norm(x, weight.astype(np.float32), bias.astype(np.float32), num_groups=4)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 if mean == 0 else 3e-3)

    cotangent = rng.standard_normal(x.shape).astype(np.float32)
    ones, zeros = np.ones(12, np.float32), np.zeros(12, np.float32)
    reference = nn.GroupNorm(num_groups=4, epsilon=1e-5, use_fast_variance=False)

    def ours(x, weight, bias):
        return (cotangent * group_norm(x, weight, bias, num_groups=4, silu=True)).sum()

    def derived(x, weight, bias):
        y = reference.apply({"params": {"scale": ones, "bias": zeros}}, x)
        return (cotangent * nn.silu(y * weight[:, None, None, :] + bias[:, None, None, :])).sum()

    arguments = (x, weight.astype(np.float32), bias.astype(np.float32))
    with override(group_norm=how):
        grads = jax.grad(ours, argnums=(0, 1, 2))(*arguments)
    expected_grads = jax.grad(derived, argnums=(0, 1, 2))(*arguments)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert relative_l2(grad, expected_grad) < (1e-5 if mean == 0 else 1e-3)


def test_space_to_depth_folds_patches():
    x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    folded = space_to_depth(x, 2)
    np.testing.assert_array_equal(folded[1, 1, 2], x[1, 2:4, 4:6].ravel())
    np.testing.assert_array_equal(depth_to_space(folded, 2), x)


def test_label_head_adds_logits_and_leaves_the_image_alone():
    """With features that are their biases, the logits are those of a small network on each pixel."""
    model = small_unet(patch_size=2, label_head=True)
    params, (x, t, class_vector) = random_params(model), random_inputs(model)
    # Row, column and feature of a patch, as the image's channels are folded.
    folded = np.random.default_rng(1).standard_normal((2, 2, 16)).astype(np.float32)
    kernel = params["label_out_1"]["kernel"]
    params["label_out_1"] = {"kernel": 0 * kernel, "bias": folded.ravel()}
    # An embedding that says the same of every example.
    modulation = params["label_out_emb"]
    modulation["kernel"] = 0 * modulation["kernel"]
    scale, shift = np.split(modulation["bias"], 2)
    condition = Condition(x[..., 1:], class_vector)
    output = quick_jit(model.apply)({"params": params}, x[..., :1], t, condition)
    assert output.label_logits.dtype == jnp.float32
    pixels = np.concatenate([np.tile(folded, (2, 8, 8, 1)), x], axis=-1, dtype=np.float64)
    hidden, last = params["label_out_2"], params["label_out_3"]
    hidden = (pixels @ hidden["kernel"] + hidden["bias"]) * (1 + scale) + shift
    expected = (hidden / (1 + np.exp(-hidden))) @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(output.label_logits, expected, rtol=1e-4, atol=1e-4)

    published = {name: leaf for name, leaf in params.items() if not name.startswith("label_out")}
    assert published.keys() == param_shapes(model.clone(label_head=False)).keys()
    run = functools.partial(run_unet, model.clone(label_head=False))
    np.testing.assert_allclose(
        quick_jit(run)(published, x, t, class_vector), output.image, rtol=1e-5, atol=1e-6
    )


def test_detail_is_three_convolutions_at_full_resolution():
    """With features that are their biases: scipy's correlations of these and the network's input."""
    width = 3
    small = dict(patch_size=2, channel_mult=(1,), attention_resolutions=())
    model = small_unet(**small, detail_channels=width)
    params, (x, t, class_vector) = random_params(model), random_inputs(model)
    folded = np.random.default_rng(1).standard_normal((2, 2, width)).astype(np.float32)
    kernel = params["detail_out_1"]["kernel"]
    params["detail_out_1"] = {"kernel": 0 * kernel, "bias": folded.ravel()}
    modulation = params["detail_out_emb"]
    modulation["kernel"] = 0 * modulation["kernel"]
    scale, shift = np.split(modulation["bias"], 2)

    def convolve(image, name):
        kernel = params[name]["kernel"]
        maps = [
            sum(
                correlate(image[..., i], kernel[..., i, o], mode="same")
                for i in range(kernel.shape[2])
            )
            for o in range(kernel.shape[3])
        ]
        return np.stack(maps, axis=-1) + params[name]["bias"]

    def silu(h):
        return h / (1 + np.exp(-h))

    published = {name: leaf for name, leaf in params.items() if not name.startswith("detail_out")}
    assert published.keys() == param_shapes(model.clone(detail_channels=0)).keys()
    without = quick_jit(functools.partial(run_unet, model.clone(detail_channels=0)))
    made = quick_jit(functools.partial(run_unet, model))(params, x, t, class_vector)
    made -= without(published, x, t, class_vector)
    for example, image in enumerate(x):
        tiled = np.tile(folded, (image.shape[0] // 2, image.shape[1] // 2, 1))
        h = np.concatenate([tiled, image], axis=-1, dtype=np.float64)
        h = silu(convolve(h, "detail_out_2") * (1 + scale) + shift)
        expected = convolve(silu(convolve(h, "detail_out_3")), "detail_out_4")
        np.testing.assert_allclose(made[example], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("detail", [0, 3])
def test_the_mirrored_input_is_further_channels(detail):
    """The network without, on planes that numpy reversed."""
    small = dict(patch_size=2, channel_mult=(1,), attention_resolutions=(), detail_channels=detail)
    model = small_unet(**small, mirror=True)
    params, (x, t, class_vector) = random_params(model), random_inputs(model)
    wide = np.concatenate([x, x[:, :, ::-1]], axis=-1)
    plain = small_unet(**small, in_channels=2 * x.shape[-1])
    np.testing.assert_allclose(
        quick_jit(functools.partial(run_unet, model))(params, x, t, class_vector),
        quick_jit(functools.partial(run_unet, plain))(params, wide, t, class_vector),
        rtol=1e-4,
        atol=1e-5,
    )
    # Off, it is the published network.
    assert param_shapes(model.clone(mirror=False)) == param_shapes(small_unet(**small))


def test_neighbors_are_further_channels_of_the_published_network():
    """Its first kernel's middle is that of the neighbors, and all else of it is zero for them."""
    small = dict(patch_size=2, channel_mult=(1,), attention_resolutions=())
    model = small_unet(**small, neighbors=1)
    params, (x, t, class_vector) = random_params(model), random_inputs(model)
    rng = np.random.default_rng(1)
    images, masks = rng.standard_normal((2, 2, 16, 16, 1)), rng.integers(0, 2, (2, 2, 16, 16, 5))
    # Of the second example the slice below is not there.
    present = np.array([[1, 1], [0, 1]], np.float32)
    neighbors = Neighbors(np.float32(images), masks, present)
    condition = Condition(x[..., 1:], class_vector, neighbors)
    run = quick_jit(lambda p, c: model.apply({"params": p}, x[..., :1], t, c).image)
    found = run(params, condition)

    planes = (
        np.concatenate([images, masks, np.ones_like(images)], -1) * present[..., None, None, None]
    )
    wide = np.concatenate([x, planes[:, 0], planes[:, 1]], axis=-1).astype(np.float32)
    published = {name: leaf for name, leaf in params.items() if name != "neighbors_in"}
    first = params["input_blocks_0_0"]
    added = np.pad(params["neighbors_in"]["kernel"][None, None], [(1, 1), (1, 1), (0, 0), (0, 0)])
    # Folded, the channels of a patch follow each other: those of the image come first in every pixel.
    own, more = (k.reshape(3, 3, 4, -1, 16) for k in (first["kernel"], added))
    kernel = np.concatenate([own, more], axis=3).reshape(3, 3, -1, 16)
    published["input_blocks_0_0"] = {**first, "kernel": kernel}
    plain = small_unet(**small, in_channels=6 + 14)
    assert published.keys() == param_shapes(plain).keys()
    expected = quick_jit(functools.partial(run_unet, plain))(published, wide, t, class_vector)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    # Where none is there, whatever the arrays hold, the network is one for single slices.
    alone = run(params, dataclasses.replace(condition, neighbors=None))
    absent = dataclasses.replace(neighbors, present=np.zeros((2, 2), np.float32))
    np.testing.assert_array_equal(
        run(params, dataclasses.replace(condition, neighbors=absent)), alone
    )
    assert np.abs(found - alone).max() > 0.01
    fresh = quick_jit(lambda key: init_params(model, key))(jax.random.key(0))
    assert not np.any(fresh["neighbors_in"]["kernel"])


def test_neighbors_that_do_not_fit_are_named():
    model = small_unet()
    neighbors = Neighbors(
        jnp.zeros((1, 2, 16, 16, 1)), jnp.zeros((1, 2, 16, 16, 5)), jnp.ones((1, 2))
    )
    x, key = jnp.zeros((1, 16, 16, 1)), jax.random.key(0)
    condition = Condition(jnp.zeros((1, 16, 16, 5)), jnp.zeros((1, 5)), neighbors)
    for seen, message in [(0, "sees no neighboring slices"), (2, r"wants \(1, 4, 16, 16, 6\)")]:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.clone(neighbors=seen).init, key, x, jnp.zeros(1), condition)


def test_init_params_has_the_modules_distribution():
    model = small_unet(channel_mult=(1,), attention_resolutions=())
    inputs = random_inputs(model)
    params = quick_jit(lambda key: init_params(model, key))(jax.random.key(0))
    x, t, class_vector = inputs
    condition = Condition(x[..., 1:], class_vector)
    init = quick_jit(model.init)
    expected = flatten_dict(init(jax.random.key(1), x[..., :1], t, condition)["params"])
    assert flatten_dict(params).keys() == expected.keys()
    for path, value in flatten_dict(params).items():
        assert value.shape == expected[path].shape and value.dtype == jnp.float32, path
        if len(np.unique(expected[path])) == 1:
            np.testing.assert_array_equal(value, expected[path], err_msg=str(path))
        else:
            bound = np.prod(value.shape[:-1]) ** -0.5
            assert 0.9 * bound < np.abs(value).max() <= bound, path
            assert np.abs(expected[path]).max() <= bound, path
    out = quick_jit(functools.partial(run_unet, model))(params, *inputs)
    np.testing.assert_array_equal(out, np.zeros((2, 16, 16, 1)))


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (1, 16, 16, 5), "the model wants"),
        ({}, (1, 17, 16, 6), "divisible by 2"),
        ({"patch_size": 4}, (1, 20, 16, 6), "divisible by 8"),
        ({"num_groups": 5}, (1, 16, 16, 6), "num_groups=5"),
        ({"num_head_channels": 24}, (1, 16, 16, 6), "num_head_channels=24"),
        ({"num_heads": 5}, (1, 16, 16, 6), "5 heads"),
        ({"num_classes": 4}, (1, 16, 16, 6), "class_vector"),
    ],
)
def test_misfits_are_named(options, shape, message):
    model = small_unet(**options)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=message):
        x = jnp.zeros(shape)
        condition = Condition(x[..., 1:], jnp.zeros((1, 5)))
        jax.eval_shape(model.init, key, x[..., :1], jnp.zeros(1), condition)

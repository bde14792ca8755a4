"""Choices of implementation: which apply, that programs are compiled anew, and that results agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from unet_cases import random_inputs, random_params, relative_l2, run_unet, small_unet

from mbti_jax.fields import FieldError
from mbti_jax.models import blocks, choices


def test_defaults_are_those_of_the_backend(monkeypatch):
    assert choices.current() == choices.DEFAULTS["cpu"]
    other = choices.Choices(group_norm="one_pass")
    monkeypatch.setattr(choices, "DEFAULTS", {"cpu": other})
    assert choices.current() == other
    monkeypatch.setattr(choices, "DEFAULTS", {})
    assert choices.current() == choices.Choices()


def test_override_nests_and_ends_with_an_error():
    before = choices.current()
    with choices.override(group_norm="plain"):
        with choices.override(attention="cudnn") as inner:
            assert choices.current() == inner
            assert inner == dataclasses.replace(before, group_norm="plain", attention="cudnn")
        assert choices.current().attention == before.attention
        with pytest.raises(ZeroDivisionError), choices.override(group_norm="one_pass"):
            raise ZeroDivisionError
        assert choices.current().group_norm == "plain"
    assert choices.current() == before


@pytest.mark.parametrize("wrong", [{"group_norm": "fast"}, {"norm": "plain"}])
def test_unknown_choices_are_named(wrong):
    with pytest.raises(FieldError, match=next(iter(wrong))), choices.override(**wrong):
        pass


def test_a_compiled_function_is_compiled_anew_under_other_choices():
    traced = []

    @jax.jit
    def function(x):
        traced.append(choices.current().group_norm)
        return x + 1

    function(1.0)
    for how in ("plain", "one_pass", "plain"):
        with choices.override(group_norm=how):
            function(1.0)
    function(1.0)
    assert traced == [choices.current().group_norm, "plain", "one_pass"]


@pytest.mark.parametrize("how", ["written", "one_pass", "plain"])
def test_group_norm_is_that_of_pytorch(how):
    torch = pytest.importorskip("torch", reason="needs the extra `bench`")
    rng = np.random.default_rng(1)
    x, weight, bias, dy = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((2, 6, 5, 8), (8,), (8,), (2, 6, 5, 8))
    )
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    expected = torch.nn.functional.group_norm(tensors[0].permute(0, 3, 1, 2), 2, *tensors[1:])
    expected = torch.nn.functional.silu(expected).permute(0, 2, 3, 1)
    expected.backward(torch.tensor(dy))
    with choices.override(group_norm=how):
        got, pullback = jax.vjp(lambda *a: blocks.group_norm(*a, 2, silu=True), x, weight, bias)
    np.testing.assert_allclose(got, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    for grad, tensor in zip(pullback(jnp.asarray(dy)), tensors, strict=True):
        assert relative_l2(grad, tensor.grad.numpy()) < 1e-5


@pytest.mark.parametrize("how", ["xla", "cudnn"])
def test_attention_against_float64(how):
    """On a CPU both are XLA's."""
    rng = np.random.default_rng(2)
    query, key, value = rng.standard_normal((3, 2, 9, 2, 8))
    scores = np.einsum("blnd,bmnd->bnlm", query, key) / np.sqrt(8)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bnlm,bmnd->blnd", weights, value)
    with choices.override(attention=how):
        got = blocks.attention(*(a.astype(np.float32) for a in (query, key, value)))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("gpu", jnp.bfloat16, 64), None),
        (("gpu", "float16", 128), None),
        (("cpu", jnp.bfloat16, 64), "NVIDIA GPU, not cpu"),
        (("gpu", jnp.float32, 64), "not float32"),
        (("gpu", jnp.bfloat16, 12), "multiple of 8 and at most 128, not 12"),
        (("gpu", jnp.bfloat16, 256), "not 256"),
    ],
)
def test_where_cudnn_cannot_be_used_it_says_why(arguments, problem):
    obstacle = choices.cudnn_obstacle(*arguments)
    assert (obstacle is None) if problem is None else problem in (obstacle or "")


def test_the_network_heeds_the_choices():
    model = small_unet(channel_mult=(1,), num_res_blocks=0, attention_resolutions=())
    params, inputs = random_params(model), random_inputs(model)
    written_out = {}
    for how in ("written", "one_pass", "plain"):
        with choices.override(group_norm=how, conv_gradient="plain"):
            program = str(jax.make_jaxpr(lambda p: run_unet(model, p, *inputs))(params))
        written_out[how] = program.count("custom_vjp_call[")
    # Two in each of three residual blocks, that of the attention, and the last.
    assert written_out == {"written": 8, "one_pass": 8, "plain": 0}


def test_only_the_plain_norm_has_a_forward_mode_derivative():
    x, ones, zeros = jnp.arange(32.0).reshape(1, 2, 2, 8), jnp.ones(8), jnp.zeros(8)

    def norm(x):
        return blocks.group_norm(x, ones, zeros, 2)

    with choices.override(group_norm="plain"):
        _, tangent = jax.jvp(norm, (x,), (x,))
    step = 1e-2
    difference = (norm(x * (1 + step)) - norm(x * (1 - step))) / (2 * step)
    np.testing.assert_allclose(tangent, difference, atol=1e-4)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(norm, (x,), (x,))

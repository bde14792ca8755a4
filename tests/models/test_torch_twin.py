"""The PyTorch twin against the published network's numbers, and the JAX network against the twin."""

import json

import jax
import numpy as np
import optax
import pytest
from unet_cases import (
    OPTIONS,
    assert_gradient_norms_match,
    loss_out_grads,
    quick_jit,
    random_inputs,
    random_params,
    relative_l2,
    small_unet,
)

from mbti_jax.interop.names import from_guided_diffusion, to_guided_diffusion
from mbti_jax.training.state import apply_update, create_state

torch = pytest.importorskip("torch", reason="the PyTorch twin needs the extra `bench`")
from benchmarks.torch_unet import TorchUNet  # noqa: E402


def as_tensors(arrays):
    return {name: torch.tensor(value) for name, value in arrays.items()}


def run_twin(twin, x, t, class_vector):
    """NCHW inputs as arrays -> (output, loss = mean(out**2), gradient norms)."""
    out = twin.eval()(*(torch.tensor(a) for a in (x, t, class_vector)))
    loss = (out**2).mean()
    loss.backward()
    norms = {name: param.grad.norm().item() for name, param in twin.named_parameters()}
    return out.detach().numpy(), loss.item(), norms


def test_twin_parity_with_the_published_network(goldens):
    files = sorted(goldens.glob("unet_*.npz"))
    assert files, f"no unet_*.npz in {goldens}"
    for file in files:
        with np.load(file) as arrays:
            golden = dict(arrays)
        twin = TorchUNet(**json.loads(str(golden["config"])))
        params = {k.removeprefix("param/"): v for k, v in golden.items() if k.startswith("param/")}
        twin.load_state_dict(as_tensors(params), strict=True)
        class_vector = golden.get("y", np.zeros((len(golden["x"]), 0), np.float32))
        out, loss, norms = run_twin(twin, golden["x"], golden["t"], class_vector)
        assert relative_l2(out, golden["out"]) < 1e-5, file.name
        assert loss == pytest.approx(float(golden["loss"]), rel=1e-5), file.name
        expected = {name: float(golden[f"grad_norm/{name}"]) for name in params}
        assert_gradient_norms_match(norms, expected, file.name)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_jax_parity_with_twin(options):
    model = small_unet(**options)
    params = random_params(model)
    x, t, class_vector = random_inputs(model)
    twin = TorchUNet(**{k: getattr(model, k) for k in model.__dataclass_fields__ if k != "name"})
    twin.load_state_dict(as_tensors(to_guided_diffusion(params)), strict=True)
    expected_out, expected_loss, expected_norms = run_twin(
        twin, np.ascontiguousarray(x.transpose(0, 3, 1, 2)), t, class_vector
    )

    (loss, out), grads = loss_out_grads(model)(params, (x, t, class_vector))
    assert relative_l2(np.transpose(out, (0, 3, 1, 2)), expected_out) < 1e-5
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    norms = {name: np.linalg.norm(grad) for name, grad in to_guided_diffusion(grads).items()}
    assert_gradient_norms_match(norms, expected_norms, options)


def test_adam_and_ema_updates_match_torch():
    model = small_unet()
    params = random_params(model)
    twin = TorchUNet(**{k: getattr(model, k) for k in model.__dataclass_fields__ if k != "name"})
    twin.load_state_dict(as_tensors(to_guided_diffusion(params)), strict=True)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-4)
    ema = {name: param.detach().clone() for name, param in twin.named_parameters()}
    ours = optax.adam(1e-4)
    state = quick_jit(lambda params: create_state(params, ours))(params)
    update = quick_jit(lambda state, grads: apply_update(state, grads, ours, ema_decay=0.9999))

    for n in range(3):
        grads = random_params(model, seed=1 + n)
        for name, grad in to_guided_diffusion(grads).items():
            twin.get_parameter(name).grad = torch.tensor(grad)
        optimizer.step()
        decay = min(0.9999, (1 + n) / (10 + n))
        for name, param in twin.named_parameters():
            ema[name].mul_(decay).add_(param.detach(), alpha=1 - decay)
        state = update(state, grads)

    torch_params = {name: param.detach().numpy() for name, param in twin.named_parameters()}
    for tree, expected in ((state.params, torch_params), (state.ema, ema)):
        expected = from_guided_diffusion(expected, model)
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected, params)
        error = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected, tree)
        assert max(jax.tree.leaves(error)) < 2e-3 * min(jax.tree.leaves(moved))

"""The UNet against the authors' published network (goldens) and against its own contract."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbti_jax.interop.names import from_guided_diffusion, to_guided_diffusion
from mbti_jax.models.unet import UNet, init_params


def golden_files(goldens):
    files = sorted(goldens.glob("unet_*.npz"))
    assert files, f"no unet_*.npz in {goldens}"
    return files


def read_golden(file):
    with np.load(file) as arrays:
        arrays = dict(arrays)
    config = json.loads(str(arrays.pop("config")))
    x = arrays["x"].transpose(0, 2, 3, 1)
    class_vector = arrays.get("y", np.zeros((len(x), 0), np.float32))
    params = {k.removeprefix("param/"): v for k, v in arrays.items() if k.startswith("param/")}
    return config, params, (x, arrays["t"], class_vector), arrays


def relative_l2(value, reference):
    return np.linalg.norm(value - reference) / np.linalg.norm(reference)


def test_parity_with_the_published_network(goldens):
    for file in golden_files(goldens):
        config, state_dict, inputs, golden = read_golden(file)
        model = UNet(**config)
        params = from_guided_diffusion(state_dict, model)

        @jax.jit
        def loss_out_grads(params, inputs, model=model):
            def loss(params):
                out = model.apply({"params": params}, *inputs)
                return jnp.mean(out**2), out

            return jax.value_and_grad(loss, has_aux=True)(params)

        (loss, out), grads = loss_out_grads(params, inputs)
        error = relative_l2(out.transpose(0, 3, 1, 2), golden["out"])
        assert error < 1e-5, f"{file.name}: output off by {error}"
        assert loss == pytest.approx(float(golden["loss"]), rel=1e-5), file.name
        norms = {k: np.linalg.norm(v) for k, v in to_guided_diffusion(grads).items()}
        expected = {k: float(golden[f"grad_norm/{k}"]) for k in state_dict}
        floor = 1e-6 * max(expected.values())
        for name, norm in expected.items():
            assert abs(norms[name] - norm) <= 1e-3 * norm + floor, f"{file.name}: {name}"

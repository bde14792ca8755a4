"""Writes the small reference numbers of `tests/data/goldens` that come from the PyTorch twin.

    python -m benchmarks.make_goldens

PyTorch and NumPy only: none of the JAX code under test is imported. With `--check`, nothing is written;
instead the twin and the DDIM loop below are run on the numbers of the published implementations, which
shows that they compute the same:

    python -m benchmarks.make_goldens --check=../shared/goldens
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.torch_unet import TorchUNet

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "data" / "goldens"

# Every option of the paper's network, in a file of about 200 kB.
CONFIG = {
    "image_size": 16,
    "in_channels": 6,
    "out_channels": 1,
    "num_classes": 5,
    "model_channels": 8,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
    "num_head_channels": 8,
    "num_groups": 4,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "use_new_attention_order": True,
}

# (schedule, number of steps, guidance weight, whether x_0 is clipped to [-1, 1])
CASES = [("linear", 10, 0.4, True), ("cosine", 25, 3.0, True), ("linear", 25, 0.0, False)]

Arrays = dict[str, np.ndarray]


def make_unet_golden(rng: np.random.Generator) -> Arrays:
    """Random weights, none of them zero, and what the twin makes of random inputs."""
    batch, size = 2, CONFIG["image_size"]
    params = {
        name: _random_weight(rng, name, tuple(value.shape))
        for name, value in TorchUNet(**CONFIG).state_dict().items()
    }
    y = rng.integers(1, 4, (batch, CONFIG["num_classes"])).astype(np.float32)
    y[0] = 0  # The null class vector.
    inputs = {
        "x": rng.standard_normal((batch, CONFIG["in_channels"], size, size), np.float32),
        "t": rng.uniform(0, 1000, batch).astype(np.float32),
        "y": y,
    }
    twin = _load_twin(CONFIG, params)
    out = twin(*(torch.tensor(value) for value in inputs.values()))
    loss = (out**2).mean()
    loss.backward()
    norms = {
        f"grad_norm/{name}": np.float64(param.grad.double().norm().item())
        for name, param in twin.named_parameters()
    }
    return {
        "config": np.array(json.dumps(CONFIG)),
        **{f"param/{name}": value for name, value in params.items()},
        **inputs,
        "out": out.detach().numpy(),
        "loss": np.float64(loss.item()),
        **norms,
    }


def make_ddim_golden(rng: np.random.Generator, unet: Arrays, unet_file: str) -> Arrays:
    """Guided inpainting of two images: free-form components, and a box of normal tissue."""
    size = CONFIG["image_size"]
    rows, columns = np.mgrid[:size, :size]
    brain = np.hypot(rows - size / 2 + 0.5, columns - size / 2 + 0.5) < 0.45 * size
    waves = np.sin(rows / 3 + rng.uniform(0, 6, (2, 1, 1, 1))) * np.cos(columns / 4)
    masks = np.zeros((2, CONFIG["num_classes"], size, size), np.float32)
    masks[0, 1, 5:8, 4:9] = masks[0, 2, 8:12, 5:12] = masks[0, 3, 4, 6:10] = 1
    masks[1, 0, 3:11, 6:13] = 1
    golden = {
        "unet": np.array(unet_file),
        "image": np.where(brain, 0.7 * waves, -1).astype(np.float32),
        "masks": masks,
        "class_vector": np.array([[1, 2, 2, 2, 1], [3, 1, 1, 1, 1]], np.float32),
        "roi": masks.max(1, keepdims=True),
        "noise": rng.standard_normal((2, 1, size, size), np.float32),
    }
    for number, (schedule, steps, weight, clip) in enumerate(CASES):
        spec = {
            "schedule": schedule,
            "steps": steps,
            "timesteps": list(range(0, 1000, 1000 // steps)),
            "guidance_weight": weight,
            "clip_denoised": clip,
            "eta": 0.0,
        }
        golden[f"case{number}/spec"] = np.array(json.dumps(spec))
        golden[f"case{number}/out"] = ddim_inpaint(golden, spec, unet)
    return golden


@torch.no_grad()
def ddim_inpaint(golden: Arrays, spec: dict[str, Any], unet: Arrays) -> np.ndarray:
    """Deterministic DDIM with classifier-free guidance; outside the ROI always the image."""
    twin = _load_twin(json.loads(str(unet["config"])), _params(unet))
    image, masks, roi, noise, y = (
        torch.tensor(golden[name]) for name in ("image", "masks", "roi", "noise", "class_vector")
    )
    # guided-diffusion's own table, not one computed here.
    with np.load(FOLDER / "schedule.npz") as tables:
        alphas_cumprod = tables[f"{spec['schedule']}/alphas_cumprod"]
    w, kept = spec["guidance_weight"], sorted(spec["timesteps"], reverse=True)
    x = roi * noise + (1 - roi) * image
    for t, t_prev in zip(kept, [*kept[1:], None], strict=True):
        alpha_bar = alphas_cumprod[t]
        alpha_bar_prev = 1.0 if t_prev is None else alphas_cumprod[t_prev]
        inputs, times = torch.cat([x, masks], dim=1), torch.full((len(x),), float(t))
        eps = (1 + w) * twin(inputs, times, y) - w * twin(inputs, times, torch.zeros_like(y))
        x_0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
        if spec["clip_denoised"]:
            x_0 = x_0.clamp(-1, 1)
            eps = (x - alpha_bar**0.5 * x_0) / (1 - alpha_bar) ** 0.5
        x = alpha_bar_prev**0.5 * x_0 + (1 - alpha_bar_prev) ** 0.5 * eps
        x = roi * x + (1 - roi) * image
    return x.numpy()


def check(folder: Path) -> None:
    """Prints how far twin and loop are from the published implementations' numbers.

    Raises:
        SystemExit: `folder` holds none, or a difference is larger than 1e-4 of the norm.
    """
    errors = {}
    for file in sorted(folder.glob("unet_*.npz")):
        golden = _read(file)
        twin = _load_twin(json.loads(str(golden["config"])), _params(golden))
        out = twin(*(torch.tensor(golden[name]) for name in ("x", "t", "y")))
        errors[file.name] = _relative_l2(out.detach().numpy(), golden["out"])
    for file in sorted(folder.glob("ddim_inpaint*.npz")):
        golden = _read(file)
        unet = _read(folder / str(golden["unet"]))
        for name in sorted(name for name in golden if name.endswith("/spec")):
            out = ddim_inpaint(golden, json.loads(str(golden[name])), unet)
            expected = golden[name.replace("/spec", "/out")]
            errors[f"{file.name} {name.removesuffix('/spec')}"] = _relative_l2(out, expected)
    for name, error in errors.items():
        print(f"{name}: relative error {error:.1e}")
    if not errors or max(errors.values()) > 1e-4:
        raise SystemExit(f"{folder}: no reference numbers, or they are not reproduced")


def _random_weight(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.standard_normal(shape, np.float32)
    if len(shape) > 1:
        weight = noise * np.float32(0.7 / np.sqrt(np.prod(shape[1:])))
    else:  # A bias, or the scale of a normalization.
        weight = np.float32(name.endswith("weight")) + np.float32(0.2) * noise
    # The lower half of each number's bits is zero, which makes the file a third smaller.
    return (weight.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _load_twin(config: dict[str, Any], params: Arrays) -> TorchUNet:
    twin = TorchUNet(**config).eval()
    twin.load_state_dict({name: torch.tensor(value) for name, value in params.items()})
    return twin


def _params(golden: Arrays) -> Arrays:
    return {k.removeprefix("param/"): v for k, v in golden.items() if k.startswith("param/")}


def _read(file: Path) -> Arrays:
    with np.load(file) as arrays:
        return dict(arrays)


def _relative_l2(value: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def main() -> None:
    parser = argparse.ArgumentParser(description="Reference numbers from the PyTorch twin.")
    parser.add_argument("--check", type=Path, help="folder of published reference numbers")
    arguments = parser.parse_args()
    if arguments.check:
        check(arguments.check)
        return
    rng = np.random.default_rng(0)
    unet = make_unet_golden(rng)
    ddim = make_ddim_golden(rng, unet, "unet_small.npz")
    for name, arrays in {"unet_small.npz": unet, "ddim_inpaint_small.npz": ddim}.items():
        np.savez_compressed(FOLDER / name, **arrays)
        print(f"{FOLDER / name}: {(FOLDER / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

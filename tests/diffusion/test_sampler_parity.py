"""The whole guided inpainting, network included, against the reference implementation's results."""

import json
import math

import jax
import numpy as np
from loose_arrays import make_sampler
from unet_cases import run_unet

from mbti_jax.diffusion.processes import Gaussian
from mbti_jax.diffusion.schedule import make_schedule
from mbti_jax.interop.names import from_guided_diffusion
from mbti_jax.models.unet import UNet


def read(file):
    with np.load(file) as arrays:
        return dict(arrays)


def nhwc(array):
    return array.transpose(0, 2, 3, 1)


def test_parity_with_the_reference_inpainting(goldens):
    files = sorted(goldens.glob("ddim_inpaint*.npz"))
    assert files, f"no ddim_inpaint*.npz in {goldens}"
    for file in files:
        golden = read(file)
        unet = read(goldens / str(golden["unet"]))
        model = UNet(**json.loads(str(unet["config"])))
        params = from_guided_diffusion(
            {k.removeprefix("param/"): v for k, v in unet.items() if k.startswith("param/")}, model
        )

        def network(params, *inputs, model=model):
            return run_unet(model, params, *inputs)

        x_T, image, masks = (nhwc(golden[name]) for name in ("noise", "image", "masks"))
        inside = np.broadcast_to(nhwc(golden["roi"]) > 0, image.shape)
        keys = jax.random.split(jax.random.key(0), len(image))  # not used, since eta is 0
        specs = {k.split("/")[0]: json.loads(str(v)) for k, v in golden.items() if "/spec" in k}
        samplers = {}
        for schedule in {spec["schedule"] for spec in specs.values()}:
            samplers[schedule] = make_sampler(network, Gaussian(make_schedule(schedule)))

        assert specs, f"{file.name} holds no case"
        for case, spec in specs.items():
            out = samplers[spec["schedule"]](
                params,
                x_T,
                image,
                masks,
                golden["class_vector"],
                keys,
                timesteps=sorted(spec["timesteps"], reverse=True),
                weight=spec["guidance_weight"],
                eta=spec["eta"],
                clip=(-1.0, 1.0) if spec["clip_denoised"] else (-math.inf, math.inf),
            )
            out, expected = np.asarray(out), nhwc(golden[f"{case}/out"])
            error = np.linalg.norm((out - expected)[inside]) / np.linalg.norm(expected[inside])
            assert error < 1e-3, f"{file.name}: {case} is off by {error}"
            np.testing.assert_array_equal(out[~inside], image[~inside], f"{file.name}: {case}")

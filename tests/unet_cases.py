"""Small UNets that between them use every option, and random weights for them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mbti_jax.diffusion.condition import Condition
from mbti_jax.models.parameters import param_shapes
from mbti_jax.models.unet import UNet

SMALL = dict(
    image_size=16,
    in_channels=6,
    out_channels=1,
    num_classes=5,
    model_channels=16,
    num_res_blocks=1,
    attention_resolutions=(2,),
    channel_mult=(1, 2),
    num_groups=4,
)

OPTIONS = {
    "heads": dict(
        num_heads=4,
        num_heads_upsample=2,
        dropout=0.3,
        model_channels=24,
        channel_mult=(0.5, 1.5),
        attention_resolutions=(1,),
        image_size=12,
    ),
    "heads_new_order": dict(
        num_heads=2,
        num_heads_upsample=8,
        use_new_attention_order=True,
        use_scale_shift_norm=True,
        conv_resample=False,
    ),
    "unconditional": dict(num_classes=0, num_head_channels=8, resblock_updown=True),
    "four_sequences": dict(in_channels=9, out_channels=4, patch_size=2, num_res_blocks=2),
}


def small_unet(**options) -> UNet:
    return UNet(**{**SMALL, **options})


def random_params(model: UNet, seed: int = 0) -> dict:
    """Weights none of which is zero, as numpy arrays: nothing is compiled for them."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        noise = rng.standard_normal(shape, np.float32)
        if path[-1] == "kernel":
            return noise * np.float32(0.7 / np.sqrt(np.prod(shape[:-1])))
        return np.float32(path[-1] == "scale") + np.float32(0.2) * noise

    shapes = flatten_dict(param_shapes(model))
    return unflatten_dict({path: draw(path, leaf.shape) for path, leaf in shapes.items()})


def random_inputs(model: UNet, batch: int = 2, seed: int = 0):
    """(x, t, class_vector); the first example has the null class vector."""
    rng = np.random.default_rng(seed)
    shape = (batch, model.image_size, model.image_size, model.in_channels)
    x = rng.standard_normal(shape, np.float32)
    t = rng.uniform(0, 1000, batch).astype(np.float32)
    class_vector = rng.integers(1, 4, (batch, model.num_classes)).astype(np.float32)
    class_vector[0] = 0
    return x, t, class_vector


def run_unet(model: UNet, params, x, t, class_vector, **options):
    """The network's image for one whose last channels are the masks, as the published one takes it."""
    image, masks = x[..., : model.out_channels], x[..., model.out_channels :]
    condition = Condition(masks, class_vector)
    return model.apply({"params": params}, image, t, condition, **options).image


def loss_out_grads(model: UNet):
    """Jitted (params, inputs) -> ((loss = mean(out**2), out), gradients)."""

    def loss(params, inputs):
        out = run_unet(model, params, *inputs)
        return jnp.mean(out**2), out

    return quick_jit(jax.value_and_grad(loss, has_aux=True))


def quick_jit(function, **options):
    """jit with LLVM's optimizations off: networks this small take far longer to compile than run."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def relative_l2(value, reference) -> float:
    return np.linalg.norm(value - reference) / np.linalg.norm(reference)


def assert_gradient_norms_match(norms, expected, label):
    """Every norm g within 1e-3 g + 1e-6 max(g) of the expected one."""
    floor = 1e-6 * max(expected.values())
    for name, norm in expected.items():
        assert abs(norms[name] - norm) <= 1e-3 * norm + floor, f"{label}: {name}"

"""Networks and samplers called with loose arrays, as the references' equations are written."""

import jax.numpy as jnp

from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.guidance import ClassifierFree
from mbti_jax.diffusion.output import Output
from mbti_jax.diffusion.samplers.driver import Sampler
from mbti_jax.diffusion.sampling import Sampling


def as_apply(network):
    """network(params, concat(x_t, roi_masks), t, class_vector) as a sampler calls networks."""

    def apply(params, x_t, t, condition):
        x = jnp.concatenate([x_t, condition.roi_masks.astype(x_t.dtype)], axis=-1)
        return Output(network(params, x, t, condition.class_vector))

    return apply


def guided(network, process):
    """denoise(params, x_t, t, roi_masks, class_vector, weight) -> x_0, by classifier-free guidance."""

    def denoise(params, x_t, t, roi_masks, class_vector, weight):
        def predict(*arguments):
            return as_apply(network)(params, *arguments)

        condition = Condition(roi_masks, class_vector)
        return ClassifierFree(weight).denoise(predict, process, x_t, t, condition).x_0

    return denoise


def make_sampler(network, process):
    """sample(params, x_T, context, roi_masks, class_vector, keys, timesteps=, weight=, ...)."""
    sampler = Sampler(as_apply(network), process)

    def sample(
        params,
        x_T,
        context,
        roi_masks,
        class_vector,
        keys,
        *,
        timesteps,
        weight,
        eta=0.0,
        method="ddim",
        **options,
    ):
        sampling = Sampling(
            sampler=method, spacing=tuple(timesteps), guidance=ClassifierFree(weight), eta=eta
        )
        condition = Condition(roi_masks, class_vector)
        return sampler(params, x_T, context, condition, keys, sampling, **options).x_0

    return sample

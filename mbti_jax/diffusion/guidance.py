"""Classifier-free guidance on the class vector (Ho & Salimans 2022, arXiv:2207.12598).

In training the class vector is now and then replaced by zeros, the null condition; at inference the
network runs with the class vector and with zeros, and the difference of the two is amplified:

    P = (1 + w) P(class_vector) - w P(0)            (Ho & Salimans, equation 6)

Image, masks and timestep are the same in both passes; w = 0 is the conditional network alone. The
inpainting paper (Rouzrokh et al. 2022) prints `(W + 1) P_initial - P_0` instead. The weights of
that form add up to W and not to 1, so at the paper's own W = 0.4 it would shrink the prediction to
two fifths wherever the two passes agree; at W = 1 both forms are the same. The form above is used.

P may be eps, v or x_0: each is an affine function of the others at a given x_t, and the weights add
up to 1, so the result is the same.

High weights over-saturate. Three remedies, with c and n for the estimates of x_0 with the class vector
and without:

- `Projected`: of the update c - n, the part parallel to c is what saturates, and is damped.
- `Rescaled`: the result gets back the standard deviation of c.
- `Limited`: guidance where the noise is neither high, where it harms, nor low, where it is useless; the
  null pass is saved elsewhere. It goes with each of the others.

Products and deviations are taken inside the ROI: the context is the same in both passes.

A guidance is a frozen dataclass whose numbers are traced: changing them compiles nothing. Its `denoise`
turns a network that predicts into an estimate of x_0. Labels are not guided: their logits are those of
the conditional pass.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key, Shaped

from mbti_jax.diffusion.arrays import AnyArray, Images, Numbers
from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.output import Denoised, Output
from mbti_jax.diffusion.processes import Process, like
from mbti_jax.fields import FieldError, Interval, finite_number, one_of

# Far beyond what anybody guides with: at 1e38 the two passes overflow and only their bounds would show.
GUIDANCE_WEIGHTS = Interval(-10_000, 10_000)

# apply(params, x_t [B, H, W, C], t [B], condition) -> Output
Apply = Callable[[Any, AnyArray, AnyArray, Condition], Output]
# The same, with the parameters given.
Predict = Callable[[AnyArray, AnyArray, Condition], Output]
# Times of a sampler's rows.
Times = Int[np.ndarray, " n"]


@runtime_checkable
class Guidance(Protocol):
    """What a guidance is."""

    def denoise(
        self, predict: Predict, process: Process, x_t: Images, t: Numbers, condition: Condition
    ) -> Denoised:
        """The estimate of x_0; every number of the guidance is float32 [B]."""
        ...

    def passes(self, process: Process, t: Times) -> Times:
        """How often an image goes through the network for its estimates at times t, int [n]."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unguided:
    """The conditional network alone: one pass."""

    def denoise(
        self, predict: Predict, process: Process, x_t: Images, t: Numbers, condition: Condition
    ) -> Denoised:
        output = predict(x_t, t, condition)
        x_0 = process.to_x_0(output.image.astype(x_t.dtype), x_t, t)
        return Denoised(x_0, output.label_logits)

    def passes(self, process: Process, t: Times) -> Times:
        return np.ones(len(t), int)


class _TwoPasses:
    """A guidance by the class vector and the null condition.

    Both passes go through the network in one batch of 2 B. The two passes of an example are neighbors in
    it, so a batch that is sharded over devices needs no communication.
    """

    def passes(self, process: Process, t: Times) -> Times:
        return np.full(len(t), 2)

    @staticmethod
    def _predict(
        predict: Predict, x_t: Images, t: Numbers, condition: Condition
    ) -> tuple[Float[jax.Array, "B 2 H W C"], Any]:
        """Predictions with and without the class vector, and the label logits of the former."""
        both = jax.tree.map(_pairs, condition, condition.null())
        output = predict(_pairs(x_t, x_t), _pairs(t, t), both)
        prediction = output.image.astype(x_t.dtype).reshape(x_t.shape[0], 2, *x_t.shape[1:])
        logits = output.label_logits
        return prediction, None if logits is None else logits[::2]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassifierFree(_TwoPasses):
    """Classifier-free guidance, the formula above.

    Attributes:
        weight: w; in a `Sampling`, None for the one that the checkpoint recommends.
    """

    weight: Any

    intervals: ClassVar[Mapping[str, Interval]] = {"weight": GUIDANCE_WEIGHTS}

    def denoise(
        self, predict: Predict, process: Process, x_t: Images, t: Numbers, condition: Condition
    ) -> Denoised:
        prediction, logits = self._predict(predict, x_t, t, condition)
        w = like(self.weight, x_t)
        guided = (1.0 + w) * prediction[:, 0] - w * prediction[:, 1]
        return Denoised(process.to_x_0(guided, x_t, t), logits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Projected(_TwoPasses):
    """Adaptive projected guidance (Sadat et al. 2024, arXiv:2410.02416), without its momentum.

        d   = (c - n) min(1, max_rms / rms(c - n))
        x_0 = c + w [d - damping (<d, c> / <c, c>) c]

    Products are sums over the ROI's pixels and sequences, rms the root of the mean square there. Where
    the paper bounds the norm, which grows with the number of pixels, the mean is bounded here.

    Attributes:
        weight: w, see `ClassifierFree`.
        damping: share of the part parallel to c that is taken away: 0 for none of it, 1 for all (the
            paper's choice).
        max_rms: bound of d, in the units of the image. The bundled model's c - n has 0.07 to 0.1 while
            the image is almost noise, and 0.01 to 0.03 near the image.
    """

    weight: Any
    damping: Any = 1.0
    max_rms: Any = 0.05

    intervals: ClassVar[Mapping[str, Interval]] = {
        "weight": GUIDANCE_WEIGHTS,
        "damping": Interval(0, 1),
        "max_rms": Interval(0, closed="neither"),
    }

    def denoise(
        self, predict: Predict, process: Process, x_t: Images, t: Numbers, condition: Condition
    ) -> Denoised:
        prediction, logits = self._predict(predict, x_t, t, condition)
        c, n = (process.to_x_0(prediction[:, number], x_t, t) for number in (0, 1))
        roi = condition.roi

        def mean_product(first, second):
            return _mean(first * second, roi, axes=(1, 2, 3))

        d = jnp.where(roi, c - n, 0.0)
        rms = jnp.sqrt(mean_product(d, d))
        max_rms, w, damping = (like(x, x_t) for x in (self.max_rms, self.weight, self.damping))
        d *= jnp.where(rms > max_rms, max_rms / rms, 1.0)
        square = mean_product(c, c)
        parallel = jnp.where(square > 0, mean_product(d, c) / square, 0.0) * c
        return Denoised(c + w * (d - damping * parallel), logits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rescaled(_TwoPasses):
    """Guidance rescaled to the deviations of the conditional estimate (Lin et al. 2024, section 3.4).

        g   = (1 + w) c - w n
        x_0 = m + (g - m) [1 - rescale + rescale std(c) / std(g)],     m the mean of g

    Means and standard deviations are those of a sequence over the ROI's pixels. The paper scales about
    0, its latents having means near 0; intensities have not, and keep their mean here.

    Attributes:
        weight: w, see `ClassifierFree`.
        rescale: how much of it: 0 for plain guidance, 0.7 in the paper, 1 for the deviations of c.
    """

    weight: Any
    rescale: Any = 0.7

    intervals: ClassVar[Mapping[str, Interval]] = {
        "weight": GUIDANCE_WEIGHTS,
        "rescale": Interval(0, 1),
    }

    def denoise(
        self, predict: Predict, process: Process, x_t: Images, t: Numbers, condition: Condition
    ) -> Denoised:
        prediction, logits = self._predict(predict, x_t, t, condition)
        c, n = (process.to_x_0(prediction[:, number], x_t, t) for number in (0, 1))
        w, rescale = like(self.weight, x_t), like(self.rescale, x_t)
        g = (1.0 + w) * c - w * n

        def spread(image):
            mean = _mean(image, condition.roi, axes=(1, 2))
            return mean, jnp.sqrt(_mean(jnp.square(image - mean), condition.roi, axes=(1, 2)))

        (_, wanted), (mean, found) = spread(c), spread(g)
        ratio = jnp.where(found > 0, wanted / found, 1.0)
        return Denoised(mean + (g - mean) * (1.0 - rescale + rescale * ratio), logits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Limited:
    """Guidance in an interval of noise levels (Kynkaanniemi et al. 2024, arXiv:2404.07724).

    Outside of it the conditional network is run alone: the program branches, and the null pass is saved.
    Noise levels are noise shares sigma / (alpha + sigma), from 0 (image) to 1 (noise alone), which mean
    the same in all processes; the paper's are sigma / alpha, and its interval for ImageNet 512, 0.19 to
    1.61, is 0.16 to 0.62 here.

    Attributes:
        guidance: another one.
        low, high: noise shares between which it guides, both included.
    """

    guidance: Any
    low: Any = 0.0
    high: Any = 1.0

    intervals: ClassVar[Mapping[str, Interval]] = {"low": Interval(0, 1), "high": Interval(0, 1)}

    def denoise(
        self, predict: Predict, process: Process, x_t: Images, t: Numbers, condition: Condition
    ) -> Denoised:
        guides = self._guides(process.noise_share(t))
        # Where one example is inside and another is not, both passes are run for both.
        weight = jnp.where(guides, self.guidance.weight, 0.0)
        guidance = dataclasses.replace(self.guidance, weight=weight)
        arguments = (predict, process, x_t, t, condition)
        return jax.lax.cond(
            guides.any(),
            lambda: guidance.denoise(*arguments),
            lambda: Unguided().denoise(*arguments),
        )

    def passes(self, process: Process, t: Times) -> Times:
        # As the device counts: in float32.
        guides = self._guides(process.noise_share(t).astype(np.float32)[:, None]).any(axis=-1)
        return np.where(guides, self.guidance.passes(process, t), 1)

    def _guides(self, share: Any) -> Any:
        low, high = (
            x if isinstance(x, jax.Array) else np.asarray(x, np.float32)
            for x in (self.low, self.high)
        )
        return (low <= share) & (share <= high)


# Kinds of guidance by name.
KINDS: dict[str, Any] = {"plain": ClassifierFree, "projected": Projected, "rescaled": Rescaled}


def make_guidance(
    kind: str, weight: Any, interval: Sequence[float] = (0.0, 1.0), **numbers: Any
) -> Guidance:
    """The guidance that is called `kind`, `Limited` if the interval is not all noise shares.

    Args:
        kind: a key of `KINDS`.
        weight: w; None for the one that the checkpoint recommends.
        interval: noise shares (low, high).
        **numbers: of all kinds: `damping`, `max_rms`, `rescale`. Those of other kinds must be at their
            defaults.

    Raises:
        FieldError: a value is not as above, by the names `guidance`, `guidance_weight`, ...
    """
    cls = KINDS[one_of("guidance", kind, KINDS)]
    known = {field.name: field.default for other in KINDS.values() for field in fields(other)}
    used = {field.name for field in fields(cls)}
    for name, number in numbers.items():
        if name not in used and number != known[name]:
            problem = (
                f"is not of {kind} guidance: leave it at {known[name]}, or choose another guidance"
            )
            raise FieldError(f"guidance_{name}", problem)
    guidance = cls(weight, **{name: number for name, number in numbers.items() if name in used})
    check_guidance(guidance)
    if not isinstance(interval, Sequence | np.ndarray) or len(interval) != 2:
        raise FieldError("guidance_interval", f"must be two noise shares, not {interval!r}")
    if tuple(interval) == (0, 1):
        return guidance
    guidance = Limited(guidance, *interval)
    check_guidance(guidance)
    return guidance


def check_guidance(guidance: Any) -> None:
    """Raises a FieldError for a number, or one of the numbers of a batch, that cannot be used."""
    if isinstance(guidance, Limited):
        check_guidance(guidance.guidance)
        low, high = np.broadcast_arrays(*(np.asarray(x) for x in (guidance.low, guidance.high)))
        for pair in zip(low.ravel().tolist(), high.ravel().tolist(), strict=True):
            for number in pair:
                finite_number("guidance_interval", number, Interval(0, 1))
            if not pair[0] < pair[1]:
                problem = (
                    f"must go from a lower to a higher noise share, not from {pair[0]} to {pair[1]}"
                )
                raise FieldError("guidance_interval", problem)
        return
    intervals = getattr(guidance, "intervals", {})
    for name, numbers in vars(guidance).items():
        for number in () if numbers is None else np.ravel(numbers).tolist():
            finite_number(f"guidance_{name}", number, intervals.get(name, Interval()))


def with_weight(guidance: Any, weight: float) -> Guidance:
    """The guidance, with that weight where it has none."""
    if guidance is None:
        return ClassifierFree(weight)
    if isinstance(guidance, Limited):
        return dataclasses.replace(guidance, guidance=with_weight(guidance.guidance, weight))
    if getattr(guidance, "weight", 0.0) is None:
        return dataclasses.replace(guidance, weight=weight)
    return guidance


def guidance_record(guidance: Guidance | None) -> dict[str, Any]:
    """For provenance, in JSON values: `guidance_weight`, and what else there is to say."""
    if isinstance(guidance, Limited):
        interval = {"guidance_interval": [guidance.low, guidance.high]}
        return {**guidance_record(guidance.guidance), **interval}
    names = {cls: name for name, cls in KINDS.items() if name != "plain"}
    kind = {"guidance": names[type(guidance)]} if type(guidance) in names else {}
    numbers = {} if guidance is None else vars(guidance)
    return kind | {f"guidance_{name}": number for name, number in numbers.items()}


def drop_condition(
    keys: Key[jax.Array, " B"], condition: Condition, rate: float | jax.Array
) -> Condition:
    """Replaces the class vector of a random share of examples by the null condition.

    Args:
        keys: typed keys [B], one per example, so that an example's fate does not depend on its batch.
        condition: of B examples.
        rate: probability of a replacement, in [0, 1]; 0.1 in the paper.
    """
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)
    given = condition.class_vector
    return dataclasses.replace(
        condition, class_vector=jnp.where(dropped[:, None], jnp.zeros_like(given), given)
    )


def _pairs(
    first: Shaped[AnyArray, "B ..."], second: Shaped[AnyArray, "B ..."]
) -> Shaped[jax.Array, "2*B ..."]:
    """[B, ...] and [B, ...] -> [2 B, ...] in the order first[0], second[0], first[1], ..."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def _mean(
    images: Images, roi: Shaped[AnyArray, "B H W 1"], axes: tuple[int, ...]
) -> Shaped[jax.Array, "B ..."]:
    """Means over the ROI, with axes of length 1 in the place of those that are averaged."""
    inside = jnp.broadcast_to(roi, images.shape)
    count = jnp.sum(inside, axes, keepdims=True, dtype=images.dtype)
    return jnp.sum(jnp.where(inside, images, 0.0), axes, keepdims=True) / jnp.maximum(count, 1.0)

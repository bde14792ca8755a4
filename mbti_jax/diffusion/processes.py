"""Processes between an image and noise inside a region of interest, and what a network predicts of them.

Glossary:

    x_0          clean image [B, H, W, C], nominal range [-1, 1], background -1
    eps          standard normal noise, same shape
    roi          [B, H, W, 1], true where the image is to be made
    context      x_0 outside the roi: known, never noised
    t            time, a real number from -1 (the clean image) to T - 1 (the noisiest); Gaussian
                 processes are trained at the integers 0 .. T - 1, flows at all times above -1
    alpha, sigma shares of x_0 and eps at time t; alpha(-1) = 1 and sigma(-1) = 0
    x_t          alpha x_0 + sigma eps inside the roi, x_0 outside
    tau          of a flow, (t + 1) / T: 0 for the clean image, 1 for noise alone
    v            how x_t moves: alpha eps - sigma x_0 in a Gaussian process (Salimans & Ho 2022,
                 arXiv:2202.00512, appendix D), eps - x_0 in a flow
    prediction   what the network returns: an estimate of eps, v or x_0

A sampler asks a process for alpha, sigma and x_0 only (`Process.to_x_0`), so it serves all of them.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key, Num, Shaped

from mbti_jax.diffusion.arrays import AnyArray, Images, Numbers
from mbti_jax.diffusion.schedule import Schedule
from mbti_jax.fields import FieldError
from tfds_brats.spelling import nearest

# Images [B, H, W, C] or [H, W, C], all of one shape; the times and ROIs that go with them.
Image = Float[AnyArray, "*image"]
Times = Num[AnyArray, "*batch"] | np.number
Roi = Shaped[AnyArray, "*space 1"]


class Prediction(NamedTuple):
    """What a network is trained to return, in terms of alpha (a) and sigma (s).

    Attributes:
        target: (x_0, eps, a, s) -> what the network shall return.
        to_x_0: (prediction, x_t, a, s) -> the clean image that a prediction means.
    """

    target: Callable[..., jax.Array]
    to_x_0: Callable[..., jax.Array]


# Of Gaussian processes. For a^2 + s^2 = 1, x_0 = (x_t - s eps) / a = a x_t - s v. At the last timestep
# of the cosine schedule a is 5e-5, so x_0 from eps multiplies an error of the network by 2e4: a sampler
# must clip it. From v no error grows.
PREDICTIONS = {
    "eps": Prediction(
        target=lambda x_0, eps, a, s: eps,
        to_x_0=lambda prediction, x_t, a, s: (x_t - s * prediction) / a,
    ),
    "v": Prediction(
        target=lambda x_0, eps, a, s: a * eps - s * x_0,
        to_x_0=lambda prediction, x_t, a, s: a * x_t - s * prediction,
    ),
    "x_0": Prediction(
        target=lambda x_0, eps, a, s: x_0,
        to_x_0=lambda prediction, x_t, a, s: prediction,
    ),
}


# Of flows, a = 1 - s. No eps: at tau = 1, where x_t is eps, it would say nothing of x_0.
FLOW_PREDICTIONS = {
    "v": Prediction(
        target=lambda x_0, eps, a, s: eps - x_0,
        to_x_0=lambda prediction, x_t, a, s: x_t - s * prediction,
    ),
    "x_0": PREDICTIONS["x_0"],
}


class Process(abc.ABC):
    """A path from images (t = -1) to noise (t = T - 1) inside the roi.

    Every method takes images float32 [B, ..., C] with t [B], or one example [..., C] with a scalar t,
    and gives meaningful values inside the roi only unless it says otherwise.

    Attributes:
        num_timesteps: T.
        is_stochastic: whether two starts end in two different images, so that there are several samples
            of a request, and a null condition to guide with.
        samplers: names of the methods that fit what the network means by x_0. Those here take it for the
            mean of all images that x_t may have come from.
    """

    num_timesteps: int
    is_stochastic: bool = True
    samplers: tuple[str, ...] = ("ddim", "dpmpp_2m", "unipc", "euler", "heun")

    @abc.abstractmethod
    def alpha(self, t: Any) -> Any:
        """The share of x_0 at times t: float64 for numpy arrays, float32 for JAX arrays."""

    @abc.abstractmethod
    def sigma(self, t: Any) -> Any:
        """The share of eps at times t, likewise."""

    @abc.abstractmethod
    def target(self, x_0: Image, eps: Image, t: Times) -> Image:
        """What the network is trained to return."""

    @abc.abstractmethod
    def to_x_0(self, prediction: Image, x_t: Image, t: Times) -> Image:
        """The clean image that a prediction means."""

    def training_target(
        self,
        predict: Callable[[Images, Numbers], jax.Array],
        x_0: Images,
        eps: Images,
        t: Numbers,
        roi: Roi,
        step: Any = None,
    ) -> Images:
        """What the network is trained to return, where that takes the network itself.

        Args:
            predict: (x_t, t) -> prediction, the network with its parameters and condition.
            x_0, eps, t, roi: of the batch.
            step: int scalar, the number of updates so far; None stands for many.
        """
        return self.target(x_0, eps, t)

    def variance(self, t: Any) -> Any:
        """alpha^2 + sigma^2 at times t, the variance of x_t where that of x_0 is 1."""
        return self.alpha(t) ** 2 + self.sigma(t) ** 2

    def half_log_snr(self, t: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """lambda = log(alpha / sigma) at times t, float64; -inf where x_t is noise alone."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha(t)) - np.log(self.sigma(t))

    def noise_share(self, t: Any) -> Any:
        """sigma / (alpha + sigma) at times t: 0 for the image, 1 for noise alone."""
        return self.sigma(t) / (self.alpha(t) + self.sigma(t))

    def check_sampler(self, name: str) -> None:
        """Raises a FieldError if the method `name` does not fit the process."""
        if name not in self.samplers:
            raise FieldError(
                "sampler",
                f"{name!r} does not fit this model; {', '.join(self.samplers)} "
                f"{'do' if len(self.samplers) > 1 else 'does'}",
            )

    def draw_time(self, key: Key[jax.Array, ""]) -> Num[jax.Array, ""]:
        """A time to train at: uniform over the integers 0 .. T - 1."""
        return jax.random.randint(key, (), 0, self.num_timesteps)

    def corrupt(self, x_0: Image, eps: Image, t: Times, roi: Roi) -> Image:
        """x_t = alpha x_0 + sigma eps inside the roi; outside equal to `x_0` bit for bit."""
        a, s = like(self.alpha(t), x_0), like(self.sigma(t), x_0)
        return jnp.where(roi, a * x_0 + s * eps, x_0)

    def start(self, x_T: Image, context: Image, roi: Roi) -> Image:
        """Where sampling starts: standard normal `x_T` inside the roi, the image outside."""
        return jnp.where(roi, x_T, context)


class NetworkProcess(Process):
    """A process with several kinds of prediction.

    Attributes:
        prediction: a key of `predictions`.
        predictions: the kinds by name.
    """

    prediction: str
    predictions: Mapping[str, Prediction]

    def target(self, x_0: Image, eps: Image, t: Times) -> Image:
        a, s = like(self.alpha(t), x_0), like(self.sigma(t), x_0)
        return self.predictions[self.prediction].target(x_0, eps, a, s)

    def to_x_0(self, prediction: Image, x_t: Image, t: Times) -> Image:
        a, s = like(self.alpha(t), x_t), like(self.sigma(t), x_t)
        return self.predictions[self.prediction].to_x_0(prediction, x_t, a, s)

    def _check_prediction(self) -> None:
        if self.prediction not in self.predictions:
            known = ", ".join(self.predictions)
            way = nearest(self.prediction, self.predictions)
            problem = f"must be one of {known} for this process, not {self.prediction!r}{way}"
            raise FieldError("prediction", problem)


@dataclasses.dataclass(frozen=True)
class Gaussian(NetworkProcess):
    """A Gaussian diffusion process (Ho et al. 2020) with any schedule.

    Between timesteps alpha^2 is interpolated linearly.

    Attributes:
        schedule: the noise schedule.
        prediction: a key of `PREDICTIONS`. The paper's network predicts eps. A network with few
            channels for the pixels it folds into them does better with x_0, since then it need not
            carry the noise through to its output. With zero terminal SNR there is no eps: at the last
            timestep, where x_t is eps, it would say nothing of x_0.

    Raises:
        FieldError: an unknown `prediction`, or one that the schedule does not allow.
    """

    schedule: Schedule
    prediction: str = "eps"

    predictions: ClassVar[Mapping[str, Prediction]] = PREDICTIONS

    def __post_init__(self):
        self._check_prediction()
        if self.prediction == "eps" and self.schedule.zero_terminal_snr:
            raise FieldError("prediction", "must be v or x_0 with zero terminal SNR, not 'eps'")

    @property
    def num_timesteps(self) -> int:
        return self.schedule.num_timesteps

    def alpha(self, t: Any) -> Any:
        return _at(np.sqrt(self.schedule.alphas_cumprod), 1.0, t)

    def sigma(self, t: Any) -> Any:
        return _at(np.sqrt(1.0 - self.schedule.alphas_cumprod), 0.0, t)

    def variance(self, t: Any) -> Any:
        # Without the rounding of the sum of squares.
        return np.ones(np.shape(t))


TimeSampling = Literal["uniform", "logit_normal"]


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(NetworkProcess):
    """Straight lines from images to noise (Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022,
    arXiv:2210.02747): x_t = (1 - tau) x_0 + tau eps with tau = (t + 1) / T.

    At t = T - 1 the roi is noise alone. T has no effect on the path: it is the scale of t, on which the
    network sees the time, and how many steps a sampler may take at most.

    Attributes:
        prediction: a key of `FLOW_PREDICTIONS`.
        time_sampling: how tau is drawn in training: "uniform", or "logit_normal", the logistic function
            of a standard normal number, which trains more in the middle, where what is to be predicted
            is the most uncertain (Esser et al. 2024, arXiv:2403.03206, section 3.1).
        num_timesteps: T.

    Raises:
        FieldError: an unknown `prediction`.
    """

    prediction: str = "v"
    time_sampling: TimeSampling = "uniform"
    num_timesteps: int = 1000

    predictions: ClassVar[Mapping[str, Prediction]] = FLOW_PREDICTIONS

    def __post_init__(self):
        self._check_prediction()

    def alpha(self, t: Any) -> Any:
        return 1 - self._tau(t)

    def sigma(self, t: Any) -> Any:
        return self._tau(t)

    def draw_time(self, key: Key[jax.Array, ""]) -> Num[jax.Array, ""]:
        """A time to train at, float32 in (-1, T - 1]."""
        if self.time_sampling == "logit_normal":
            tau = jax.nn.sigmoid(jax.random.normal(key))
        else:
            tau = 1 - jax.random.uniform(key)
        return tau * self.num_timesteps - 1

    def _tau(self, t: Any) -> Any:
        number = jnp.float32 if isinstance(t, jax.Array) else np.float64
        return (t + 1).astype(number) / number(self.num_timesteps)


class Regression(Process):
    """A plain regressor in the place of a diffusion process: the network paints the ROI at once.

        prediction = network(where(roi, 0, x_0), condition)

    It is trained with the squared error inside the ROI, so it tends to the mean of what could be there.
    As a process it has a single timestep, at which nothing of x_0 is left inside the ROI and zeros stand
    in the place of noise. There is no null condition to guide with, and no second sample.
    """

    num_timesteps = 1
    is_stochastic = False

    def alpha(self, t: Any) -> Any:
        return (t < 0) * _one(t)

    def sigma(self, t: Any) -> Any:
        return (t >= 0) * _one(t)

    def target(self, x_0: Image, eps: Image, t: Times) -> Image:
        return x_0

    def to_x_0(self, prediction: Image, x_t: Image, t: Times) -> Image:
        return prediction

    def corrupt(self, x_0: Image, eps: Image, t: Times, roi: Roi) -> Image:
        """The network's input: 0 inside the roi, the clean image outside."""
        return jnp.where(roi, 0.0, x_0)

    def start(self, x_T: Image, context: Image, roi: Roi) -> Image:
        return jnp.where(roi, 0.0, context)


def squared_error_terms(
    prediction: Images, target: Images, roi: Shaped[AnyArray, "B H W 1"], weight: Numbers
) -> tuple[Numbers, Numbers]:
    """Numerator and denominator of the loss, per example.

    The loss of a global batch is sum(sums) / sum(counts), the mean squared error over all pixels
    and sequences inside its rois. Microbatches and devices each add up both before the one
    division, so that the loss does not depend on how the batch was split.

    Args:
        prediction: float32 [B, H, W, C].
        target: float32 [B, H, W, C]; values outside the roi have no effect.
        roi: [B, H, W, 1], bool or 0 / 1.
        weight: float32 [B]; 0 for examples that only fill up a batch.

    Returns:
        sums: float32 [B], weight * squared error summed over the roi.
        counts: float32 [B], weight * number of pixels in the roi * C.
    """
    inside = jnp.broadcast_to(roi > 0, prediction.shape)
    axes = tuple(range(1, prediction.ndim))
    error = jnp.where(inside, prediction - target, 0.0)
    sums = jnp.sum(jnp.square(error), axis=axes) * weight
    counts = jnp.sum(inside, axis=axes, dtype=jnp.float32) * weight
    return sums, counts


def like(values: Any, image: Image) -> Any:
    """`values` with trailing axes of length 1, to broadcast against `image`."""
    return values.reshape(values.shape + (1,) * (image.ndim - values.ndim))


def _at(table: Float[np.ndarray, " T"], clean: float, t: Any) -> Any:
    """`table` [T] at times t, `clean` at -1: by index at integers, else with its square interpolated."""
    table = np.concatenate([[clean], table])
    if isinstance(t, jax.Array):
        values, xp = jnp.asarray(table, jnp.float32), jnp
    else:
        t, values, xp = np.asarray(t), table, np
    if np.issubdtype(t.dtype, np.integer):
        return values[t + 1]
    times = xp.arange(len(table), dtype=values.dtype) - 1
    return xp.sqrt(xp.interp(t, times, xp.square(values)))


def _one(t: Any) -> Any:
    return np.float32(1) if isinstance(t, jax.Array) else np.float64(1)

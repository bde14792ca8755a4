"""Noise schedules of Gaussian processes, and which of their timesteps a sampler visits.

Glossary (Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239):

    T            number of timesteps; t = 0 (almost clean) .. T - 1 (almost pure noise)
    beta_t       variance added at timestep t
    alpha_bar_t  prod_{s <= t} (1 - beta_s), the share of the image's variance that is left
    t_prev       the timestep a sampler goes to from t; -1 is the clean image, alpha_bar_{-1} = 1

Every table is float64 NumPy: in float32, `1 - alpha_bar` would lose half its digits at the first
timesteps. Tables are cast to float32 only where they meet an image.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

from mbti_jax.fields import FieldError


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """The variances of a forward process and the tables that follow from them.

    Attributes:
        betas: float64 [T], each strictly between 0 and 1, but for the last one with zero terminal SNR.
        zero_terminal_snr: whether the last beta is 1, so that the process ends in noise alone.

    Raises:
        ValueError: `betas` is not one-dimensional, is empty, or has a value outside (0, 1).
    """

    betas: np.ndarray
    zero_terminal_snr: bool = False

    def __post_init__(self):
        betas = np.array(self.betas, dtype=np.float64)
        if betas.ndim != 1 or betas.size == 0:
            raise ValueError(f"betas must be a non-empty vector, got shape {betas.shape}.")
        inside = betas[:-1] if self.zero_terminal_snr and betas[-1] == 1 else betas
        if not np.all((inside > 0) & (inside < 1)):
            raise ValueError(
                f"betas must lie strictly between 0 and 1, got {betas.min():g} .. {betas.max():g}; "
                "a linear schedule needs more than 20 timesteps for that."
            )
        betas.flags.writeable = False
        object.__setattr__(self, "betas", betas)

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.betas)

    @functools.cached_property
    def alphas_cumprod(self) -> Float[np.ndarray, " T"]:
        """alpha_bar_t = prod_{s <= t} (1 - beta_s), float64 [T] (Ho et al., section 2)."""
        return np.cumprod(1.0 - self.betas)

    def with_zero_terminal_snr(self) -> "Schedule":
        """The schedule with sqrt(alpha_bar) shifted and scaled so that its last value is 0.

        sqrt(alpha_bar)_t <- (sqrt(alpha_bar)_t - sqrt(alpha_bar)_{T-1}) / (1 - sqrt(alpha_bar)_{T-1} /
        sqrt(alpha_bar)_0), which leaves the first timestep as it is (Lin et al. 2024, arXiv:2305.08891,
        algorithm 1). A model trained so starts sampling from what it was trained on.

        Raises:
            ValueError: there is a single timestep, which would be noise alone.
        """
        if self.num_timesteps < 2:
            raise ValueError("zero terminal SNR takes at least two timesteps")
        root = np.sqrt(self.alphas_cumprod)
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        alphas_cumprod = np.square(root)
        betas = 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
        return Schedule(betas, zero_terminal_snr=True)


def _linear_betas(num_timesteps: int) -> Float[np.ndarray, " T"]:
    """1e-4 .. 0.02 in equal steps at T = 1000 (Ho et al., section 4), scaled by 1000 / T."""
    scale = 1000.0 / num_timesteps
    return np.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=np.float64)


def _cosine_betas(num_timesteps: int) -> Float[np.ndarray, " T"]:
    """beta_t = min(1 - f(t + 1) / f(t), 0.999), f(t) = cos^2((t / T + 0.008) / 1.008 * pi / 2).

    Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17.
    """
    time = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    f = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - f[1:] / f[:-1], 0.999)


_BETAS = {"linear": _linear_betas, "cosine": _cosine_betas}


def make_schedule(name: str, num_timesteps: int = 1000) -> Schedule:
    """Returns the schedule called `name`, 'linear' or 'cosine', as guided-diffusion defines it.

    Raises:
        ValueError: the name is unknown, or `num_timesteps` leaves a beta outside (0, 1).
    """
    if name not in _BETAS:
        raise ValueError(f"Unknown schedule {name!r}; choose one of {sorted(_BETAS)}.")
    if num_timesteps < 1:
        raise ValueError(f"num_timesteps must be at least 1, got {num_timesteps}.")
    return Schedule(_BETAS[name](num_timesteps))


def trailing_timesteps(num_steps: int, num_timesteps: int = 1000) -> Int[np.ndarray, " n"]:
    """`num_steps` evenly spaced timesteps that always start at T - 1.

    t_i = round((n - i) T / n) - 1 for i = 0 .. n - 1, the `trailing` spacing of Lin et al. 2024
    (arXiv:2305.08891), in integers and with halves rounded up. Two neighbors lie T / n >= 1 apart
    before rounding, so no timestep comes twice. Sampling starts from pure noise, which is what the
    model saw at T - 1 and not what it saw at the lower timesteps where other spacings start.

    Args:
        num_steps: n, from 1 to `num_timesteps`.
        num_timesteps: T.

    Returns:
        int64 [n], strictly descending, in the order of sampling.

    Raises:
        FieldError: `num_steps` is not between 1 and `num_timesteps`.
    """
    _check_num_steps(num_steps, num_timesteps)
    left = np.arange(num_steps, 0, -1, dtype=np.int64)
    return (2 * left * num_timesteps + num_steps) // (2 * num_steps) - 1


def ddim_timesteps(num_steps: int, num_timesteps: int = 1000) -> Int[np.ndarray, " n"]:
    """The timesteps that guided-diffusion keeps for its spacing `ddimN`: 0, k, 2 k, ...

    k is the smallest integer stride below T that leaves exactly `num_steps` timesteps. Sampling
    then starts below T - 1; prefer `trailing_timesteps` unless results must match
    guided-diffusion's.

    Args:
        num_steps: N.
        num_timesteps: T.

    Returns:
        int64 [N], strictly descending, in the order of sampling.

    Raises:
        FieldError: `num_steps` is not between 1 and `num_timesteps`, or no stride leaves that many.
    """
    _check_num_steps(num_steps, num_timesteps)
    for stride in range(1, num_timesteps):
        if len(range(0, num_timesteps, stride)) == num_steps:
            return np.arange(0, num_timesteps, stride, dtype=np.int64)[::-1]
    raise FieldError(
        "num_steps",
        f"is not to be had: No integer stride leaves exactly {num_steps} of {num_timesteps} "
        "timesteps; choose another number of steps or the trailing spacing",
    )


def cubic_timesteps(num_steps: int, num_timesteps: int = 1000) -> Int[np.ndarray, " n"]:
    """`num_steps` timesteps that start at T - 1 and come closer towards the image.

    t_i = round(T ((n - i) / n)^3) - 1 for i = 0 .. n - 1, moved up where that is needed for timesteps to
    differ. Few large steps are enough while the image is almost noise, and the error of the last, which
    all methods take at first order, is that of the noise they start from. This is for methods of second
    order: on phantoms 10 steps of `unipc` end 0.6% of the range (root mean square) from where the path
    does, 3.5% with the trailing spacing; 250 steps of DDIM with that one 0.8%. (Linear schedule; with a
    small model of the cosine schedule 0.5% and 4.9%. Exponents of 2 and 4 are worse.)

    Args:
        num_steps: n, from 1 to `num_timesteps`.
        num_timesteps: T.

    Returns:
        int64 [n], strictly descending, in the order of sampling.

    Raises:
        FieldError: `num_steps` is not between 1 and `num_timesteps`.
    """
    _check_num_steps(num_steps, num_timesteps)
    number = np.arange(num_steps)
    wanted = np.rint(num_timesteps * ((number + 1) / num_steps) ** 3).astype(np.int64) - 1
    # The least that is at least as wanted and ascends.
    ascending = np.maximum.accumulate(np.maximum(wanted, 0) - number) + number
    return ascending[::-1]


SPACINGS = {"trailing": trailing_timesteps, "cubic": cubic_timesteps, "ddim": ddim_timesteps}


def sampling_timesteps(
    num_steps: int, num_timesteps: int = 1000, spacing: str = "trailing"
) -> Int[np.ndarray, " n"]:
    """The timesteps of the spacing called `spacing`, 'trailing', 'cubic' or 'ddim'.

    Args:
        num_steps: how many.
        num_timesteps: T.
        spacing: see `trailing_timesteps`, `cubic_timesteps` and `ddim_timesteps`.

    Returns:
        int64 [num_steps], strictly descending, in the order of sampling.

    Raises:
        ValueError: the name is unknown, or the spacing has no such number of steps.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"Unknown spacing {spacing!r}; choose one of {sorted(SPACINGS)}.")
    return SPACINGS[spacing](num_steps, num_timesteps)


def _check_num_steps(num_steps: int, num_timesteps: int) -> None:
    if not 1 <= num_steps <= num_timesteps:
        raise FieldError("num_steps", f"must be between 1 and {num_timesteps}, got {num_steps}")

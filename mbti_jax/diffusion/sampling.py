"""`Sampling`: how samples are drawn, as one value."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Int

from mbti_jax.diffusion import samplers
from mbti_jax.diffusion.guidance import (
    GUIDANCE_WEIGHTS,
    ClassifierFree,
    Guidance,
    check_guidance,
    guidance_record,
)
from mbti_jax.diffusion.processes import Process
from mbti_jax.diffusion.schedule import SPACINGS, sampling_timesteps
from mbti_jax.fields import (
    Count,
    FieldError,
    Interval,
    check_field,
    check_fields,
    finite_number,
    one_of,
    suggesting_names,
)

# What a `Sampling` leaves open, where the checkpoint recommends nothing; None is the sampler's `STEPS`
# or `SPACING`. docs/evaluation.md has the table that this follows from.
DEFAULTS = {"num_steps": None, "sampler": "unipc", "spacing": None}
# The noise share from which samples near the mean go on; docs/notes/2026-11-design-trials.md has others.
NEAR_MEAN = 0.5
# From a straight border of the ROI, how far what blending adds reaches until it is a 1 / e of it.
BLEND_REACH_MM = 4.0


class NonFiniteSampleError(ValueError):
    """Samples with NaN or infinity in them."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How samples are drawn. Progress and cancellation travel beside it.

    Attributes:
        num_steps: steps of the sampler; None for what the checkpoint recommends, or the sampler's
            `STEPS`.
        sampler: a key of `samplers.METHODS`; None for what the checkpoint recommends, or that of
            `DEFAULTS`, but "ddim" with eta above 0. Which fit a model, its `Process` says.
        spacing: of the timesteps, "trailing", "cubic" or "ddim" (see `schedule.SPACINGS`), or the
            timesteps themselves, strictly descending; `num_steps` is then their number. None for what
            the checkpoint recommends, or the `SPACING` of the sampler.
        eta: 0 (deterministic) to 1 (ancestral sampling); above 0 for the sampler "ddim" only.
        guidance: a `Guidance`, or its weight w for classifier-free guidance; None, also as the weight of
            a `Guidance`, for the weight that the checkpoint recommends, and 0 for `mean_passes` and
            near the mean.
        seed: whole number >= 0. Noise is a function of (seed, sample, slice index, position).
        z_sigma_mm: how far along z neighboring slices of a volume share their noise, in millimeters; 0
            for independent noise; None for what the model was trained with, if it sees neighbors that
            shared any, else 2. Single slices, where it is None, have noise of their own.
        estimate: what is made of the samples: "sample" for each of them, one of the images that could be
            there; "mean" for their mean, which has the least squared error and less texture than any
            image; or "near_mean" for samples that go from the first estimate of x_0 straight to a noise
            share of `NEAR_MEAN` and on from there, so that what is large is the mean's and only what is
            small is drawn (compare Meng et al. 2022, arXiv 2108.01073, whose samples start from a
            sketch): nearer to the truth than a sample, with more texture than a mean. Timesteps that are
            given as `spacing` are used as they are.
        mean_passes: of the mean. None for the mean of several samples; 1 for the first estimate of x_0
            alone, whatever the seed: one pass of the network at the last timestep, or two with a
            guidance weight, which is 0 unless given. `num_steps` becomes 1. The first estimate is made
            of zeros in the place of noise, here and near the mean, see `samplers.driver`.
        blend: whether normal tissue goes over into its surroundings without a step, see
            `inference.blending`. Nothing outside the ROI changes.

    Raises:
        FieldError: a field is not as above.
    """

    # Of the types Count, Name, and str or Sequence once they are resolved.
    num_steps: Any = None
    sampler: Any = None
    spacing: Any = None
    eta: float = 0.0
    guidance: Guidance | float | None = None
    seed: int = 0
    z_sigma_mm: Annotated[float, Interval(0, 1000)] | None = None
    estimate: Literal["sample", "mean", "near_mean"] = "sample"
    mean_passes: int | None = None
    blend: bool = False

    def __post_init__(self):
        if self.mean_passes is not None:
            self._check_mean_passes()
            object.__setattr__(self, "num_steps", 1)
        if isinstance(self.spacing, str | None):
            if self.spacing not in (None, *SPACINGS):
                known = ", ".join(SPACINGS)
                problem = f"must be one of {known}, or timesteps. Unknown spacing {self.spacing!r}"
                raise FieldError("spacing", problem)
        else:
            if not isinstance(self.spacing, Sequence | np.ndarray):
                problem = f"must be a name or timesteps, not {self.spacing!r}"
                raise FieldError("spacing", problem)
            object.__setattr__(self, "spacing", tuple(self.spacing))
            object.__setattr__(self, "num_steps", len(self.spacing))
        check_fields(self)
        check_field("num_steps", self.num_steps, Count | None)
        if self.sampler is not None:
            one_of("sampler", self.sampler, samplers.METHODS)
        if not 0 <= self.eta <= 1:
            raise FieldError("eta", f"must be between 0 and 1, not {self.eta}")
        if self.eta and self.sampler and not samplers.method(self.sampler).TAKES_ETA:
            problem = f"is 0 for the sampler {self.sampler}, not {self.eta}; ddim takes others"
            raise FieldError("eta", problem)
        if not isinstance(self.guidance, Guidance | None):
            weight = float(finite_number("guidance_weight", self.guidance, GUIDANCE_WEIGHTS))
            object.__setattr__(self, "guidance", ClassifierFree(weight))
        if self.guidance is not None:
            check_guidance(self.guidance)

    def _check_mean_passes(self) -> None:
        if self.mean_passes != 1:
            problem = f"must be 1, or None for the mean of samples, not {self.mean_passes!r}"
            raise FieldError("mean_passes", problem)
        if not self.is_mean:
            problem = f"is of the estimate mean, not of {self.estimate}: leave out one of the two"
            raise FieldError("mean_passes", problem)
        if self.spacing not in (None, "trailing", "cubic"):
            problem = "must be trailing or cubic with mean_passes, whose timestep is the last one"
            raise FieldError("spacing", problem)

    @property
    def is_mean(self) -> bool:
        """Whether the result is one image, the mean, and not each of the samples."""
        return self.estimate == "mean"

    @property
    def starts_at_mean(self) -> bool:
        """Whether the first estimate of x_0 stands for the mean of what could be there."""
        return self.estimate == "near_mean" or bool(self.mean_passes)

    @property
    def of_single_slices(self) -> "Sampling":
        """The same for slices that are painted as if alone: noise of their own where it is left open."""
        return dataclasses.replace(self, z_sigma_mm=0.0) if self.z_sigma_mm is None else self

    def for_normal_tissue(self, process: Process) -> "Sampling":
        """The same near the mean, the preset where normal tissue is painted, if a model can do it."""
        return dataclasses.replace(self, estimate="near_mean") if has_mean(process) else self

    def check_num_samples(self, number: int) -> None:
        """Raises a FieldError if the estimate is not one of so many samples."""
        if self.mean_passes and number != 1:
            problem = f"must be 1 with mean_passes, not {number}; leave out one of the two"
            raise FieldError("num_samples", problem)
        if self.is_mean and not self.mean_passes and number < 2:
            problem = "must be at least 2 for their mean; or set mean_passes to 1"
            raise FieldError("num_samples", problem)

    def resolved(
        self, process: Process, recommended: Mapping[str, Any] | None = None
    ) -> "Sampling":
        """The same with nothing left open but, perhaps, its guidance.

        Args:
            process: of the model.
            recommended: by its checkpoint: `num_steps`, `sampler`, `spacing`, each if it says so.

        Raises:
            FieldError: the mean in one pass, or samples near it, of a model whose first estimate is no
                mean; too few steps for them.
        """
        fits = DEFAULTS["sampler"] in process.samplers
        known = {**DEFAULTS, "sampler": DEFAULTS["sampler"] if fits else process.samplers[0]}
        known |= recommended or {}
        sampler = self.sampler or ("ddim" if self.eta else known["sampler"])
        if sampler != known["sampler"]:
            known = {**DEFAULTS, "sampler": sampler}
        steps = min(samplers.method(sampler).STEPS, process.num_timesteps)
        known["num_steps"] = known["num_steps"] or steps
        known["spacing"] = known["spacing"] or samplers.method(sampler).SPACING
        near = self.estimate == "near_mean"
        if (self.mean_passes or near) and not fits:
            problem = "is not for a model tuned for few steps, whose first estimate is a sample"
            raise FieldError("estimate" if near else "mean_passes", problem)
        if self.mean_passes:
            known["spacing"] = "trailing"
        missing = {name: known[name] for name in DEFAULTS if getattr(self, name) is None}
        full = dataclasses.replace(self, **missing) if missing else self
        if near and isinstance(full.spacing, str):
            t = _near_mean_timesteps(process, full.num_steps, full.spacing)
            full = dataclasses.replace(full, spacing=tuple(t.tolist()))
        return full

    def timesteps(self, num_timesteps: int) -> Int[np.ndarray, " num_steps"]:
        """The times that the sampler visits, int64 [num_steps], strictly descending within [0, T).

        Of a sampling whose number of steps and spacing are not left open.

        Raises:
            FieldError: there are no such timesteps.
        """
        if self.num_steps is None or self.spacing is None:
            raise FieldError("num_steps", "and spacing must be given here")
        if isinstance(self.spacing, str):
            return sampling_timesteps(self.num_steps, num_timesteps, self.spacing)
        t = np.asarray(self.spacing)
        if (
            not np.issubdtype(t.dtype, np.integer)
            or t[0] >= num_timesteps
            or t[-1] < 0
            or np.any(np.diff(t) >= 0)
        ):
            raise FieldError(
                "spacing",
                f"as timesteps must be integers that descend strictly within [0, {num_timesteps}), "
                f"not {self.spacing!r}",
            )
        return t

    def record(self) -> dict[str, Any]:
        """For provenance and requests, in JSON values."""
        record = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not self.is_mean:
            del record["mean_passes"]
        if self.estimate == "sample":
            # As in records that are older than means.
            del record["estimate"]
        if self.starts_at_mean:
            # As opposed to records that are older than that; `spacing` says whether it is.
            record["first_estimate"] = "of zeros if at the last timestep"
        if self.blend:
            # As opposed to records from when it reached through the whole ROI.
            record["blend_reach_mm"] = BLEND_REACH_MM
        else:
            del record["blend"]
        if not isinstance(self.spacing, str | None):
            record["spacing"] = [int(t) for t in self.spacing]
        return record | guidance_record(record.pop("guidance"))


def _near_mean_timesteps(
    process: Process, num_steps: int, spacing: str
) -> Int[np.ndarray, " num_steps"]:
    """The last timestep, and then only those below a noise share of `NEAR_MEAN`."""
    last = process.num_timesteps - 1
    below = int(np.searchsorted(process.noise_share(np.arange(last)), NEAR_MEAN))
    if not 2 <= num_steps <= below + 1:
        problem = f"must be between 2 and {below + 1} for near_mean, not {num_steps}"
        raise FieldError("num_steps", problem)
    return np.append(last, sampling_timesteps(num_steps - 1, below, spacing))


def has_mean(process: Process) -> bool:
    """Whether a model's first estimate of x_0 is the mean of its samples: not if tuned for few steps."""
    return process.is_stochastic and DEFAULTS["sampler"] in process.samplers


def check_finite(samples: np.ndarray, sampling: Sampling) -> np.ndarray:
    """`samples` if they are finite.

    Raises:
        NonFiniteSampleError: they are not; the message says how they were drawn.
    """
    wrong = samples.size - int(np.isfinite(samples).sum())
    if wrong:
        how = ", ".join(f"{name}={value}" for name, value in sampling.record().items())
        raise NonFiniteSampleError(
            f"{wrong:,} of {samples.size:,} values that were sampled are not finite ({how}). Lower the "
            "guidance weight; if it is 0, the checkpoint or the image is at fault"
        )
    return samples


# Made by `dataclass`, so that it cannot be decorated where it is written.
Sampling.__init__ = suggesting_names(Sampling.__init__)

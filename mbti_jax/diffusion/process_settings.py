"""Which process a run trains, and making it."""

import dataclasses
from typing import Annotated, Literal

from mbti_jax.diffusion.consistency import Consistency
from mbti_jax.diffusion.processes import (
    Gaussian,
    NetworkProcess,
    Process,
    RectifiedFlow,
    Regression,
    TimeSampling,
)
from mbti_jax.diffusion.schedule import make_schedule
from mbti_jax.fields import FieldError, Interval, Share, check_fields


@dataclasses.dataclass(frozen=True)
class ProcessSettings:
    """Which process a run trains.

    Attributes:
        process: "gaussian", "flow" or "regression".
        schedule: of a Gaussian process, see `make_schedule`.
        num_timesteps: T; 1 for a regression.
        prediction: see `Gaussian` and `RectifiedFlow`; "x_0" for a regression.
        drop_condition: share of class vectors replaced by the null condition in training; 0 for a
            regression.
        zero_terminal_snr: whether the schedule of a Gaussian process ends in noise alone, see
            `Schedule.with_zero_terminal_snr`.
        time_sampling: of a flow, see `RectifiedFlow`.
        objective: "consistency" tunes a trained model towards few steps, see `Consistency`.
        halve_every: see `Consistency`; 0 for the other objective.
        max_loss_weight: the squared error of an x_0-prediction counts min(1 + SNR(t), max_loss_weight)
            times, SNR being alpha^2 / sigma^2. With 1 all times count alike. Without a bound it would
            be, of a Gaussian process, the loss of a v-prediction (Salimans & Ho 2022, arXiv 2202.00512);
            with one it is in the manner of Hang et al. 2023 (arXiv 2303.09556). Little error is left to
            squares where there is little noise, but it is there that texture is decided.
        z_sigma: over how many slices those that see each other share their noise in training, and in
            sampling unless otherwise said, see `noise.start_noise`.

    Raises:
        FieldError: a field has no such value.
    """

    process: Literal["gaussian", "flow", "regression"] = "gaussian"
    schedule: Literal["linear", "cosine"] = "linear"
    # Its tables have an entry per timestep.
    num_timesteps: Annotated[int, Interval(1, 100_000)] = 1000
    prediction: Literal["eps", "v", "x_0"] = "eps"
    drop_condition: Share = 0.1
    zero_terminal_snr: bool = False
    time_sampling: TimeSampling = "uniform"
    objective: Literal["diffusion", "consistency"] = "diffusion"
    halve_every: int = 0
    max_loss_weight: Annotated[float, Interval(1, 1e6)] = 1.0
    z_sigma: Annotated[float, Interval(0, 100)] = 0.0

    def __post_init__(self):
        check_fields(self)
        if (self.objective == "consistency") != (self.halve_every > 0):
            problem = f"is at least 1 for consistency and 0 for diffusion, not {self.halve_every}"
            raise FieldError("halve_every", problem)
        if self.zero_terminal_snr and self.process != "gaussian":
            raise FieldError(
                "zero_terminal_snr", f"is of Gaussian schedules, not of a {self.process}"
            )
        if self.time_sampling != "uniform" and self.process != "flow":
            problem = f"is {self.time_sampling} for flows only, not for a {self.process} process"
            raise FieldError("time_sampling", problem)
        if self.schedule != "linear" and self.process == "flow":
            problem = f"is of Gaussian processes: leave it linear for a flow, not {self.schedule}"
            raise FieldError("schedule", problem)
        if self.max_loss_weight != 1 and (
            self.prediction != "x_0"
            or self.process == "regression"
            or self.objective == "consistency"
        ):
            problem = "is 1 but for diffusion or flows that predict x_0, whose times it weighs"
            raise FieldError("max_loss_weight", problem)
        self.make()

    def make(self) -> Process:
        """The process."""
        process = self._make()
        if self.objective == "diffusion":
            return process
        if not isinstance(process, NetworkProcess):
            raise FieldError("objective", f"consistency is not for a {self.process}")
        return Consistency(process, self.halve_every)

    def _make(self) -> Process:
        if self.process == "gaussian":
            try:
                schedule = make_schedule(self.schedule, self.num_timesteps)
                if self.zero_terminal_snr:
                    schedule = schedule.with_zero_terminal_snr()
            except ValueError as error:
                raise FieldError("num_timesteps", f"is {self.num_timesteps}: {error}") from error
            return Gaussian(schedule, self.prediction)
        if self.process == "flow":
            return RectifiedFlow(self.prediction, self.time_sampling, self.num_timesteps)
        if self.num_timesteps != 1:
            raise FieldError("num_timesteps", f"is 1 for a regressor, not {self.num_timesteps}")
        if self.prediction != "x_0":
            raise FieldError("prediction", f"is x_0 for a regressor, not {self.prediction!r}")
        if self.drop_condition:
            raise FieldError("drop_condition", "is 0 for a regressor, which has no null condition")
        return Regression()

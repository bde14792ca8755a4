"""Stage 3: the choices that only a measurement can make, each against what is done now, in turn.

Flags of XLA are given to the compiler with the program, so that both sides run in one process.
"""

import dataclasses
import functools
import gc
from collections.abc import Mapping
from typing import Any

import jax

from benchmarks.accelerator.device import clock, is_out_of_memory
from benchmarks.accelerator.problems import settings, tolerances
from benchmarks.accelerator.record import Record
from benchmarks.accelerator.sizes import Sizes
from benchmarks.speed import compare
from benchmarks.speed_jax import JaxSide, Problem
from mbti_jax.models import choices

_SECTION = "train_step"


@dataclasses.dataclass(frozen=True)
class Alternative:
    """Another way to compute a train step.

    Attributes:
        title: what is changed.
        choices: fields of `Choices`.
        flags: options of XLA.
        network: fields of the network that both sides have.
        own: fields of the network that the alternative has; the function stays the same.
    """

    title: str
    choices: Mapping[str, str] = dataclasses.field(default_factory=dict)
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# In order of worth.
ALTERNATIVES = (
    Alternative("group norm: moments in one pass", {"group_norm": "one_pass"}),
    Alternative("group norm: plain, gradient derived", {"group_norm": "plain"}),
    Alternative("attention: cuDNN", {"attention": "cudnn"}),
    Alternative("xla_allow_excess_precision=false", flags={"xla_allow_excess_precision": False}),
    Alternative("rematerialization", own={"model__remat": True}),
    # The two need float32.
    Alternative(
        "TF32: convolutions forced to NCHW",
        flags={"xla_gpu_force_conv_nchw": True},
        network={"model__dtype": "float32"},
    ),
    Alternative(
        "TF32: gradients of 3x3 convolutions written for CPUs",
        {"conv_gradient": "forward"},
        network={"model__dtype": "float32"},
    ),
    # The published network resamples without them.
    Alternative(
        "strided convolutions folded (network with conv_resample)",
        {"strided": "folded"},
        network={"model__resblock_updown": False},
    ),
)


def run(sizes: Sizes, record: Record) -> None:
    """Times every alternative against the defaults."""
    record.unit("defaults", lambda: dataclasses.asdict(choices.current()))
    bases = _Bases(sizes)
    for alternative in ALTERNATIVES[: sizes.alternatives]:
        record.unit(alternative.title, lambda a=alternative: _measure(a, bases, sizes))


class _Bases:
    """What the alternatives are compared with, by the fields of the network; the last is kept."""

    def __init__(self, sizes: Sizes):
        self._sizes, self._batch = sizes, sizes.batch
        self._of = functools.lru_cache(maxsize=1)(self._make)

    def of(self, alternative: Alternative) -> "tuple[Problem, _Prepared]":
        return self._of(tuple(alternative.network.items()))

    def _make(self, network) -> "tuple[Problem, _Prepared]":
        while True:
            try:
                of = settings(self._sizes, batch_size=self._batch, **dict(network))
                problem = Problem.from_settings(of, 1)
                prepared = _Prepared(JaxSide(problem))
                prepared.prepare(_SECTION)
                return problem, prepared
            except Exception as error:
                if self._batch == 1 or not is_out_of_memory(str(error)):
                    raise
            self._batch //= 2
            gc.collect()


class _Prepared:
    """A side whose program is compiled once for several comparisons."""

    def __init__(self, side: JaxSide):
        self.prepare: Any = functools.cache(side.prepare)


def _measure(alternative: Alternative, bases: _Bases, sizes: Sizes) -> dict[str, Any]:
    default = choices.current()
    same = [getattr(default, name) == value for name, value in alternative.choices.items()]
    if same and all(same):
        return {"skipped": "it is the default"}
    problem, base = bases.of(alternative)
    if alternative.choices.get("attention") == "cudnn":
        model = problem.pipeline.model
        width = model.num_head_channels
        obstacle = choices.cudnn_obstacle(jax.default_backend(), model.dtype, width)
        if obstacle:
            return {"skipped": obstacle}
    of = settings(
        sizes, batch_size=problem.batch_size, **{**alternative.network, **alternative.own}
    )
    other = dataclasses.replace(problem, settings=of, pipeline=of.pipeline())
    side = JaxSide(other, alternative.choices, alternative.flags)
    timings, programs, distances = compare(
        problem,
        {"default": base, "alternative": side},
        _SECTION,
        tolerances(problem.pipeline.model.dtype)[_SECTION],
        rounds=sizes.rounds,
    )
    return {
        "batch": problem.batch_size,
        "clock": clock(),
        "rows": {name: timing.to_json() for name, timing in timings.items()},
        "relative_l2": distances["alternative"],
        **{
            f"{name}_{what}": getattr(program, what)
            for name, program in programs.items()
            for what in ("compile_seconds", "peak_bytes")
        },
    }

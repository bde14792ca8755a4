"""Where the pieces of a job run: settings of the engine, and a job's share of an array of jobs."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, TypeVar

from mbti_jax.fields import Count, FieldError, Interval, check_fields, whole_number

Piece = TypeVar("Piece")

AUTO, MERGE = "auto", "merge"
# What a number in the environment says, and who sets it.
_SLURM, _KUBERNETES = "SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"


class Share(NamedTuple):
    """A share of a job's pieces, done by one of several jobs that share nothing but a folder.

    Attributes:
        number: which of them, from 0.
        count: how many there are.
    """

    number: int
    count: int

    def of(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """Its pieces: neighbors, since they often read the same files; shares differ by one at most."""
        first, last = (n * len(pieces) // self.count for n in (self.number, self.number + 1))
        return pieces[first:last]


@dataclasses.dataclass(frozen=True)
class RaySettings:
    """Settings of Ray.

    Attributes:
        address: of the head node, host:port, or "auto"; empty for that in RAY_ADDRESS, and without that
            for a cluster of this machine that lives as long as the job.
        workers: processes that do pieces; 0 for one for each GPU of the cluster, and without GPUs one
            for each core, or for each node if a worker loads a model, which uses all cores.
        cpus: cores that Ray reserves for a worker.
        retries: how often a piece whose worker died is tried again by another one.
    """

    address: str = ""
    workers: Annotated[int, Interval(0, 100_000)] = 0
    cpus: Count = 1
    retries: Annotated[int, Interval(0, 100)] = 2

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """Settings of the engine; results do not depend on them.

    Attributes:
        engine: "local", one piece after the other in this process, or "ray".
        ray: settings of Ray.
        piece: number of a share from 0, "auto" to take it from SLURM or Kubernetes, "merge" for what is
            to be done once all shares are; empty for the whole job.
        pieces: how many shares there are; 0 for what SLURM says.

    Raises:
        FieldError: a field is not as above, or a share is asked of Ray, which shares by itself.
    """

    engine: Literal["local", "ray"] = "local"
    ray: RaySettings = RaySettings()
    piece: str = ""
    pieces: Annotated[int, Interval(0, 1_000_000)] = 0

    def __post_init__(self):
        check_fields(self)
        if self.piece and self.engine != "local":
            raise FieldError(
                "piece", f"is for engine=local; {self.engine} shares out pieces itself"
            )
        if self.pieces and not self.piece:
            raise FieldError("piece", f"has to be given with pieces={self.pieces}: which of them")
        if self.piece not in ("", AUTO, MERGE):
            if not self.piece.isdecimal():
                problem = f"must be a number, {AUTO} or {MERGE}, not {self.piece!r}"
                raise FieldError("piece", problem)
            whole_number("pieces", self.pieces, least=1)
            whole_number("piece", int(self.piece), most=self.pieces - 1)

    @property
    def is_merge(self) -> bool:
        """Whether only that is to be done which comes after all shares."""
        return self.piece == MERGE

    def share(self, environment: Mapping[str, str] = os.environ) -> Share | None:
        """The share of the pieces to be done; None for all of them.

        Raises:
            FieldError: it is to be taken from the environment, which does not say it.
        """
        if self.piece in ("", MERGE):
            return None
        if self.piece != AUTO:
            return Share(int(self.piece), self.pieces)
        if _SLURM in environment:
            return _of_slurm(environment, self.pieces)
        if _KUBERNETES in environment:
            if not self.pieces:
                problem = "has to be given: as many as the Job has completions"
                raise FieldError("pieces", problem)
            return _share(_number(environment, _KUBERNETES), self.pieces, _KUBERNETES)
        problem = (
            f"is {AUTO}, but neither {_SLURM} nor {_KUBERNETES} is set, as in jobs of an "
            "array; give the number"
        )
        raise FieldError("piece", problem)


def _of_slurm(environment: Mapping[str, str], pieces: int) -> Share:
    """With `pieces` given, numbers are those of the tasks; else they count from the first task on.

    So `--array=0-7` and `--array=1-8` both are all of an array, and some of its tasks can be run again.
    """
    number = _number(environment, _SLURM)
    if pieces:
        return _share(number, pieces, _SLURM)
    first = _number(environment, "SLURM_ARRAY_TASK_MIN", 0)
    step = _number(environment, "SLURM_ARRAY_TASK_STEP", 1)
    count = _number(environment, "SLURM_ARRAY_TASK_COUNT")
    if step < 1 or (number - first) % step:
        raise FieldError("piece", f"is {AUTO}, but {_SLURM}={number} is not a step of {step} away")
    return _share((number - first) // step, count, _SLURM)


def _share(number: int, count: int, name: str) -> Share:
    if not 0 <= number < count:
        problem = (
            f"is {AUTO}, and {name} makes it {number}, which is not from 0 to {count - 1}: let an array "
            "be numbered without gaps, or from 0 with pieces given"
        )
        raise FieldError("piece", problem)
    return Share(number, count)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise FieldError(
            "piece", f"is {AUTO}, but {name} is {text!r} and no number; give the number"
        )
    return int(text)

"""What is done with the pieces of a job, and what a piece without a result has instead."""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from tfds_brats.conventions import CaseError

Piece = TypeVar("Piece")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class PieceError:
    """Why a piece has no result.

    Attributes:
        message: a sentence.
    """

    message: str


@dataclasses.dataclass(frozen=True)
class Work(Generic[Piece, Result]):
    """What is done with a piece. All of it is pickled for a cluster.

    Attributes:
        function: (context, piece) -> result, a function of a module.
        context: makes what a worker has to load once, such as a model; None for nothing.
        reported: exceptions that concern one piece alone; all others end the job.
        loads_model: whether a worker needs a GPU where there are some.
    """

    function: Callable[[Any, Piece], Result]
    context: Callable[[], Any] | None = None
    reported: tuple[type[Exception], ...] = (CaseError,)
    loads_model: bool = False

    def make_context(self) -> Any:
        """What `function` is given beside a piece."""
        return self.context() if self.context is not None else None

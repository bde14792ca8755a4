"""Sets of repainted cases, cut into pieces that can be made anywhere and in any order.

A piece is a sample of a case, since noise and ROIs are functions of seed, case and sample alone; means
and series, whose samples depend on each other, are made in one. Each piece is complete or absent on
disk, and locked while it is made.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mbti_jax.engine.pieces import holding, run_pieces
from mbti_jax.engine.settings import EngineSettings
from mbti_jax.engine.work import PieceError, Work
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.settings import InpaintSettings
from tfds_brats.cases import Case, CaseFiles, read_case
from tfds_brats.conventions import CaseError
from tfds_brats.locking import LockedError
from tfds_brats.search import raise_problems

_log = logging.getLogger(__name__)

# What a process that died may take to do so, where it is out of reach.
_LOCK_SECONDS = 60.0

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Job:
    """Where a set is made.

    Attributes:
        engine: here, elsewhere, or a share of it.
        load: loads the model in a worker elsewhere.
    """

    engine: EngineSettings = dataclasses.field(default_factory=EngineSettings)
    load: Callable[[], Inpainter] | None = None


HERE = Job()


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a set.

    Attributes:
        files: a case.
        samples: numbers of those that are made in one.
    """

    files: CaseFiles
    samples: tuple[int, ...]

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.samples))
        return f"{self.files.subject}, sample{'s' * (len(self.samples) > 1)} {numbers}"


class Painter:
    """What a worker has: the model, and the case that it read last.

    Attributes:
        inpainter: the model.
    """

    def __init__(self, inpainter: Inpainter):
        self.inpainter = inpainter
        self._key, self._case = None, None

    def read(
        self, files: CaseFiles, request: dict[str, Any], sequences: Sequence[str], labels: bool
    ) -> Case:
        """`read_case`, unless it was the last one read; samples of a case follow each other.

        Args:
            files, sequences, labels: see `read_case`.
            request: has the digests of the files.
        """
        key = (files, request["inputs"], tuple(sequences), labels)
        if self._case is None or self._key != key:
            self._key, self._case = key, read_case(files, sequences, labels=labels)
        return self._case


# paint(painter, piece, settings, folder, only_look) -> whether it is there; makes it unless told not to.
Paint = Callable[[Painter, Piece, InpaintSettings, Path, bool], bool]


@dataclasses.dataclass(frozen=True)
class _Function:
    """A paint function with what all pieces have in common, for workers elsewhere."""

    paint: Paint
    settings: InpaintSettings
    folder: Path
    only_look: bool

    def __call__(self, painter: Painter, piece: Piece) -> bool:
        return self.paint(painter, piece, self.settings, self.folder, self.only_look)


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """Makes a painter in a worker."""

    load: Callable[[], Inpainter]

    def __call__(self) -> Painter:
        return Painter(self.load())


def cut(cases: Sequence[CaseFiles], settings: InpaintSettings) -> list[Piece]:
    """The pieces of a set, the samples of a case one after the other."""
    numbers = range(settings.num_samples)
    in_one = settings.is_series or settings.is_mean
    parts = [tuple(numbers)] if in_one else [(number,) for number in numbers]
    return [Piece(files, part) for files in cases for part in parts]


def make_set(
    inpainter: Inpainter,
    job: Job,
    pieces: Sequence[Piece],
    problems: Sequence[str],
    function: tuple[Paint, InpaintSettings, Path],
) -> None:
    """Makes the pieces of a set, or of a share of it; of one that is to be merged it looks for them.

    Args:
        inpainter: the model, for pieces that are made here.
        job: where they are made.
        pieces: all of the set.
        problems: of cases that cannot be used, as `search_cases` reports them.
        function: what makes a piece, with what it takes.

    Raises:
        CaseError: when all others are done, for the cases that could not be used; lists why.
        ValueError, OSError: whatever else keeps pieces from being made.
    """
    engine = job.engine
    share = engine.share()
    mine = pieces if share is None else share.of(pieces)
    if share is not None:
        _log.info(f"Share {share.number} of {share.count}: {len(mine)} of {len(pieces)} pieces")
    load = job.load if engine.engine == "ray" else None
    work = Work(
        _Function(*function, engine.is_merge),
        _Loaded(load or (lambda: inpainter)),
        reported=(CaseError, LockedError),
        loads_model=True,
    )
    failed: dict[str, list[str]] = {}
    subjects = {piece.files.subject for piece in mine}
    run = run_pieces(work, mine, engine, label="samples", quiet=len(subjects) == 1)
    with contextlib.closing(run) as results:
        for piece, result in results:
            if isinstance(result, PieceError):
                failed.setdefault(piece.files.subject, []).append(result.message)
            elif not result:
                message = f"{piece}: is missing; run its share again"
                failed.setdefault(piece.files.subject, []).append(message)
    messages = ["\n".join(dict.fromkeys(lines)) for lines in failed.values()]
    raise_problems([*problems, *messages], len(subjects) + len(problems))


@contextlib.contextmanager
def painting(folder: Path, name: str) -> Iterator[None]:
    """While a piece is made: no other process makes it.

    Raises:
        LockedError: another one does, and is not about to end.
    """
    with holding(folder, name, _LOCK_SECONDS):
        yield

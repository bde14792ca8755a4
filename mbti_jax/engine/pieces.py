"""Many independent pieces of one job, done here or on a cluster: the same calls, results, and order.

    work = Work(paint, context=functools.partial(load, "runs/paper"))
    for piece, result in run_pieces(work, pieces, EngineSettings("ray"), label="cases"):
        if isinstance(result, PieceError):
            ...

A piece has to be idempotent: complete or absent, and done once more without harm. A piece whose worker
died is done by another worker, and a job that was killed is done once more from the start.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mbti_jax.engine.settings import EngineSettings
from mbti_jax.engine.work import Piece, PieceError, Result, Work
from tfds_brats.locking import LockedError, only_process_in

_log = logging.getLogger(__name__)


def run_pieces(
    work: Work[Piece, Result],
    pieces: Iterable[Piece],
    settings: EngineSettings,
    *,
    label: str,
    is_done: Callable[[Piece], bool] | None = None,
    quiet: bool = False,
) -> Generator[tuple[Piece, Result | PieceError], None, None]:
    """Does something with every piece, with a bar of pieces, failures, and the time left.

    Closing the iterator, or an interrupt, stops the workers.

    Args:
        work: what is done.
        pieces: of the job; of `settings.share` nothing is known here.
        settings: where it is done.
        label: of the bar.
        is_done: which pieces are left out, since their results exist.
        quiet: whether what fails is not logged at once, because nothing else comes before the caller
            says it; that of a single piece never is.

    Yields:
        (piece, result or error) for every piece that is not done yet, in the order of the pieces.

    Raises:
        ValueError, OSError: the cluster or the context cannot be used.
        Exception: whatever a piece raised that is not in `work.reported`.
    """
    pieces = list(pieces)
    missing = [piece for piece in pieces if not (is_done and is_done(piece))]
    if not missing:
        return
    if settings.engine == "ray":
        # Ray is an extra.
        from mbti_jax.engine.ray_actors import run_on_ray as run
    else:
        run = _run_here
    said: set[str] = set()
    quiet = quiet or len(pieces) == 1
    with (
        tqdm(
            total=len(pieces),
            initial=len(pieces) - len(missing),
            desc=label,
            unit="piece",
            dynamic_ncols=True,
            # Of a single piece there are bars of its own.
            disable=len(pieces) == 1,
        ) as bar,
        contextlib.closing(run(work, missing, settings.ray, _mover(bar))) as results,
    ):
        for piece, result in zip(missing, results, strict=True):
            if isinstance(result, PieceError):
                # Once, if all samples of a case fail alike.
                if not quiet and result.message not in said:
                    _log.info(f"not done: {result.message}")
                said.add(result.message)
            yield piece, result


def _mover(bar: tqdm) -> Callable[[bool], None]:
    """Moves the bar by a piece; called with whether it failed."""
    failed = 0

    def move(is_failure: bool) -> None:
        nonlocal failed
        failed += is_failure
        bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)
        bar.update()

    return move


def _run_here(
    work: Work[Piece, Result], pieces: Sequence[Piece], _: Any, move: Callable[[bool], None]
) -> Generator[Result | PieceError, None, None]:
    context = work.make_context()
    for piece in pieces:
        try:
            result = work.function(context, piece)
        except work.reported as error:
            result = PieceError(str(error))
        move(isinstance(result, PieceError))
        yield result


@contextlib.contextmanager
def holding(folder: Path, name: str, seconds: float) -> Iterator[None]:
    """Holds the lock of a piece, which a worker that was given up may hold for a while.

    Args:
        folder: that the piece is written to.
        name: of the piece in it.
        seconds: how long to wait for another process.

    Raises:
        LockedError: another process still has it then.
    """
    end = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(only_process_in(folder, name))
                break
            except LockedError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
        yield

"""The task that builds the dataset of slices.

    python run.py --config=configs/data.py --config.source=DIR --config.convention=brats2021

TFDS writes and reads array_record without TensorFlow as long as images are passed already encoded.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tfds_brats.dataset import Build, Run
from tfds_brats.locking import beside_others_in, in_turn, only_process_in
from tfds_brats.phantom import PhantomSettings, write_phantoms
from tfds_brats.search import find_cases
from tfds_brats.shards import read_plan
from tfds_brats.workers import Workers, default_num_workers

logger = logging.getLogger(__name__)


def build(
    source: str | os.PathLike,
    convention: str,
    data_dir: str | os.PathLike,
    num_workers: int | None = None,
    only: str = "",
    run: Run | None = None,
) -> Path:
    """Builds the dataset of a source folder unless it already exists.

    Safe to interrupt and to run again: the dataset appears as a whole or not at all, and shards that
    are complete are not written again, whoever wrote them.

    Args:
        source: folder with the cases, at any depth.
        convention: name of the convention that they follow, a key of `CONVENTIONS`.
        data_dir: folder for the dataset.
        num_workers: processes that read and encode, at least 1; None uses every core.
        only: the split that all cases go into; empty for a split by patient.
        run: calls a function for pieces of the work, on other machines for example, which see `source`
            and `data_dir` under the same paths; None for `num_workers` processes of this one. The
            dataset is the same to the byte.

    Returns:
        The folder of the dataset, for `SliceSource`.

    Raises:
        CaseError: the source, cases or the convention cannot be used; the message names the files.
        ValueError: `data_dir` holds the dataset of another source or convention, or another build is
            writing to it, or `num_workers` is below 1.
        OSError: the disk has too little space, or a shard cannot be written.
    """
    with _building(source, convention, data_dir, num_workers, only, run) as work:
        # One that is there is only read: by any number of processes, in folders that allow no more.
        dataset_dir = work.existing()
        if dataset_dir is None:
            with only_process_in(work.data_dir, "build"):
                dataset_dir = work.existing() or work.build()
    work.report(dataset_dir)
    return dataset_dir


def build_piece(
    source: str | os.PathLike,
    convention: str,
    data_dir: str | os.PathLike,
    piece: tuple[int, int],
    num_workers: int | None = None,
    only: str = "",
) -> Path | None:
    """Builds a share of the dataset's shards, beside other processes that build the others.

    The process that finds all shards complete makes the dataset of them, and so does `build`. The shards
    do not depend on how many pieces there are.

    Args:
        piece: (number of the piece from 0, number of pieces).
        source, convention, data_dir, num_workers, only: see `build`.

    Returns:
        The folder of the dataset; None while shards of other pieces are missing.

    Raises:
        ValueError, OSError: see `build`; there is no such piece.
    """
    number, count = piece
    if not 0 <= number < count:
        raise ValueError(f"piece must be from 0 to {count - 1} of {count} pieces, not {number}")
    with (
        _building(source, convention, data_dir, num_workers, only) as work,
        contextlib.ExitStack() as stack,
    ):
        with in_turn(work.data_dir, "build"):
            is_alone = stack.enter_context(beside_others_in(work.data_dir, "build"))
            dataset_dir = work.existing()
            plan = None if dataset_dir else work.plan(is_alone)
        if plan is not None:
            shards = plan.shards(work.cases, work.folder)
            mine = shards[number::count]
            missing = [shard for shard in mine if shard.part() is None]
            logger.info(
                f"Piece {number} of {count}: {len(mine)} shards, {len(missing)} to be written."
            )
            dataset_dir = work.write_and_merge(plan, shards, missing)
    if dataset_dir is not None:
        work.report(dataset_dir)
    return dataset_dir


def merge_pieces(
    source: str | os.PathLike, convention: str, data_dir: str | os.PathLike, only: str = ""
) -> Path:
    """Makes the dataset of shards that pieces have written; writes none itself.

    Args, Returns: see `build`.

    Raises:
        ValueError, OSError: see `build`; pieces are still at work, or shards are missing.
    """
    with (
        _building(source, convention, data_dir, 1, only) as work,
        only_process_in(work.data_dir, "build"),
    ):
        dataset_dir = work.existing()
        if dataset_dir is None:
            if read_plan(work.folder) is None:
                raise ValueError(f"no piece has written anything to {work.data_dir}")
            plan = work.plan()
            shards = plan.shards(work.cases, work.folder)
            missing = [shard.path.name for shard in shards if shard.part() is None]
            if missing:
                raise ValueError(
                    f"{len(missing)} of {len(shards)} shards are missing in {work.data_dir}, "
                    f"{missing[0]} for one: run the pieces that have not ended well again, or build "
                    "without pieces, which writes what is missing"
                )
            dataset_dir = work.merge(plan, shards)
    work.report(dataset_dir)
    return dataset_dir


@contextlib.contextmanager
def _building(
    source: str | os.PathLike,
    convention: str,
    data_dir: str | os.PathLike,
    num_workers: int | None,
    only: str,
    run: Run | None = None,
) -> Iterator[Build]:
    """A build of one source, with processes of its own unless `run` has others; see `build`."""
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, not {num_workers}")
    # Other machines have other working directories.
    cases = find_cases(Path(source).absolute() if run else source, convention)
    summary = {"convention": convention, "num_subjects": len(cases)}
    if only:
        summary["only"] = only
    num_workers = 1 if run else min(num_workers or default_num_workers(), len(cases))
    with Workers(num_workers) as workers:
        yield Build(cases, source, Path(data_dir), summary, workers, run)


class BuiltDataset(NamedTuple):
    """A dataset and the cases it was built from.

    Attributes:
        path: folder of the dataset, for `SliceSource`.
        source: folder of the cases.
        convention: of the cases.
    """

    path: Path
    source: Path
    convention: str


def build_or_make_phantoms(
    folder: Path,
    phantoms: PhantomSettings,
    source: str | os.PathLike = "",
    convention: str = "",
    data_dir: str | os.PathLike = "",
    only: str = "",
) -> BuiltDataset:
    """Builds the dataset of the cases in `source`, or of newly made phantoms when there is no source.

    Args:
        folder: parent of whatever has no folder of its own; phantoms go to `folder/phantom`.
        phantoms: which phantoms to make.
        source: folder of the cases; empty for phantoms.
        convention: of the cases in `source`.
        data_dir: folder of the dataset; empty for `folder/slices`.
        only: see `build`.

    Raises:
        ValueError, OSError: see `write_phantoms` and `build`.
    """
    if not source:
        source, convention = folder / "phantom", "phantom"
        write_phantoms(source, phantoms.num_subjects, phantoms.seed)
    path = build(source, convention, data_dir or folder / "slices", only=only)
    return BuiltDataset(path, Path(source), convention)

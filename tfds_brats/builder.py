"""The TFDS dataset of slices, and the task that builds it.

    python run.py --config=configs/data.py --config.source=DIR --config.convention=brats2021

TFDS writes and reads array_record without TensorFlow as long as images are passed already encoded.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from tfds_brats.cases import CaseFiles
from tfds_brats.checked import CheckedCase, encode_checked, survey_checked
from tfds_brats.conventions import CaseError
from tfds_brats.locking import LockedError, beside_others_in, in_turn, only_process_in
from tfds_brats.phantom import PhantomSettings, write_phantoms
from tfds_brats.reading import (
    SUMMARY_FILE,
    RecordIndex,
    SliceSource,
    find_dataset,
    index_file,
    read_summary,
)
from tfds_brats.search import find_cases, list_problems
from tfds_brats.shards import (
    DATASET,
    Plan,
    Shard,
    filename_template,
    read_areas,
    read_plan,
    remove_partial,
    slice_features,
    write_areas,
    write_plan,
    write_shard,
)
from tfds_brats.sources import case_digest, case_lines, digest_of_all, files_of
from tfds_brats.space import check_space
from tfds_brats.splits import SPLITS, split_patients
from tfds_brats.table import format_table
from tfds_brats.volumes import is_gzip
from tfds_brats.workers import Workers, default_num_workers

logger = logging.getLogger(__name__)

# Bytes of records per byte of .nii.gz, an upper bound for real cases, which have 0.9 to 1.1.
_RECORD_BYTES_PER_GZIP_BYTE = 1.2
# The same for .nii.
_RECORD_BYTES_PER_PLAIN_BYTE = 0.2
# Folder of an unfinished build, beside the dataset. Earlier versions remove what begins like this.
_UNFINISHED = "incomplete.shards"

# (function, items, what it does in a word or two) -> the results, in any order. Function and items can
# be pickled; items are independent, and doing one twice does no harm.
Run = Callable[[Callable[[Any], Any], Sequence[Any], str], Iterable[Any]]


class BratsSlices(tfds.core.ShardBasedBuilder):
    """Axial slices of BraTS-like cases, one record per slice.

    TFDS's description of the dataset. The shards are not written by TFDS, which would do it one after
    another in this process, but by `shards.write_shard`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, data_dir: str | os.PathLike):
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=slice_features(), disable_shuffling=True)

    def _shard_iterators_per_split(self, dl_manager):
        # What `download_and_prepare` of TFDS would ask for.
        raise TypeError("this dataset is built by tfds_brats.builder.build, not by TFDS")


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
    with (
        _building(source, convention, data_dir, num_workers, only, run) as work,
        only_process_in(work.data_dir, "build"),
    ):
        dataset_dir = work.existing()
        if dataset_dir is None:
            plan = work.plan()
            work.remove_leftovers()
            shards = plan.shards(work.cases, work.folder)
            work.write([shard for shard in shards if shard.part() is None])
            dataset_dir = work.merge(plan, shards)
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
) -> Iterator["_Build"]:
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
        yield _Build(cases, source, Path(data_dir), summary, workers, run)


@dataclasses.dataclass(frozen=True)
class _Build:
    """A build of one source.

    Attributes:
        cases: all cases.
        source, data_dir: see `build`.
        summary: what the dataset says of its source, without the digest of its files.
        workers: processes of this machine.
        run: see `build`; None to use `workers`.
    """

    cases: Sequence[CaseFiles]
    source: str | os.PathLike
    data_dir: Path
    summary: Mapping[str, Any]
    workers: Workers
    run: Run | None

    @property
    def folder(self) -> Path:
        """Of what is there of an unfinished build, see `shards`."""
        return self.data_dir.absolute() / DATASET / _UNFINISHED

    def existing(self) -> Path | None:
        """The dataset, if it is there.

        Raises:
            ValueError: it is that of another source.
        """
        dataset_dir = find_dataset(self.data_dir)
        if dataset_dir is None:
            return None
        _check_same(dataset_dir, self.source, self._with_digest(case_lines(self.cases)))
        logger.info(f"{dataset_dir} already holds the dataset of {self.source}.")
        return dataset_dir

    def plan(self, is_alone: bool = True) -> Plan:
        """Which case is in which split and shard.

        Args:
            is_alone: whether no other process builds here; otherwise its plan is used.

        Raises:
            CaseError: cases whose tumor areas cannot be read, or too few for a split.
            ValueError: the others build another dataset.
            OSError: the disk has too little space.
        """
        found = read_plan(self.folder)
        look = digest_of_all(case_lines(self.cases, whole=False))
        if found is not None and not is_alone:
            known = {**self.summary, "source_digest": found.summary.get("source_digest")}
            if (found.look, found.summary) != (look, known):
                raise LockedError(
                    f"other processes are building the dataset of another source or convention in "
                    f"{self.data_dir}, with {found.summary.get('num_subjects')} subjects of "
                    f"{found.summary.get('convention')}; wait until they end, or choose another folder"
                )
            return found
        lines = case_lines(self.cases)
        summary = self._with_digest(lines)
        self._check_space()
        if found is not None and found.summary == summary:
            return found
        digests = {files.subject: case_digest(files, lines[files.subject]) for files in self.cases}
        plan = Plan(summary, look, self._splits(digests), digests)
        write_plan(self.folder, plan)
        return plan

    def remove_leftovers(self) -> None:
        """Removes what other builds were killed at, which nobody may be writing to."""
        for leftover in self.folder.parent.glob("incomplete.*"):
            if leftover.name != _UNFINISHED:
                shutil.rmtree(leftover)
        remove_partial(self.folder)

    def write(self, shards: Sequence[Shard]) -> None:
        """Writes shards; those with cases that cannot be used do not keep the others from it.

        Raises:
            CaseError: when all others are written, for the cases that cannot be used.
        """
        if not shards:
            return
        found = self.run(write_shard, shards, "Writing shards") if self.run else None
        problems = []
        for of_shard in self._write_here(shards) if found is None else found:
            problems += of_shard
            for problem in of_shard:
                logger.info(f"not used: {problem}")
        if problems:
            raise CaseError(
                f"{len(problems)} of {len(self.cases)} cases cannot be used; all shards without them "
                "are kept, so that once they are mended the same command does only the rest:\n"
                + list_problems(sorted(problems))
            )

    def write_and_merge(
        self, plan: Plan, shards: Sequence[Shard], missing: Sequence[Shard]
    ) -> Path | None:
        """Writes the missing shards among `shards`, and makes the dataset if that makes all complete.

        Returns, Raises: see `build_piece`.
        """
        try:
            self.write(missing)
            left = [shard for shard in shards if shard.part() is None]
            if left:
                logger.info(
                    f"{len(left)} of {len(shards)} shards are missing; other pieces write them, and the "
                    "last one makes the dataset. The same command without a piece does what is left."
                )
                return None
            with in_turn(self.data_dir, "build"):
                return find_dataset(self.data_dir) or self.merge(plan, shards)
        except OSError:
            # Others may have done the same shards, and the dataset.
            dataset_dir = find_dataset(self.data_dir)
            if dataset_dir is None:
                raise
            return dataset_dir

    def merge(self, plan: Plan, shards: Sequence[Shard]) -> Path:
        """Makes the dataset of its shards.

        Raises:
            OSError: a shard is not there.
        """
        parts = {split: [] for split in plan.splits}
        for shard in shards:
            part = shard.part()
            if part is None:
                raise OSError(
                    f"{shard.path} is not there, although a worker has written it; the folder has to "
                    "lie on a file system that all machines share, under the same path"
                )
            parts[shard.split].append(part)
        target = shards[0].path.parent
        for stray in {*target.iterdir()} - {shard.path for shard in shards}:
            stray.unlink()
        self._describe(plan, parts, target)
        builder = BratsSlices(self.data_dir)
        dataset_dir = Path(builder.data_dir)
        if dataset_dir.exists():
            raise ValueError(
                f"{dataset_dir} is no complete dataset: it lacks {SUMMARY_FILE}; delete it, or choose "
                "another folder"
            )
        builder.info.set_splits(
            tfds.core.SplitDict([_split_info(split, parts[split], target) for split in parts])
        )
        builder.info.write_to_directory(target)
        target.rename(dataset_dir)
        shutil.rmtree(self.folder)
        logger.info(f"Wrote {dataset_dir}.")
        for subject, warnings in read_summary(dataset_dir)["warnings"].items():
            logger.info(f"warning: {subject}: {'; '.join(warnings)}")
        return dataset_dir

    def report(self, dataset_dir: Path) -> None:
        """Logs how many slices and images each split has."""
        only = self.summary.get("only")
        splits = (only,) if only else SPLITS
        indices = {split: SliceSource(dataset_dir, split).index for split in splits}
        logger.info(format_table(indices))

    def _with_digest(self, lines: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        return {
            "convention": self.summary["convention"],
            "source_digest": digest_of_all(lines),
            **self.summary,
        }

    def _splits(self, digests: Mapping[str, str]) -> dict[str, list[str]]:
        """Split -> its subjects."""
        if "only" in self.summary:
            return {self.summary["only"]: [files.subject for files in self.cases]}
        areas = read_areas(self.folder)
        todo = [CheckedCase(files, digests[files.subject]) for files in self.cases]
        todo = [case for case in todo if case.digest not in areas]
        problems = []
        if todo:
            run = self.run or self.workers.map
            for digest, result in run(survey_checked, todo, "Reading segmentations"):
                if isinstance(result, str):
                    problems.append(result)
                else:
                    areas[digest] = result
            write_areas(self.folder, areas)
        if problems:
            raise CaseError(
                f"{len(problems)} of {len(self.cases)} cases cannot be used:\n"
                + list_problems(sorted(problems))
            )
        splits = split_cases(self.cases, [areas[digests[files.subject]] for files in self.cases])
        return {split: [files.subject for files in of] for split, of in splits.items()}

    def _write_here(self, shards: Sequence[Shard]) -> Iterator[list[str]]:
        """Writes shards one after another; what is spread over the processes are the cases.

        Cases are more than shards, so that small datasets keep all processes busy, too.
        """
        cases = [case for shard in shards for case in shard.cases]
        results = self.workers.map(encode_checked, cases, "Encoding")
        # Closed, so that the bar ends before an error is printed.
        with contextlib.closing(results) as encoded:
            for shard in shards:
                yield write_shard(shard, itertools.islice(encoded, len(shard.cases)))

    def _describe(
        self, plan: Plan, parts: Mapping[str, Sequence[Mapping[str, Any]]], target: Path
    ) -> None:
        """Writes the indices and the summary."""
        fingerprints, subjects = {}, []
        for split, of_split in parts.items():
            members = [subject for part in of_split for subject in part["subjects"]]
            np.savez(target / index_file(split), **_index(members)._asdict())
            digests = "".join(subject["digest"] for subject in members)
            fingerprints[split] = hashlib.sha256(digests.encode()).hexdigest()
            subjects += members
        summary = {
            **plan.summary,
            "fingerprints": fingerprints,
            "spacing_mm": _common_spacing([subject["spacing"] for subject in subjects]),
            "slice_distance_mm": _common_spacing([(s["slice_distance"],) for s in subjects]),
            "warnings": {s["subject"]: s["warnings"] for s in subjects if s["warnings"]},
        }
        (target / SUMMARY_FILE).write_text(json.dumps(summary, indent=2))

    def _check_space(self) -> None:
        needed = 0
        for files in self.cases:
            for path in {*files_of(files).values()}:
                packed = is_gzip(path)
                ratio = _RECORD_BYTES_PER_GZIP_BYTE if packed else _RECORD_BYTES_PER_PLAIN_BYTE
                needed += path.stat().st_size * ratio
        there = sum(path.stat().st_size for path in self.folder.glob("dataset/*"))
        needed = max(0, needed - there)
        free = shutil.disk_usage(self.data_dir).free
        logger.info(
            f"{len(self.cases)} subjects; about {needed / 1e9:.2f} GB needed in {self.data_dir}, "
            f"{free / 1e9:.2f} GB free."
        )
        check_space(self.data_dir, needed, "the dataset")


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


def split_cases(
    cases: Sequence[CaseFiles], tumor_areas: Sequence[float]
) -> dict[str, list[CaseFiles]]:
    """Split -> its cases, in the given order; all timepoints of a patient fall into the same split.

    Args:
        cases: all cases.
        tumor_areas: mean tumor area of each; patients are stratified by the mean over their
            timepoints.

    Raises:
        CaseError: fewer than 3 patients.
    """
    areas_of_patient = defaultdict(list)
    for files, area in zip(cases, tumor_areas, strict=True):
        areas_of_patient[files.patient].append(area)
    try:
        split_of = split_patients(
            {name: float(np.mean(areas)) for name, areas in areas_of_patient.items()}
        )
    except ValueError as error:
        raise CaseError(f"{len(cases)} case(s) found: {error}") from error
    subjects = {split: [] for split in SPLITS}
    for files in cases:
        subjects[split_of[files.patient]].append(files)
    return subjects


def _index(subjects: Sequence[Mapping[str, Any]]) -> RecordIndex:
    lengths = [len(subject["slice_index"]) for subject in subjects]

    def column(name: str) -> np.ndarray:
        return np.concatenate([np.array(subject[name], np.int32) for subject in subjects])

    return RecordIndex(
        subject=np.repeat([subject["subject"] for subject in subjects], lengths),
        patient=np.repeat([subject["patient"] for subject in subjects], lengths),
        slice_index=column("slice_index"),
        brain_area=column("brain_area"),
        tumor_area=column("tumor_area"),
    )


def _split_info(split: str, parts: Sequence[Mapping[str, Any]], folder: Path) -> Any:
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[part["num_records"] for part in parts],
        num_bytes=sum(part["num_bytes"] for part in parts),
        filename_template=filename_template(folder, split),
    )


def _common_spacing(spacings: Sequence[tuple[float, ...]]) -> list[float] | None:
    """What the spacings of all subjects are, in mm; None where they differ by more than 1%."""
    lowest, highest = np.min(spacings, axis=0), np.max(spacings, axis=0)
    if (highest > 1.01 * lowest).any():
        return None
    # Headers hold float32.
    return [round(float(size), 4) for size in np.median(spacings, axis=0)]


def _check_same(dataset_dir: Path, source: str | os.PathLike, summary: Mapping[str, Any]) -> None:
    present = read_summary(dataset_dir)
    if any(present.get(key) != summary.get(key) for key in (*summary, "only")):
        digest = str(present.get("source_digest"))[:12]
        raise ValueError(
            f"{dataset_dir} holds the dataset of {present.get('num_subjects')} subjects of convention "
            f"{present.get('convention')} (digest {digest}), but {source} has "
            f"{summary['num_subjects']} of {summary['convention']} "
            f"(digest {summary['source_digest'][:12]}); "
            "choose another data_dir, or delete that folder to rebuild"
        )

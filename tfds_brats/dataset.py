"""The dataset of slices as TFDS sees it, and how it is put together."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfds_brats.cases import CaseFiles
from tfds_brats.checked import CheckedCase, encode_checked, survey_checked
from tfds_brats.conventions import CaseError
from tfds_brats.locking import LockedError, in_turn
from tfds_brats.phantom import record_of
from tfds_brats.reading import (
    SUMMARY_FILE,
    RecordIndex,
    SliceSource,
    find_dataset,
    index_file,
    read_summary,
)
from tfds_brats.search import list_problems
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
from tfds_brats.splits import SPLITS, split_cases
from tfds_brats.table import format_table
from tfds_brats.volumes import is_gzip
from tfds_brats.workers import Workers

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


@dataclasses.dataclass(frozen=True)
class Build:
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

    def build(self) -> Path:
        """Makes it, of the shards that are there and those that are missing; the caller is alone.

        Raises:
            CaseError, ValueError, OSError: see `plan`, `write`, and `merge`.
        """
        plan = self.plan()
        self.remove_leftovers()
        shards = plan.shards(self.cases, self.folder)
        self.write([shard for shard in shards if shard.part() is None])
        return self.merge(plan, shards)

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
        if plan.summary["convention"] == "phantom" and (made := record_of(self.source)):
            summary["phantoms"] = made
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

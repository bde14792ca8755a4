"""The TFDS dataset of slices, and the task that builds it.

    python run.py --config=configs/data.py --config.source=DIR --config.convention=brats2021

TFDS writes and reads array_record without TensorFlow as long as images are passed already encoded.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from tfds_brats.cases import CaseFiles, survey_case
from tfds_brats.conventions import SEQUENCES, CaseError
from tfds_brats.locking import only_process_in
from tfds_brats.phantom import PhantomSettings, write_phantoms
from tfds_brats.reading import (
    SUMMARY_FILE,
    RecordIndex,
    SliceSource,
    find_dataset,
    index_file,
    read_summary,
)
from tfds_brats.records import SubjectRecords, encode_subject
from tfds_brats.search import find_cases
from tfds_brats.space import check_space
from tfds_brats.splits import SPLITS, split_patients
from tfds_brats.table import format_table
from tfds_brats.volumes import is_gzip
from tfds_brats.workers import Workers, default_num_workers

logger = logging.getLogger(__name__)

# TFDS keeps a shard in memory while it writes it; a subject takes about 10 MB.
_SUBJECTS_PER_SHARD = 16
# Bytes of records per byte of .nii.gz, an upper bound for real cases, which have 0.9 to 1.1.
_RECORD_BYTES_PER_GZIP_BYTE = 1.2
# The same for .nii.
_RECORD_BYTES_PER_PLAIN_BYTE = 0.2


class BratsSlices(tfds.core.ShardBasedBuilder):
    """Axial slices of BraTS-like cases, one record per slice.

    Shard-based, because TFDS's generator-based builder holds a whole split in memory (above 1 GB, in
    files that require TensorFlow) before it writes the first shard.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        data_dir: str | os.PathLike,
        subjects: Mapping[str, Sequence[CaseFiles]],
        summary: Mapping[str, Any],
        workers: Workers,
    ):
        """Prepares a build; `download_and_prepare` runs it.

        Args:
            data_dir: folder of TFDS datasets.
            subjects: split -> its cases, in the order of the records.
            summary: facts about the dataset, written as JSON together with the fingerprints.
            workers: the processes that read and encode the cases.
        """
        self._subjects = subjects
        self._summary = summary
        self._workers = workers
        self._written: dict[str, list[SubjectRecords]] = defaultdict(list)
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        image = partial(tfds.features.Image, shape=(None, None, 1), encoding_format="png")
        per_sequence = partial(tfds.features.Tensor, shape=(len(SEQUENCES),), encoding="bytes")
        features = {sequence: image(dtype=np.uint16) for sequence in SEQUENCES}
        features |= {
            "labels": image(dtype=np.uint8),
            "subject": tfds.features.Text(),
            "patient": tfds.features.Text(),
            "slice_index": np.int32,
            "brain_area": np.int32,
            "tumor_area": np.int32,
            "brain_box": tfds.features.Tensor(shape=(4,), dtype=np.int32),
            "code_slope": per_sequence(dtype=np.float64),
            "code_offset": per_sequence(dtype=np.float64),
            "gain": per_sequence(dtype=np.float32),
            "bias": per_sequence(dtype=np.float32),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager  # Nothing is downloaded.
        splits = [split for split in SPLITS if split in self._subjects]
        in_order = [files for split in splits for files in self._subjects[split]]
        # One stream of results for all shards, which TFDS writes one after another.
        results = self._workers.map(encode_subject, in_order, "Encoding")
        shards = {}
        for split in splits:
            count = len(self._subjects[split])
            sizes = [
                min(_SUBJECTS_PER_SHARD, count - first)
                for first in range(0, count, _SUBJECTS_PER_SHARD)
            ]
            shards[split] = [partial(self._shard, split, results, size) for size in sizes]
        return shards

    def _shard(
        self, split: str, results: Iterator[SubjectRecords], num_subjects: int
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (key, record) of the next subjects, and keeps what the index needs."""
        for _ in range(num_subjects):
            subject = next(results)
            for record in subject.records:
                yield f"{subject.subject}/{record['slice_index']}", record
            self._written[split].append(subject._replace(records=[]))

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        # `data_path` is still the temporary folder, so these files appear along with the shards.
        fingerprints = {}
        for split, subjects in self._written.items():
            np.savez(self.data_path / index_file(split), **_index(subjects)._asdict())
            digests = "".join(subject.digest for subject in subjects)
            fingerprints[split] = hashlib.sha256(digests.encode()).hexdigest()
        subjects = [subject for split in self._written.values() for subject in split]
        summary = {
            **self._summary,
            "fingerprints": fingerprints,
            "spacing_mm": _common_spacing([subject.spacing for subject in subjects]),
            "slice_distance_mm": _common_spacing([(s.slice_distance,) for s in subjects]),
            "warnings": {s.subject: s.warnings for s in subjects if s.warnings},
        }
        (self.data_path / SUMMARY_FILE).write_text(json.dumps(summary, indent=2))


def build(
    source: str | os.PathLike,
    convention: str,
    data_dir: str | os.PathLike,
    num_workers: int | None = None,
    only: str = "",
) -> Path:
    """Builds the dataset of a source folder unless it already exists.

    Safe to interrupt and to run again: the dataset appears as a whole or not at all.

    Args:
        source: folder with the cases, at any depth.
        convention: name of the convention that they follow, a key of `CONVENTIONS`.
        data_dir: folder for the dataset.
        num_workers: processes that read and encode, at least 1; None uses every core.
        only: the split that all cases go into; empty for a split by patient.

    Returns:
        The folder of the dataset, for `SliceSource`.

    Raises:
        CaseError: the source, a case or the convention cannot be used; the message names the file.
        ValueError: `data_dir` holds the dataset of another source or convention, or another build is
            writing to it, or `num_workers` is below 1.
        OSError: the disk has too little space.
    """
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, not {num_workers}")
    cases = find_cases(source, convention)
    summary = {
        "convention": convention,
        "source_digest": _source_digest(cases),
        "num_subjects": len(cases),
    }
    if only:
        summary["only"] = only
    data_dir = Path(data_dir)
    with only_process_in(data_dir, "build"):
        if (dataset_dir := find_dataset(data_dir)) is not None:
            _check_same(dataset_dir, source, summary)
            logger.info(f"{dataset_dir} already holds the dataset of {source}.")
        else:
            _check_space(cases, data_dir)
            num_workers = min(num_workers or default_num_workers(), len(cases))
            with Workers(num_workers) as workers:
                dataset_dir = _build(cases, summary, data_dir, workers)
            logger.info(f"Wrote {dataset_dir}.")
            for subject, warnings in read_summary(dataset_dir)["warnings"].items():
                logger.info(f"warning: {subject}: {'; '.join(warnings)}")
    splits = (only,) if only else SPLITS
    logger.info(format_table({split: SliceSource(dataset_dir, split).index for split in splits}))
    return dataset_dir


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


def _build(
    cases: Sequence[CaseFiles], summary: Mapping[str, Any], data_dir: Path, workers: Workers
) -> Path:
    if "only" in summary:
        subjects = {summary["only"]: cases}
    else:
        subjects = split_cases(
            cases, list(workers.map(survey_case, cases, "Reading segmentations"))
        )
    builder = BratsSlices(data_dir=data_dir, subjects=subjects, summary=summary, workers=workers)
    # A build that was killed leaves its temporary folder behind.
    for leftover in Path(builder.data_dir).parent.glob("incomplete.*"):
        shutil.rmtree(leftover)
    with (
        tempfile.TemporaryDirectory() as unused,
        # TFDS announces a download, although nothing is downloaded.
        contextlib.redirect_stdout(io.StringIO()),
    ):
        builder.download_and_prepare(download_dir=unused)
    return Path(builder.data_dir)


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


def _index(subjects: Sequence[SubjectRecords]) -> RecordIndex:
    lengths = [len(subject.slice_index) for subject in subjects]
    return RecordIndex(
        subject=np.repeat([subject.subject for subject in subjects], lengths),
        patient=np.repeat([subject.patient for subject in subjects], lengths),
        slice_index=np.concatenate([subject.slice_index for subject in subjects]),
        brain_area=np.concatenate([subject.brain_area for subject in subjects]),
        tumor_area=np.concatenate([subject.tumor_area for subject in subjects]),
    )


def _common_spacing(spacings: Sequence[tuple[float, ...]]) -> list[float] | None:
    """What the spacings of all subjects are, in mm; None where they differ by more than 1%."""
    lowest, highest = np.min(spacings, axis=0), np.max(spacings, axis=0)
    if (highest > 1.01 * lowest).any():
        return None
    # Headers hold float32.
    return [round(float(size), 4) for size in np.median(spacings, axis=0)]


def _files_of(files: CaseFiles) -> dict[str, Path]:
    labels = {} if files.labels is None else {"labels": files.labels}
    return {**files.images, **labels}


def _source_digest(cases: Sequence[CaseFiles]) -> str:
    """Hex digest of the subjects' names and the contents of their files, wherever those are stored."""
    entries = [(files.subject, *entry) for files in cases for entry in _files_of(files).items()]
    with ThreadPoolExecutor(8) as pool:
        contents = pool.map(_content_digest, [path for _, _, path in entries])
        lines = [
            f"{subject} {role} {content}"
            for (subject, role, _), content in zip(entries, contents, strict=True)
        ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _content_digest(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if is_gzip(path):
            # A gzip file ends with the CRC-32 and the length of its content.
            file.seek(max(0, size - 8))
            return f"{size} {file.read().hex()}"
        file.seek(0)
        return f"{size} {hashlib.file_digest(file, 'sha256').hexdigest()}"


def _check_same(dataset_dir: Path, source: str | os.PathLike, summary: Mapping[str, Any]) -> None:
    present = read_summary(dataset_dir)
    if any(present.get(key) != summary.get(key) for key in (*summary, "only")):
        raise ValueError(
            f"{dataset_dir} holds the dataset of {present['num_subjects']} subjects of convention "
            f"{present['convention']} (digest {present['source_digest'][:12]}), but {source} has "
            f"{summary['num_subjects']} of {summary['convention']} "
            f"(digest {summary['source_digest'][:12]}); "
            "choose another data_dir, or delete that folder to rebuild"
        )


def _check_space(cases: Sequence[CaseFiles], data_dir: Path) -> None:
    needed = 0
    for files in cases:
        for path in {*_files_of(files).values()}:
            packed = is_gzip(path)
            ratio = _RECORD_BYTES_PER_GZIP_BYTE if packed else _RECORD_BYTES_PER_PLAIN_BYTE
            needed += path.stat().st_size * ratio
    free = shutil.disk_usage(data_dir).free
    logger.info(
        f"{len(cases)} subjects; about {needed / 1e9:.2f} GB needed in {data_dir}, "
        f"{free / 1e9:.2f} GB free."
    )
    check_space(data_dir, needed, "the dataset")

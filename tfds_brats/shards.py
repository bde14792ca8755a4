"""The shards of a dataset that is being built, each written by one process, complete or not at all.

They lie in a folder beside the dataset until all of them are there:

    dataset/        the shards under their final names; becomes the folder of the dataset
    parts/          for each complete shard what the dataset's other files say of it
    partial/        what is being written
    plan.json       which case is in which split, see `Plan`
    areas.json      tumor areas of cases, so that none is read twice for the split

A shard is known by its cases and the contents of their files. So another call, another process or
another machine goes on where one was stopped, and after a case was mended only the shards it changes are
written again.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core import example_serializer

from tfds_brats.cases import CaseFiles
from tfds_brats.checked import CheckedCase, encode_checked
from tfds_brats.conventions import SEQUENCES
from tfds_brats.records import SubjectRecords

DATASET = "brats_slices"
# TFDS writes one record in each chunk, so that any record is read by itself.
_WRITER_OPTIONS = "group_size:1"
# Subjects in a shard; a subject takes about 10 MB.
_SUBJECTS_PER_SHARD = 16
_FOLDERS = ("dataset", "parts", "partial")
# Counts changes of what is written for the same cases.
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """What makes the shards.

    Attributes:
        summary: facts about the source, see `builder.build`.
        look: digest of what a look at the files' sizes and ends tells of them.
        splits: split -> its subjects, in the order of the records.
        digests: subject -> digest of its case.
    """

    summary: Mapping[str, Any]
    look: str
    splits: Mapping[str, Sequence[str]]
    digests: Mapping[str, str]

    def shards(self, cases: Sequence[CaseFiles], folder: Path) -> list["Shard"]:
        """All shards, in the order of the records.

        Args:
            cases: the cases, wherever they lie.
            folder: see the top of this file.
        """
        checked = {
            files.subject: CheckedCase(files, self.digests[files.subject]) for files in cases
        }
        shards = []
        for split, subjects in self.splits.items():
            starts = range(0, len(subjects), _SUBJECTS_PER_SHARD)
            for index, start in enumerate(starts):
                chosen = subjects[start : start + _SUBJECTS_PER_SHARD]
                members = tuple(checked[subject] for subject in chosen)
                shards.append(Shard(folder, split, index, len(starts), members))
        return shards


def read_plan(folder: Path) -> Plan | None:
    """The plan in the folder of an unfinished build, if there is one.

    Raises:
        ValueError: another version of this program began the build.
    """
    path = folder / "plan.json"
    found = _read_json(path)
    if found is None:
        return None
    kinds = {"summary": dict, "look": str, "splits": dict, "digests": dict}
    is_known = isinstance(found, dict) and found.keys() == kinds.keys()
    if not is_known or any(not isinstance(found[name], kind) for name, kind in kinds.items()):
        raise ValueError(
            f"{path} is that of a build which another version of this program began: finish the build "
            f"with that version, or delete {folder} to begin anew"
        )
    return Plan(**found)


def write_plan(folder: Path, plan: Plan) -> None:
    """Keeps a plan for other processes and later calls, and makes the folders for its shards."""
    for name in _FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write_json(folder, "plan.json", dataclasses.asdict(plan))


def remove_partial(folder: Path) -> None:
    """Removes what killed processes were writing, while no other is."""
    for path in (folder / "partial").glob("*"):
        path.unlink()


def read_areas(folder: Path) -> dict[str, float]:
    """Digest of a case -> its mean tumor area, for those that an unfinished build has read."""
    areas = _read_json(folder / "areas.json")
    return areas if isinstance(areas, dict) else {}


def write_areas(folder: Path, areas: Mapping[str, float]) -> None:
    """Keeps tumor areas for later calls."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder, "areas.json", areas)


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records. Can be pickled, and is small.

    Attributes:
        folder: of the unfinished build.
        split: it belongs to.
        index, count: its number from 0, and how many the split has.
        cases: whose records it holds, in this order.
    """

    folder: Path
    split: str
    index: int
    count: int
    cases: tuple[CheckedCase, ...]

    def __str__(self) -> str:
        return self.path.name

    @property
    def path(self) -> Path:
        """Where it lies when it is complete."""
        template = filename_template(self.folder / "dataset", self.split)
        return Path(template.sharded_filepath(shard_index=self.index, num_shards=self.count))

    @property
    def key(self) -> str:
        """Hex digest of all that its bytes are a function of."""
        lines = [f"{_FORMAT} {self.split}", *(case.digest for case in self.cases)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def part(self) -> dict[str, Any] | None:
        """What the dataset's other files say of it; None if it is not complete."""
        part = _read_json(self._part_path)
        if not isinstance(part, dict) or part.get("key") != self.key or not self.path.is_file():
            return None
        return part if part.get("num_bytes") == self.path.stat().st_size else None

    @property
    def _part_path(self) -> Path:
        return self.folder / "parts" / f"{self.path.name}.json"

    def finish(self, written: Path, part: Mapping[str, Any]) -> None:
        """Puts a complete file in its place, and then says that it is there."""
        num_bytes = written.stat().st_size
        written.replace(self.path)
        part = {"key": self.key, "num_bytes": num_bytes, **part}
        _write_json(self._part_path.parent, self._part_path.name, part)


def write_shard(shard: Shard, encoded: Iterable[SubjectRecords | str] | None = None) -> list[str]:
    """Writes a shard; any process on any machine that sees the files and the folder may do it.

    Args:
        shard: which.
        encoded: results of `encode_checked` for its cases; None to encode them here.

    Returns:
        What is wrong with cases that cannot be used, a line each. Then the shard is not written.

    Raises:
        OSError: it cannot be written.
    """
    if encoded is None:
        # The other cores have shards of their own.
        cv2.setNumThreads(1)
        encoded = map(encode_checked, shard.cases)
    features = slice_features()
    specs: Any = features.get_serialized_info()
    serializer = example_serializer.ExampleSerializer(specs)
    problems, subjects, num_records = [], [], 0
    with _partial(shard) as path:
        try:
            writer = ArrayRecordWriter(os.fspath(path), _WRITER_OPTIONS)
            for subject in encoded:
                if isinstance(subject, str):
                    problems.append(subject)
                elif not problems:
                    for record in subject.records:
                        example = serializer.get_tf_example(features.encode_example(record))
                        # Otherwise the order of the features in the file is another in each process.
                        writer.write(example.SerializeToString(deterministic=True))
                    num_records += len(subject.records)
                    subjects.append(_facts(subject))
            writer.close()
        except RuntimeError as error:  # The writer's, which only has a text.
            raise OSError(f"{shard.path.name} cannot be written: {error}") from error
        if not problems:
            _flush(path)
            shard.finish(path, {"num_records": num_records, "subjects": subjects})
    return problems


def slice_features() -> tfds.features.FeaturesDict:
    """What a record holds."""
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
    return tfds.features.FeaturesDict(features)


def filename_template(folder: Path, split: str) -> tfds.core.ShardedFileTemplate:
    """TFDS's names of a split's shards in a folder."""
    return tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(folder),
        dataset_name=DATASET,
        split=split,
        filetype_suffix="array_record",
    )


def _facts(subject: SubjectRecords) -> dict[str, Any]:
    """What the dataset's other files say of a subject, in JSON values, which keep every bit."""
    names = ("subject", "patient", "digest", "spacing", "slice_distance", "warnings")
    columns = ("slice_index", "brain_area", "tumor_area")
    return {name: getattr(subject, name) for name in names} | {
        name: getattr(subject, name).tolist() for name in columns
    }


@contextlib.contextmanager
def _partial(shard: Shard) -> Iterator[Path]:
    """A path of one's own to write to, even if another process writes the same shard."""
    folder = shard.folder / "partial"
    if not folder.is_dir():
        raise OSError(
            f"{folder} is not there on {socket.gethostname()}: data_dir has to lie on a file system "
            "that all machines share, under the same path"
        )
    path = folder / f"{shard.path.name}.{uuid.uuid4().hex[:12]}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Waits until the disk has a file, so that its name does not outlive its content."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _write_json(folder: Path, name: str, content: Any) -> None:
    """Complete or not at all, whoever else writes it."""
    beside = folder / f".{name}.{uuid.uuid4().hex[:12]}"
    try:
        beside.write_text(json.dumps(content))
        beside.replace(folder / name)
    finally:
        beside.unlink(missing_ok=True)


def _read_json(path: Path) -> Any:
    """None if it is not there or cannot be read."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None

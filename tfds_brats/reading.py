"""Random access to the records of a dataset, decoding only what is requested."""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds

from tfds_brats.conventions import SEQUENCES
from tfds_brats.spelling import nearest
from tfds_brats.splits import SPLITS

SUMMARY_FILE = "brats.json"
# Where TFDS puts the dataset below a `data_dir`: the builder's name and a version.
_DATASET = "brats_slices/[0-9]*.*.*"


class RecordIndex(NamedTuple):
    """What index arithmetic needs to know about every record of a split, in record order.

    Attributes:
        subject, patient: str [N].
        slice_index: int32 [N], the slice's position along the LPS z axis of its volume.
        brain_area, tumor_area: int32 [N], pixels.
    """

    subject: np.ndarray
    patient: np.ndarray
    slice_index: np.ndarray
    brain_area: np.ndarray
    tumor_area: np.ndarray


def index_file(split: str) -> str:
    """Name of the file in the dataset's folder that holds a split's `RecordIndex`."""
    return f"index-{split}.npz"


class SliceSource:
    """The records of one split.

    Thread-safe. Pickling keeps only the folder and the split, and the copy reopens the files, so a
    source can be passed to worker processes.
    """

    def __init__(self, dataset_dir: str | os.PathLike, split: str):
        """Opens a dataset that `tfds_brats.builder.build` made.

        Args:
            dataset_dir: what `build` returned, or the `data_dir` it was given.
            split: "train", "validation" or "test".

        Raises:
            ValueError: there is no such split or dataset, or it is damaged or of another version.
        """
        if split not in SPLITS:
            way = f"choose one of {', '.join(SPLITS)}{nearest(split, SPLITS)}"
            raise ValueError(f"unknown split {split!r}; {way}")
        found = find_dataset(dataset_dir)
        if found is None:
            raise ValueError(
                f"{dataset_dir} holds no dataset of slices; build one with configs/data.py"
            )
        self._dataset_dir, self._split = found, split
        self._summary = read_summary(self._dataset_dir)
        self._index = _read_index(self._dataset_dir / index_file(split))
        fingerprints = self._summary.get("fingerprints")
        if not isinstance(fingerprints, dict) or split not in fingerprints:
            raise ValueError(_foreign(self._dataset_dir / SUMMARY_FILE))
        builder = tfds.builder_from_directory(self._dataset_dir)
        # All images stay encoded, and `read` decodes the requested ones.
        skip = {name: tfds.decode.SkipDecoding() for name in (*SEQUENCES, "labels")}
        # TFDS's decorator of this method hides its parameters from pyright.
        records = builder.as_data_source(split, decoders=skip)  # pyright: ignore[reportCallIssue]
        self._records = records

    def __reduce__(self):
        return SliceSource, (self._dataset_dir, self._split)

    def __len__(self) -> int:
        return len(self._index.slice_index)

    @property
    def sequences(self) -> tuple[str, ...]:
        """The sequences that every record has, in channel order."""
        return SEQUENCES

    @property
    def fingerprint(self) -> str:
        """Hex digest of the decoded records in order; changes if and only if they do."""
        return self._summary["fingerprints"][self._split]

    @property
    def phantoms(self) -> dict[str, Any] | None:
        """Which phantoms the split holds: generator, version, seed, and a hex digest of their names.

        Unlike the fingerprint it is the same wherever they were made: machines round differently, so
        that a few voxels differ by one. None for other cases, and for datasets that do not say.
        """
        made = self._summary.get("phantoms")
        if not isinstance(made, dict):
            return None
        names = "\n".join(np.unique(self._index.subject).tolist())
        return {**made, "subjects": hashlib.sha256(names.encode()).hexdigest()}

    @property
    def summary(self) -> dict[str, Any]:
        """See `read_summary`."""
        return self._summary

    @property
    def index(self) -> RecordIndex:
        return self._index

    def read(self, i: int, sequences: Sequence[str] = SEQUENCES) -> dict[str, Any]:
        """Reads record i, decoding the named sequences and the labels.

        Returns:
            codes: uint16 [H, W, C]; 0 is background.
            gain, bias: float32 [C]; image = where(codes == 0, -1, gain * codes + bias).
            code_slope, code_offset: float64 [C]; value = code_slope * codes + code_offset.
            labels: uint8 [H, W], canonical.
            brain_box: int32 [4], (y0, x0, y1, x1), half-open, of the whole volume's brain.
            subject: str.
            slice_index: int.

        Raises:
            ValueError: an unknown sequence, or a damaged file.
        """
        unknown = [sequence for sequence in sequences if sequence not in SEQUENCES]
        if unknown or not sequences:
            raise ValueError(f"sequences {list(sequences)}: choose from {', '.join(SEQUENCES)}")
        try:
            record = self._records[i]
        except (RuntimeError, ValueError) as error:  # array_record's checksums, and short files.
            raise ValueError(
                f"record {i} of {self._split} in {self._dataset_dir} cannot be read ({error}); its "
                "files are damaged: delete the folder and rebuild it"
            ) from error
        channels = [SEQUENCES.index(sequence) for sequence in sequences]
        codes = [_decode_png(record[sequence]) for sequence in sequences]
        return {
            "codes": np.stack(codes, axis=-1) if len(codes) > 1 else codes[0][..., None],
            "gain": record["gain"][channels],
            "bias": record["bias"][channels],
            "code_slope": record["code_slope"][channels],
            "code_offset": record["code_offset"][channels],
            "labels": _decode_png(record["labels"]),
            "brain_box": record["brain_box"],
            "subject": record["subject"].decode(),
            "slice_index": int(record["slice_index"]),
        }


def find_dataset(folder: str | os.PathLike) -> Path | None:
    """The finished dataset in a folder (its own or a `data_dir`), or None."""
    folder = Path(folder)
    if (folder / SUMMARY_FILE).is_file():
        return folder
    found = sorted(folder.glob(f"{_DATASET}/{SUMMARY_FILE}"))
    return found[-1].parent if found else None


def read_summary(dataset_dir: Path) -> dict[str, Any]:
    """What the builder recorded about a dataset: convention, source digest, fingerprints.

    Raises:
        ValueError: the file is damaged.
    """
    path = dataset_dir / SUMMARY_FILE
    try:
        summary = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(_foreign(path)) from error
    if not isinstance(summary, dict):
        raise ValueError(_foreign(path))
    return summary


def _read_index(path: Path) -> RecordIndex:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return RecordIndex(**{name: arrays[name] for name in RecordIndex._fields})
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, TypeError) as error:
        raise ValueError(_foreign(path)) from error


def _foreign(path: Path) -> str:
    return (
        f"{path} is damaged, or was written by another version of this program: use that version, or "
        "build the dataset in another data_dir"
    )


def _decode_png(content: bytes) -> np.ndarray:
    """PNG -> uint8 or uint16 [H, W]."""
    plane = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if plane is None:
        raise ValueError("a record holds no readable PNG; its files are damaged")
    return plane

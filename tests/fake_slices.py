"""Slice records made in memory, with the interface of `tfds_brats.reading.SliceSource`."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np


class FakeSlices:
    """Elliptic brains with a round tumor in every other slice; record `i` depends on `i` alone."""

    sequences = ("t1", "t1ce", "t2", "flair")
    fingerprint = "fake"
    phantoms = None
    summary: ClassVar[dict] = {}

    def __init__(self, num_records: int = 12, shape: tuple[int, int] = (40, 36)):
        self._shape = shape
        self._records = [self._make(i) for i in range(num_records)]
        labels = [record["labels"] for record in self._records]
        self.index = SimpleNamespace(
            subject=np.array([f"subject_{i // 4}" for i in range(num_records)]),
            patient=np.array([f"subject_{i // 4}" for i in range(num_records)]),
            slice_index=np.arange(num_records),
            brain_area=np.array([(r["codes"][..., 0] > 0).sum() for r in self._records]),
            tumor_area=np.array([(label > 0).sum() for label in labels]),
        )

    def __len__(self) -> int:
        return len(self._records)

    def read(self, i: int, sequences: tuple[str, ...]) -> dict:
        channels = [self.sequences.index(name) for name in sequences]
        record = self._records[i]
        per_sequence = ("gain", "bias", "code_slope", "code_offset")
        return {
            **record,
            "codes": record["codes"][..., channels],
            **{name: record[name][channels] for name in per_sequence},
        }

    def _make(self, i: int) -> dict:
        rng = np.random.default_rng(i)
        height, width = self._shape
        y, x = np.mgrid[:height, :width]
        brain = ((y - height / 2) / (0.4 * height)) ** 2 + (
            (x - width / 2) / (0.4 * width)
        ) ** 2 < 1
        labels = np.zeros(self._shape, np.uint8)
        if i % 2:
            distance = np.hypot(y - height / 2 - 3, x - width / 2 + 3)
            for radius, label in ((6, 2), (4, 3), (2, 1)):
                labels[distance < radius] = label
        codes = rng.integers(200, 800, (height, width, 4)).astype(np.uint16)
        codes[labels > 0] += np.array([0, 400, 300, 500], np.uint16)
        codes[~brain] = 0
        rows, columns = np.flatnonzero(brain.any(1)), np.flatnonzero(brain.any(0))
        return {
            "codes": codes,
            "labels": labels * brain,
            "gain": np.full(4, 2 / 1000, np.float32),
            "bias": np.full(4, -1, np.float32),
            "code_slope": np.ones(4),
            "code_offset": np.full(4, -1.0),
            "brain_box": np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], np.int32),
            "subject": f"subject_{i // 4}",
            "slice_index": i,
        }

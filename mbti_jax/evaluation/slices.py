"""Slices of a dataset as the model sees them."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from mbti_jax.data import loader
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.rois.kinds import COMPONENTS
from tfds_brats.reading import SliceSource
from tfds_brats.scale import BACKGROUND

# Records resized together. The last batch is padded, so that one compiled program serves all.
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class LabeledSlices:
    """Slices in the model's size and units.

    Attributes:
        images: float32 [N, S, S, Q], one channel per sequence, background -1.
        labels: uint8 [N, S, S], the canonical label map.
        subjects: str [N].
        slice_indices: int [N], positions along z in the volumes.
    """

    images: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    slice_indices: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: np.ndarray | slice) -> "LabeledSlices":
        """The slices at `rows`: numbers, a slice, or bool [N]."""
        return LabeledSlices(
            *(getattr(self, field.name)[rows] for field in dataclasses.fields(self))
        )

    @classmethod
    def concatenate(cls, parts: Sequence["LabeledSlices"]) -> "LabeledSlices":
        """The slices of the parts, one after the other."""
        return cls(
            *(
                np.concatenate([getattr(part, field.name) for part in parts])
                for field in dataclasses.fields(cls)
            )
        )

    @property
    def brain(self) -> np.ndarray:
        """bool [N, S, S]."""
        return (self.images != BACKGROUND).any(-1)


class SliceReader:
    """Reads records of a split in the size and the units of a model.

    Attributes:
        source: the split's records.

    Raises:
        ValueError: the dataset does not fit the model; see `data.loader.Examples`.
    """

    def __init__(self, inpainter: Inpainter, source: SliceSource):
        self.source = source
        window = inpainter.metadata["contract"]["data"]["window"]
        self._examples = loader.Examples(source, inpainter.sequences, joint=True, window=window)
        self._resized = jax.jit(inpainter.pipeline.resized)

    def read(self, records: Sequence[int]) -> LabeledSlices:
        """The records of these numbers, with all sequences of the model."""
        images, labels = [], []
        for start in range(0, len(records), _BATCH):
            rows = [int(record) for record in records[start : start + _BATCH]]
            batch = loader.stack([self._examples[self._examples.of_record(row)[0]] for row in rows])
            padded = {
                name: np.resize(array, (_BATCH, *array.shape[1:])) for name, array in batch.items()
            }
            part = jax.device_get(self._resized(padded))
            images.append(part[0][: len(rows)])
            labels.append(part[1][: len(rows)])
        index = self.source.index
        return LabeledSlices(
            np.concatenate(images),
            np.concatenate(labels),
            index.subject[records],
            index.slice_index[records],
        )


def component_areas(source: SliceSource, record: int) -> list[int]:
    """Pixels of each tumor component in a record."""
    labels = source.read(record, source.sequences[:1])["labels"]
    return [int(np.count_nonzero(labels == label)) for label in COMPONENTS.values()]

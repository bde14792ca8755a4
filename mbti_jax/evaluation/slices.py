"""Slices of a dataset as the model sees them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from mbti_jax.data import loader
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.rois.kinds import COMPONENTS
from tfds_brats.reading import SliceSource
from tfds_brats.scale import BACKGROUND

T = TypeVar("T")

# Sizes of pixels are the same up to 1%.
_SAME_SIZE = 0.01
# Records resized together.
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class LabeledSlices:
    """Slices in the model's size and units.

    Attributes:
        images: float32 [N, S, S, Q], one channel per sequence, background -1.
        labels: uint8 [N, S, S], the canonical label map.
        subjects: str [N].
        slice_indices: int [N], positions along z in the volumes.
        patients: str [N]; a patient may have several subjects, one for each timepoint. Default: the
            subjects are patients.
    """

    images: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    slice_indices: np.ndarray
    patients: Any = None

    def __post_init__(self):
        if self.patients is None:
            object.__setattr__(self, "patients", self.subjects)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: np.ndarray | slice) -> "LabeledSlices":
        """The slices at `rows`: numbers, a slice, or bool [N]."""
        return LabeledSlices(*(array[rows] for array in vars(self).values()))

    @classmethod
    def concatenate(cls, parts: Sequence["LabeledSlices"]) -> "LabeledSlices":
        """The slices of the parts, one after the other."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))

    @property
    def sizes(self) -> dict[str, int]:
        """How many slices and subjects, for reports."""
        return {"slices": len(self), "subjects": len(np.unique(self.subjects))}

    @property
    def brain(self) -> np.ndarray:
        """bool [N, S, S]."""
        return (self.images != BACKGROUND).any(-1)


class SliceReader:
    """Reads records of a split in the size and the units of a model.

    Attributes:
        source: the split's records.

    Raises:
        ValueError: the dataset does not fit the model; see `check_pixels` and `data.loader.Examples`.
    """

    def __init__(self, inpainter: Inpainter, source: SliceSource):
        self.source = source
        check_pixels(inpainter, source)
        window = inpainter.metadata["contract"]["data"]["window"]
        self._examples = loader.Examples(source, inpainter.sequences, joint=True, window=window)
        self._resized = jax.jit(inpainter.pipeline.resized)

    def read(self, records: Sequence[int]) -> LabeledSlices:
        """The records of these numbers, with all sequences of the model."""

        def resized(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            examples = [self._examples[self._examples.of_record(int(row))[0]] for row in rows]
            return self._resized(loader.stack(examples))

        index = self.source.index
        images, labels = in_batches(resized, _BATCH, np.asarray(records))
        columns = (index.subject, index.slice_index, index.patient)
        return LabeledSlices(images, labels, *(column[records] for column in columns))


def check_pixels(inpainter: Inpainter, source: SliceSource) -> None:
    """Checks that a dataset's pixels have the size of those that a model was trained with.

    Raises:
        ValueError: they differ by more than 1%, or between subjects.
    """
    trained = inpainter.metadata["contract"]["data"].get("pixel_size_mm") or 1.0
    spacing = source.summary.get("spacing_mm", [trained])
    if spacing is None or np.ptp(np.log([*spacing, trained])) > _SAME_SIZE:
        found = "differ between subjects" if spacing is None else f"measure {spacing} mm"
        raise ValueError(
            f"the model was trained with pixels of {trained:g} mm, and those of the dataset {found}: "
            "its window would show another field of view; resample the cases"
        )


def in_batches(
    function: Callable[..., tuple[Any, ...]], size: int, *arrays: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Results of a function of arrays [N, ...] that returns arrays [N, ...], `size` rows at a time.

    The last batch is padded, so that one compiled program serves all.
    """
    parts = []
    for start in range(0, len(arrays[0]), size):
        batch = [np.asarray(array[start : start + size]) for array in arrays]
        padded = [np.resize(array, (size, *array.shape[1:])) for array in batch]
        parts.append([out[: len(batch[0])] for out in jax.device_get(function(*padded))])
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def component_areas(source: SliceSource, record: int) -> list[int]:
    """Pixels of each tumor component in a record."""
    labels = source.read(record, source.sequences[:1])["labels"]
    return [int(np.count_nonzero(labels == label)) for label in COMPONENTS.values()]


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spaced from the first to the last one."""
    return [items[n] for n in loader.evenly_spaced(len(items), count, with_ends=True)]

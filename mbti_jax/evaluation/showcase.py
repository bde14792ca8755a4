"""What figures show: slices of a dataset in the model's size, and tasks made of their own tumour."""

import dataclasses
from collections.abc import Collection

import jax
import numpy as np

from mbti_jax.data import loader
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.rois.regions import box_flags
from mbti_jax.rois.tasks import Task, make_task
from mbti_jax.rois.tumors import own_tumor_masks
from tfds_brats.reading import SliceSource
from tfds_brats.scale import BACKGROUND


@dataclasses.dataclass(frozen=True)
class ShownSlice:
    """A record of a dataset as the model sees it.

    Attributes:
        record: its number in the split.
        subject: name of the case.
        slice_index: number of the slice in its volume.
        images: float32 [n, S, S, C] in model units: an example for each sequence (C = 1), or one with
            all of them (n = 1).
        labels: uint8 [S, S], canonical.
    """

    record: int
    subject: str
    slice_index: int
    images: np.ndarray
    labels: np.ndarray

    @property
    def brain(self) -> np.ndarray:
        """bool [S, S]."""
        return (self.images != BACKGROUND).any((0, -1))

    def by_sequence(self, images: np.ndarray) -> np.ndarray:
        """[n, S, S, C] -> [n * C, S, S]: the sequences, be they examples or channels."""
        return np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3])


class SliceReader:
    """Reads records of a split as a model sees them.

    Raises:
        ValueError: the dataset does not go with the model, as `data.Examples` says.
    """

    def __init__(self, inpainter: Inpainter, source: SliceSource):
        self._index = source.index
        self._examples = loader.Examples(
            source,
            inpainter.sequences,
            together=inpainter.num_channels > 1,
            window=inpainter.metadata["contract"]["data"]["window"],
        )
        self._resized = jax.jit(inpainter.method.resized)

    def __call__(self, record: int) -> ShownSlice:
        """The record of that number."""
        examples = self._examples
        batch = loader.stack([examples[i] for i in examples.of_record(record)])
        images, labels = jax.device_get(self._resized(batch))
        subject, number = self._index.subject[record], self._index.slice_index[record]
        return ShownSlice(record, str(subject), int(number), images, labels[0])


def component_areas(source: SliceSource, record: int) -> list[int]:
    """Pixels of necrotic core, edema and enhancement in a record."""
    labels = source.read(record, source.sequences[:1])["labels"]
    return [int(np.count_nonzero(labels == k)) for k in (1, 2, 3)]


def own_tumor_task(shown: ShownSlice, mode: str, box: Collection[str] = ()) -> Task:
    """The task of a slice's own tumour.

    Args:
        mode: as of `tumors.own_tumor_masks`.
        box: names of the ROIs that are bounding boxes.

    Returns:
        `Task` of numpy arrays, float32 [S, S, 5] and [5].
    """
    flags = box_flags(box)
    masks = own_tumor_masks(shown.labels[None], shown.brain[None], mode, flags)[0]
    return jax.device_get(make_task(masks, flags))

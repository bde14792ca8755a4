"""Training examples from slice records: which record a step sees, and how its pixels are cut out.

The host only does input and output: it reads a record, cuts (or pads) a window out of it and stacks
windows into a batch. Scaling, resizing, augmentation and the choice of the task happen on the device.

Which examples a step sees is a function of (seed, step) alone: the examples are numbered, Grain
reshuffles the numbers in every epoch, and step `s` takes the numbers `s * B ... s * B + B - 1` of that
endless sequence, however many processes share the work.
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex

import grain
import numpy as np
from jaxtyping import Int

from mbti_jax.data.crop import cut_window, window_slices
from mbti_jax.diffusion.condition import offsets
from mbti_jax.fields import whole_number
from tfds_brats.reading import RecordIndex, SliceSource

Batch = dict[str, np.ndarray]


class Examples:
    """The numbered examples of one split, for Grain to draw from.

    A record holds all sequences of a slice. With `joint=False` every sequence is an example of its
    own (as in the paper, C = 1); with `joint=True` a slice is one example with all sequences as
    channels. Slices with tumor are counted `tumor_repeats` times. Both are arithmetic on the number of
    the example: nothing is copied.

    Each example is a dict:
        codes: uint16 [window, window, C], 0 where there is no brain.
        gain, bias: float32 [C]; the image is `where(codes == 0, -1, gain * codes + bias)`.
        labels: uint8 [window, window], the canonical label map.
        weight: float32 scalar, 1 (0 only for the padding of a batch).

    With K `neighbors`, also of the 2 K slices around it, bottom to top:
        neighbor_codes, neighbor_labels: [2 K, window, window, C] and [2 K, window, window]; gain and
            bias are those of the volume.
        neighbor_present: float32 [2 K], 0 where the dataset has no such slice (beyond the volume's end,
            or with too little brain for a record); the arrays are zeros there.

    Args:
        source: the split's records.
        sequences: names of the sequences to use, in channel order.
        joint: one example per slice instead of one per slice and sequence.
        window: height and width of the cut-out in pixels. Where it exceeds the slice, the slice is
            padded with background around its center; where it is smaller, it is centered on the
            brain's bounding box in the whole volume, as far as the slice allows.
        tumor_repeats: how often a slice that contains tumor is counted.
        neighbors: K, how many slices on either side belong to an example.

    Raises:
        ValueError: an unknown sequence, or one that is named twice; an empty split; `tumor_repeats` or
            `window` below 1; a subject whose brain does not fit into the window.
    """

    def __init__(
        self,
        source: SliceSource,
        sequences: Sequence[str],
        *,
        joint: bool,
        window: int,
        tumor_repeats: int = 1,
        neighbors: int = 0,
    ):
        unknown = [name for name in sequences if name not in source.sequences]
        if unknown or not sequences:
            raise ValueError(
                f"unknown sequences {unknown or '()'}; the dataset has {', '.join(source.sequences)}"
            )
        if len({*sequences}) < len(sequences):
            raise ValueError(f"sequences are named twice: {', '.join(sequences)}")
        if len(source) == 0:
            raise ValueError("the split holds no slices")
        whole_number("tumor_repeats", tumor_repeats, least=1)
        whole_number("window", window, least=1)
        whole_number("neighbors", neighbors)
        # Every record has the box of its subject's whole brain. In training, one that does not fit might
        # be drawn only after hours.
        for record in np.unique(source.index.subject, return_index=True)[1]:
            content = source.read(int(record), sequences[:1])
            try:
                window_slices(content["labels"].shape, content["brain_box"], window)
            except ValueError as error:
                raise ValueError(f"subject {content['subject']}: {error}") from None
        self._source = source
        self._window = window
        self._groups = [tuple(sequences)] if joint else [(name,) for name in sequences]
        with_tumor = np.flatnonzero(source.index.tumor_area > 0)
        repeated = np.repeat(with_tumor, tumor_repeats - 1)
        self._records = np.concatenate([np.arange(len(source)), repeated])
        self._neighbors = neighbor_records(source.index, neighbors)

    @property
    def num_channels(self) -> int:
        """C, the number of sequences of an example."""
        return len(self._groups[0])

    def __len__(self) -> int:
        return len(self._records) * len(self._groups)

    @property
    def fingerprint(self) -> str:
        """Changes when the records of the dataset do."""
        return self._source.fingerprint

    @property
    def phantoms(self) -> dict[str, Any] | None:
        """Which phantoms they are of, see `SliceSource.phantoms`."""
        return self._source.phantoms

    def with_tumor(self) -> "Examples":
        """Only the slices that contain tumor; all slices where none does."""
        chosen = copy.copy(self)
        with_tumor = self._source.index.tumor_area[self._records] > 0
        if with_tumor.any():
            chosen._records = self._records[with_tumor]
        return chosen

    def locate(self, index: SupportsIndex) -> tuple[int, tuple[str, ...]]:
        """Record number and sequences of an example."""
        record, group = divmod(int(index), len(self._groups))
        return int(self._records[record]), self._groups[group]

    def of_record(self, record: int) -> list[int]:
        """Numbers of the examples of one record: one per sequence, or the one with all sequences."""
        position = int(np.flatnonzero(self._records == record)[0])
        return [position * len(self._groups) + group for group in range(len(self._groups))]

    def __getitem__(self, index: SupportsIndex) -> Batch:
        record, sequences = self.locate(index)
        content = self._source.read(record, sequences)
        rows, columns = window_slices(content["labels"].shape, content["brain_box"], self._window)
        example = {
            "codes": cut_window(content["codes"], rows, columns),
            "gain": content["gain"],
            "bias": content["bias"],
            "labels": cut_window(content["labels"], rows, columns),
            "weight": np.ones((), np.float32),
        }
        around = self._neighbors[record]
        if not len(around):
            return example
        present = around >= 0
        codes = np.zeros((len(around), *example["codes"].shape), np.uint16)
        labels = np.zeros((len(around), *example["labels"].shape), np.uint8)
        for place in np.flatnonzero(present):
            content = self._source.read(int(around[place]), sequences)
            codes[place] = cut_window(content["codes"], rows, columns)
            labels[place] = cut_window(content["labels"], rows, columns)
        return example | {
            "neighbor_codes": codes,
            "neighbor_labels": labels,
            "neighbor_present": present.astype(np.float32),
        }


def neighbor_records(index: RecordIndex, neighbors: int) -> Int[np.ndarray, "N 2*{neighbors}"]:
    """Numbers of the records around each one, int [N, 2 K], bottom to top; -1 where there is none.

    Neighbors are slices of the same subject whose numbers in the volume differ by 1 ... K.
    """
    subjects = np.unique(index.subject, return_inverse=True)[1]
    places = list(zip(subjects.tolist(), np.asarray(index.slice_index).tolist(), strict=True))
    numbers = {place: number for number, place in enumerate(places)}
    around = [
        [numbers.get((subject, k + offset), -1) for offset in offsets(neighbors)]
        for subject, k in places
    ]
    return np.array(around, int).reshape(len(places), 2 * neighbors)


@dataclasses.dataclass(frozen=True)
class _Positions:
    """The endless sequence of one process's batch positions, from step 0 on.

    Of the `padded_size` positions of a global batch, process p of P holds the p-th P-th. Positions from
    `batch_size` on are padding: zeros, weight included.
    """

    examples: Any  # A `grain.MapDataset`, or what can be indexed like one.
    batch_size: int
    per_process: int
    process_index: int

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: SupportsIndex) -> Batch:
        step, position = divmod(int(index), self.per_process)
        position += self.process_index * self.per_process
        if position < self.batch_size:
            return self.examples[step * self.batch_size + position]
        return _blank(self.examples[0])


def training_batches(
    examples: Examples,
    *,
    seed: int,
    batch_size: int,
    padded_size: int | None = None,
    start_step: int = 0,
    num_threads: int = 8,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Endless iterator over this process's part of each step's global batch, read ahead by threads.

    Args:
        examples: what to draw from.
        seed: seed of the shuffle, 0 <= seed < 2**32.
        batch_size: examples in a global batch.
        padded_size: its size with padding, divisible by `process_count`; `batch_size` when None.
        start_step: step of the first batch returned.
        num_threads: reading threads; 0 reads in the caller's thread.
        process_index, process_count: this process and their number.

    Returns:
        Iterator over dicts, see `Examples`, with a leading axis of `padded_size / process_count`.
    """
    padded_size = padded_size or batch_size
    if padded_size < batch_size or padded_size % process_count:
        raise ValueError(
            f"padded_size {padded_size} must be at least batch_size {batch_size} and divisible by "
            f"the {process_count} processes"
        )
    # `repeat` numbers the epochs consecutively and `shuffle` draws a new order for each.
    shuffled = grain.MapDataset.source(examples).seed(seed).shuffle().repeat()
    per_process = padded_size // process_count
    positions = _Positions(shuffled, batch_size, per_process, process_index)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4 * per_process)
    left = grain.MapDataset.source(positions)[start_step * per_process :]
    dataset = left.to_iter_dataset(options).batch(per_process)
    if num_threads:
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2)
    return iter(dataset)


def fixed_batches(
    examples: Examples,
    num_batches: int,
    batch_size: int,
    padded_size: int | None = None,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> list[Batch]:
    """`num_batches` batches of examples evenly spaced over the split, always the same ones.

    A split too small for that many is used once. Batches are padded with zeros, weight included, to
    `padded_size` (default: `batch_size`), which `process_count` divides; of each, process p of P reads
    the p-th P-th.
    """
    numbers = evenly_spaced(len(examples), num_batches * batch_size, with_ends=True)
    per_process = (padded_size or batch_size) // process_count
    first = process_index * per_process
    blank = _blank(examples[numbers[0]])
    batches = []
    for start in range(0, len(numbers), batch_size):
        own = numbers[start : start + batch_size][first : first + per_process]
        items = [examples[i] for i in own]
        batches.append(stack(items + [blank] * (per_process - len(items))))
    return batches


def evenly_spaced(total: int, count: int, *, with_ends: bool = False) -> np.ndarray:
    """At most `count` numbers, evenly spaced from 0 to `total` - 1.

    Args:
        total: how many there are to choose from.
        count: how many to choose.
        with_ends: from the first to the last one; otherwise the middle of each of `count` equal
            stretches.
    """
    count = min(count, total)
    if with_ends:
        return np.linspace(0, total - 1, count).round().astype(int)
    return ((np.arange(count) + 0.5) * total / count).astype(int)


def _blank(example: Batch) -> Batch:
    """What fills up a batch: zeros, weight included."""
    return {name: np.zeros_like(value) for name, value in example.items()}


def stack(items: Sequence[Batch]) -> Batch:
    """Examples as one batch, with a new leading axis."""
    return {name: np.stack([item[name] for item in items]) for name in items[0]}


def intensity_bounds(examples: Examples, num_examples: int = 256) -> tuple[float, float]:
    """Lowest and highest image value in examples evenly spaced over the split.

    The sampler clips x_0 to these bounds; training data and context are never clipped.
    """
    (batch,) = fixed_batches(examples, 1, num_examples)
    codes = batch["codes"].astype(np.float32)
    images = batch["gain"][:, None, None] * codes + batch["bias"][:, None, None]
    inside = images[batch["codes"] > 0]
    return min(-1.0, float(inside.min())), float(inside.max())

"""Which examples a step sees, and how their pixels are cut out."""

import itertools

import numpy as np
import pytest
from fake_slices import FakeSlices
from synthetic_cases import write_case

from mbti_jax.data import loader
from tfds_brats.builder import build
from tfds_brats.reading import SliceSource

BATCH = 5


def make_examples(joint: bool = False, tumor_repeats: int = 2, **kwargs) -> loader.Examples:
    """Of 12 slices, 6 with tumor, in two sequences: 36 examples, or 18 joint ones."""
    kwargs = {"window": 40, **kwargs}
    return loader.Examples(
        FakeSlices(),
        ("t1", "flair"),
        joint=joint,
        tumor_repeats=tumor_repeats,
        **kwargs,
    )


class Numbered:
    """Examples that consist of their number, so that a batch shows which ones it holds."""

    def __init__(self, size: int):
        self._size = size

    def __len__(self):
        return self._size

    def __getitem__(self, i):
        return {"number": np.int64(int(i)), "weight": np.float32(1)}


def take(count: int, size: int = 12, **kwargs) -> list[dict]:
    kwargs = {"seed": 1, "batch_size": BATCH, "num_threads": 0, **kwargs}
    batches = loader.training_batches(Numbered(size), **kwargs)
    return list(itertools.islice(batches, count))


def numbers(batches: list[dict]) -> list[list[int]]:
    return [batch["number"].tolist() for batch in batches]


@pytest.mark.parametrize("num_threads", [0, 3])
def test_a_step_sees_the_same_examples_wherever_the_run_starts(num_threads):
    stream = numbers(take(10, num_threads=num_threads))
    assert stream == numbers(take(10))
    for start in range(10):
        rest = take(10 - start, start_step=start, num_threads=num_threads)
        assert numbers(rest) == stream[start:]


def test_a_far_step_is_reached_at_once():
    # 370,000 steps of 108, as in the paper; going through them one by one would take minutes.
    far = take(1, size=400_000, batch_size=108, start_step=370_000)
    assert len(set(far[0]["number"].tolist())) == 108


def test_every_epoch_is_a_new_permutation_of_all_examples():
    # 12 examples in batches of 5: an epoch ends inside a batch.
    stream = np.concatenate([batch["number"] for batch in take(12)])
    epochs = stream.reshape(5, 12)
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_another_seed_is_another_order():
    assert numbers(take(3, seed=1)) != numbers(take(3, seed=2))


@pytest.mark.parametrize(("processes", "padded_size"), [(2, 6), (3, 6), (3, 9), (1, 8)])
def test_the_parts_of_the_processes_make_the_batch_of_one(processes, padded_size):
    parts = [
        take(4, padded_size=padded_size, process_index=p, process_count=processes)
        for p in range(processes)
    ]
    for step, whole in enumerate(take(4)):
        joined = {
            name: np.concatenate([part[step][name] for part in parts])
            for name in ("number", "weight")
        }
        assert len(joined["weight"]) == padded_size
        np.testing.assert_array_equal(joined["number"][:BATCH], whole["number"])
        np.testing.assert_array_equal(joined["weight"], np.arange(padded_size) < BATCH)


@pytest.mark.parametrize(("padded_size", "processes"), [(4, 1), (7, 2)])
def test_a_batch_that_cannot_be_shared_is_refused(padded_size, processes):
    with pytest.raises(ValueError, match=f"padded_size {padded_size}"):
        take(1, padded_size=padded_size, process_count=processes)


def test_padding_is_zero_in_every_array():
    batches = loader.training_batches(
        make_examples(), seed=0, batch_size=3, padded_size=4, num_threads=0
    )
    batch = next(batches)
    example = make_examples()[0]
    assert batch.keys() == example.keys()
    for name, value in batch.items():
        assert value.dtype == example[name].dtype
        assert value.shape == (4, *example[name].shape)
        assert not value[3].any()
    assert batch["weight"].tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("repeats", [1, 2, 5])
@pytest.mark.parametrize("joint", [False, True])
def test_slices_with_tumor_are_counted_several_times(repeats, joint):
    source, examples = FakeSlices(), make_examples(joint, repeats)
    counts = {}
    for i in range(len(examples)):
        located = examples.locate(i)
        counts[located] = counts.get(located, 0) + 1
    groups = [("t1", "flair")] if joint else [("t1",), ("flair",)]
    assert counts == {
        (record, group): repeats if source.index.tumor_area[record] else 1
        for record in range(12)
        for group in groups
    }
    assert examples.num_channels == (2 if joint else 1)


def test_only_slices_with_tumor_on_request():
    source, examples = FakeSlices(), make_examples().with_tumor()
    records = {examples.locate(i)[0] for i in range(len(examples))}
    assert records == set(np.flatnonzero(source.index.tumor_area).tolist())
    source.index.tumor_area[:] = 0
    healthy = loader.Examples(source, ("t1",), joint=False, window=40)
    assert len(healthy.with_tumor()) == len(healthy) == 12


def test_the_examples_of_a_record():
    examples = make_examples()
    for record in range(12):
        located = [examples.locate(i) for i in examples.of_record(record)]
        assert located == [(record, ("t1",)), (record, ("flair",))]


def test_an_example_is_its_record_padded_around_the_center():
    """The fake slices have 40 x 36 pixels; numpy.pad is the oracle."""
    source = FakeSlices()
    for joint, i in [(False, 7), (True, 4)]:
        examples = make_examples(joint, window=45)
        record, sequences = examples.locate(i)
        expected, example = source.read(record, sequences), examples[i]
        # An odd number of pixels to add: the larger half goes behind.
        widths = [(2, 3), (4, 5)]
        np.testing.assert_array_equal(
            example["codes"], np.pad(expected["codes"], [*widths, (0, 0)])
        )
        np.testing.assert_array_equal(example["labels"], np.pad(expected["labels"], widths))
        np.testing.assert_array_equal(example["gain"], expected["gain"])
        np.testing.assert_array_equal(example["bias"], expected["bias"])
        assert example["weight"] == 1


def test_the_window_of_240_pixels_in_256():
    rows, columns = loader.window_slices((240, 240), np.array([30, 40, 200, 210]), 256)
    image = np.random.default_rng(0).integers(1, 9, (240, 240, 2))
    np.testing.assert_array_equal(
        loader.cut_window(image, rows, columns), np.pad(image, [(8, 8), (8, 8), (0, 0)])
    )


def random_window_cases(count: int):
    rng = np.random.default_rng(1)
    for _ in range(count):
        shape = rng.integers(20, 60, 2)
        low = rng.integers(0, shape - 6)
        high = rng.integers(low + 5, shape + 1)
        window = int(rng.integers(max(high - low), 70))
        yield tuple(shape.tolist()), np.concatenate([low, high]), window


@pytest.mark.parametrize(("shape", "box", "window"), list(random_window_cases(40)))
def test_a_window_holds_the_whole_brain_and_as_much_of_the_slice_as_it_can(shape, box, window):
    spans = loader.window_slices(shape, box, window)
    for span, size, low, high in zip(spans, shape, box[:2], box[2:], strict=True):
        assert len(span) == window
        assert span.start <= low
        assert span.stop >= high
        if window >= size:  # All of the slice, centered to within half a pixel.
            before, behind = -span.start, span.stop - size
            assert before >= 0
            assert behind - before in (0, 1)
        else:  # No padding, and centered on the brain unless the slice's edge is in the way.
            assert span.start >= 0
            assert span.stop <= size
            before, behind = low - span.start, span.stop - high
            at_edge = span.start == 0 or span.stop == size
            assert at_edge or abs(before - behind) <= 1
    image = np.random.default_rng(2).integers(1, 99, shape)
    cut = loader.cut_window(image, *spans)
    for i, row in enumerate(spans[0]):
        for j, column in enumerate(spans[1]):
            inside = 0 <= row < shape[0] and 0 <= column < shape[1]
            assert cut[i, j] == (image[row, column] if inside else 0)


def test_a_brain_larger_than_the_window_is_an_error_that_names_the_subject_before_training():
    # The fake brains are 31 x 27 pixels.
    with pytest.raises(ValueError, match=r"subject_0.* 31 .*window of 30.*data\.window"):
        make_examples(window=30)
    assert make_examples(window=31)[0]["codes"].shape == (31, 31, 1)


def test_every_subject_has_to_fit_into_the_window(monkeypatch):
    read = FakeSlices.read

    def with_one_large_brain(self, i, sequences):
        record = read(self, i, sequences)
        large = {"brain_box": np.array([3, 0, 35, 36], np.int32)}
        return record | large if record["subject"] == "subject_2" else record

    monkeypatch.setattr(FakeSlices, "read", with_one_large_brain)
    with pytest.raises(ValueError, match=r"subject_2.* 36 pixels .*window of 35"):
        make_examples(window=35)
    assert len(make_examples(window=36)) == 36


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sequences": ("t1", "dwi")}, "dwi.*t1, t1ce, t2, flair"),
        ({"sequences": ()}, "unknown sequences"),
        ({"sequences": ("t1", "t1")}, "twice"),
        ({"tumor_repeats": 0}, "tumor_repeats"),
        ({"window": 0}, "window"),
        ({"source": FakeSlices(0)}, "no slices"),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    arguments = {"source": FakeSlices(), "sequences": ("t1",), "tumor_repeats": 1, **arguments}
    with pytest.raises(ValueError, match=message):
        loader.Examples(**{"joint": False, "window": 40, **arguments})


def test_fixed_batches_are_spread_evenly_and_always_the_same():
    examples = Numbered(100)
    batches = loader.fixed_batches(examples, 3, 4)
    chosen = np.concatenate([batch["number"] for batch in batches])
    assert chosen[0] == 0
    assert chosen[-1] == 99
    assert set(np.diff(chosen)) == {9}
    again = loader.fixed_batches(examples, 3, 4)
    assert numbers(batches) == numbers(again)


def test_fixed_batches_hold_the_same_examples_however_far_they_are_padded():
    plain = loader.fixed_batches(Numbered(100), 3, 4)
    padded = loader.fixed_batches(Numbered(100), 3, 4, padded_size=6)
    for batch, longer in zip(plain, padded, strict=True):
        assert longer["number"][:4].tolist() == batch["number"].tolist()
        assert longer["weight"].tolist() == [1, 1, 1, 1, 0, 0]


def test_the_parts_of_the_processes_make_the_fixed_batches_of_one():
    split = {"num_batches": 3, "batch_size": 5, "padded_size": 8}
    parts = [
        loader.fixed_batches(Numbered(12), **split, process_index=p, process_count=4)
        for p in range(4)
    ]
    whole = loader.fixed_batches(Numbered(12), **split)
    assert len(whole) == 3
    for number, batch in enumerate(whole):
        for name, values in batch.items():
            joined = np.concatenate([part[number][name] for part in parts])
            np.testing.assert_array_equal(joined, values)


def test_fixed_batches_take_a_small_split_once():
    batches = loader.fixed_batches(Numbered(6), 5, 4)
    weights = np.concatenate([batch["weight"] for batch in batches])
    chosen = np.concatenate([batch["number"] for batch in batches])
    assert weights.tolist() == [1] * 6 + [0] * 2
    assert chosen[:6].tolist() == list(range(6))


def test_intensity_bounds_are_those_of_the_brain():
    examples = make_examples(tumor_repeats=1)
    source = FakeSlices()
    values = [
        record["gain"] * record["codes"][record["codes"][..., 0] > 0] + record["bias"]
        for record in (source.read(i, (name,)) for i in range(12) for name in ("t1", "flair"))
    ]
    low, high = loader.intensity_bounds(examples)
    # Background is part of every image, and the fake brains have no value below it.
    assert low == -1
    assert high == pytest.approx(max(v.max() for v in values), rel=1e-6)


def test_intensity_bounds_go_below_the_background_where_the_brain_does():
    source = FakeSlices()
    for record in source._records:
        record["bias"] = np.full(4, -3, np.float32)
    low, high = loader.intensity_bounds(
        loader.Examples(source, ("t1",), joint=False, window=40), num_examples=12
    )
    smallest = min(r["codes"][..., 0][r["codes"][..., 0] > 0].min() for r in source._records)
    assert low == pytest.approx(2 / 1000 * smallest - 3, rel=1e-6)
    assert low < high


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    for i in range(4):
        write_case(folder / "cases", f"BraTS2021_{i:05d}", seed=i)
    return build(folder / "cases", "brats2021", folder / "slices", num_workers=1)


def test_the_loader_reads_a_built_dataset(built):
    source = SliceSource(built, "train")
    examples = loader.Examples(source, ("t2", "t1"), joint=True, window=28, tumor_repeats=2)
    assert len(examples) == len(source) + (source.index.tumor_area > 0).sum()
    batches = loader.training_batches(examples, seed=0, batch_size=len(examples), num_threads=2)
    batch = next(batches)
    assert batch["codes"].shape == (len(examples), 28, 28, 2)
    assert batch["codes"].dtype == np.uint16
    assert batch["labels"].dtype == np.uint8
    # One epoch: every slice of the dataset as often as it counts.
    found = sorted(codes.tobytes() for codes in batch["codes"])
    expected = []
    for i in range(len(source)):
        codes = source.read(i, ("t2", "t1"))["codes"]
        height, width, _ = codes.shape
        assert (28 - height) % 2 == (28 - width) % 2 == 0
        padded = np.pad(codes, [((28 - n) // 2,) * 2 for n in (height, width)] + [(0, 0)])
        expected += [padded.tobytes()] * (2 if source.index.tumor_area[i] else 1)
    assert found == sorted(expected)


def test_another_dataset_has_another_fingerprint(built):
    prints = {
        split: loader.Examples(
            SliceSource(built, split), ("t1",), joint=False, window=28
        ).fingerprint
        for split in ("train", "validation", "test")
    }
    assert len(set(prints.values())) == 3


def test_neighbors_are_the_slices_around_of_the_same_subject(built):
    source = SliceSource(built, "train")
    assert len({*source.index.subject.tolist()}) > 1
    examples = loader.Examples(source, ("t2", "t1"), joint=False, window=28, neighbors=2)
    alone = loader.Examples(source, ("t2", "t1"), joint=False, window=28)
    number_of = {
        (content["subject"], content["slice_index"]): i
        for i in range(len(source))
        for content in [source.read(i, ("t1",))]
    }
    absent = 0
    for number in range(len(examples)):
        example, record = examples[number], examples.locate(number)[0]
        for name, value in alone[number].items():
            np.testing.assert_array_equal(example[name], value)
        content = source.read(record, ("t1",))
        for place, offset in enumerate((-2, -1, 1, 2)):
            other = number_of.get((content["subject"], content["slice_index"] + offset))
            found = {name: example[f"neighbor_{name}"][place] for name in ("codes", "labels")}
            assert example["neighbor_present"][place] == (other is not None)
            if other is None:
                absent += 1
                assert not found["codes"].any() and not found["labels"].any()
                continue
            group = number % 2
            for name, values in found.items():
                np.testing.assert_array_equal(values, alone[2 * other + group][name])
    # A synthetic brain has records of four slices: 6 of 16 places are beyond the ends.
    assert absent == 6 * len(examples) // 4

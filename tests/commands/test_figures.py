"""The paper's figures: what is painted where, what is shown, and how the command resumes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from synthetic_cases import SUFFIXES, write_volume
from tiny_inpainter import IMAGE_SIZE, WINDOW, tiny_inpainter

from configs.figures import get_config
from mbti_jax.commands import figures as command
from mbti_jax.evaluation import figures
from mbti_jax.evaluation.slices import LabeledSlices
from mbti_jax.inference.inpainted import Samples
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io import pictures
from tfds_brats import builder
from tfds_brats.reading import SliceSource
from tfds_brats.slices import bounding_box

SHAPE = (36, 40, 7)
# Class values: empty, free-form, bounding box.
E, F, B = 1, 2, 3


def write_subject(folder, subject: str, seed: int) -> None:
    """A brain of 28 x 30 mm with a tumor of nested squares in six slices, at another place in each.

    Squares start and end on even pixels, so that in the model's size, half of it, no pixel is mixed.
    """
    rng = np.random.default_rng(seed)
    brain = np.zeros(SHAPE, bool)
    brain[4:32, 4:34] = True
    for suffix in SUFFIXES.values():
        image = np.where(brain, rng.integers(100, 900, SHAPE), 0).astype(np.int16)
        write_volume(folder / subject / f"{subject}{suffix}.nii.gz", image)
    labels = np.zeros(SHAPE, np.uint8)
    for z in range(6):
        x, y = 6 + 2 * (z % 2), 6 + 2 * (z // 2)
        labels[x : x + 10, y : y + 10, z] = 2
        labels[x + 8 : x + 10, y + 8 : y + 10, z] = 0  # The edema is no rectangle.
        labels[x + 2 : x + 8, y + 2 : y + 8, z] = 4
        labels[x + 4 : x + 6, y + 4 : y + 6, z] = 1
    write_volume(folder / subject / f"{subject}_seg.nii.gz", labels)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    for seed in range(3):
        write_subject(folder / "cases", f"BraTS2021_{seed:05d}", seed)
    return builder.build(folder / "cases", "brats2021", folder / "slices", num_workers=1)


@pytest.fixture(params=[1, 4], ids=["C=1", "C=4"])
def inpainter(request, monkeypatch) -> Inpainter:
    tiny = tiny_inpainter(request.param)
    monkeypatch.setattr(Inpainter, "load", lambda *_: tiny)
    return tiny


@pytest.fixture
def calls(monkeypatch) -> list[SimpleNamespace]:
    """What `Inpainter.sample` was asked for; the answer is 0.5, 0.6, ... inside the ROIs."""
    made = []

    def sample(self, images, condition, sampling, **options):
        painted = np.where(condition.roi, 0.5 + 0.1 * len(made), images)
        masks, classes = condition.roi_masks, condition.class_vector
        made.append(SimpleNamespace(masks=masks, classes=classes, sampling=sampling))
        return Samples(painted[None], None)

    monkeypatch.setattr(Inpainter, "sample", sample)
    return made


@pytest.fixture
def drawn(monkeypatch) -> dict:
    """What the last figure was drawn of; drawing takes longer than all else."""
    last = {}

    def draw(path, cells, **text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a figure")
        last.update(cells=cells, **text)

    monkeypatch.setattr(pictures, "figure", draw)
    return last


def run(workdir, dataset="", **fields):
    config = get_config()
    config.data_dir = str(dataset)
    config.min_component_area = 4
    config.num_steps = 2
    config.update(fields)
    command.main(config, str(workdir))
    return workdir


def test_defaults_are_the_papers():
    config = get_config()
    assert (config.num_steps, config.guidance_weight, config.split) == (1000, 0.4, "test")
    assert (config.weights[0], config.weights[-1], len(config.weights)) == (1, 40, 6)
    assert config.num_seeds == 6


@pytest.mark.parametrize(
    ("name", "classes"),
    [  #      normal, core, edema, enhancement, mixed tumor
        ("3", [[E, F, F, F, E], [E, F, B, F, E]]),
        ("4", [[E, E, E, E, F], [E, E, E, E, B]]),
        ("5", [[F, E, E, E, E], [B, E, E, E, E]]),
        ("6", 6 * [[E, E, E, E, B]]),
        ("7", 6 * [[E, E, E, E, B]]),
        ("1b", [[F, F, F, F, E], [B, F, B, F, E], [F, E, E, E, B]]),
    ],
)
def test_each_figure_paints_what_the_paper_says(
    dataset, inpainter, calls, drawn, tmp_path, name, classes
):
    run(tmp_path, dataset, figures=(name,))
    assert [call.classes.tolist() for call in calls] == [4 * [values] for values in classes]
    seeds, weights = (
        [call.sampling.seed for call in calls],
        [call.sampling.guidance.weight for call in calls],
    )
    count = len(classes)
    assert seeds == ([0, 1, 2, 3, 4, 5] if name == "7" else count * [0])
    assert weights == ([1, 2, 5, 10, 20, 40] if name == "6" else count * [0.4])
    # In every slice core, enhancement and edema have these areas in the model's pixels.
    areas = {F: {0: 24, 1: 1, 2: 15, 3: 8, 4: 24}, B: {0: 25, 2: 25, 4: 25}}
    for call, values in zip(calls, classes, strict=True):
        for channel, value in enumerate(values):
            for masks in call.masks:
                assert masks[..., channel].sum() == areas.get(value, {}).get(channel, 0)


def test_figure_1b_inserts_beside_what_it_removes(dataset, inpainter, calls, drawn, tmp_path):
    run(tmp_path, dataset, figures=("1b",))
    free, boxes, mixed = (call.masks for call in calls)
    for row in range(4):
        for masks in (free[row], boxes[row], mixed[row]):
            assert not (masks[..., 0, None] * masks[..., 1:]).any()
        inserted = free[row][..., 1:4]
        assert inserted.sum(-1).max() == 1
        assert bounding_box(inserted.any(-1)) == bounding_box(mixed[row][..., 4] > 0)
        assert bounding_box(inserted[..., 1] > 0) == bounding_box(boxes[row][..., 2] > 0)
        np.testing.assert_array_equal(free[row][..., 0], mixed[row][..., 0])
        assert bounding_box(free[row][..., 0] > 0) == bounding_box(boxes[row][..., 0] > 0)


def record_image(dataset, record: int) -> np.ndarray:
    """[S, S, 4] of a record: the window around the brain, 2 x 2 pixels averaged."""
    read = SliceSource(dataset, "test").read(record)
    image = np.where(read["codes"] == 0, -1, read["gain"] * read["codes"] + read["bias"])
    y0, x0, y1, x1 = read["brain_box"]
    top, left = (
        min(max((low + high - WINDOW) // 2, 0), size - WINDOW)
        for low, high, size in ((y0, y1, image.shape[0]), (x0, x1, image.shape[1]))
    )
    cut = image[top : top + WINDOW, left : left + WINDOW]
    return cut.reshape(IMAGE_SIZE, 2, IMAGE_SIZE, 2, 4).mean((1, 3))


def test_rows_are_the_sequences_of_random_test_slices(
    dataset, inpainter, calls, drawn, tmp_path, monkeypatch
):
    monkeypatch.setattr(pictures, "enlarge", lambda picture: picture)
    run(tmp_path, dataset, figures=("3",))
    record = json.loads((tmp_path / "figure_3.json").read_text())
    numbers = [row["slice_index"] for row in record["rows"]]
    names = ("T1", "T1CE", "T2", "FLAIR")
    assert drawn["rows"] == [f"{n}, slice {z}" for n, z in zip(names, numbers, strict=True)]
    assert [row["sequence"] for row in record["rows"]] == ["t1", "t1ce", "t2", "flair"]
    assert len({row["record"] for row in record["rows"]}) == 4
    source = SliceSource(dataset, "test")
    for r, (row, cells) in enumerate(zip(record["rows"], drawn["cells"], strict=True)):
        assert source.index.slice_index[row["record"]] == row["slice_index"]
        assert source.index.subject[row["record"]] == row["subject"]
        whole = record_image(dataset, row["record"])
        # What is shown is the brain, with two pixels around it, in a square.
        y0, x0, y1, x1 = bounding_box((whole != -1).any(-1))
        window = pictures.around((whole != -1).any(-1), margin=2)
        assert window[0].start <= y0 and y1 <= window[0].stop
        assert window[1].start <= x0 and x1 <= window[1].stop
        expected = pictures.gray(whole[window][..., r]).astype(int)
        before, _, first, _, second = (np.asarray(cell).astype(int) for cell in cells)
        assert np.abs(before - expected).max() <= 1
        for number, (call, after) in enumerate(zip(calls, (first, second), strict=True)):
            roi = call.masks[r].any(-1)[window]
            np.testing.assert_array_equal(after[~roi], before[~roi])
            value = pictures.gray(np.full((1, 1), 0.5 + 0.1 * number))[0, 0, 0]
            assert (after[roi] == value).all()


def test_a_figure_says_how_it_was_made(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(Inpainter, "load", lambda *_: tiny_inpainter())
    shown = {}
    draw = pictures.figure
    monkeypatch.setattr(
        pictures, "figure", lambda *args, **kwargs: shown.update(kwargs) or draw(*args, **kwargs)
    )
    run(tmp_path, dataset, figures=("6",), weights=(1.0, 40.0), seed=5)
    assert "random weights" in shown["title"]  # The checkpoint's note.
    assert "synthetic" in shown["footnote"] and "2 steps" in shown["footnote"]
    # Left and right, letters, and of the legend what is there: whole tumors in boxes.
    assert shown["marks"] == pictures.Marks(["tumor"], ["RL"] * 4, letters=True)
    assert (tmp_path / "figure_6.pdf").read_bytes().startswith(b"%PDF")
    assert shown["columns"][:2] == ["input", "ROIs"]
    for label, weight in zip(shown["columns"][2:], ("1", "40"), strict=True):
        assert f"w = {weight}, seed 5" in label
    with Image.open(tmp_path / "figure_6.png") as picture:
        assert min(picture.size) > 300
    record = json.loads((tmp_path / "figure_6.json").read_text())
    assert record["synthetic"] is True
    assert record["checkpoint"]["note"] == "random weights"
    assert [p["guidance_weight"] for p in record["predictions"]] == [1, 40]
    roi = record["predictions"][0]["rois"][0]["tumor"]
    assert (roi["mode"], roi["pixels"]) == ("box", 25)


def test_the_same_command_draws_only_what_is_missing(dataset, inpainter, calls, drawn, tmp_path):
    run(tmp_path, dataset, figures=("3", "4"))
    assert len(calls) == 4
    before = (tmp_path / "figure_3.png").read_bytes()
    (tmp_path / "figure_4.png").unlink()
    run(tmp_path, dataset, figures=("3", "4", "5"))
    assert len(calls) == 4 + 4
    assert (tmp_path / "figure_3.png").read_bytes() == before
    assert (tmp_path / "figure_4.png").is_file()
    with pytest.raises(ValueError, match=r"figure_3\.json.*other num_steps"):
        run(tmp_path, dataset, figures=("3",), num_steps=3)
    with pytest.raises(ValueError, match="other predictions"):
        run(tmp_path, dataset, figures=("4",), guidance_weight=2.0)
    # Figure 6 has weights of its own.
    run(tmp_path, dataset, figures=("6",))
    run(tmp_path, dataset, figures=("6",), guidance_weight=2.0)
    assert len(calls) == 4 + 4 + 6


def test_what_another_seed_changes(dataset, calls, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(Inpainter, "load", lambda *_: tiny_inpainter())
    rows = []
    for seed in range(6):
        run(tmp_path / str(seed), dataset, figures=("4",), seed=seed)
        record = json.loads((tmp_path / str(seed) / "figure_4.json").read_text())
        rows.append(tuple(row["record"] for row in record["rows"]))
    assert len(set(rows)) > 1
    run(tmp_path / "again", dataset, figures=("4",), seed=3)
    again = json.loads((tmp_path / "again" / "figure_4.json").read_text())
    assert tuple(row["record"] for row in again["rows"]) == rows[3]


def test_patients_take_turns():
    patients = np.array(["a"] * 5 + ["b"] * 2 + ["c"])
    areas = np.array([9, 9, 0, 9, 9, 9, 9, 9])
    source = SimpleNamespace(index=SimpleNamespace(patient=patients, tumor_area=areas))
    for seed in range(5):
        order = list(figures.in_random_order(source, seed))
        assert sorted(order) == [0, 1, 3, 4, 5, 6, 7]
        turns = patients[order]
        assert set(turns[:3]) == {"a", "b", "c"} and set(turns[3:5]) == {"a", "b"}


def test_without_a_dataset_it_makes_phantoms(calls, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(Inpainter, "load", lambda *_: tiny_inpainter())
    asked = []

    def write(folder, num_subjects, seed):
        asked.append((num_subjects, seed))
        for n in range(num_subjects):
            write_subject(folder, f"Phantom_{n:04d}", n)

    monkeypatch.setattr(builder, "write_phantoms", write)
    config = get_config()
    assert config.checkpoint == "phantom"
    run(tmp_path, figures=("3",), phantom={"num_subjects": 3})
    # The bundled model was trained on those of seed 0.
    assert asked == [(3, config.phantom.seed)] and config.phantom.seed != 0
    assert (tmp_path / "figure_3.png").is_file()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"figures": ("2",)}, r"3, 4, 5, 6, 7, 1b.*\['2'\]"),
        ({"figures": ()}, "chosen from"),
        ({"split": "tests"}, "split must be one of train, validation, test, not 'tests'"),
        ({"figures": ("6",), "weights": ()}, "figure 6 would be empty"),
        ({"figures": ("7",), "num_seeds": 0}, "figure 7 would be empty"),
        ({"weights": (1.0, float("nan"))}, "must be a finite number"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"min_component_area": 5}, "only 0 of the 4 slices needed.*min_component_area"),
        ({"num_steps": 0}, "0"),
        ({"num_steps": 1001}, "1001"),
        ({"spacing": "even"}, "spacing must be one of"),
        ({"eta": float("nan")}, "eta must be"),
        ({"guidance_weight": 1e39}, "guidance_weight must be"),
        ({"num_seeds": 10**9}, "num_seeds must be a whole number from 0 to 100"),
        ({"weights": 101 * (1.0,)}, "weights has 101 entries"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1"),
        ({"checkpoint": ""}, "checkpoint must not be empty"),
    ],
)
def test_what_cannot_be_drawn_is_reported(dataset, tmp_path, monkeypatch, fields, message):
    monkeypatch.setattr(Inpainter, "load", lambda *_: tiny_inpainter())
    with pytest.raises(ValueError, match=message):
        run(tmp_path, dataset, **fields)
    assert not list(tmp_path.glob("figure_*"))


def test_a_slice_without_room_is_skipped():
    """A tumor that fills its half of the brain cannot be moved, one in a corner can."""
    images = np.full((1, 16, 16, 1), -1.0)
    images[:, 2:14, 2:14] = 0
    labels = np.zeros((1, 16, 16), np.uint8)
    labels[0, 4:12, 4:12] = 2
    labels[0, 5:7, 5:7], labels[0, 8:9, 8:9] = 1, 3
    moves = [figures.Prediction("move", (), 0, 0.4)]
    with pytest.raises(ValueError, match="cannot be moved"):
        figures.rois_of(LabeledSlices(images, labels, ["s"], [0]), moves, seed=0)
    labels = np.zeros((1, 16, 16), np.uint8)
    labels[0, 3:6, 3:6] = np.arange(1, 4)
    (rois,) = figures.rois_of(LabeledSlices(images, labels, ["s"], [0]), moves, seed=0)
    assert rois.masks[..., 0].sum() == rois.masks[..., 1:4].sum() == 9

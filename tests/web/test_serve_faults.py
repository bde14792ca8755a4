"""What users do wrong on the page: one message each, which names the fault and the way out."""

import gzip
import html

import numpy as np
import pytest
from PIL import Image
from synthetic_cases import AFFINE, SHAPE, SUFFIXES, make_arrays, write_case, write_volume

gradio_client = pytest.importorskip("gradio_client", reason="needs the extra `web`")
pytest.importorskip("gradio", reason="needs the extra `web`")

from tiny_server import tiny_server  # noqa: E402 (it needs Gradio)

SUBJECT = "BraTS2021_00001"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def client(root):
    with tiny_server(root) as url:
        yield gradio_client.Client(url, verbose=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The files of the faults: name -> path."""
    folder = tmp_path_factory.mktemp("made")
    case = write_case(folder / "case", SUBJECT)
    by_name = {name: case / f"{SUBJECT}{suffix}.nii.gz" for name, suffix in SUFFIXES.items()}
    images, labels = make_arrays(0)
    image = images["t1"]
    content = by_name["t1"].read_bytes()
    roi = np.zeros(SHAPE, np.uint8)
    written = {
        "photo.jpg": b"\xff\xd8\xff\xe0 no image of a brain",
        "photo.png": b"\xff\xd8\xff\xe0 renamed",
        "text.nii.gz": b"no volume at all",
        "text.nii": b"no volume at all" * 40,
        "half.nii.gz": content[: len(content) // 2],
        "header.nii.gz": gzip.compress(gzip.decompress(content)[:200]),
        "short.nii": gzip.decompress(content)[:1000],
        "numbers.npy": b"\x93NUMPY\x01\x00 damaged",
        "roi.txt": b"1 2 3",
        "empty.nii.gz": b"",
        "empty.png": b"",
    }
    for name, data in written.items():
        (folder / name).write_bytes(data)
    np.save(folder / "cube.npy", np.ones((5, 5, 5, 5)))
    np.save(folder / "words.npy", np.array([["a", "b"], ["c", "d"]]))
    np.save(folder / "none.npy", np.zeros((0, 4), np.uint8))
    volumes = {
        "smaller.nii.gz": image[:-2],
        "nan.nii.gz": np.where(image == image.max(), np.nan, image).astype(np.float32),
        "black.nii.gz": np.zeros_like(image),
        "flat.nii.gz": image[..., 0],
        "time.nii.gz": np.stack([image] * 3, -1),
        "no_roi.nii.gz": roi,
        "roi_in_air.nii.gz": np.where(np.indices(SHAPE).sum(0) == 0, 1, 0).astype(np.uint8),
        "roi_9.nii.gz": np.where(labels > 0, 9, 0).astype(np.uint8),
        "roi_smaller.nii.gz": (labels > 0).astype(np.uint8)[:-2],
        "roi_half.nii.gz": (labels > 0).astype(np.float32) / 2,
    }
    for name, volume in volumes.items():
        write_volume(folder / name, volume)
    moved = AFFINE.copy()
    moved[0, 3] += 40
    write_volume(folder / "roi_moved.nii.gz", (labels > 0).astype(np.uint8), moved)
    Image.fromarray(np.full((20, 24), 5, np.uint8)).save(folder / "roi.png")
    return {**by_name, **{path.name: path for path in folder.iterdir() if path.is_file()}}


def load(*names, convention="", sequences=None):
    return "/load", names, [convention, list(sequences or [])]


def roi(name, meaning="1:edema", tumor="", step=2.0, dilate=2.0, *more):
    return "/set_roi", name, [meaning, [], tumor, step, dilate, *more]


def inpaint(*, sequences=(), seed=0, samples=1, steps=1, weight=0.4, more=()):
    return "/inpaint", None, [list(sequences), seed, samples, steps, weight, *more]


# A call, and how its one message begins, or what it holds.
FAULTS = [
    (load(), "Choose a file first"),
    (load("photo.jpg"), "Invalid file type"),
    (load("photo.png"), "photo.png: is no PNG picture, or damaged"),
    (load("empty.png"), "empty.png: is no PNG picture, or damaged"),
    (load("text.nii.gz", sequences=["t1"]), "text.nii.gz: cannot be read as NIfTI"),
    (load("text.nii", sequences=["t1"]), "text.nii: cannot be read as NIfTI"),
    (load("half.nii.gz", sequences=["t1"]), "half.nii.gz: cannot be decompressed"),
    (load("header.nii.gz", sequences=["t1"]), "header.nii.gz: cannot be read as NIfTI"),
    (load("short.nii", sequences=["t1"]), "short.nii: cannot be read as NIfTI"),
    (load("empty.nii.gz", sequences=["t1"]), "empty.nii.gz: is empty"),
    (load("numbers.npy"), "numbers.npy: cannot be read"),
    (load("cube.npy"), "cube.npy: the image has shape (5, 5, 5, 5); [H, W] or [H, W, C] is needed"),
    (load("words.npy"), "words.npy: the image holds <U1; integers or floats are needed"),
    (load("none.npy"), "none.npy: cannot be read: it holds 0 numbers"),
    (load("nan.nii.gz", sequences=["t1"]), "nan.nii.gz: holds NaN or infinite values"),
    (load("black.nii.gz", sequences=["t1"]), "black.nii.gz: the t1 image is empty or constant"),
    (load("flat.nii.gz", sequences=["t1"]), "flat.nii.gz: has shape (24, 20); a volume is needed"),
    (load("time.nii.gz", sequences=["t1"]), "time.nii.gz: has shape (24, 20, 6, 3); 3 axes"),
    (load("t1", "smaller.nii.gz", sequences=["t1", "t2"]), "smaller.nii.gz: has shape (22, 20, 6)"),
    (load("t1", "t2"), "Say which sequence each file is"),
    (load("t1", "t2", sequences=["t1", "t1"]), "A sequence is named twice"),
    (
        load("t1", "roi.png", sequences=["t1", "t2"]),
        "A picture and a NIfTI file do not make one case",
    ),
    (load("t1", "t2", convention="brats2018"), "the files are named as in brats2021"),
    (load("t1", convention="brats1066"), "NIfTI files are named as in: Value: brats1066 is not in"),
    (load("t1", sequences=["adc"]), "The files' sequences: Value: 'adc'"),
    (roi(None), "Choose what is made of the case's own tumor, or the file of the ROIs"),
    (roi(None, tumor="grow", step=-1), "grow, shrink: mm: Value -1 is less than minimum value 0"),
    (roi(None, "", "grow", 2.0, 2.0, 5, 2, 0), "Slices 5 to 2 are no range of Phantom_0000"),
    (roi("roi.txt"), "roi.txt: is of a kind that is not read; these are: .png"),
    (roi("text.nii.gz"), "text.nii.gz: cannot be read as NIfTI"),
    (roi("roi.png"), "roi.png: the ROI of a volume is a NIfTI file"),
    (roi("no_roi.nii.gz"), "no_roi.nii.gz: the ROI is empty"),
    (roi("roi_in_air.nii.gz"), "These ROIs lie wholly in air"),
    (roi("roi_9.nii.gz"), "roi_9.nii.gz: the ROI label map holds the labels [9]"),
    (roi("roi_half.nii.gz"), "roi_half.nii.gz: holds labels that are not whole numbers"),
    (roi("roi_smaller.nii.gz"), "roi_smaller.nii.gz: has shape (22, 20, 6)"),
    (roi("roi_moved.nii.gz"), "roi_moved.nii.gz: its affine differs"),
    (roi("roi_9.nii.gz", "nine:edema"), "'nine:edema' is not 'number:name'"),
    (roi("roi_9.nii.gz", "9:bone"), "Unknown ROI 'bone'; ROIs are normal"),
    (roi("roi_9.nii.gz", "9:edema", "grow", "far"), "grow, shrink: mm: cannot be 'far'"),
    (inpaint(seed=-1), "Seed: Value -1 is less than minimum value 0"),
    (inpaint(seed=0.5), "The seed must be a whole number, not 0.5"),
    (inpaint(seed=2**31), "Seed must be a whole number from 0 to 2^31 - 1"),
    (inpaint(samples=17), "Samples: Value 17 is greater than maximum value 16"),
    (inpaint(samples=16), "are 64 images; at most 32 are made in one run"),
    (inpaint(steps=0), "Steps: Value 0 is less than minimum value 1"),
    (inpaint(steps="many"), "Steps: cannot be 'many'"),
    (inpaint(weight=1e40), "The guidance weight must be a number"),
    (inpaint(weight=True), "The guidance weight must be a number, not True"),
    (inpaint(sequences=["adc"]), "Sequences to repaint: Value: 'adc'"),
    (inpaint(more=["mean"]), "at least 2 for their mean"),
    (inpaint(more=["samples", "ddim", "plain", 0.9, 0.1]), "must go from a lower to a higher"),
    (inpaint(more=["samples", "ddim", "plain", 0.0, 2.0]), "Guided to noise share: Value 2.0"),
]


def handles(names, made):
    if names is None or isinstance(names, str):
        return names and gradio_client.handle_file(str(made[names]))
    return [gradio_client.handle_file(str(made[name])) for name in names]


@pytest.mark.parametrize(("call", "said"), FAULTS, ids=[said[:40] for _, said in FAULTS])
def test_one_message_a_fault(client, root, made, call, said, capfd, caplog):
    """It says what is wrong, nothing of where the server keeps files, and nothing goes to the log."""
    name, files, rest = call
    if name != "/load":
        client.predict("grow another tumor", api_name="/load_example")
    data = rest if name == "/inpaint" else [handles(files, made), *rest]
    caplog.clear()
    with pytest.raises(gradio_client.exceptions.AppError) as error:
        client.predict(*data, api_name=name)
    text = html.unescape(str(error.value))
    assert said in text
    assert str(root) not in text and "Traceback" not in text
    assert "Traceback" not in "".join(capfd.readouterr())
    assert not [record for record in caplog.records if record.exc_info]

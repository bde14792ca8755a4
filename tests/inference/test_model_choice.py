"""Which of the two bundled models paints an input, and in which order it gets the sequences."""

import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from inpaint_runs import SUBJECT, of_case, run, write_voided
from PIL import Image
from synthetic_cases import SUFFIXES, write_case, write_volume
from tiny_inpainter import make_mask, make_slice, tiny_inpainter

from mbti_jax import sharding
from mbti_jax.commands import inpaint
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.inputs import named_files
from mbti_jax.inference.load import JOINT, SINGLE
from mbti_jax.inference.window_sampler import WindowSampler
from tfds_brats.cases import read_case
from tfds_brats.conventions import CaseError


@pytest.fixture
def source(tmp_path) -> Path:
    return write_case(tmp_path / "in", SUBJECT)


def bundled(monkeypatch) -> list[str]:
    """The names of the models that are loaded: stand-ins for the two that come with the package."""
    models = {JOINT: tiny_inpainter(4), SINGLE: tiny_inpainter()}
    loaded = []

    def load(name, *_):
        loaded.append(name)
        return models[name]

    monkeypatch.setattr(Inpainter, "load", load)
    return loaded


def test_the_bundled_model_is_the_one_that_fits_what_is_there(
    source, tmp_path, monkeypatch, caplog
):
    loaded = bundled(monkeypatch)
    caplog.set_level(logging.INFO)
    name = f"{SUBJECT}{SUFFIXES['t1']}.nii.gz"
    of_one = {"images": {"t1": str(source / name)}, "roi": str(source / f"{SUBJECT}_seg.nii.gz")}
    of_one |= {"roi_labels": "1:normal,2:normal,4:normal", "checkpoint": JOINT}
    out = run(tmp_path / "one", **of_one)
    assert (
        "phantom_single in the place of phantom, one sequence at a time: not all of" in caplog.text
    )
    assert [path.name for path in out.rglob("*-inpainted.nii.gz")] == [
        f"{SUBJECT}{SUFFIXES['t1']}-inpainted.nii.gz"
    ]
    caplog.clear()
    run(tmp_path / "case", **of_case(source, checkpoint=JOINT))
    # Of a case that has them all, those that are asked for.
    run(tmp_path / "two", **of_case(source, sequences=("t2", "flair"), checkpoint=JOINT))
    # Pictures: one, one of three, and all four in one file.
    Image.fromarray(make_slice(dtype=np.uint16)).save(tmp_path / "slice.png")
    Image.fromarray(np.uint8(5 * make_mask())).save(tmp_path / "roi.png")
    np.save(tmp_path / "slice_t2.npy", make_slice())
    np.save(tmp_path / "stack.npy", make_slice(channels=4))
    for number, image in enumerate(("slice.png", "slice_{sequence}.npy", "stack.npy")):
        paths = {
            "image": str(tmp_path / image),
            "roi": str(tmp_path / "roi.png"),
            "checkpoint": JOINT,
        }
        run(tmp_path / f"slice {number}", **paths)
    assert loaded == [SINGLE, JOINT, SINGLE, SINGLE, SINGLE, JOINT]
    assert [path.name for path in (tmp_path / "slice 1").rglob("*inpainted*")] == [
        "slice_t2-inpainted-000.npy"
    ]
    # Another model is what the user wants.
    with pytest.raises(KeyError, match="runs/mine"):
        run(tmp_path / "other", **{**of_one, "checkpoint": "runs/mine"})


def test_a_joint_model_gets_the_sequences_in_its_own_order(tmp_path, monkeypatch):
    bundled(monkeypatch)
    image = make_slice(channels=4, dtype=np.uint16)
    for c, name in enumerate(SUFFIXES):
        Image.fromarray(image[..., c]).save(tmp_path / f"slice_{name}.png")
    np.save(tmp_path / "roi.npy", make_mask().astype(np.uint8))
    fields = {"image": str(tmp_path / "slice_{sequence}.png"), "roi": str(tmp_path / "roi.npy")}
    fields["checkpoint"] = JOINT
    orders = {"plain": (), "turned": tuple(SUFFIXES)[::-1]}
    outs = [run(tmp_path / name, **fields, sequences=order) for name, order in orders.items()]
    for name in SUFFIXES:
        one, other = (out / "slice" / f"slice_{name}-inpainted-000.png" for out in outs)
        np.testing.assert_array_equal(np.array(Image.open(one)), np.array(Image.open(other)))


def test_the_challenge_is_asked_for_the_subjects_that_count(tmp_path, monkeypatch):
    loaded = bundled(monkeypatch)
    monkeypatch.setattr(tiny_inpainter(4), "_path", JOINT)
    for subject in ("X", "Y"):
        voided, _ = write_voided(tmp_path / "in", subject)
    for number, name in enumerate(("t1c", "t2w", "t2f"), start=2):
        write_volume(tmp_path / "in" / "Y" / f"Y-{name}.nii.gz", number * voided)
    fields = {"source": str(tmp_path / "in"), "layout": "brats_inpainting", "checkpoint": JOINT}
    out = run(tmp_path / "one", **fields, subjects=("X",))
    assert (out / "X-t1n-inference.nii.gz").is_file()
    # Of both, the one that lacks something is named, with what paints it.
    with pytest.raises(ValueError, match=r"X lacks X-t1c.*; phantom_single, which comes along"):
        run(tmp_path / "both", **fields)
    assert loaded == [SINGLE, JOINT]


def test_a_case_that_lacks_a_sequence_among_others_is_named_with_the_way_out(
    source, tmp_path, monkeypatch
):
    loaded = bundled(monkeypatch)
    monkeypatch.setattr(tiny_inpainter(4), "_path", JOINT)
    folder = write_case(source.parent, "BraTS2021_00002", seed=2)
    (folder / "BraTS2021_00002_t2.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"has no t2 image.*; phantom_single, which comes along"):
        run(tmp_path / "out", **of_case(source.parent, checkpoint=JOINT))
    assert loaded == [JOINT] and (tmp_path / "out" / SUBJECT / "sample_000").is_dir()


def test_the_challenge_is_painted_by_the_model_of_what_it_holds(tmp_path, monkeypatch):
    loaded = bundled(monkeypatch)
    for others in ((), ("t1c", "t2w", "t2f")):
        folder = tmp_path / f"{len(others)}"
        voided, _ = write_voided(folder, "X")
        for number, name in enumerate(others, start=2):
            write_volume(folder / "X" / f"X-{name}.nii.gz", number * voided)
        out = run(
            tmp_path / "out" / folder.name,
            source=str(folder),
            layout="brats_inpainting",
            checkpoint=JOINT,
        )
        assert (out / "X-t1n-inference.nii.gz").is_file()
    assert loaded == [SINGLE, JOINT]


def test_sequences_of_a_volume_are_painted_in_the_models_order(source):
    paths = {n: str(source / f"{SUBJECT}{s}.nii.gz") for n, s in SUFFIXES.items()}
    case = read_case(named_files(paths), tuple(paths), labels=False)
    for inpainter in (tiny_inpainter(4), tiny_inpainter()):
        assert inpainter.sequences_of(case) == tuple(SUFFIXES)
    assert tiny_inpainter(4).sequences_of(case, tuple(SUFFIXES)[::-1]) == tuple(SUFFIXES)
    assert tiny_inpainter().sequences_of(case, ("t2", "t1")) == ("t2", "t1")
    with pytest.raises(ValueError, match="cannot leave one out; got t2, t1"):
        tiny_inpainter(4).sequences_of(case, ("t2", "t1"))


@pytest.mark.parametrize(
    ("model", "fields", "size"),
    [
        (SINGLE, {"image": "a.npy"}, 1),
        (SINGLE, {"image": "a.npy", "num_samples": 3}, 3),
        (SINGLE, {"image": "a.npy", "num_samples": 50}, 4),
        (SINGLE, {"image": "a.npy", "batch_size": 2}, 2),
        (JOINT, {"source": ".", "slices": (2,)}, 1),
        (SINGLE, {"source": ".", "slices": (2,), "sequences": ("t1", "t2")}, 2),
        (JOINT, {"source": ".", "slices": (2, 3), "num_samples": 2, "estimate": "mean"}, 4),
        (JOINT, {"source": "."}, 4),
    ],
)
def test_a_batch_is_no_larger_than_what_there_is(tmp_path, monkeypatch, model, fields, size):
    """On a CPU at most 4; each sample of a case is painted by itself."""
    found = []

    def load(name, batch_size):
        found.append(WindowSampler.load(name, batch_size))
        return found[-1]

    def look(*_):
        raise CaseError("seen")

    monkeypatch.setattr(Inpainter, "load", load)
    for layout in inpaint._LAYOUTS:
        monkeypatch.setitem(inpaint._LAYOUTS, layout, look)
    one_device = sharding.make_mesh(jax.local_devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda *_: one_device)
    np.save(tmp_path / "a.npy", make_slice())
    write_case(tmp_path, SUBJECT)
    roi = {"tumor": "remove", "convention": "brats2021"} if "source" in fields else {"roi": "b.npy"}
    paths = {name: str(tmp_path / fields[name]) for name in ("image", "source") if name in fields}
    with pytest.raises(CaseError, match="seen"):
        run(tmp_path / "out", **{**fields, **paths, **roi, "checkpoint": model})
    assert found[0].batch_size == size

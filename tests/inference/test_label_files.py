"""Label maps as files: the case's own numbers and grid, labeled sets of boxes, follow-up series."""

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from inpaint_runs import write_voided
from labeling_inpainter import labeling_inpainter
from synthetic_cases import AFFINE, make_arrays, write_case, write_volume
from tiny_inpainter import make_slice, tiny_inpainter

from configs.inpaint import get_config
from mbti_jax.commands import inpaint
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.series import follow_up
from mbti_jax.io.slices import read_slice, write_slice
from mbti_jax.rois.kinds import COMPONENTS
from tfds_brats.cases import read_case
from tfds_brats.conventions import CONVENTIONS, CaseError
from tfds_brats.search import find_cases
from tfds_brats.slices import from_slices, to_slices

SUBJECT = "BraTS2021_00001"
HYPHEN = {"t1": "-t1n", "t1ce": "-t1c", "t2": "-t2w", "flair": "-t2f"}


@pytest.fixture(autouse=True)
def _labeling_model(monkeypatch):
    monkeypatch.setattr(Inpainter, "load", lambda *_: labeling_inpainter())


def run(workdir: Path, **fields) -> Path:
    config = get_config()
    config.update({"num_steps": 2, **fields})
    inpaint.main(config, str(workdir))
    return workdir


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def write_msd(folder: Path) -> None:
    images, labels = make_arrays(0)
    stacked = np.stack([images[name] for name in ("flair", "t1", "t1ce", "t2")], axis=-1)
    write_volume(folder / "imagesTr/BRATS_001.nii.gz", stacked)
    # 1 edema, 2 necrotic core, 3 enhancement.
    write_volume(folder / "labelsTr/BRATS_001.nii.gz", np.array([0, 2, 1, 0, 3], np.uint8)[labels])


def write_2023(folder: Path) -> None:
    subject = "BraTS-GLI-00001-000"
    case = write_case(folder, subject, suffixes=HYPHEN, label_suffix="-seg")
    labels = make_arrays(0)[1]
    write_volume(case / f"{subject}-seg.nii.gz", np.where(labels == 4, 3, labels))


WRITERS = {"brats2021": lambda f: write_case(f, SUBJECT), "brats2023": write_2023, "msd": write_msd}


@pytest.mark.parametrize(
    ("convention", "subject", "numbers"),
    [
        ("brats2021", SUBJECT, {1, 2, 4}),
        ("brats2023", "BraTS-GLI-00001-000", {1, 2, 3}),
        ("msd", "BRATS_001", {1, 2, 3}),
    ],
)
def test_label_maps_are_of_the_cases_convention_and_grid(tmp_path, convention, subject, numbers):
    """What is written reads back, as a segmentation of that convention, as what was painted."""
    source = tmp_path / "in"
    WRITERS[convention](source)
    (files,) = find_cases(source, convention)
    # Components, and tumor that stays: nothing of slice 3 is repainted.
    fields = {
        "source": str(source),
        "convention": convention,
        "tumor": "random box",
        "slices": (1, 2),
    }
    out = run(tmp_path / "out", **fields) / subject / "sample_000"
    written = out / f"{subject}-seg.nii.gz"
    assert set(np.unique(load(written))) == {0, *numbers}
    np.testing.assert_array_equal(nib.load(written).affine, AFFINE)
    before, roi = load(files.segmentation), load(out / "rois.nii.gz") > 0
    np.testing.assert_array_equal(load(written)[~roi], before[~roi])
    record = json.loads((out / "provenance.json").read_text())
    assert record["tumor_mode"] == "random box"
    labels = record["labels"]
    assert (labels["inside"], labels["outside"]) == ("painted", "kept")
    # MSD's edema is 1.
    edema = next(n for n, label in files.convention.labels.items() if label == 2)
    painted, kept = (int(((load(written) == edema) & where).sum()) for where in (roi, ~roi))
    assert labels["pixels"]["edema"] == {"painted": painted, "kept": kept}

    write_volume(files.segmentation, load(written))
    (again,) = find_cases(source, convention)
    counts = {name: sum(by.values()) for name, by in labels["pixels"].items()}
    canonical = read_case(again).segmentation
    found = {name: int((canonical == label).sum()) for name, label in COMPONENTS.items()}
    assert found == counts


@pytest.mark.parametrize("name", CONVENTIONS)
def test_numbers_of_every_convention_come_back(name):
    convention = CONVENTIONS[name]
    on_disk = np.array(sorted(convention.labels), np.uint8)
    canonical = np.array([convention.labels[n] for n in on_disk.tolist()], np.uint8)
    np.testing.assert_array_equal(convention.on_disk(canonical), on_disk)
    if 4 not in convention.labels.values():
        with pytest.raises(CaseError, match="no number for the canonical label 4"):
            convention.on_disk(np.array([4], np.uint8))


def test_a_labeled_set_of_boxes_and_mixed_tumors(tmp_path):
    """The labels are what the image shows: the network that labels by intensity is right everywhere."""
    write_case(tmp_path / "in", SUBJECT)
    fields = {"layout": "nnunet", "source": str(tmp_path / "in"), "convention": "brats2021"}
    shares = "random box: 1, replace box: 1, move: 1"
    out = run(tmp_path / "Dataset102_Painted", tumor=shares, num_samples=8, **fields)
    manifest = json.loads((out / "manifest.json").read_text())
    modes = set()
    for name, path in manifest["cases"].items():
        record = json.loads((out / path).read_text())
        modes.add(record["tumor_mode"])
        known = manifest["labels"][name]
        assert known == {k: record["labels"][k] for k in ("inside", "outside", "pixels")}
        assert (known["inside"], known["outside"]) == ("painted", "kept")
        labels = load(out / "labelsTr" / f"{name}.nii.gz")
        counted = {n: by["painted"] for n, by in known["pixels"].items()}
        expected = {name: int((labels == label).sum()) for name, label in COMPONENTS.items()}
        assert counted == {n: count for n, count in expected.items() if count}
    assert modes == {"random box", "replace box", "move"}
    # The modes are a function of the seed: the same request is there.
    before = sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*_0000.nii.gz"))
    run(out, tumor=shares, num_samples=8, **fields)
    assert sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*_0000.nii.gz")) == before


def test_the_challenge_has_the_label_map_of_what_was_painted(tmp_path):
    """Normal tissue was asked for; what the model says that it painted need not be any."""
    _, mask = write_voided(tmp_path / "in", "X")
    source = str(tmp_path / "in")
    out = run(tmp_path / "out", layout="brats_inpainting", source=source) / "records" / "X"
    labels = load(out / "X-seg.nii.gz")
    assert not labels[~mask].any() and set(np.unique(labels[mask])) == {0, 1, 2, 3}
    record = json.loads((out / "provenance.json").read_text())
    assert record["labels"]["inside"] == "painted" and record["labels"]["outside"] == "unknown"


def test_series_through_files(tmp_path):
    """Each step keeps what the one before painted; labels and ROIs are of all steps so far."""
    source = write_case(tmp_path / "in", SUBJECT)
    fields = {"source": str(source), "convention": "brats2021", "tumor": "grow", "step_mm": 1.0}
    out = run(tmp_path / "out", num_samples=2, **fields) / SUBJECT
    first, second = (out / f"sample_00{n}" for n in (0, 1))
    rois = [load(step / "rois.nii.gz") > 0 for step in (first, second)]
    assert (rois[1] & ~rois[0]).any() and not (rois[0] & ~rois[1]).any()
    tumor = load(source / f"{SUBJECT}_seg.nii.gz") > 0
    assert not (rois[1] & tumor).any()
    images = [load(step / f"{SUBJECT}_t1-inpainted.nii.gz") for step in (first, second)]
    before = load(source / f"{SUBJECT}_t1.nii.gz")
    np.testing.assert_array_equal(images[0][~rois[0]], before[~rois[0]])
    new = rois[1] & ~rois[0]
    np.testing.assert_array_equal(images[1][~new], images[0][~new])
    assert (images[1][new] != before[new]).mean() > 0.8
    labels = [load(step / f"{SUBJECT}-seg.nii.gz") for step in (first, second)]
    np.testing.assert_array_equal(labels[1][~new], labels[0][~new])
    record = json.loads((second / "provenance.json").read_text())
    assert record["series"] == {"mode": "grow", "step_mm": 1.0, "step": 2}
    assert record["rois"]["edema"]["pixels"] == rois[1].sum()
    assert record["request"]["step_mm"] == 1.0
    # A longer series keeps the steps that are there.
    kept = (first / f"{SUBJECT}_t1-inpainted.nii.gz").stat().st_mtime_ns
    third = run(tmp_path / "out", num_samples=3, **fields) / SUBJECT / "sample_002"
    assert (first / f"{SUBJECT}_t1-inpainted.nii.gz").stat().st_mtime_ns == kept
    inside = load(second / "rois.nii.gz") > 0
    np.testing.assert_array_equal(
        load(third / f"{SUBJECT}_t1-inpainted.nii.gz")[inside], images[1][inside]
    )


def test_series_in_python_ends_where_nothing_is_left(tmp_path):
    write_case(tmp_path / "in", SUBJECT)
    (files,) = find_cases(tmp_path / "in", "brats2021")
    case = read_case(files)
    results, steps = [], follow_up(tiny_inpainter(4), case, "shrink", step_mm=1.0, num_steps=5)
    with pytest.raises(CaseError, match="step 3: nothing is left of the tumor"):
        for result in steps:
            results.append(result)
    assert [result.details["series"]["step"] for result in results] == [1, 2]
    # Without a label head: what was requested.
    assert results[0].details["labels"]["inside"] == "requested"
    assert 0 < (results[0].labels > 0).sum() < (case.labels > 0).sum()
    assert not results[1].labels.any()


@pytest.mark.parametrize("mode", ["grow", "shrink"])
def test_small_steps_through_thick_slices_reach_as_far_as_a_large_one(tmp_path, mode):
    """Slices of 5 mm: a step of 2 mm reaches none of them, three steps do."""
    write_case(tmp_path / "in", SUBJECT)
    (files,) = find_cases(tmp_path / "in", "brats2021")
    case = read_case(files, ("t1",))
    z, y, x = np.indices(to_slices(case.brain).shape)
    tumor = (np.hypot(y - 10, x - 12) < 6) & (abs(z - z.max() // 2) < 2)
    case = dataclasses.replace(
        case,
        images={"t1": np.maximum(case.images["t1"], from_slices((x > 0).astype(np.int16)))},
        affine=np.diag([1.4, 1.4, 5.0, 1.0]),
        labels=from_slices((2 * tumor).astype(np.uint8)),
    )
    inpainter, sampling = tiny_inpainter(), Sampling(1, guidance=0.0)
    *_, last = follow_up(inpainter, case, mode, step_mm=2.0, num_steps=3, sampling=sampling)
    (whole,) = follow_up(inpainter, case, mode, step_mm=6.0, num_steps=1, sampling=sampling)
    np.testing.assert_array_equal(last.rois.masks, whole.rois.masks)
    assert last.details["series"]["step"] == 3
    changed = whole.rois.union[~tumor if mode == "grow" else tumor].sum()
    assert changed == whole.rois.union.sum() > 0
    if mode == "grow":
        # All of the brain is reached: what there is, is there again.
        first, second = follow_up(
            inpainter, case, mode, step_mm=90.0, num_steps=2, sampling=sampling
        )
        np.testing.assert_array_equal(first.values["t1"], second.values["t1"])
        assert second.details["series"]["step"] == 2


def test_label_maps_of_slices(tmp_path):
    image = make_slice((16, 16), dtype=np.uint8) % 251
    write_slice(tmp_path / "slice.png", image.astype(np.uint8))
    roi = np.zeros((16, 16), np.uint8)
    roi[4:12, 5:11] = 6
    write_slice(tmp_path / "roi.png", roi)
    fields = {"image": str(tmp_path / "slice.png"), "roi": str(tmp_path / "roi.png")}
    out = run(tmp_path / "out", intensity_range=(0.0, 250.0), num_samples=2, **fields) / "slice"
    maps = [read_slice(out / f"slice-seg-00{n}.png") for n in (0, 1)]
    for labels in maps:
        assert not labels[roi == 0].any() and set(np.unique(labels)) == {0, 1, 2, 3}
    assert (maps[0] != maps[1]).any()
    assert json.loads((out / "provenance.json").read_text())["labels"]["outside"] == "unknown"

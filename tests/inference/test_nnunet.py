"""The labeled set: nnU-Net's layout, labels that say what was painted, and what is refused."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from synthetic_cases import AFFINE, make_arrays, write_case, write_volume
from tiny_inpainter import tiny_inpainter

from configs.inpaint import get_config
from mbti_jax.commands import inpaint
from mbti_jax.inference.inpainter import Inpainter

SUBJECTS = ("BraTS2021_00001", "BraTS2021_00002")


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch):
    monkeypatch.setattr(Inpainter, "load", lambda *_: tiny_inpainter())


@pytest.fixture
def source(tmp_path) -> Path:
    for seed, subject in enumerate(SUBJECTS):
        write_case(tmp_path / "in", subject, seed, end=".nii" if seed else ".nii.gz")
    return tmp_path / "in"


def run(workdir: Path, source: Path, **fields) -> Path:
    config = get_config()
    config.update({"layout": "nnunet", "source": str(source), "convention": "brats2021"})
    config.update({"num_steps": 2, "dilate_mm": 0.0, **fields})
    inpaint.main(config, str(workdir))
    return workdir


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_layout_and_labels(source, tmp_path):
    out = run(tmp_path / "Dataset101_Synthetic", source, tumor="remove", num_samples=2)
    names = [f"{subject}_synthetic00{n}" for subject in SUBJECTS for n in (0, 1)]
    images = sorted(path.name for path in (out / "imagesTr").iterdir())
    assert images == [f"{name}_000{c}.nii.gz" for name in names for c in range(4)]
    assert sorted(path.name for path in (out / "labelsTr").iterdir()) == [
        f"{name}.nii.gz" for name in names
    ]
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset.json",
        "imagesTr",
        "labelsTr",
        "manifest.json",
        "provenance",
    ]
    dataset = json.loads((out / "dataset.json").read_text())
    assert dataset["numTraining"] == 4 and dataset["file_ending"] == ".nii.gz"
    assert list(dataset["labels"].values()) == [0, 1, 2, 3]
    assert dataset["channel_names"] == {"0": "t1", "1": "t1ce", "2": "t2", "3": "flair"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert list(manifest["cases"]) == names and "one by one" in manifest["sequences"]
    for name in names:
        assert not load(out / "labelsTr" / f"{name}.nii.gz").any()
        grid = nib.load(out / "labelsTr" / f"{name}.nii.gz").affine
        np.testing.assert_array_equal(grid, AFFINE)
    before = load(source / SUBJECTS[1] / f"{SUBJECTS[1]}_t2.nii")
    roi = load(source / SUBJECTS[1] / f"{SUBJECTS[1]}_seg.nii") > 0
    samples = [load(out / "imagesTr" / f"{name}_0002.nii.gz") for name in names[2:]]
    for sample in samples:
        np.testing.assert_array_equal(sample[~roi], before[~roi])
    assert (samples[0][roi] != samples[1][roi]).mean() > 0.8


def test_components_keep_their_labels(source, tmp_path):
    out = run(tmp_path / "out", source, tumor="replace", subjects=SUBJECTS[:1])
    labels = load(source / SUBJECTS[0] / f"{SUBJECTS[0]}_seg.nii.gz")
    written = load(out / "labelsTr" / f"{SUBJECTS[0]}_synthetic000.nii.gz")
    np.testing.assert_array_equal(written, np.where(labels == 4, 3, labels))


def test_drawn_components_join_the_tumor_that_is_there(source, tmp_path):
    labels = load(source / SUBJECTS[0] / f"{SUBJECTS[0]}_seg.nii.gz")
    roi = np.zeros_like(labels)
    roi[14:17, 8:12, 2] = 2
    roi[15, 9, 2] = 3
    path = write_volume(tmp_path / "roi.nii.gz", roi)
    out = run(tmp_path / "out", source, roi=str(path), subjects=SUBJECTS[:1])
    written = load(out / "labelsTr" / f"{SUBJECTS[0]}_synthetic000.nii.gz")
    np.testing.assert_array_equal(written, np.where(roi, roi, np.where(labels == 4, 3, labels)))


def test_resumes_where_it_stopped(source, tmp_path, capsys):
    fields = {"tumor": "remove", "subjects": SUBJECTS[:1]}
    out = run(tmp_path / "out", source, **fields)
    kept = out / "imagesTr" / f"{SUBJECTS[0]}_synthetic000_0000.nii.gz"
    changed = kept.stat().st_mtime_ns
    run(out, source, **fields, num_samples=2)
    assert kept.stat().st_mtime_ns == changed
    assert "synthetic000 is there" in capsys.readouterr().out
    assert json.loads((out / "dataset.json").read_text())["numTraining"] == 2


def test_the_sequences_that_all_cases_have(source, tmp_path):
    (source / SUBJECTS[0] / f"{SUBJECTS[0]}_t1ce.nii.gz").unlink()
    out = run(tmp_path / "out", source, tumor="remove")
    names = [f"{subject}_synthetic000" for subject in SUBJECTS]
    images = sorted(path.name for path in (out / "imagesTr").iterdir())
    assert images == [f"{name}_000{c}.nii.gz" for name in names for c in range(3)]
    dataset = json.loads((out / "dataset.json").read_text())
    assert dataset["channel_names"] == {"0": "t1", "1": "t2", "2": "flair"}
    before = load(source / SUBJECTS[1] / f"{SUBJECTS[1]}_flair.nii")
    roi = load(source / SUBJECTS[1] / f"{SUBJECTS[1]}_seg.nii") > 0
    after = load(out / "imagesTr" / f"{names[1]}_0002.nii.gz")
    np.testing.assert_array_equal(after[~roi], before[~roi])
    for name in ("t1", "t2", "flair"):
        (source / SUBJECTS[0] / f"{SUBJECTS[0]}_{name}.nii.gz").unlink()
    images, _ = make_arrays(0)
    write_volume(source / SUBJECTS[0] / f"{SUBJECTS[0]}_t1ce.nii.gz", images["t1ce"])
    (source / SUBJECTS[1] / f"{SUBJECTS[1]}_t1ce.nii").unlink()
    with pytest.raises(ValueError, match="no sequence that all cases have"):
        run(tmp_path / "none", source, tumor="remove")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"tumor": "random"}, "a random tumor has no label map"),
        ({"tumor": "replace", "box": ("edema",)}, "a box of edema has no label map"),
        ({"tumor": "remove", "slices": (2,)}, "takes all sequences and slices"),
        ({"tumor": "remove", "sequences": ("t1",)}, "takes all sequences and slices"),
        ({"roi": "mixed"}, "mixed tumor has no label map"),
    ],
)
def test_refused(source, tmp_path, fields, sentence):
    if fields.get("roi"):
        roi = np.zeros((24, 20, 6), np.uint8)
        roi[5:9, 6:9, 2] = 6
        fields = {"roi": str(write_volume(tmp_path / "roi.nii.gz", roi))}
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path / "out", source, **fields)
    assert not list((tmp_path / "out").rglob("*.nii.gz"))

"""Volumes of a case that are given one by one, with their segmentation or without."""

import json
from pathlib import Path

import numpy as np
import pytest
from inpaint_runs import SUBJECT, of_case, run, stored
from synthetic_cases import SUFFIXES, make_arrays, write_case, write_volume
from tiny_inpainter import tiny_inpainter

from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.inputs import case_of, named_files


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch):
    monkeypatch.setattr(Inpainter, "load", lambda *_: tiny_inpainter())


@pytest.fixture
def source(tmp_path) -> Path:
    return write_case(tmp_path / "in", SUBJECT)


def of_files(tmp_path: Path, name: str = "image.nii.gz") -> dict:
    """A case of four files, each in a folder of its own, and an ROI."""
    images, labels = make_arrays(0)
    paths = {s: write_volume(tmp_path / "in" / s / name, image) for s, image in images.items()}
    roi = write_volume(tmp_path / "roi.nii.gz", (labels > 0).astype(np.uint8) * 5)
    return {"images": {s: str(path) for s, path in paths.items()}, "roi": str(roi)}


def test_files_of_one_name_get_results_and_digests_of_their_own(tmp_path):
    fields = of_files(tmp_path)
    out = run(tmp_path / "out", **fields) / "image" / "sample_000"
    roi = stored(Path(fields["roi"])) > 0
    for name, image in make_arrays(0)[0].items():
        after = stored(out / f"image-{name}-inpainted.nii.gz")
        np.testing.assert_array_equal(after[~roi], image[~roi])
    inputs = json.loads((out / "provenance.json").read_text())["inputs"]
    assert set(inputs) == {"roi.nii.gz", *(f"{name}/image.nii.gz" for name in SUFFIXES)}
    assert len(set(inputs.values())) == 5


def test_an_roi_named_like_an_image_hides_no_change_of_it(tmp_path):
    fields = of_files(tmp_path)
    roi = tmp_path / "drawn" / "image.nii.gz"
    roi.parent.mkdir()
    Path(fields["roi"]).rename(roi)
    run(tmp_path / "out", **{**fields, "roi": str(roi)})
    image = Path(fields["images"]["t1"])
    write_volume(image, stored(image)[::-1].copy())
    with pytest.raises(ValueError, match=r"another request.*inputs"):
        run(tmp_path / "out", **{**fields, "roi": str(roi)})


def test_a_case_of_files_with_its_segmentation_is_that_of_the_folder(source, tmp_path):
    paths = {name: str(source / f"{SUBJECT}{end}.nii.gz") for name, end in SUFFIXES.items()}
    paths["seg"] = str(source / f"{SUBJECT}_seg.nii.gz")
    run(tmp_path / "folder", **of_case(source))
    run(tmp_path / "files", **{**of_case(source), "source": "", "images": paths})
    written = sorted((tmp_path / "folder" / SUBJECT / "sample_000").glob("*.nii.gz"))
    assert len(written) > 4
    for path in written:
        other = tmp_path / "files" / SUBJECT / "sample_000" / path.name
        np.testing.assert_array_equal(stored(other), stored(path), path.name)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"convention": ""}, "convention has to say whose numbers .*_seg.nii.gz holds"),
        ({"convention": "brats201"}, r"unknown convention .*; did you mean brats2021\?"),
        ({"convention": "brats2023"}, r"_seg.nii.gz: holds the labels \[4\]"),
        ({"tumor": "", "roi": "roi.nii.gz"}, "images.seg is a case's own segmentation"),
        ({"images": {"seg": ""}}, "tumor needs a segmentation: .*seg=FILE"),
        ({"images": {"seg": ""}, "tumor": "", "roi": "r.nii"}, "convention is that of a folder"),
        ({"images": {"seg": "T1"}}, "is given for t1 and for seg"),
    ],
)
def test_segmentations_of_files_refused(source, tmp_path, change, sentence):
    paths = {name: str(source / f"{SUBJECT}{end}.nii.gz") for name, end in SUFFIXES.items()}
    paths["seg"] = str(source / f"{SUBJECT}_seg.nii.gz")
    paths |= {k: v.replace("T1", paths["t1"]) for k, v in change.get("images", {}).items()}
    fields = {**of_case(source), "source": "", **change, "images": paths}
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path / "out", **fields)
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_one_file_for_two_sequences_is_refused(tmp_path):
    fields = of_files(tmp_path)
    fields["images"]["t2"] = fields["images"]["t1"]
    with pytest.raises(ValueError, match="is given for t1 and for t2"):
        run(tmp_path / "out", **fields)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "subject"),
    [
        (("sub-01_t1", "sub-01_t1ce", "sub-01_t2", "sub-01_flair"), "sub-01"),
        (("x_t1", "x_t1ce"), "x"),
        (("t1", "t1ce", "t2", "flair"), "t1"),
        (("scan.1-t1", "scan.1-t1ce", "scan.1-t2"), "scan.1"),
    ],
)
def test_a_case_is_named_by_what_its_files_have_in_common(tmp_path, names, subject):
    given = dict(zip(("t1", "t1ce", "t2", "flair"), names, strict=False))
    # In another order: of a config the fields come sorted, FLAIR first.
    paths = {
        s: str(write_volume(tmp_path / f"{n}.nii.gz", make_arrays(0)[0][s]))
        for s, n in given.items()
    }
    assert named_files(dict(sorted(paths.items()))).subject == subject


def test_without_a_convention_a_segmentation_is_no_sequence(source):
    paths = {
        "t1": str(source / f"{SUBJECT}_t1.nii.gz"),
        "seg": str(source / f"{SUBJECT}_seg.nii.gz"),
    }
    with pytest.raises(
        ValueError, match=r"images \['t1', 'seg'\]: name files of t1, t1ce, t2, flair"
    ):
        case_of(paths)
    assert named_files(paths, "brats2021").segmentation == source / f"{SUBJECT}_seg.nii.gz"

"""Any orientation on disk gives the same case and the same records."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from synthetic_cases import AFFINE, SUFFIXES, write_case, write_volume

from tfds_brats.cases import read_case
from tfds_brats.records import encode_case
from tfds_brats.search import find_cases

SUBJECT = "BraTS2021_00000"
ORIENTATIONS = [
    "".join(codes)
    for axes in itertools.permutations(["LR", "PA", "SI"])
    for codes in itertools.product(*axes)
]


def reorient(folder: Path, axcodes: str, target: Path) -> None:
    for path in folder.iterdir():
        image = nib.load(path)
        change = ornt_transform(io_orientation(image.affine), axcodes2ornt(axcodes))
        nib.save(image.as_reoriented(change), target / path.name)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = write_case(tmp_path_factory.mktemp("reference"), SUBJECT, seed=5)
    (files,) = find_cases(folder, "brats2021")
    return folder, read_case(files)


def test_there_are_48():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_the_48_reorientations_give_identical_records(reference, tmp_path, axcodes):
    folder, expected = reference
    reorient(folder, axcodes, tmp_path)
    on_disk = nib.load(tmp_path / f"{SUBJECT}_t1.nii.gz")
    assert "".join(nib.aff2axcodes(on_disk.affine)) == axcodes
    (files,) = find_cases(tmp_path, "brats2021")
    case = read_case(files)
    for sequence in SUFFIXES:
        np.testing.assert_array_equal(case.images[sequence], expected.images[sequence])
    np.testing.assert_array_equal(case.labels, expected.labels)
    np.testing.assert_allclose(case.affine, expected.affine, atol=1e-6)
    np.testing.assert_array_equal(
        apply_orientation(case.images["t1"], case.to_disk), np.asanyarray(on_disk.dataobj)
    )
    new, old = encode_case(case), encode_case(expected)
    assert new.digest == old.digest
    for new_record, old_record in zip(new.records, old.records, strict=True):
        for name, value in old_record.items():
            np.testing.assert_array_equal(new_record[name], value)


def test_axes_run_to_left_posterior_superior(reference):
    """World coordinates are RAS, so the first two LPS axes run against them."""
    _, case = reference
    np.testing.assert_array_equal(np.sign(np.diag(case.affine)[:3]), [-1, -1, 1])
    np.testing.assert_array_equal(case.affine, AFFINE)


@pytest.mark.parametrize("degrees", [-30, 10, 35])
def test_an_oblique_volume_takes_the_nearest_orientation(tmp_path, degrees):
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    straight = write_case(tmp_path / "straight", SUBJECT)
    (tmp_path / "oblique").mkdir()
    reorient(straight, "ASR", tmp_path / "oblique")
    for path in (tmp_path / "oblique").iterdir():
        image = nib.load(path)
        write_volume(path, np.asanyarray(image.dataobj), turn @ image.affine)
    (expected,) = find_cases(straight, "brats2021")
    (oblique,) = find_cases(tmp_path / "oblique", "brats2021")
    np.testing.assert_array_equal(read_case(oblique).images["t2"], read_case(expected).images["t2"])
    np.testing.assert_allclose(read_case(oblique).affine, turn @ AFFINE, atol=1e-5)
    assert read_case(oblique).spacing == pytest.approx((1, 1, 1))

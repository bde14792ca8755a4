"""What headers say: units, spacings, forms that contradict each other; and files that are not NIfTI."""

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from synthetic_cases import AFFINE, SHAPE, SUFFIXES, make_arrays, write_case, write_volume

from tfds_brats.cases import read_case
from tfds_brats.conventions import CaseError
from tfds_brats.search import find_cases
from tfds_brats.sources import _content
from tfds_brats.volumes import read_geometry, read_volume

SUBJECT = "BraTS2021_00001"
ARRAY = make_arrays(0)[0]["t1"]


def save(path: Path, affine=AFFINE, qform=None, unit="mm", pixdim=None, array=ARRAY) -> Path:
    """A NIfTI file with an sform and whatever else its header says."""
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, 2)
    image.set_qform(affine if qform is None else qform, 1)
    image.header.set_xyzt_units(unit)
    content = bytearray(image.to_bytes())
    if pixdim is not None:
        content[80:92] = np.asarray(pixdim, "<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def shifted(distance) -> np.ndarray:
    affine = AFFINE.copy()
    affine[2, 3] += distance
    return affine


def turned(degrees) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ AFFINE


def test_a_shifted_qform_is_a_warning(tmp_path):
    volume = read_volume(save(tmp_path / "a.nii.gz", qform=shifted(-70.5)))
    np.testing.assert_allclose(volume.affine, AFFINE)
    assert "qform and sform differ by 70.5 mm" in volume.warnings[0]
    assert read_volume(save(tmp_path / "b.nii.gz", qform=shifted(1e-3))).warnings == ()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"qform": turned(5)}, "axes of qform and sform differ"),
        ({"qform": np.diag([1, -1, 1, 1]) @ AFFINE}, "axes of qform and sform differ"),
        ({"pixdim": [0.5, 0.5, 2]}, r"0\.5 x 0\.5 x 2 mm \(pixdim\), but of 1 x 1 x 1 mm"),
        ({"pixdim": [1, 1, 1.5]}, r"1 x 1 x 1\.5 mm \(pixdim\)"),
        ({"affine": np.diag([0.01, 0.01, 0.01, 1])}, "voxels are 0.01 x 0.01 x 0.01 mm"),
        ({"affine": np.diag([1, 1, 40, 1])}, "voxels are 1 x 1 x 40 mm"),
        # Numbers in mm, said to be meters.
        ({"unit": "meter"}, "voxels are 1000 x 1000 x 1000 mm.*meters, is that right"),
    ],
)
def test_contradictions_and_absurd_sizes_are_errors(tmp_path, options, sentence):
    path = save(tmp_path / "a.nii.gz", **options)
    for read in (read_volume, read_geometry):
        with pytest.raises(CaseError, match=f"a.nii.gz: .*{sentence}"):
            read(path)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("micron", 1e3), ("unknown", 1)])
def test_units_are_honored(tmp_path, unit, factor):
    affine = AFFINE.copy()
    affine[:3] *= factor
    path = save(tmp_path / "a.nii.gz", affine, unit=unit)
    np.testing.assert_allclose(read_volume(path).affine, AFFINE, atol=1e-4)
    np.testing.assert_allclose(read_geometry(path)[1], AFFINE, atol=1e-4)


def test_axes_of_length_one_are_dropped(tmp_path):
    folder = write_case(tmp_path, SUBJECT)
    (files,) = find_cases(tmp_path, "brats2021")
    expected = read_case(files)
    for path in folder.iterdir():
        image = nib.load(path)
        write_volume(path, np.asanyarray(image.dataobj)[..., None, None], image.affine)
    case = read_case(files)
    for name in SUFFIXES:
        np.testing.assert_array_equal(case.images[name], expected.images[name])
    np.testing.assert_array_equal(case.labels, expected.labels)
    assert read_geometry(files.images["t1"])[0] == SHAPE


def test_the_content_says_whether_a_file_is_compressed(tmp_path):
    plain = write_volume(tmp_path / "plain.nii", ARRAY)
    misnamed = tmp_path / "misnamed.nii.gz"
    shutil.copy(plain, misnamed)
    packed = tmp_path / "packed.nii"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for path in (misnamed, packed):
        np.testing.assert_array_equal(read_volume(path).data, read_volume(plain).data)
    # The identity of a source is that of all bytes, not of the last ones, which are background.
    other = tmp_path / "other.nii.gz"
    content = bytearray(plain.read_bytes())
    content[len(content) // 2] ^= 1
    other.write_bytes(content)
    assert _content(other, whole=True) != _content(misnamed, whole=True)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.nii.gz", b"/annex/objects/MD5E-s1--0.nii.gz\n", "git annex get"),
        ("a.mgz", b"x", "mri_convert"),
        ("a.hdr", b"x", "Analyze or a NIfTI pair"),
        ("a.img.gz", b"x", "Analyze or a NIfTI pair"),
        ("a.nrrd", b"NRRD0004\n", "NRRD; save it as NIfTI"),
        ("a.dcm", b"x", "dcm2niix"),
        ("a.nii", b"", "is empty"),
    ],
)
def test_other_files_are_named_with_the_way_out(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CaseError, match=f"{name}: .*{sentence}"):
        read_volume(tmp_path / name)


def test_links_without_content_are_named(tmp_path):
    annexed = tmp_path / "a.nii.gz"
    annexed.symlink_to("../.git/annex/objects/x/MD5E-s1--0.nii.gz/MD5E-s1--0.nii.gz")
    with pytest.raises(CaseError, match=r"a\.nii\.gz: is a git-annex link.*git annex get"):
        read_volume(annexed)
    broken = tmp_path / "b.nii.gz"
    broken.symlink_to(tmp_path / "nowhere.nii.gz")
    with pytest.raises(CaseError, match=r"b\.nii\.gz: is a link to .*nowhere"):
        read_volume(broken)


def test_nan_is_counted_and_located(tmp_path):
    array = np.where(ARRAY == 0, np.nan, ARRAY.astype(np.float32))
    path = save(tmp_path / "a.nii.gz", array=array)
    count = np.isnan(array).sum()
    with pytest.raises(CaseError, match=rf"{count} of {array.size} voxels.*background.*nan_to_num"):
        read_volume(path)


def test_a_background_that_is_not_zero_names_the_file(tmp_path):
    folder = write_case(tmp_path, SUBJECT)
    path = folder / f"{SUBJECT}_t2.nii.gz"
    array = np.asanyarray(nib.load(path).dataobj)
    write_volume(path, np.where(array == 0, -1024, array).astype(np.int16))
    (files,) = find_cases(tmp_path, "brats2021")
    with pytest.raises(CaseError, match=r"is zero in \S*_t2\.nii\.gz \(corner -1024"):
        _ = read_case(files).brain

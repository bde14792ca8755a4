"""Label maps and results in the geometry of their inputs; painted numbers in their data types."""

import nibabel as nib
import numpy as np
import pytest
from synthetic_cases import AFFINE, make_arrays

from mbti_jax.io.nifti import write_label_map, write_nifti_like
from mbti_jax.io.quantize import quantize
from tfds_brats.volumes import read_volume

GEOMETRY = [
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "xyzt_units"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
]
ARRAY = make_arrays(0)[0]["t1"]


@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 0), (0, 1), (4, 2)])
@pytest.mark.parametrize(("unit", "shift"), [("mm", 0), ("meter", 0), ("unknown", -70.5)])
def test_label_maps_carry_the_geometry_as_it_is(tmp_path, image_class, sform, qform, unit, shift):
    affine = AFFINE.copy()
    affine[:3] *= 1e-3 if unit == "meter" else 1
    moved = affine.copy()
    moved[2, 3] += shift
    image = image_class(ARRAY, affine)
    image.set_sform(affine, sform)
    image.set_qform(moved if sform else affine, qform)
    image.header.set_xyzt_units(unit)
    source = tmp_path / "image.nii.gz"
    nib.save(image, source)
    volume = read_volume(source)
    labels = (volume.data > 500).astype(np.uint8)
    write_label_map(tmp_path / "labels.nii.gz", labels, source)
    written, before = nib.load(tmp_path / "labels.nii.gz"), nib.load(source).header
    assert isinstance(written, image_class) and written.get_data_dtype() == np.uint8
    for name in GEOMETRY:
        np.testing.assert_array_equal(written.header[name], before[name], err_msg=name)
    assert written.shape == ARRAY.shape
    np.testing.assert_array_equal(read_volume(tmp_path / "labels.nii.gz").data, labels)


def test_a_file_with_an_axis_of_length_one_keeps_it(tmp_path):
    source = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(ARRAY[..., None], AFFINE), source)
    roi = np.zeros(ARRAY.shape, bool)
    roi[5:8, 6:9, 2] = True
    painted = {None: np.full(ARRAY.shape, 77.0)}
    write_nifti_like(source, tmp_path / "out.nii", painted, roi)
    written = np.asarray(nib.load(tmp_path / "out.nii").dataobj)
    np.testing.assert_array_equal(written, np.where(roi, 77, ARRAY)[..., None])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int16, np.uint8, np.int64])
def test_numbers_are_clipped_to_what_is_finite_in_the_type(dtype):
    limits = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    values = np.array([0.0, 1e300, -1e300, 3.0])
    painted, clipped = quantize(values, dtype)
    assert clipped == 2 and painted.dtype == dtype and np.isfinite(painted).all()
    np.testing.assert_array_equal(painted[[0, 3]], [0, 3])
    assert painted[2] == limits.min and float(painted[1]) == pytest.approx(float(limits.max))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            quantize(np.array([bad]), dtype)

"""Damaged inputs: a clear ValueError or a readable result, never another exception."""

import gzip
import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from synthetic_cases import AFFINE, make_arrays, write_volume
from tiny_inpainter import make_slice

from mbti_jax.inference import inputs
from mbti_jax.inference.requests import is_done
from mbti_jax.io import slices
from mbti_jax.rois.given import to_masks
from mbti_jax.rois.kinds import ROI_LABELS
from tfds_brats.cases import read_case

PER_KIND = 130


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, with bits flipped, bytes overwritten (mostly near the head), or with a part left out."""
    kind = rng.integers(4)
    data = bytearray(content)
    # Headers are where damage hurts.
    reach = len(data) if rng.random() < 0.4 else min(len(data), 352)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    for position in rng.integers(0, reach, rng.integers(1, 8)):
        if kind == 1:
            data[position] ^= 1 << rng.integers(8)
        elif kind == 2:
            data[position : position + 4] = rng.bytes(4)
        else:
            del data[position : position + rng.integers(1, 9)]
    return bytes(data)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_volumes(tmp_path, ending):
    images, labels = make_arrays(0)
    good = write_volume(tmp_path / f"t1{ending}", images["t1"])
    case = read_case(inputs.named_files({"t1": str(good)}), ("t1",), labels=False)
    roi = nib.Nifti1Image((labels > 0).astype(np.uint8), AFFINE).to_bytes()
    bad_roi, bad_image = tmp_path / "roi.nii", tmp_path / f"bad{ending}"
    rng, refused = np.random.default_rng(0), 0
    for _ in range(PER_KIND):
        bad_roi.write_bytes(damaged(roi, rng))
        bad_image.write_bytes(damaged(good.read_bytes(), rng))
        try:
            rois = inputs.read_roi_volume(bad_roi, case, ROI_LABELS)
            assert rois.masks.shape == (*labels.shape[::-1], 5) and rois.masks.any()
        except ValueError as error:
            assert "roi.nii" in str(error)
            refused += 1
        try:
            files = inputs.named_files({"t1": str(bad_image)})
            read_case(files, ("t1",), labels=False).scale("t1")
        except ValueError as error:
            assert "bad" in str(error)
            refused += 1
    assert refused > PER_KIND / 4


@pytest.mark.parametrize("ending", [".png", ".npy"])
def test_slices(tmp_path, ending):
    image = make_slice(dtype=np.uint16)
    content = io.BytesIO()
    if ending == ".png":
        Image.fromarray(image).save(content, format="PNG")
    else:
        np.save(content, image)
    path = tmp_path / f"slice{ending}"
    rng, refused = np.random.default_rng(0), 0
    for _ in range(PER_KIND):
        path.write_bytes(damaged(content.getvalue(), rng))
        try:
            assert slices.read_slice(path).size
            to_masks(slices.read_roi(path), image.shape)
        except ValueError:
            refused += 1
    assert refused > PER_KIND / 4


def test_records(tmp_path):
    path = tmp_path / "provenance.json"
    content = b'{"synthetic": true, "request": {"seed": 3, "inputs": {"t1": "ab"}}}'
    request = {"seed": 3, "inputs": {"t1": "ab"}}
    path.write_bytes(content)
    assert is_done(path, request)
    rng = np.random.default_rng(0)
    for _ in range(PER_KIND):
        path.write_bytes(damaged(content, rng))
        try:
            assert is_done(path, request)
        except ValueError as error:
            assert "provenance.json" in str(error)


def test_a_small_file_cannot_unpack_to_a_large_one(tmp_path):
    images, _ = make_arrays(0)
    content = nib.Nifti1Image(images["t1"], AFFINE).to_bytes()
    path = tmp_path / "t1.nii.gz"
    path.write_bytes(gzip.compress(content + bytes(2**26)))
    assert path.stat().st_size < 2**18
    files = inputs.named_files({"t1": str(path)})
    with pytest.raises(ValueError, match=r"t1\.nii\.gz: holds more than the \d+ bytes"):
        read_case(files, ("t1",), labels=False)


def test_a_header_cannot_promise_more_than_the_memory_holds(tmp_path):
    image = nib.Nifti1Image(np.zeros((1, 1, 1), np.int16), AFFINE)
    image.header.set_data_shape((4000, 4000, 4000))
    path = tmp_path / "t1.nii.gz"
    path.write_bytes(gzip.compress(image.header.binaryblock + bytes(2**12)))
    with pytest.raises(ValueError, match=r"t1\.nii\.gz: .*shape is \(4000, 4000, 4000\)"):
        inputs.named_files({"t1": str(path)})

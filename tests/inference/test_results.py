"""What an `Inpainter` returns: how it shows and saves itself; paths and nibabel images in and out."""

import doctest
import io
import json
import re

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from synthetic_cases import AFFINE, SHAPE, make_arrays, write_volume
from tiny_inpainter import make_mask, make_slice, tiny_inpainter

from mbti_jax import Inpainter, Rois, Sampling
from mbti_jax.inference import inpainter as module
from mbti_jax.inference.inputs import case_of
from tfds_brats.slices import from_slices, to_slices

SAMPLING = Sampling(num_steps=2)
T1 = ("t1",)


@pytest.fixture(scope="module")
def painted():
    image, mask = make_slice(channels=4), make_mask()
    result = tiny_inpainter(4).inpaint(image, {"edema": mask}, SAMPLING, num_samples=2)
    return image, mask, result


def test_a_slice_says_and_shows_what_it_is(painted):
    _, mask, result = painted
    assert repr(result) == (
        f"InpaintedSlice(2 samples, 40 x 36 x 4 int16: edema of {mask.sum()} pixels)"
    )
    html = result._repr_html_()
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert "edema of" in html and len(picture) > 1000
    with Image.open(io.BytesIO(result.picture())) as shown:
        assert shown.format == "PNG" and min(shown.size) > 300


def test_a_slice_shows_itself_at_a_prompt(painted, monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda image: shown.append(image.size))
    painted[2].show()
    assert len(shown) == 1


def test_a_slice_saves_itself(painted, tmp_path):
    image, mask, result = painted
    assert result.save(tmp_path / "a.npy") == tmp_path / "a.npy"
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), result.images)
    result.save(str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    folder = result.save(tmp_path / "new" / "folder")
    assert sorted(path.name for path in folder.iterdir()) == [
        "inpainted.npy",
        "labels.npy",
        "preview.png",
        "provenance.json",
        "std.npy",
    ]
    for saved in np.load(folder / "inpainted.npy"):
        np.testing.assert_array_equal(saved[~mask], image[~mask])
    assert json.loads((folder / "provenance.json").read_text()) == result.provenance
    for taken in (folder, (tmp_path / "a.npy").rename(tmp_path / "file")):
        with pytest.raises(FileExistsError, match="is there already; choose another folder"):
            result.save(taken)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A T1 volume with a scaling of its own in an orientation of its own, and a mask on its grid."""
    folder = tmp_path_factory.mktemp("files")
    images, _ = make_arrays(0)
    path = write_volume(folder / "t1.nii.gz", images["t1"])
    mask = np.zeros(SHAPE, np.uint8)
    mask[6:10, 6:9, 2:4] = 255
    return path, write_volume(folder / "mask.nii.gz", mask), mask > 0


def stored(image) -> np.ndarray:
    return np.asarray(
        image.dataobj.get_unscaled() if nib.is_proxy(image.dataobj) else image.dataobj
    )


def test_a_volume_of_paths_images_and_arrays_becomes_the_same_images(files):
    path, mask_path, inside = files
    paint, options = tiny_inpainter().inpaint_volume, {"sequences": T1}
    (first,) = paint({"t1": path}, {"edema": mask_path}, SAMPLING, **options)
    before, after = nib.load(path), first.images["t1"]
    assert isinstance(after, nib.Nifti1Image)
    assert after.header.binaryblock == before.header.binaryblock
    np.testing.assert_array_equal(stored(after)[~inside], stored(before)[~inside])
    assert (stored(after)[inside] != stored(before)[inside]).any()
    np.testing.assert_array_equal(stored(first.nifti.rois), 2 * inside)
    np.testing.assert_array_equal(stored(first.nifti.labels), 2 * inside)
    # Made in memory, without a file.
    image = nib.Nifti1Image(stored(before), before.affine)
    ones = nib.Nifti1Image(inside.astype(np.uint8), before.affine)
    array = to_slices(np.asarray(case_of({"t1": path}).values("t1")))
    region = np.zeros(array.shape, bool)
    region[first.rois.union] = True
    for case, rois in (
        ({"t1": image}, {"edema": ones}),
        ({"t1": before}, {"edema": region}),
        (case_of({"t1": str(path)}), Rois.of({"edema": region}, region.shape)),
        ({"t1": path}, nib.Nifti1Image(2 * inside.astype(np.uint8), before.affine)),
    ):
        (other,) = paint(case, rois, SAMPLING, **options)
        np.testing.assert_array_equal(stored(other.images["t1"]), stored(after))
    assert from_slices(region).shape == SHAPE


def test_a_volume_says_shows_and_saves_itself(files, tmp_path):
    path, mask_path, inside = files
    results = tiny_inpainter().inpaint_volume(
        {"t1": path}, {"edema": mask_path}, SAMPLING, sequences=T1, samples=(0, 1)
    )
    assert isinstance(results, list)
    result, other = results
    words = f"InpaintedVolume(t1, t1; 2 slices: edema of {inside.sum()} voxels)"
    assert (repr(result), repr(results)) == (words, f"[{words}, ... 2 in all]")
    assert "base64" in result._repr_html_()
    assert results._repr_html_() == result._repr_html_() + other._repr_html_()
    folder = result.save(tmp_path / "out")
    written = nib.load(folder / "t1-inpainted.nii.gz")
    np.testing.assert_array_equal(stored(written), stored(result.images["t1"]))
    record = json.loads((folder / "provenance.json").read_text())
    assert record["synthetic"] is True and record["slices"] == [2, 3]
    assert (folder / "preview.png").is_file() and (folder / "rois.nii.gz").is_file()


def test_what_is_no_volume_or_lies_elsewhere_is_refused(files):
    path, _, inside = files
    paint = tiny_inpainter().inpaint_volume
    with pytest.raises(ValueError, match="t1 is ndarray; a path or a NIfTI image is needed"):
        paint({"t1": np.zeros(SHAPE)}, {"edema": inside})
    with pytest.raises(ValueError, match="the case is given as PosixPath; give"):
        paint(path, {"edema": inside})
    elsewhere = AFFINE.copy()
    elsewhere[0, 3] += 5
    shifted = nib.Nifti1Image(inside.astype(np.uint8), elsewhere)
    with pytest.raises(ValueError, match="its affine differs"):
        paint({"t1": path}, {"edema": shifted}, sequences=T1)
    with pytest.raises(ValueError, match="unknown ROI 'oedema'"):
        paint({"t1": path}, {"oedema": shifted}, sequences=T1)
    air = np.zeros(SHAPE[::-1], bool)
    air[2, :2, :2] = True
    with pytest.raises(ValueError, match="edema lies wholly outside of the brain"):
        paint({"t1": path}, {"edema": air}, sequences=T1)
    with pytest.raises(ValueError, match="edema lies wholly outside of the brain"):
        tiny_inpainter(4).inpaint(make_slice(channels=4), {"edema": make_mask(box=(0, 0, 3, 3))})


def test_an_unknown_argument_is_answered_with_the_nearest_name(painted):
    image, mask, _ = painted
    with pytest.raises(TypeError, match=r"'num_smaples'; did you mean num_samples\?"):
        tiny_inpainter(4).inpaint(image, {"edema": mask}, num_smaples=2)
    with pytest.raises(TypeError, match=r"'sequnces'; did you mean sequences\?"):
        tiny_inpainter().inpaint_volume({}, {}, sequnces=T1)
    with pytest.raises(TypeError, match=r"'guidence'; did you mean guidance\?"):
        Sampling(guidence=2.0)
    with pytest.raises(TypeError, match=r"'batchsize'; did you mean batch_size\?"):
        Inpainter.load("phantom", batchsize=1)
    with pytest.raises(TypeError, match=r"'boxx'; did you mean box\?"):
        Rois.of({"edema": mask}, mask.shape, boxx=("edema",))
    with pytest.raises(TypeError, match=r"'boxes'; did you mean box\?"):
        Rois(np.zeros((2, 2, 5)), boxes=("edema",))
    with pytest.raises(TypeError, match="arguments are num_steps, sampler"):
        Sampling(zzz=1)


def test_the_example_of_the_docstring_runs(monkeypatch):
    """With a tiny network; tests/inference/test_pretrained.py has the bundled one."""
    monkeypatch.setattr(module.Inpainter, "load", lambda *_: tiny_inpainter(4))
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    (example,) = finder.find(module.Inpainter, "Inpainter", globs={})
    runner.run(example)
    assert runner.summarize() == (0, len(example.examples)) and len(example.examples) > 8

"""What the web page takes in: files, their sequences, limits, errors."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from synthetic_cases import AFFINE, make_arrays, write_case, write_volume
from tiny_inpainter import make_mask, make_slice, tiny_inpainter
from web_sessions import LIMITS, SUBJECT, load, run

from mbti_jax import Sampling
from mbti_jax.web.loading import load_files
from mbti_jax.web.uploads import Limits, copy_in, memory_needed


def test_the_sequences_of_a_case_by_a_convention(case_files, tmp_path):
    session = load(case_files, tmp_path, "brats2021")
    images, _ = make_arrays(0)
    assert session.name == SUBJECT and session.sequences == ("t1", "t1ce", "t2", "flair")
    for name, image in images.items():
        # Written in LPS, so radiological is a matter of axes: rows run along y, columns along x.
        np.testing.assert_array_equal(session.volumes[name], image.transpose(2, 1, 0))


def test_the_sequences_of_a_case_by_name(case_files, tmp_path):
    images, _ = make_arrays(0)
    session = load([case_files[3], case_files[0]], tmp_path, sequences=["flair", "t1"])
    assert session.sequences == ("t1", "flair")
    np.testing.assert_array_equal(session.volumes["flair"], images["flair"].transpose(2, 1, 0))


def test_the_patients_right_is_on_the_left_however_the_file_is_stored(tmp_path):
    """RAS storage runs from the patient's left to right and from back to front: both are turned."""
    images, _ = make_arrays(0)
    turned = AFFINE.copy()
    turned[:2] *= -1
    turned[:2, 3] = 0
    path = write_volume(tmp_path / "t1.nii", images["t1"], turned)
    session = load([path], tmp_path, sequences=["t1"])
    assert "".join(nib.aff2axcodes(turned)) == "RAS"
    np.testing.assert_array_equal(
        session.volumes["t1"], images["t1"][::-1, ::-1].transpose(2, 1, 0)
    )


def test_one_picture(png, tmp_path):
    session = load([png], tmp_path)
    assert session.shape == (1, 40, 36) and session.sequences == ("slice",)
    np.testing.assert_array_equal(session.volumes["slice"][0], make_slice())


def test_the_model_is_the_first_that_can_paint_what_is_there(case_files, png, tmp_path):
    """A page with the two bundled models, here by tiny ones."""
    joint, single = models = [tiny_inpainter(4), tiny_inpainter()]

    def model_of(paths, convention="", sequences=()):
        root = tmp_path / "sessions"
        return load_files(paths, convention, sequences, models, root, LIMITS).inpainter

    pictures, by_name = pictures_of(tmp_path, ("t1", "t1ce", "t2", "flair"))
    np.save(tmp_path / "stack.npy", make_slice(channels=4))
    assert model_of(case_files, "brats2021") is model_of([tmp_path / "stack.npy"]) is joint
    assert model_of(pictures, sequences=list(by_name)) is joint
    assert model_of([png]) is model_of(case_files[3:], sequences=["flair"]) is single
    assert model_of(case_files[1:3], sequences=["t2", "t1"]) is single
    assert model_of(pictures[:2], sequences=["t2", "t1"]) is single
    # What is one array stays in its order.
    with pytest.raises(
        ValueError, match=r"in this order; the channels of stack\.npy are said to be flair"
    ):
        model_of([tmp_path / "stack.npy"], sequences=["flair", "t2", "t1ce", "t1"])


def test_uploads_are_copied_and_go_with_the_session(png, tmp_path):
    session = load([png], tmp_path)
    copy = session.files[0]
    assert copy != png and copy.read_bytes() == png.read_bytes()
    session.close()
    assert not session.folder.exists() and png.exists()


def test_what_is_refused(case_files, png, tmp_path):
    def refused(*arguments, **settings):
        paths, *convention = arguments
        with pytest.raises(ValueError) as error:
            load(paths, tmp_path, *convention, **settings)
        assert str(tmp_path) not in str(error.value), "the server's folders are nobody's business"
        sessions = tmp_path / "sessions"
        assert not sessions.exists() or not list(sessions.iterdir()), "something was left behind"
        return str(error.value)

    assert "choose a file" in refused([])
    assert "which sequence each file is" in refused(case_files)
    assert "which sequence each file is" in refused(case_files, sequences=["t1"])
    assert "twice" in refused(case_files[:2], sequences=["t1", "t1"])
    assert "not both" in refused(case_files, convention="brats2021", sequences=["t1"])
    assert "the upload: no case of convention brats2023" in refused(case_files, "brats2023")
    assert "do not make one case" in refused([png, case_files[0]])
    assert refused([png, *_copies(png, tmp_path, "other.png")]).endswith("slice.png, other.png)")
    assert "which sequence the file is (" in refused(case_files[:1])
    seg = write_case(tmp_path / "alone", SUBJECT) / f"{SUBJECT}_seg.nii.gz"
    assert refused([seg], "brats2021").startswith("the upload: ")
    assert "unknown convention" in refused(case_files, convention="brats1066")
    assert "of a kind that is not read" in refused(_copies(png, tmp_path, "slice.jpg"))
    other = write_case(tmp_path / "in", "BraTS2021_00002", seed=2)
    both = [case_files[0], other / "BraTS2021_00002_t1.nii.gz"]
    assert "several cases" in refused(both, convention="brats2021")


def _copies(path, tmp_path, name):
    (tmp_path / name).write_bytes(path.read_bytes())
    return [tmp_path / name]


def pictures_of(tmp_path, names, shape=(40, 36)):
    """A PNG for each sequence, all different."""
    image = make_slice(shape, channels=len(names), dtype=np.uint16)
    paths = []
    for c in range(len(names)):
        paths.append(tmp_path / f"picture {c}.png")
        Image.fromarray(image[..., c]).save(paths[-1])
    return paths, dict(zip(names, np.moveaxis(image, -1, 0), strict=True))


def test_pictures_of_the_sequences_of_one_slice(tmp_path):
    names = ("flair", "t1", "t2", "t1ce")
    paths, images = pictures_of(tmp_path, names)
    inpainter = tiny_inpainter(4)
    session = load(paths, tmp_path, sequences=names, inpainter=inpainter)
    assert session.sequences == inpainter.sequences
    for name, volume in session.volumes.items():
        np.testing.assert_array_equal(volume[0], images[name])
    labels = make_mask().astype(np.uint8) * 2
    session.paint(0, labels, ())
    result = run(session, inpainter=inpainter)
    written = {path.name: path for path in result.files[0]}
    stacked = np.stack([images[name] for name in inpainter.sequences], -1)
    sampling = Sampling(2, seed=3, guidance=0.4)
    expected = inpainter.inpaint(stacked, labels, sampling, num_samples=2)
    for c, name in enumerate(inpainter.sequences):
        path = written[f"picture {names.index(name)}-inpainted.png"]
        np.testing.assert_array_equal(np.array(Image.open(path)), expected.images[0][..., c])


def test_pictures_that_make_no_slice(tmp_path):
    def refused(paths, names, model):
        with pytest.raises(ValueError) as error:
            load(paths, tmp_path, sequences=names, inpainter=model)
        return str(error.value)

    paths, _ = pictures_of(tmp_path, ("t1", "t2"))
    four = tiny_inpainter(4)
    assert "paints t1, t1ce, t2, flair of a slice jointly" in refused(paths, ("t1", "t2"), four)
    assert "a picture of each" in refused(paths[:1], (), four)
    assert "not trained on adc" in refused(paths, ("t1", "adc"), tiny_inpainter())
    Image.fromarray(make_slice((40, 30), dtype=np.uint16)).save(paths[1])
    text = refused(paths, ("t1", "t2"), tiny_inpainter())
    assert "picture 1.png: holds (40, 30) uint16, but picture 0.png (40, 36)" in text


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_slice_that_is_not_finite(tmp_path, value):
    image = make_slice(dtype=np.float32)
    image[20, 18] = value
    np.save(tmp_path / "slice.npy", image)
    with pytest.raises(ValueError, match="NaN or infinite"):
        load([tmp_path / "slice.npy"], tmp_path)


def test_constant_and_colored_pictures(tmp_path):
    Image.fromarray(np.full((40, 36), 7, np.uint8)).save(tmp_path / "flat.png")
    with pytest.raises(ValueError, match="constant"):
        load([tmp_path / "flat.png"], tmp_path)
    color = np.zeros((40, 36, 3), np.uint8)
    color[10:20, 10:20, 0] = 200
    Image.fromarray(color).save(tmp_path / "color.png")
    with pytest.raises(ValueError, match=r"color\.png: .*not gray"):
        load([tmp_path / "color.png"], tmp_path)


def test_a_volume_with_nan_or_a_truncated_one(case_files, tmp_path):
    images, _ = make_arrays(0)
    broken = images["t1"].astype(np.float32)
    broken[5, 5, 2] = np.nan
    path = write_volume(tmp_path / "nan.nii", broken)
    with pytest.raises(ValueError, match=r"^nan\.nii: holds NaN or infinite values in 1 of 2880"):
        load([path], tmp_path, sequences=["t1"])
    half = tmp_path / "half.nii.gz"
    content = case_files[0].read_bytes()
    half.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"^half\.nii\.gz: .*truncated"):
        load([half], tmp_path, sequences=["t1"])


def test_another_number_of_sequences_than_the_models(case_files, png, tmp_path):
    together = tiny_inpainter(4)
    with pytest.raises(ValueError, match="paints t1, t1ce, t2, flair of a slice jointly"):
        load([png], tmp_path, inpainter=together)
    with pytest.raises(ValueError, match="has no t1ce image"):
        load(case_files[:1], tmp_path, sequences=["t1"], inpainter=together)


def test_the_limits(case_files, png, tmp_path):
    def taken(path, **changes):
        limits = Limits(**{"upload_mb": 1, "volume_mb": 1, "pixels": 2000, "images": 8} | changes)
        return copy_in([path], tmp_path / "taken", limits)

    assert taken(png)
    with pytest.raises(ValueError, match="36 x 40 pixels; at most 100"):
        taken(png, pixels=100)
    # Three kilobytes that unpack to three megabytes, behind the header of a small volume.
    bomb = tmp_path / "bomb.nii.gz"
    bomb.write_bytes(gzip.compress(gzip.decompress(case_files[0].read_bytes()) + bytes(3_000_000)))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(ValueError, match="more than 1 MB after decompression"):
        taken(bomb)
    assert taken(bomb, volume_mb=4)
    large = tmp_path / "large.nii"
    large.write_bytes(bytes(2_100_000))
    with pytest.raises(ValueError, match="has 2 MB; at most 1 MB"):
        taken(large)
    with pytest.raises(ValueError, match="at most 8"):
        copy_in([png] * 9, tmp_path / "taken", LIMITS)
    with pytest.raises(ValueError, match="must be at least 1"):
        Limits(0, 1, 1, 1)


def test_a_large_slice_of_a_volume(case_files, tmp_path):
    small = Limits(5, 20, 24 * 20 - 1, 8)
    with pytest.raises(ValueError, match="at most 479"):
        load(case_files[:1], tmp_path, sequences=["t1"], limits=small)


def sparse(path, shape, dtype=np.uint8, slope=None):
    """A NIfTI file of zeros, which takes no room on disk."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(AFFINE, 1)
    if slope is not None:
        header["scl_slope"], header["scl_inter"] = slope, 0
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with path.open("wb") as file:
        file.write(header.binaryblock + bytes(4))
        file.truncate(352 + int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return path


LARGE = Limits(upload_mb=10**4, volume_mb=10**4, pixels=10**6, images=64)


def test_what_files_become_in_memory(tmp_path, monkeypatch):
    """3.6 MB of scaled bytes became 9.6 GB; now the header tells, and nothing is decoded."""
    monkeypatch.setattr("mbti_jax.web.loading.read_case", None)
    path = sparse(tmp_path / "scaled.nii", (1000, 1000, 480), slope=0.5)
    with pytest.raises(
        ValueError, match=r"^scaled\.nii: 1000 x 1000 x 480 with its ROIs becomes 8640 MB"
    ):
        load([path], tmp_path, sequences=["t1"], limits=LARGE)
    assert not list((tmp_path / "sessions").iterdir())


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_by_header(tmp_path, compressed):
    def needed(*files, memory_mb=1000):
        limits = Limits(10**4, 10**4, 10**6, 64, memory_mb)
        return memory_needed(list(files), limits)

    one = sparse(tmp_path / "a.nii", (100, 100, 50), np.int16)
    if compressed:
        one.with_suffix(".nii.gz").write_bytes(gzip.compress(one.read_bytes()))
        one = one.with_suffix(".nii.gz")
    voxels = 100 * 100 * 50
    # Float32, twelve bytes of masks, and the file and its array of 2 bytes while it is read.
    assert needed(one) == voxels * (4 + 12 + 2 * 2)
    four = [sparse(tmp_path / f"{n}.nii", (100, 100, 50), np.float64) for n in range(4)]
    assert needed(*four) == voxels * (4 * 4 + 12 + 2 * 8)
    with pytest.raises(ValueError, match=r"^0\.nii: 100 x 100 x 50 with 3 more becomes 22 MB"):
        needed(*four, memory_mb=21)
    # Four sequences in one file.
    assert needed(sparse(tmp_path / "msd.nii", (100, 100, 50, 4))) == voxels * (4 * 4 + 12 + 2 * 4)


def test_headers_of_what_is_not_taken(tmp_path):
    thin = sparse(tmp_path / "thin.nii", (1, 30_000, 5))
    limits = Limits(10**4, 10**4, 10**6, 64)
    with pytest.raises(ValueError, match=r"^thin\.nii: .*2000 on a side"):
        memory_needed([thin], limits)
    with pytest.raises(ValueError, match=r"^large\.nii: holds 16 MB of voxels; at most 1 MB"):
        memory_needed(
            [sparse(tmp_path / "large.nii", (100, 100, 200), np.int64)], Limits(9, 1, 10**6, 9)
        )
    np.save(tmp_path / "deep.npy", np.zeros((2, 2, 10**6), np.uint8))
    with pytest.raises(ValueError, match=r"^deep\.npy: 2 x 2 x 1000000 .*becomes 24 MB"):
        memory_needed([tmp_path / "deep.npy"], Limits(9, 9, 10**6, 9, 20))
    (tmp_path / "object.npy").write_bytes(b"\x93NUMPY\x01\x00nonsense")
    with pytest.raises(ValueError, match=r"^object\.npy: cannot be read"):
        memory_needed([tmp_path / "object.npy"], limits)


def test_scaled_images_are_float32(case_files, tmp_path):
    scaled = tmp_path / "scaled.nii"
    image = nib.Nifti1Image(nib.load(case_files[0]).get_fdata().astype(np.int16), AFFINE)
    image.header.set_slope_inter(0.25, 0)
    nib.save(image, scaled)
    stored = np.asarray(nib.load(scaled).dataobj.get_unscaled())
    session = load([scaled], tmp_path, sequences=["t1"])
    volume = session.volumes["t1"]
    assert volume.dtype == np.float32
    np.testing.assert_array_equal(volume, nib.load(scaled).get_fdata().transpose(2, 1, 0))
    assert np.shares_memory(volume, session.source.images["t1"]), "one copy"
    labels = np.zeros(session.shape[1:], np.uint8)
    labels[6:9, 6:9] = 2
    session.paint(2, labels, ())
    result = run(session, num_samples=1)
    assert all(values.dtype == np.float32 for values in result.values.values())
    (path,) = [path for path in result.files[0] if "-inpainted" in path.name]
    written = nib.load(path)
    after = np.asarray(written.dataobj.get_unscaled())
    np.testing.assert_array_equal(after[..., [0, 1, 3, 4, 5]], stored[..., [0, 1, 3, 4, 5]])


def test_images_are_admitted_before_they_are_read(case_files, tmp_path, monkeypatch):
    monkeypatch.setattr("mbti_jax.web.loading.read_case", None)
    asked = []

    def admit(size):
        asked.append(size)
        raise ValueError("no room")

    root = tmp_path / "sessions"
    with pytest.raises(ValueError, match="no room"):
        load_files(case_files, "brats2021", [], [tiny_inpainter()], root, LIMITS, admit)
    assert asked == [24 * 20 * 6 * (4 * 4 + 12 + 2 * 2)] and not list(root.iterdir())


def test_results_are_limited_in_bytes(png, tmp_path):
    session = load([png], tmp_path)
    session.paint(0, make_mask().astype(np.uint8) * 2, ())
    limits = Limits(5, 20, 10**5, 10**6, run_mb=1)
    with pytest.raises(ValueError, match=r"what is made of 1000 images becomes 35 MB"):
        run(session, limits=limits, num_samples=1000)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_headers_with_long_extensions(tmp_path, kind):
    """Such as the real cases of 2018 have."""
    image = kind(np.zeros((4, 5, 3), np.int16), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 3000))
    nib.save(image, tmp_path / "a.nii.gz")
    assert memory_needed([tmp_path / "a.nii.gz"], LIMITS) > 0

"""The command that inpaints files: what it writes, what it leaves alone, and how it resumes."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from inpaint_runs import SUBJECT, of_case, run, stored, write_voided
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from PIL import Image
from scipy.ndimage import distance_transform_edt
from synthetic_cases import AFFINE, SHAPE, SUFFIXES, make_arrays, write_case, write_volume
from tiny_inpainter import WINDOW, make_mask, make_slice, tiny_inpainter, tiny_metadata, tiny_params

from configs.inpaint import get_config
from mbti_jax import Sampling
from mbti_jax.commands import inpaint
from mbti_jax.inference import files
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.rois.kinds import COLORS
from tfds_brats.locking import only_process_in


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch):
    monkeypatch.setattr(Inpainter, "load", lambda *_: tiny_inpainter())


def header(path: Path) -> bytes:
    return nib.load(path).header.binaryblock


@pytest.fixture
def source(tmp_path) -> Path:
    return write_case(tmp_path / "in", SUBJECT)


def test_only_the_roi_changes(source, tmp_path):
    out = run(tmp_path / "out", **of_case(source)) / SUBJECT / "sample_000"
    roi = stored(source / f"{SUBJECT}_seg.nii.gz") > 0
    for suffix in SUFFIXES.values():
        before = source / f"{SUBJECT}{suffix}.nii.gz"
        after = out / f"{SUBJECT}{suffix}-inpainted.nii.gz"
        assert header(after) == header(before)
        np.testing.assert_array_equal(stored(after)[~roi], stored(before)[~roi])
        assert (stored(after)[roi] != stored(before)[roi]).mean() > 0.9
    rois = nib.load(out / "rois.nii.gz")
    np.testing.assert_array_equal(np.asarray(rois.dataobj), np.where(roi, 5, 0))
    np.testing.assert_array_equal(rois.affine, AFFINE)
    record = json.loads((out / "provenance.json").read_text())
    assert record["synthetic"] is True and record["rois"]["normal"]["pixels"] == roi.sum()
    assert record["slices"] == [1, 2, 3] and record["sampling"]["guidance_weight"] == 0
    # What is removed has the preset for normal tissue: the last time, then only late ones.
    assert record["sampling"]["estimate"] == record["request"]["estimate"] == "near_mean"
    assert record["sampling"]["spacing"] == [999, 258]
    assert Image.open(out / "preview.png").size[0] > 300


@pytest.mark.parametrize(
    ("fields", "estimate"),
    [
        ({}, "near_mean"),
        ({"tumor": "shrink"}, "near_mean"),
        ({"tumor": "move"}, "sample"),
        ({"tumor": "replace"}, "sample"),
        ({"tumor": "", "roi": "a.nii", "roi_labels": "normal"}, "near_mean"),
        ({"tumor": "", "roi": "a.nii", "roi_labels": "1:normal, 2:"}, "near_mean"),
        ({"tumor": "", "roi": "a.nii", "roi_labels": "1:normal, 2:edema"}, "sample"),
        ({"tumor": "", "roi": "a.nii"}, "sample"),
        ({"estimate": "sample"}, "sample"),
        ({"spacing": "trailing"}, "sample"),
        ({"num_steps": 1}, "sample"),
        ({"estimate": "mean", "mean_passes": 1}, "mean"),
        ({"layout": "nnunet"}, "sample"),
        ({"layout": "nnunet", "estimate": "near_mean"}, "near_mean"),
    ],
)
def test_the_preset_for_normal_tissue_gives_way_to_what_is_asked_for(
    source, tmp_path, monkeypatch, fields, estimate
):
    seen = []
    for layout in ("files", "nnunet"):
        monkeypatch.setitem(
            inpaint._LAYOUTS, layout, lambda _, settings, *__: seen.append(settings)
        )
    dilation = {"dilate_mm": 0.0} if fields.get("tumor", "remove") in ("remove", "move") else {}
    config = get_config()
    config.update({**of_case(source), "dilate_mm": dilation.get("dilate_mm"), **fields})
    inpaint.main(config, str(tmp_path / "out"))
    assert seen[0].sampling.estimate == estimate


def test_a_removed_tumor_takes_its_rim_with_it(source, tmp_path):
    """By 3 mm if nothing else is said, and ROIs of a file where it is asked for."""
    path = source / f"{SUBJECT}_seg.nii.gz"
    roi, spacing = stored(path) > 0, nib.load(path).header.get_zooms()
    brain = np.any([stored(source / f"{SUBJECT}{end}.nii.gz") != 0 for end in SUFFIXES.values()], 0)
    expected = roi | ((distance_transform_edt(~roi, sampling=spacing) <= 3) & brain)
    fields = of_case(source, sequences=("t1",), dilate_mm=None)
    out = run(tmp_path / "own", **fields) / SUBJECT / "sample_000"
    np.testing.assert_array_equal(stored(out / "rois.nii.gz") > 0, expected)
    assert (expected != roi).any()
    assert json.loads((out / "provenance.json").read_text())["request"]["dilate_mm"] == 3
    nib.save(nib.Nifti1Image(np.where(roi, 5, 0).astype(np.uint8), AFFINE), tmp_path / "roi.nii.gz")
    fields |= {"tumor": "", "roi": str(tmp_path / "roi.nii.gz"), "dilate_mm": 3.0}
    out = run(tmp_path / "file", **fields) / SUBJECT / "sample_000"
    np.testing.assert_array_equal(stored(out / "rois.nii.gz") > 0, expected)
    with pytest.raises(ValueError, match=r"roi\.nii\.gz: dilation is for ROIs of normal tissue"):
        run(tmp_path / "edema", **{**fields, "roi_labels": "5:edema"})
    with pytest.raises(ValueError, match="dilate_mm is for remove or move"):
        run(tmp_path / "file", **of_case(source, tumor="replace", dilate_mm=1.0))


def test_resumes_where_it_stopped(source, tmp_path, capsys):
    fields = of_case(source, sequences=("t1",))
    out = run(tmp_path / "out", **fields) / SUBJECT
    first = (out / "sample_000" / f"{SUBJECT}_t1-inpainted.nii.gz").stat().st_mtime_ns
    run(tmp_path / "out", **fields, num_samples=3)
    names = ["sample_000", "sample_001", "sample_002", "std_of_3"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert (out / "sample_000" / f"{SUBJECT}_t1-inpainted.nii.gz").stat().st_mtime_ns == first
    capsys.readouterr()
    run(tmp_path / "out", **fields, num_samples=3)
    assert capsys.readouterr().out == f"{SUBJECT}: is there, {out}\n"
    with pytest.raises(ValueError, match="another request \\(other seed"):
        run(tmp_path / "out", **fields, seed=1)


def test_the_mean_of_samples_with_its_deviation_beside_it(source, tmp_path):
    fields = of_case(source, sequences=("t1",), slices=(2,), num_samples=3)
    name = f"{SUBJECT}{SUFFIXES['t1']}"
    out = run(tmp_path / "samples", **fields, estimate="sample") / SUBJECT
    paths = [out / f"sample_{n:03d}" / f"{name}-inpainted.nii.gz" for n in range(3)]
    samples = np.stack([stored(path) for path in paths]).astype(np.float64)
    out = run(tmp_path / "mean", **fields, estimate="mean") / SUBJECT / "mean"
    before = source / f"{name}.nii.gz"
    assert header(out / f"{name}-inpainted.nii.gz") == header(before)
    # Samples are rounded to whole numbers, and so is the mean.
    np.testing.assert_allclose(stored(out / f"{name}-inpainted.nii.gz"), samples.mean(0), atol=1)
    std = nib.load(out / f"{name}-std.nii.gz")
    assert std.get_data_dtype() == np.float32
    assert "image's units" in std.header["descrip"].item().decode()
    np.testing.assert_array_equal(std.affine, AFFINE)
    np.testing.assert_allclose(std.get_fdata(), samples.std(0, ddof=1), rtol=0.02, atol=0.6)
    roi = stored(out / "rois.nii.gz") > 0
    assert (std.get_fdata()[roi] > 1).any() and (std.get_fdata()[~roi] == 0).all()
    record = json.loads((out / "provenance.json").read_text())
    assert record["sampling"]["samples"] == [0, 1, 2] and "units" in record["std"]
    with pytest.raises(ValueError, match=r"another request \(other num_samples"):
        run(tmp_path / "mean", **{**fields, "num_samples": 4}, estimate="mean")


def test_the_mean_of_a_slice_with_its_deviation_beside_it(tmp_path):
    np.save(tmp_path / "slice.npy", make_slice(dtype=np.float32))
    Image.fromarray(np.where(make_mask(), 5, 0).astype(np.uint8)).save(tmp_path / "roi.png")
    fields = {"image": str(tmp_path / "slice.npy"), "roi": str(tmp_path / "roi.png")}
    out = run(tmp_path / "samples", **fields, num_samples=2) / "slice"
    samples = np.stack([np.load(out / f"slice-inpainted-{n:03d}.npy") for n in range(2)])
    out = run(tmp_path / "mean", **fields, num_samples=2, estimate="mean") / "slice"
    np.testing.assert_allclose(
        np.load(out / "slice-inpainted-mean.npy"), samples.mean(0), rtol=1e-5
    )
    np.testing.assert_allclose(
        np.load(out / "std.npy"), samples.std(0, ddof=1), rtol=1e-3, atol=1e-3
    )
    out = run(tmp_path / "one", **fields, estimate="mean", mean_passes=1) / "slice"
    names = ["preview.png", "provenance.json", "rois.png", "slice-inpainted-mean.npy"]
    assert sorted(path.name for path in out.iterdir()) == [*names, "slice-seg-mean.png"]


@pytest.mark.parametrize("axes", ["RAS", "PSR", "AIL"])
def test_the_files_own_orientation(tmp_path, axes):
    """However the axes are stored, each voxel of the patient gets the same number."""
    images, labels = make_arrays(0)
    # Not symmetric, with affines to tell left from right.
    to_axes = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(axes))
    back = ornt_transform(axcodes2ornt(axes), axcodes2ornt("LPS"))
    results = {}
    for name, orientation in (("lps", None), (axes, to_axes)):
        folder = tmp_path / name / SUBJECT
        for suffix, array in ((SUFFIXES["t1"], images["t1"]), ("_seg", labels)):
            affine = AFFINE
            if orientation is not None:
                affine = AFFINE @ inv_ornt_aff(orientation, SHAPE)
                array = apply_orientation(array, orientation)
            write_volume(folder / f"{SUBJECT}{suffix}.nii.gz", array, affine)
        out = run(tmp_path / f"out_{name}", **of_case(folder, sequences=("t1",)))
        path = out / SUBJECT / "sample_000" / f"{SUBJECT}_t1-inpainted.nii.gz"
        assert "".join(nib.aff2axcodes(nib.load(path).affine)) == name.upper()
        results[name] = stored(path)
    np.testing.assert_array_equal(apply_orientation(results[axes], back), results["lps"])


def test_each_file_of_a_case_has_its_own_orientation(source, tmp_path):
    """One sequence is stored in other axes than the rest: its ROI is painted there, and nothing else."""
    path = source / f"{SUBJECT}{SUFFIXES['t1ce']}.nii.gz"
    to_axes = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt("ASR"))
    back = ornt_transform(axcodes2ornt("ASR"), axcodes2ornt("LPS"))
    before, roi = stored(path), stored(source / f"{SUBJECT}_seg.nii.gz") > 0
    affine = AFFINE @ inv_ornt_aff(to_axes, SHAPE)
    replace(path, apply_orientation(before, to_axes), affine)
    for sequences in (("t1", "t1ce"), ("t1ce",)):
        folder = tmp_path / "_".join(sequences)
        out = run(folder, **of_case(source, sequences=sequences)) / SUBJECT / "sample_000"
        after = apply_orientation(stored(out / f"{path.name[:-7]}-inpainted.nii.gz"), back)
        np.testing.assert_array_equal(after[~roi], before[~roi])
        assert (after[roi] != before[roi]).mean() > 0.5
        rois = nib.load(out / "rois.nii.gz")
        to_lps = ornt_transform(io_orientation(rois.affine), axcodes2ornt("LPS"))
        found = apply_orientation(np.asanyarray(rois.dataobj), to_lps)
        np.testing.assert_array_equal(found > 0, roi)


@pytest.mark.parametrize(
    ("dtype", "slope", "end"),
    [
        ("<f4", None, ".nii.gz"),
        (">i2", None, ".nii"),
        ("<i2", 0.5, ".nii.gz"),
        ("<f8", None, ".nii"),
    ],
)
def test_data_types_and_scaling(tmp_path, dtype, slope, end):
    images, labels = make_arrays(0)
    path = tmp_path / f"scan{end}"
    image = nib.Nifti1Image(images["t1"].astype(dtype), AFFINE)
    image = nib.Nifti1Image(
        images["t1"].astype(dtype),
        AFFINE,
        nib.Nifti1Header(endianness=dtype[0]) if dtype[0] == ">" else None,
    )
    image.set_data_dtype(dtype)
    if slope:
        image.header.set_slope_inter(slope, 0)
        # Saved as they are: what is in the array becomes the stored numbers.
        image = nib.Nifti1Image(images["t1"] * slope, AFFINE, image.header)
        image.header.set_slope_inter(slope, 0)
    nib.save(image, path)
    roi = write_volume(tmp_path / "roi.nii.gz", (labels > 0).astype(np.uint8))
    out = run(tmp_path / "out", images={"t1": str(path)}, roi=str(roi), roi_labels="1:normal")
    after = out / "scan" / "sample_000" / f"scan-inpainted{end}"
    assert header(after) == header(path)
    np.testing.assert_array_equal(stored(after)[labels == 0], stored(path)[labels == 0])
    # In the range of the image, in its units.
    values = nib.load(after).get_fdata()[labels > 0]
    top = images["t1"].max() * (slope or 1)
    assert -0.01 * top <= values.min() and values.max() < 2.5 * top and values.std() > 0.02 * top


def test_sequences_in_one_file(tmp_path):
    images, labels = make_arrays(0)
    stack = np.stack([images[s] for s in ("flair", "t1", "t1ce", "t2")], axis=-1)
    write_volume(tmp_path / "in/imagesTr/BRATS_001.nii.gz", stack)
    write_volume(tmp_path / "in/labelsTr/BRATS_001.nii.gz", np.where(labels == 4, 3, labels))
    out = run(tmp_path / "out", source=str(tmp_path / "in"), convention="msd", tumor="replace")
    after = stored(out / "BRATS_001/sample_000/BRATS_001-inpainted.nii.gz")
    roi = labels > 0
    np.testing.assert_array_equal(after[~roi], stack[~roi])
    assert (after[roi] != stack[roi]).mean(0).min() > 0.8
    rois = stored(out / "BRATS_001/sample_000/rois.nii.gz")
    assert set(np.unique(rois)) == {0, 1, 2, 3}


def test_slices_alone_and_among_others(source, tmp_path):
    name = f"{SUBJECT}/sample_000/{SUBJECT}_t2-inpainted.nii.gz"
    fields = of_case(source, sequences=("t2",), box=("normal",), z_sigma_mm=1.5)
    every = stored(run(tmp_path / "all", **fields) / name)
    one = stored(run(tmp_path / "one", **fields, slices=(2,)) / name)
    before = stored(source / f"{SUBJECT}_t2.nii.gz")
    np.testing.assert_array_equal(one[..., 2], every[..., 2])
    np.testing.assert_array_equal(np.delete(one, 2, -1), np.delete(before, 2, -1))
    independent = stored(run(tmp_path / "white", **{**fields, "z_sigma_mm": 0.0}) / name)
    assert (independent[..., 2] != every[..., 2]).any()


def test_continuity_is_reported_beside_independent_noise(source, tmp_path):
    fields = of_case(source, sequences=("t1",), compare_noise=True)
    out = run(tmp_path / "out", **fields) / SUBJECT / "sample_000"
    figures = json.loads((out / "provenance.json").read_text())["z_continuity"]["t1"]
    before = stored(source / f"{SUBJECT}_t1.nii.gz").astype(float)
    roi = stored(source / f"{SUBJECT}_seg.nii.gz") > 0
    pairs = roi[..., 1:] & roi[..., :-1]
    high = np.percentile(before[before > 0], 99.5)
    for name, volume in (
        ("input_inside_roi", before),
        ("inpainted", stored(out / f"{SUBJECT}_t1-inpainted.nii.gz").astype(float)),
    ):
        expected = np.abs(np.diff(volume, axis=-1))[pairs].mean() / high
        np.testing.assert_allclose(figures[name], expected, rtol=1e-2)  # Written ones are rounded.
    assert figures["independent_noise"] != figures["inpainted"]


@pytest.mark.parametrize("ending", [".png", ".npy"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_single_slices(tmp_path, ending, dtype):
    image = (make_slice() // 4).astype(dtype)
    roi = np.zeros((*image.shape, 3), np.uint8)
    roi[make_mask()] = COLORS["edema"]
    for name, array in (("slice", image), ("roi", roi)):
        if ending == ".npy":
            np.save(tmp_path / f"{name}.npy", array)
        else:
            Image.fromarray(array).save(tmp_path / f"{name}.png")
    fields = {"image": str(tmp_path / f"slice{ending}"), "roi": str(tmp_path / f"roi{ending}")}
    out = run(tmp_path / "out", **fields, num_samples=2) / "slice"
    expected = tiny_inpainter().inpaint(image, {"edema": make_mask()}, Sampling(2), num_samples=2)
    for number in range(2):
        path = out / f"slice-inpainted-{number:03d}{ending}"
        after = np.load(path) if ending == ".npy" else np.array(Image.open(path))
        assert after.dtype == dtype
        np.testing.assert_array_equal(after, expected.images[number])
    # In the numbers of rois.nii.gz, whatever the input's are.
    np.testing.assert_array_equal(Image.open(out / "rois.png"), 2 * make_mask())
    record = json.loads((out / "provenance.json").read_text())
    assert "percentiles" in record["intensity"]["from"] and record["warnings"]


def test_a_slice_with_a_file_for_each_sequence(tmp_path):
    image = make_slice(channels=4, dtype=np.uint16)
    for c, name in enumerate(SUFFIXES):
        Image.fromarray(image[..., c]).save(tmp_path / f"slice_{name}.png")
    np.save(tmp_path / "roi.npy", make_mask().astype(np.uint8))
    fields = {"image": str(tmp_path / "slice_{sequence}.png"), "roi": str(tmp_path / "roi.npy")}
    out = run(tmp_path / "out", **fields, sequences=("t2", "t1")) / "slice"
    masks = {"necrotic_core": make_mask()}
    expected = tiny_inpainter().inpaint(image[..., [2, 0]], masks, Sampling(2))
    for c, name in enumerate(("t2", "t1")):
        after = np.array(Image.open(out / f"slice_{name}-inpainted-000.png"))
        np.testing.assert_array_equal(after, expected.images[0][..., c])
    with pytest.raises(ValueError, match=r"write {sequence} in the name of the image"):
        fields["image"] = str(tmp_path / "slice_t1.png")
        run(tmp_path / "other", **fields, sequences=("t1",))
    # Without names it is those that are there.
    (tmp_path / "slice_flair.png").unlink()
    fields["image"] = str(tmp_path / "slice_{sequence}.png")
    found = sorted(path.name for path in run(tmp_path / "three", **fields).rglob("slice_*"))
    assert found == [f"slice_{name}-inpainted-000.png" for name in ("t1", "t1ce", "t2")]
    fields["image"] = str(tmp_path / "other_{sequence}.png")
    with pytest.raises(ValueError, match=r"other_{sequence}\.png: is there for none of t1, t1ce"):
        run(tmp_path / "other", **fields)


def test_brats_inpainting_layout(tmp_path):
    subject = "BraTS-GLI-00009-000"
    voided, mask = write_voided(tmp_path / "in", subject)
    fields = {"layout": "brats_inpainting", "source": str(tmp_path / "in")}
    out = run(tmp_path / "out", **fields)
    after = stored(out / f"{subject}-t1n-inference.nii.gz")
    assert after.dtype == np.float32
    np.testing.assert_array_equal(after[~mask], voided[~mask])
    assert (after[mask] != 0).mean() > 0.5
    assert {path.name for path in out.iterdir()} == {f"{subject}-t1n-inference.nii.gz", "records"}


def test_brats_inpainting_on_the_real_case(real_cases, tmp_path):
    subject = "BraTS-GLI-00001-000"
    folder = real_cases / subject
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    fields = {"layout": "brats_inpainting", "source": str(folder), "num_steps": 1}
    after = run(tmp_path, **fields) / f"{subject}-t1n-inference.nii.gz"
    voided = folder / f"{subject}-t1n-voided.nii.gz"
    mask = stored(folder / f"{subject}-mask.nii.gz") > 0
    assert header(after) == header(voided)
    np.testing.assert_array_equal(stored(after)[~mask], stored(voided)[~mask])
    assert (stored(after)[mask] > 0).mean() > 0.5


def test_nothing_is_left_of_a_run_that_fails(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mbti_jax.inference.files.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "out", **of_case(source, sequences=("t1",)))
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def replace(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.unlink()
    write_volume(path, array, affine)


@pytest.mark.parametrize(
    ("roi", "affine", "sentence"),
    [
        (np.zeros(SHAPE, np.uint8), AFFINE, r"roi\.nii\.gz: the ROI is empty"),
        (np.ones(SHAPE, np.uint8) * 9, AFFINE, r"roi\.nii\.gz: .*labels \[9\]"),
        (
            np.ones((5, 5, 5), np.uint8),
            AFFINE,
            r"roi\.nii\.gz: has shape \(5, 5, 5\), but the images",
        ),
        (np.ones(SHAPE, np.uint8), np.diag([-1, -1, 2, 1]), r"roi\.nii\.gz: its affine differs"),
    ],
)
def test_roi_files_refused(source, tmp_path, roi, affine, sentence):
    path = write_volume(tmp_path / "roi.nii.gz", roi, affine)
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path / "out", **of_case(source, tumor="", roi=str(path)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sequences": ("t1", "t2", "t1")}, "sequences names one twice"),
        ({"layout": "dicom"}, "layout must be one of files, .* not 'dicom'"),
        ({"image": "a.png"}, "source has to be a folder .* not a folder and a slice"),
        ({"source": ""}, "source has to be a folder .* not none"),
        ({"tumor": ""}, "roi has to be a file .* not both"),
        ({"roi": "x.nii.gz"}, "roi has to be a file .* not both"),
        ({"roi_labels": "edma"}, r"roi_labels cannot be used: .*; did you mean edema\?"),
        ({"sampler": "unpic"}, r"sampler must be .*, not 'unpic'; did you mean unipc\?"),
        ({"tumor": "explode"}, "unknown tumor mode 'explode'"),
        ({"convention": "brats1999"}, "unknown convention"),
        ({"convention": "brats201"}, r"unknown convention .*; did you mean brats2021\?"),
        ({"subjects": ("nobody",)}, "has no case nobody"),
        ({"slices": (5,)}, "slice 5 has no ROI; ROIs are in slices 1 to 3"),
        ({"slices": (77,)}, "has no slice 77; it has 0 to 5"),
        ({"sequences": ("t1rho",)}, "sequences must be one of t1, t1ce, t2, flair"),
        ({"box": ("edema box",)}, "unknown ROI 'edema box'"),
        ({"tumor": "", "roi": "nowhere.nii.gz"}, r"nowhere\.nii\.gz: is not a file"),
        ({"eta": -1.0}, "eta must be between"),
        ({"spacing": "ddim", "num_steps": 1}, "No integer stride leaves exactly 1 of 1000"),
        ({"seed": -1}, "seed must be"),
        ({"z_sigma_mm": -1.0}, "z_sigma"),
    ],
)
def test_requests_refused(source, tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path / "out", **{**of_case(source), **change})
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_a_case_without_tumor_does_not_stop_the_others(tmp_path, caplog):
    caplog.set_level("INFO")
    for number in range(3):
        folder = write_case(tmp_path / "in", f"BraTS2021_{number:05d}", number)
        if number == 1:
            write_volume(folder / f"{folder.name}_seg.nii.gz", np.zeros(SHAPE, np.uint8))
    for _ in range(2):  # And again when the others are there.
        with pytest.raises(
            ValueError, match=r"1 of 3 cases could not be done(?s:.*)00001: .*no tumor"
        ):
            run(tmp_path / "out", **of_case(tmp_path / "in"))
        assert sum("not done" in message for message in caplog.messages) == 1
        caplog.clear()
        names = ["BraTS2021_00000", "BraTS2021_00002"]
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


@pytest.mark.parametrize("layout", ["files", "nnunet"])
def test_an_roi_in_air_is_refused_before_compilation(source, tmp_path, layout, monkeypatch, caplog):
    roi = np.zeros(SHAPE, np.uint8)
    roi[:2, :2, 2:4] = 2
    path = write_volume(tmp_path / "roi.nii.gz", roi)
    fields = of_case(source, tumor="", roi=str(path), layout=layout)

    def forecast(*_):
        pytest.fail("the network was compiled first")

    monkeypatch.setattr(files, "forecast", forecast)
    caplog.set_level("INFO")
    requests = [({}, "edema lies wholly outside of the brain")]
    # A labeled set takes all slices.
    requests += [({"slices": (99,)}, "has no slice 99")] * (layout == "files")
    for change, sentence in requests:
        with pytest.raises(ValueError, match=sentence):
            run(tmp_path / "out", **fields, **change)
        assert not (tmp_path / "out").exists()
    # The error says it, and nothing else does.
    assert not [message for message in caplog.messages if "not done" in message]


def test_tumor_on_background_is_counted_in_the_record(source, tmp_path):
    roi = np.zeros(SHAPE, np.uint8)
    roi[0:6, 8, 2] = 2  # The brain begins at 3.
    path = write_volume(tmp_path / "roi.nii.gz", roi)
    out = run(tmp_path / "out", **of_case(source, tumor="", roi=str(path)))
    record = json.loads((out / SUBJECT / "sample_000" / "provenance.json").read_text())
    assert record["rois"]["edema"]["pixels_on_background"] == 3
    assert "3 of 6 pixels of edema lie on background" in record["warnings"]
    with pytest.raises(
        ValueError, match="box names tumor, of which there is no ROI; there is edema"
    ):
        run(tmp_path / "box", **of_case(source, tumor="", roi=str(path), box=("tumor",)))


def test_a_binary_mask_of_one_tissue(source, tmp_path):
    roi = np.zeros(SHAPE, np.uint8)
    roi[4:7, 8:10, 2] = 255
    path = write_volume(tmp_path / "mask.nii.gz", roi)
    with pytest.raises(ValueError, match=r"labels \[255\].*of a binary mask say which ROI it is"):
        run(tmp_path / "out", **of_case(source, tumor="", roi=str(path)))
    fields = of_case(source, tumor="", roi=str(path), roi_labels="edema")
    out = run(tmp_path / "out", **fields) / SUBJECT / "sample_000"
    np.testing.assert_array_equal(stored(out / "rois.nii.gz"), (roi > 0) * 2)


def test_float_labels_count_as_whole_within_a_thousandth(source, tmp_path):
    roi = (make_arrays(0)[1] > 0) * 5
    path = write_volume(tmp_path / "roi.nii.gz", (roi * (1 + 1e-4)).astype(np.float32))
    run(tmp_path / "out", **of_case(source, tumor="", roi=str(path)))
    write_volume(path, (roi * 1.1).astype(np.float32))
    with pytest.raises(ValueError, match=r"roi\.nii\.gz: .*not whole numbers"):
        run(tmp_path / "other", **of_case(source, tumor="", roi=str(path)))


def test_a_box_that_the_mode_never_makes_is_refused(source, tmp_path):
    with pytest.raises(ValueError, match="box names edema, but remove makes normal only"):
        run(tmp_path / "out", **of_case(source, box=("edema",)))


def test_the_challenge_passes_over_what_macos_left(tmp_path):
    images, labels = make_arrays(3)
    folder, subject = tmp_path / "in", "BraTS-GLI-00009-000"
    mask = labels > 0
    write_volume(folder / f"{subject}-t1n-voided.nii.gz", np.where(mask, 0, images["t1"]))
    write_volume(folder / f"{subject}-mask.nii.gz", mask.astype(np.uint8))
    for path in list(folder.iterdir()):
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
    write_volume(folder / "BraTS-GLI-00010-000-t1n-voided.nii.gz", images["t1"])
    fields = {"layout": "brats_inpainting", "source": str(folder)}
    with pytest.raises(ValueError, match=r"1 of 2 cases.*(?s:.*)00010-000 lacks .*-mask\.nii\.gz"):
        run(tmp_path / "out", **fields)
    assert (tmp_path / "out" / f"{subject}-t1n-inference.nii.gz").is_file()


def test_a_second_process_is_refused(source, tmp_path):
    with (
        only_process_in(tmp_path / "out"),
        pytest.raises(ValueError, match="another run is writing"),
    ):
        run(tmp_path / "out", **of_case(source))


def test_the_training_pixels_size_scales_the_window():
    metadata = tiny_metadata()
    metadata["contract"]["data"]["pixel_size_mm"] = 2.0
    inpainter = Inpainter(tiny_params(metadata), metadata, 4)
    image, mask = make_slice((90, 80)), make_mask((90, 80), (40, 35, 50, 45))
    for pixel_size, side in ((2.0, WINDOW), (1.0, 2 * WINDOW)):
        result = inpainter.inpaint(image, {"edema": mask}, Sampling(2), pixel_size=pixel_size)
        rows = result.provenance["geometry"]["rows"]
        assert rows[1] - rows[0] >= side and (pixel_size == 2.0 or rows[1] - rows[0] == side)


def test_the_standard_deviation_over_samples_and_what_overlays_them(source, tmp_path):
    fields = of_case(source, num_samples=3)
    out = run(tmp_path / "out", **fields) / SUBJECT
    samples = [out / f"sample_{n:03d}" for n in range(3)]
    roi = stored(samples[0] / "rois.nii.gz") > 0
    for name in SUFFIXES:
        stem = f"{SUBJECT}{SUFFIXES[name]}"
        painted = [nib.load(folder / f"{stem}-inpainted.nii.gz").get_fdata() for folder in samples]
        std = nib.load(out / "std_of_3" / f"{stem}-std.nii.gz")
        assert std.get_data_dtype() == np.float32
        np.testing.assert_allclose(std.get_fdata(), np.std(painted, axis=0, ddof=1), atol=1e-3)
        assert (std.get_fdata()[~roi] == 0).all() and std.get_fdata()[roi].any()
        np.testing.assert_array_equal(std.affine, nib.load(folder_of(source, stem)).affine)
    # More samples are another deviation; a series or a mixture has none.
    run(tmp_path / "out", **{**fields, "num_samples": 4})
    assert (out / "std_of_4" / "provenance.json").is_file()
    moved = run(tmp_path / "moved", **of_case(source, tumor="move", num_samples=2)) / SUBJECT
    assert sorted(path.name for path in moved.iterdir()) == ["sample_000", "sample_001"]
    lines = (samples[0] / "rois.label.txt").read_text().splitlines()
    assert '2 240 228 66 1 1 1 "edema"' in lines


def folder_of(source: Path, stem: str) -> Path:
    return next(source.rglob(f"{stem}.nii.gz"))

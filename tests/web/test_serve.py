"""The web page's parts without a browser: masks, runs, results, errors."""

import builtins
import functools
import gzip
import io
import itertools
import json
import os
import re
import socket
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from labeling_inpainter import labeling_inpainter
from PIL import Image
from scipy import ndimage
from synthetic_cases import SHAPE, make_arrays, write_volume
from tiny_inpainter import make_slice
from web_sessions import LIMITS, NUMBERS, SUBJECT, load, painted, run

from configs.serve import get_config
from mbti_jax.commands import serve
from mbti_jax.commands.settings import from_config
from mbti_jax.diffusion.consistency import Consistency
from mbti_jax.diffusion.processes import RectifiedFlow
from mbti_jax.diffusion.samplers.driver import SamplingCancelled
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.rois.kinds import ROI_LABELS
from mbti_jax.web import painter, views
from mbti_jax.web.cost import Pace, cost_ahead, cost_of
from mbti_jax.web.results import check_run
from mbti_jax.web.session_rois import TumorRois, paint_tumor, take_roi
from mbti_jax.web.uploads import Limits
from mbti_jax.web.values import estimate_for
from tfds_brats.conventions import CAVITY, TUMOR_LABELS

# The painter.


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (40, 36)])
def test_masks_arrive_as_they_were_sent(shape):
    rng = np.random.default_rng(0)
    labels = rng.choice([0, *ROI_LABELS], shape, p=[0.6, *[0.08] * 5]).astype(np.uint8)
    runs = json.loads(json.dumps(painter.to_runs(labels)))
    np.testing.assert_array_equal(painter.from_runs(runs, shape), labels)


@pytest.mark.parametrize(
    "runs",
    [
        None,
        [],
        [0],
        [0, 14],
        [0, 16],
        [4, 15],
        [-1, 15],
        [0.5, 15],
        [0, True],
        ["0", 15],
        {"0": 15},
    ],
)
def test_what_is_no_mask(runs):
    with pytest.raises(ValueError, match="not a label map of 5 x 3"):
        painter.from_runs(runs, (3, 5))


def test_what_a_run_over_slices_takes_is_said_before(case_files, tmp_path):
    """Two slices in four sequences one by one, two samples: 16 images, four batches of four."""
    session, sampling = load(case_files, tmp_path, "brats2021"), Sampling(3, guidance=0.0)
    ask = functools.partial(cost_of, session, ("t1", "t1ce", "t2", "flair"))
    painted(session, 2, "edema")
    assert ask(sampling, 2) == ""
    painted(session, 3, "tumor")
    assert re.fullmatch(r": 4 batches of 3 evaluations, about \d+ s; .* GB .*", ask(sampling, 2))


def test_what_a_run_takes_is_said_without_running_anything(case_files, tmp_path, monkeypatch):
    session, sampling = load(case_files, tmp_path, "brats2021"), Sampling(3, guidance=0.4)
    monkeypatch.setattr(Inpainter, "sample", None)
    painted(session, 2, "edema")
    painted(session, 3, "edema")
    what = "2 slices, 2 samples: 4 batches of 3 evaluations"
    said = cost_ahead(session, None, [], sampling, 2)
    assert said.startswith(f"{what}. How long that takes will be known after a first run")
    # A guided evaluation is two passes.
    assert cost_ahead(session, 2.0, [], sampling, 2).startswith(f"{what}, about 48 s")
    assert "1 batch of 3 evaluations, about 12 s" in cost_ahead(session, 2.0, ["t1"], sampling, 2)
    assert "about 8 min" in cost_ahead(session, 20.0, [], sampling, 2)
    with pytest.raises(ValueError, match="at least 2 for their mean"):
        cost_ahead(session, 2.0, [], Sampling(3, estimate="mean"), 1)


def test_the_pace_of_a_run_counts_neither_compiling_nor_waiting(monkeypatch):
    times = iter([100.0, 102.0, 104.0, 190.0, 194.0])
    monkeypatch.setattr("mbti_jax.web.cost.time.perf_counter", lambda: next(times))
    pace = Pace()
    assert pace.of_run() is None
    for done in (1, 2, 3, 4, 6):
        pace.add(done, 10)
    assert pace.of_run() == 20.0


def test_painting_is_kept_slice_by_slice(case_files, tmp_path):
    session = load(case_files, tmp_path, "brats2021")
    first = painted(session, 2, "edema", box=("edema",))
    second = painted(session, 3, "tumor")
    masks = session.rois().masks
    assert list(np.flatnonzero(masks.any((1, 2, 3)))) == [2, 3]
    np.testing.assert_array_equal(masks[3, ..., 4], second)
    np.testing.assert_array_equal(masks[2, ..., 2], first)
    session.paint(2, session.labels(2), ("edema",))
    filled = np.zeros_like(first)
    filled[6:12, 5:14] = True
    np.testing.assert_array_equal(session.rois().masks[2, ..., 2], filled)
    session.paint(3, np.zeros_like(session.labels(3)), ())
    assert list(session.painted) == [2]
    for number in (-1, 6, 1.0, None):
        with pytest.raises(ValueError, match="has no slice"):
            session.paint(number, session.labels(2), ())
    with pytest.raises(ValueError, match="unknown ROI"):
        session.paint(2, session.labels(2), ("oedema",))


def test_rois_from_a_file(case_files, png, tmp_path):
    session = load(case_files, tmp_path, "brats2021")
    roi = case_files[0].with_name(f"{SUBJECT}_seg.nii.gz")
    take_roi(session, roi, "brats2021", LIMITS, TumorRois())
    _, labels = make_arrays(0)
    expected = np.where(labels == 4, 3, labels).transpose(2, 1, 0)
    found = np.stack([session.labels(z) for z in range(SHAPE[2])])
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"^BraTS2021_00001_seg\.nii\.gz: .*labels \[4\]"):
        take_roi(session, roi, "1:edema, 2:tumor", LIMITS, TumorRois())
    with pytest.raises(ValueError, match="is a NIfTI file"):
        take_roi(session, png, "", LIMITS, TumorRois())
    np.testing.assert_array_equal(np.stack([session.labels(z) for z in range(6)]), expected)


def test_pictures_of_rois(png, tmp_path):
    session = load([png], tmp_path)
    picture = np.zeros((40, 36, 3), np.uint8)
    picture[10:20, 10:20] = (240, 228, 66)
    Image.fromarray(picture).save(tmp_path / "roi.png")
    take_roi(session, tmp_path / "roi.png", "", LIMITS, TumorRois())
    np.testing.assert_array_equal(session.labels(0) == NUMBERS["edema"], picture.any(-1))
    picture[12, 12] = (240, 229, 66)
    Image.fromarray(picture).save(tmp_path / "roi.png")
    with pytest.raises(ValueError, match="unknown colors"):
        take_roi(session, tmp_path / "roi.png", "", LIMITS, TumorRois())


# What comes out.


def stored(path):
    return np.asarray(nib.load(path).dataobj.get_unscaled())


def test_a_case_is_repainted(case_files, tmp_path):
    session = load(case_files, tmp_path, "brats2021")
    mask = painted(session, 2, "edema", box=("edema",))
    painted(session, 3, "edema", box=("edema",))
    steps = []
    result = run(session, progress=lambda *step: steps.append(step))
    roi = np.zeros(SHAPE, bool)
    roi[5:14, 6:12, 2:4] = True  # The box, in LPS.
    assert mask.sum() < roi[..., 2].sum()
    assert len(result.files) == 2 and steps[-1][0] == steps[-1][1]
    changed = []
    for number, files in enumerate(result.files):
        by_name = {path.name: path for path in files}
        for source in case_files:
            after = by_name[source.name.replace(".nii.gz", "-inpainted.nii.gz")]
            assert nib.load(after).header.binaryblock == nib.load(source).header.binaryblock
            np.testing.assert_array_equal(stored(after)[~roi], stored(source)[~roi])
            changed.append(stored(after)[roi])
        rois = stored(by_name["rois.nii.gz"])
        np.testing.assert_array_equal(rois, np.where(roi, NUMBERS["edema"], 0))
        record = json.loads(by_name["provenance.json"].read_text())
        assert record["synthetic"] is True and record["sampling"]["sample"] == number
        assert set(record["inputs"]) == {path.name for path in case_files}
        assert Image.open(by_name["preview.png"]).size[0] > 300
    assert (changed[0] != changed[4]).any(), "two samples are the same"
    with zipfile.ZipFile(result.archive) as packed:
        names = packed.namelist()
        packed.extractall(tmp_path / "out")
    in_folders = itertools.chain.from_iterable(result.files)
    by_sample = [str(path.relative_to(result.archive.parent)) for path in in_folders]
    assert len(by_sample) == 16 and "sample_001/rois.label.txt" in by_sample
    # As on the command line, their standard deviation beside samples.
    stds = [f"std_of_2/{path.name.replace('.nii.gz', '-std.nii.gz')}" for path in case_files]
    assert sorted(names) == sorted([*by_sample, *stds, "std_of_2/provenance.json"])
    for source, name in zip(case_files, stds, strict=True):
        written = [
            stored(tmp_path / "out" / f"sample_{n:03d}" / f"{source.name[:-7]}-inpainted.nii.gz")
            for n in range(2)
        ]
        found = stored(tmp_path / "out" / name)
        assert found.dtype == np.float32 and not found[~roi].any()
        # Samples are rounded to whole numbers in their files.
        np.testing.assert_allclose(found, np.std(written, axis=0, ddof=1), atol=0.75)
    # What is shown is what is written.
    np.testing.assert_array_equal(
        np.rint(result.values["t1"][0]),
        stored(result.files[0][0].with_name(f"{SUBJECT}_t1-inpainted.nii.gz")).transpose(2, 1, 0)[
            2:4
        ],
    )


def test_a_picture_is_repainted(png, tmp_path):
    session = load([png], tmp_path)
    labels = np.zeros((40, 36), np.uint8)
    labels[15:22, 12:20] = NUMBERS["normal"]
    session.paint(0, labels, ())
    result = run(session)
    for number, files in enumerate(result.files):
        by_name = {path.name: path for path in files}
        assert sorted(by_name) == [
            "preview.png",
            "provenance.json",
            "rois.png",
            "seg.png",
            "slice-inpainted.png",
        ]
        after = np.asarray(Image.open(by_name["slice-inpainted.png"]))
        assert after.dtype == np.uint16
        np.testing.assert_array_equal(after[labels == 0], make_slice()[labels == 0])
        np.testing.assert_array_equal(np.asarray(Image.open(by_name["rois.png"])), labels)
        np.testing.assert_array_equal(after, result.values["slice"][number, 0])
    with zipfile.ZipFile(result.archive) as packed:
        std = np.load(io.BytesIO(packed.read("std_of_2/std.npy")))
    np.testing.assert_array_equal(std, result.spread()["slice"][0])


def decoded(about, dtype=np.uint16):
    """What the browser makes of an array that it is told of."""
    path = Path(about["url"].removeprefix("gradio_api/file="))
    codes = np.frombuffer(gzip.decompress(path.read_bytes()), dtype)
    return about.get("low", 0) + about.get("step", 1) * codes.astype(np.float64)


def test_what_the_painter_shows(case_files, tmp_path):
    """What is written arrives: images exactly, results to 1/65535 of their range."""
    session = load(case_files, tmp_path, "brats2021")
    mask = painted(session, 2)
    result = run(session, sequences=["t1"])
    view = json.loads(json.dumps(views.case_view(session)))
    assert view["shape"] == [6, 20, 24] and view["first"] == 2 and view["sides"]
    assert [one["title"] for one in view["sequences"]] == ["T1", "T1CE", "T2", "FLAIR"]
    for path, one in zip(case_files, view["sequences"], strict=True):
        np.testing.assert_array_equal(decoded(one), stored(path).transpose(2, 1, 0).ravel())
    brain = np.any([stored(path) for path in case_files], axis=0).transpose(2, 1, 0)
    np.testing.assert_array_equal(decoded({"url": view["brain"]}, np.uint8), brain.ravel())
    shown = json.loads(json.dumps(views.result_view(session, result)))
    assert shown["slices"] == [2] and list(shown["values"]) == ["t1"]
    rois = painter.from_runs(shown["roi"][0], mask.shape)
    np.testing.assert_array_equal(rois, NUMBERS["normal"] * mask)
    assert shown["box"] == []
    after = [decoded(about).reshape(mask.shape) for about in shown["values"]["t1"]]
    for number, values in enumerate(after):
        written = stored(result.files[number][0].with_name(f"{SUBJECT}_t1-inpainted.nii.gz"))
        # Stored values are rounded to whole numbers.
        np.testing.assert_allclose(values, written[..., 2].T, atol=0.6)
    spread = decoded(shown["std"]["t1"]).reshape(mask.shape)
    np.testing.assert_allclose(spread, np.std(after, axis=0, ddof=1) * mask, atol=0.1)


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-70000, 70000]]),
        np.array([[0.5, 0.25, -3.0]], np.float32),
        np.full((2, 3), 7.5),
        np.array([[5, 65540]]),
    ],
)
def test_codes_of_arrays(values):
    codes, low, step = views.encode(values)
    near = 0 if np.issubdtype(values.dtype, np.integer) and np.ptp(values) < 65536 else step / 2
    np.testing.assert_allclose(low + step * codes.astype(float), values, rtol=0, atol=near * 1.001)


def test_what_the_painter_sends(case_files, tmp_path):
    """Each message holds all edits, so one that comes late, or of other images, changes nothing."""
    session = load(case_files, tmp_path, "brats2021")
    labels = np.zeros((20, 24), np.uint8)
    labels[5, 6:9] = 2
    runs = painter.to_runs(labels)
    sent = {"key": session.key, "serial": 2, "edits": {"2": runs, "3": runs}, "box": ["edema"]}
    session.take_over(sent)
    assert sorted(session.painted) == [2, 3] and session.box == ("edema",)
    late = {**sent, "serial": 1, "edits": {"2": [0, 480]}, "box": []}
    for ignored in (late, {**late, "serial": 3, "key": "other"}):
        session.take_over(ignored)
        assert sorted(session.painted) == [2, 3] and session.box == ("edema",)
    session.take_over({**late, "serial": 3})
    assert sorted(session.painted) == [3] and session.box == ()
    for wrong in (
        {"serial": "4"},
        {"edits": {"9": runs}},
        {"edits": {"x": runs}},
        {"edits": {"2": [1]}},
        {"box": "edema"},
        {"box": ["bone"]},
    ):
        with pytest.raises(ValueError, match=r"painter|slice|mask|bone"):
            session.take_over({**late, "serial": 4, **wrong})
    assert sorted(session.painted) == [3] and session.serial == 3


@pytest.mark.parametrize("kind", ["case", "picture"])
def test_the_mean_is_one_result_with_its_deviation(case_files, png, tmp_path, kind):
    session = load(
        case_files if kind == "case" else [png], tmp_path, "brats2021" * (kind == "case")
    )
    number, name = (2, "t1") if kind == "case" else (0, "slice")
    mask = painted(session, number)
    sequences = [name] if kind == "case" else []
    samples = run(session, sequences=sequences, num_samples=3).values[name][:, 0]
    result = run(session, sequences=sequences, num_samples=3, estimate="mean")
    assert result.titles == ["mean of 3 samples"] and len(result.files) == 1
    (mean,) = result.values[name][:, 0]
    # Files of integers round it; those of the case are not read back.
    np.testing.assert_allclose(mean, samples.mean(0), atol=1)
    top = result.spread()[name].max()
    deviation = samples.std(0, ddof=1)[mask]
    assert top == pytest.approx(deviation.max(), rel=0.01)
    names = [path.name for path in result.files[0]]
    assert [name for name in names if "std" in name] == [
        f"{SUBJECT}_t1-std.nii.gz" if kind == "case" else "std.npy"
    ]
    result = run(session, sequences=sequences, num_samples=1, estimate="mean", mean_passes=1)
    assert result.titles == ["mean in one pass"]
    assert result.spread() is None


@pytest.mark.parametrize("estimate", ["sample", "near_mean"])
@pytest.mark.parametrize("kind", ["case", "picture"])
def test_every_sample_is_a_result_with_its_labels(case_files, png, tmp_path, kind, estimate):
    given = (case_files, "brats2021") if kind == "case" else ([png], "")
    session = load(given[0], tmp_path, given[1], inpainter=labeling_inpainter())
    number, name = (2, "t1") if kind == "case" else (0, "slice")
    mask = painted(session, number)
    result = run(
        session,
        inpainter=labeling_inpainter(),
        sequences=[name] if kind == "case" else [],
        num_samples=3,
        num_steps=3,
        estimate=estimate,
    )
    assert result.titles == ["sample 0", "sample 1", "sample 2"] and len(result.files) == 3
    samples = result.values[name][:, 0]
    assert len(samples) == 3 and len(result.labels) == 3
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (samples[first] != samples[second])[mask].mean() > 0.5


def test_what_a_model_says_it_painted_is_outlined_and_offered(png, tmp_path):
    session = load([png], tmp_path, inpainter=labeling_inpainter())
    labels = np.zeros((40, 36), np.uint8)
    labels[15:22, 12:20] = NUMBERS["tumor"]
    session.paint(0, labels, ())
    result = run(session, inpainter=labeling_inpainter())
    said = views.result_view(session, result)["labels"]
    for number, files in enumerate(result.files):
        written = np.asarray(Image.open(next(path for path in files if path.name == "seg.png")))
        np.testing.assert_array_equal(written, result.labels[number, 0])
        assert not written[labels == 0].any() and written.any()
        np.testing.assert_array_equal(painter.from_runs(said[number][0], labels.shape), written)
    # Without a label head there is nothing to say.
    assert run(session).labels is None


def test_rois_of_the_tumor_in_a_segmentation(case_files, tmp_path):
    """They are made of it, and label maps keep it outside of them."""
    images, labels = make_arrays(0)
    path = write_volume(tmp_path / "seg.nii.gz", labels)
    session = load(case_files, tmp_path, "brats2021")
    take_roi(session, path, "brats2021", LIMITS, TumorRois("grow", 1.0))
    canonical = np.where(labels == 4, 3, labels).transpose(2, 1, 0)
    np.testing.assert_array_equal(session.segmentation, canonical)
    rois = np.stack([session.labels(z) for z in range(SHAPE[2])])
    brain = np.any([image != 0 for image in images.values()], axis=0).transpose(2, 1, 0)
    grown = ndimage.binary_dilation(canonical > 0) & (canonical == 0) & brain
    np.testing.assert_array_equal(rois, np.where(grown, NUMBERS["edema"], 0))
    result = run(session, num_samples=1)
    (written,) = [path for path in result.files[0] if path.name.endswith("-seg.nii.gz")]
    expected = np.where(grown, 2, canonical)
    # BraTS 2021 writes enhancement as 4.
    np.testing.assert_array_equal(
        stored(written).transpose(2, 1, 0), np.where(expected == 3, 4, expected)
    )
    with pytest.raises(ValueError, match="no components of a tumor"):
        take_roi(session, path, "1:normal, 2:edema, 4:enhancement", LIMITS, TumorRois("remove"))


def test_a_resection_cavity_is_kept_and_nothing_grows_into_it(case_files, tmp_path):
    """As on the command line: number 4 of BraTS 2024 is no ROI, but a label."""
    images, labels = make_arrays(0)
    segmentation = np.where(labels == 4, 3, labels).astype(np.uint8)
    brain = np.any([image != 0 for image in images.values()], axis=0)
    beside = ndimage.binary_dilation(segmentation > 0) & (segmentation == 0) & brain
    segmentation[tuple(np.argwhere(beside)[:12].T)] = CAVITY
    path = write_volume(tmp_path / "seg.nii.gz", segmentation)
    session = load(case_files, tmp_path, sequences=["t1", "t1ce", "t2", "flair"])
    take_roi(session, path, "brats2024", LIMITS, TumorRois("grow", 1.0))
    canonical = segmentation.transpose(2, 1, 0)
    np.testing.assert_array_equal(session.segmentation, canonical)
    union = session.rois().union
    assert union.any() and not (union & (canonical == CAVITY)).any()
    result = run(session, num_samples=1)
    (written,) = [path for path in result.files[0] if path.name.endswith("-seg.nii.gz")]
    np.testing.assert_array_equal(stored(written) == CAVITY, segmentation == CAVITY)
    # The ROIs themselves are no segmentation.
    take_roi(session, path, "brats2024", LIMITS, TumorRois())
    np.testing.assert_array_equal(session.rois().union, np.isin(canonical, TUMOR_LABELS))
    # Before anything is painted, not after.
    session = load(case_files, tmp_path, "brats2021")
    with pytest.raises(ValueError, match=r"^seg\.nii\.gz: convention brats2021 has no number"):
        take_roi(session, path, "brats2024", LIMITS, TumorRois("grow", 1.0))
    assert not session.painted and session.segmentation is None


def test_a_cavity_in_a_picture_is_kept(png, tmp_path):
    session = load([png], tmp_path)
    segmentation = np.zeros((40, 36), np.uint8)
    segmentation[15:22, 12:20] = 2
    segmentation[22:24, 12:20] = CAVITY
    Image.fromarray(segmentation).save(tmp_path / "seg.png")
    take_roi(session, tmp_path / "seg.png", "brats2024", LIMITS, TumorRois("grow", 2.0))
    np.testing.assert_array_equal(session.segmentation[0], segmentation)
    assert not (session.rois().union[0] & (segmentation > 0)).any()


def test_a_whole_case_from_its_own_segmentation(case_files, tmp_path):
    """Files of a convention may come with the segmentation; a range of slices limits what is taken."""
    path = case_files[0].with_name(f"{SUBJECT}_seg.nii.gz")
    session = load([*case_files, path], tmp_path, "brats2021")
    canonical = np.array([0, 1, 2, 0, 3])[stored(path)].transpose(2, 1, 0)
    np.testing.assert_array_equal(session.segmentation, canonical)
    paint_tumor(session, session.segmentation, TumorRois("replace", first=2, last=2))
    assert list(session.painted) == [2]
    np.testing.assert_array_equal(session.labels(2), canonical[2])
    paint_tumor(session, session.segmentation, TumorRois("remove"))
    for z in range(6):
        np.testing.assert_array_equal(session.labels(z) > 0, canonical[z] > 0)
    for first, last, match in ((4, 5, "hold none"), (3, 2, "no range"), (0, 6, "no range")):
        with pytest.raises(ValueError, match=match):
            paint_tumor(session, session.segmentation, TumorRois("remove", first=first, last=last))


def test_a_run_that_cannot_be(case_files, tmp_path):
    session = load(case_files, tmp_path, "brats2021")

    def refused(limits=LIMITS, **changes):
        with pytest.raises(ValueError) as error:
            run(session, limits=limits, **changes)
        assert not session.result_folder().exists()
        return str(error.value)

    assert "nothing is painted" in refused()
    painted(session, 2)
    assert "1 slices x 4 sequences x 2 samples are 8 images" in refused(Limits(5, 20, 10**5, 7))
    assert "number of samples" in refused(num_samples=0)
    assert "seed" in refused(seed=-1)
    assert "num_samples must be at least 2" in refused(num_samples=1, estimate="mean")
    assert "num_steps" in refused(num_steps=0)
    assert "1001" in refused(num_steps=1001)
    assert "guidance_weight" in refused(guidance_weight=float("nan"))
    labels = np.zeros(session.shape[1:], np.uint8)
    labels[5:9, 5:9] = NUMBERS["normal"]
    labels[7, 7] = NUMBERS["edema"]
    session.paint(2, labels, ("normal",))
    assert "normal and edema overlap" in refused()


@pytest.mark.parametrize("has_labels", [False, True])
def test_a_whole_case_fits_the_shipped_limits(has_labels):
    """A case of BraTS, four sequences, two samples; what does not fit is told the way out."""
    limits = from_config(serve.ServeSettings, get_config()).limits
    shape, sequences = (155, 240, 240), ("t1", "t1ce", "t2", "flair")
    painted = np.broadcast_to(np.uint8(2), shape[1:])
    session: Any = SimpleNamespace(
        name="case",
        shape=shape,
        painted=dict.fromkeys(range(155), painted),
        inpainter=SimpleNamespace(has_labels=has_labels),
    )
    check_run(session, limits, sequences, 2)
    with pytest.raises(
        ValueError, match=r"1860 images .* 2500 MB .*: choose fewer samples or slices"
    ):
        check_run(session, limits, sequences, 3)
    with pytest.raises(ValueError, match=r"at most 2048 .*: choose fewer samples or slices"):
        check_run(session, limits, sequences, 4)


def test_a_cancelled_run_leaves_nothing(case_files, tmp_path):
    session = load(case_files, tmp_path, "brats2021")
    painted(session, 2)
    session.cancel()
    assert not session.cancelled.is_set(), "there is no run to cancel"
    session.begin()
    with pytest.raises(SamplingCancelled):
        run(session, progress=lambda *_: session.cancel(), num_steps=25)
    assert not session.result_folder().exists()
    session.end()
    session.begin()
    assert not session.cancelled.is_set()


# The task.


def test_a_busy_port_is_said_before_the_model_is_loaded():
    config = get_config()
    config.checkpoint = "there/is/none"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config.port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {config.port} .*--config\.port="):
            serve.main(config, "")
    with pytest.raises(ValueError, match="ports are 1 to 65535"):
        serve.check_address("127.0.0.1", 70000)
    with pytest.raises(ValueError, match="cannot listen on 203"):
        serve.check_address("203.0.113.1", 7860)


def test_without_gradio(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **settings):
        if name.partition(".")[0] == "gradio":
            raise ModuleNotFoundError("No module named 'gradio'")
        return real(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r'pip install "\.\[web\]"'):
        serve.import_gradio()


def test_the_page_stays_on_this_machine_by_default():
    assert get_config().host == "127.0.0.1"


class TestWhoMayUseThePage:
    """Others than the own machine need a password, or the page has to be opened explicitly."""

    @pytest.fixture(autouse=True)
    def quiet(self, monkeypatch):
        monkeypatch.delenv("MBTI_PASSWORD", raising=False)
        monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)

    def settings(self, host, **changes):
        config = get_config()
        config.host = host
        config.update(changes)
        return from_config(serve.ServeSettings, config)

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
    def test_here(self, host, capsys):
        assert serve.read_password(self.settings(host)) is None
        assert not capsys.readouterr().out

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
    def test_elsewhere(self, host, monkeypatch, capsys):
        with pytest.raises(ValueError, match=r"MBTI_PASSWORD.*--config\.open=True"):
            serve.read_password(self.settings(host))
        assert serve.read_password(self.settings(host, open=True)) is None
        assert f"everybody who reaches {host}" in capsys.readouterr().out
        monkeypatch.setenv("MBTI_PASSWORD", "open sesame")
        assert serve.read_password(self.settings(host)) == "open sesame"
        assert "Warning" in capsys.readouterr().out
        assert "MBTI_PASSWORD" not in os.environ, "nor in what this program starts"

    def test_typed_in(self, monkeypatch):
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("getpass.getpass", lambda prompt: "open sesame")
        assert serve.read_password(self.settings("0.0.0.0")) == "open sesame"
        monkeypatch.setattr("getpass.getpass", lambda prompt: "")
        with pytest.raises(ValueError, match="at least 8 characters"):
            serve.read_password(self.settings("0.0.0.0"))

    def test_before_the_model_is_loaded(self):
        config = get_config()
        config.host, config.checkpoint = "0.0.0.0", "there/is/none"
        with socket.socket() as free:
            free.bind(("0.0.0.0", 0))
            config.port = free.getsockname()[1]
        with pytest.raises(ValueError, match="MBTI_PASSWORD"):
            serve.main(config, "")


@pytest.mark.parametrize(
    ("labels", "process", "estimate"),
    [
        ([[0, 5]], RectifiedFlow(), "samples near the mean"),
        ([[0, 5], [5, 2]], RectifiedFlow(), "samples"),
        ([[0, 1]], RectifiedFlow(), "samples"),
        ([], RectifiedFlow(), "samples"),
        ([[0, 5]], Consistency(RectifiedFlow()), "samples"),
    ],
)
def test_the_preset_follows_from_what_is_painted(labels, process, estimate):
    assert estimate_for(map(np.array, labels), process) == estimate

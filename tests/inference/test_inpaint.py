"""`Inpainter` on single slices: what it leaves alone, what it depends on, what it refuses."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_inpainter import WINDOW, make_mask, make_slice, tiny_inpainter, tiny_params

from mbti_jax import Inpainter, Rois, Sampling
from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.samplers.driver import Sampler, SamplingCancelled
from mbti_jax.inference import checks
from mbti_jax.inference.blending import blended
from mbti_jax.interop.inference_checkpoint import write_export
from mbti_jax.rois.kinds import CHANNELS
from mbti_jax.training.checkpoint import Checkpointer
from mbti_jax.training.state import TrainState

STEPS = {"num_steps": 3}
SAMPLING_FIELDS = {field.name for field in dataclasses.fields(Sampling)}


def inpaint(image, rois, *, box=(), inpainter=None, **options):
    """`Inpainter.inpaint` with the fields of its values as keywords."""
    if "guidance_weight" in options:
        options["guidance"] = options.pop("guidance_weight")
    chosen = {name: options.pop(name) for name in SAMPLING_FIELDS & options.keys()}
    if box:
        rois = Rois.of(rois, image.shape[:2], box)
    return (inpainter or tiny_inpainter()).inpaint(image, rois, Sampling(**chosen), **options)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(40, 36), (16, 16), (70, 24)])
def test_outside_the_roi_nothing_changes(dtype, shape):
    image = make_slice(shape, dtype=np.int16) % 251
    image = image.astype(dtype)
    mask = np.zeros(shape, bool)
    mask[shape[0] // 2, shape[1] // 3 : shape[1] // 2 + 1] = True
    mask[shape[0] // 3, shape[1] // 3] = True
    result = inpaint(image, {"normal": mask}, box=["normal"], num_samples=2, **STEPS)
    roi = result.rois.union
    assert result.images.shape == (2, *shape) and result.images.dtype == image.dtype
    assert roi.sum() > mask.sum()  # The box.
    for sample in result.images:
        np.testing.assert_array_equal(sample[~roi], image[~roi])
        assert (sample[roi] != image[roi]).mean() > 0.8
    assert (result.images[0] != result.images[1]).any()
    expected = np.std(result.images.astype(np.float64), axis=0, ddof=1)
    np.testing.assert_allclose(result.std, expected, rtol=1e-5)
    json.dumps(result.provenance, allow_nan=False)
    assert result.provenance["synthetic"] is True


def test_the_same_request_gives_the_same_pixels_alone_and_among_others():
    image, mask = make_slice(), make_mask()
    inpainter = tiny_inpainter()
    alone = inpaint(image, {"edema": mask}, seed=5, slice_index=3, **STEPS)
    # Six samples fill one batch and a half; sample 0 is the one above.
    among = inpaint(image, {"edema": mask}, seed=5, slice_index=3, num_samples=6, **STEPS)
    np.testing.assert_array_equal(alone.images[0], among.images[0])
    values = np.stack([np.roll(image, k, 0) for k in range(5)])[..., None]
    masks = np.zeros((5, *image.shape, 5), bool)
    masks[..., 2] = mask
    scale = alone.provenance["intensity"]["low_high"]
    window = inpainter._place_window(image.shape, (2, 2, 38, 34), (14, 10, 25, 19), (1, 1))
    settings = (checks.given_scales(scale, 1), window, Sampling(3, seed=5))
    brain, rois = (values != 0).any(-1), Rois(masks)
    volume, *_ = inpainter._through_window(values, brain, rois, *settings, slice_indices=range(5))
    single, *_ = inpainter._through_window(
        values[3:4], brain[3:4], rois[3:4], *settings, slice_indices=[3]
    )
    np.testing.assert_array_equal(volume[:, 3:4], single)


@pytest.mark.parametrize("change", [{"seed": 1}, {"slice_index": 1}, {"guidance_weight": 9.0}])
def test_what_the_result_depends_on(change):
    image, rois = make_slice(dtype=np.float32), {"edema": make_mask()}
    base = {"seed": 0, "slice_index": 0, "guidance_weight": 0.4, **STEPS}
    first = inpaint(image, rois, **base).images
    np.testing.assert_array_equal(inpaint(image, rois, **base).images, first)
    assert (inpaint(image, rois, **{**base, **change}).images != first).any()


@pytest.mark.parametrize(
    ("spacing", "visited"),
    [("trailing", [999, 749, 499, 249]), ("ddim", [750, 500, 250, 0])],
)
def test_spacing_of_the_timesteps(monkeypatch, spacing, visited):
    sample, seen = Sampler.__call__, []

    def watched(*args, **kwargs):
        (sampling,) = (argument for argument in args if isinstance(argument, Sampling))
        seen.append(sampling.timesteps(1000).tolist())
        return sample(*args, **kwargs)

    monkeypatch.setattr(Sampler, "__call__", watched)
    result = inpaint(make_slice(), {"edema": make_mask()}, num_steps=4, spacing=spacing)
    assert seen == [visited] and result.provenance["sampling"]["spacing"] == spacing


def test_nothing_of_what_was_inside_the_roi_is_used():
    image = make_slice(dtype=np.float32)
    other = np.where(make_mask(), 12345, image)
    request = {"intensity_range": (0, 900), "brain_box": (6, 4, 34, 32), **STEPS}
    results = [inpaint(x, {"normal": make_mask()}, **request).images for x in (image, other)]
    np.testing.assert_array_equal(*results)


def test_sequences_one_by_one_share_mask_and_noise():
    image = make_slice(channels=4)
    request = {"intensity_range": (0, 900), "brain_box": (6, 4, 34, 32), "seed": 2, **STEPS}
    together = inpaint(image, {"tumor": make_mask()}, num_samples=3, **request)
    assert "one by one" in together.provenance["sequences"]
    assert together.images.shape == (3, *image.shape)
    for c in range(4):
        single = inpaint(image[..., c], {"tumor": make_mask()}, num_samples=3, **request)
        np.testing.assert_array_equal(together.images[..., c], single.images)


def test_a_model_of_several_sequences():
    image = make_slice(channels=2)
    inpainter = tiny_inpainter(num_sequences=2)
    result = inpaint(image, {"tumor": make_mask()}, inpainter=inpainter, **STEPS)
    assert result.provenance["sequences"] == "together"
    outside = ~make_mask()
    np.testing.assert_array_equal(result.images[0][outside], image[outside])
    assert (result.images[0][make_mask()] != image[make_mask()]).all(-1).mean() > 0.8
    with pytest.raises(ValueError, match="4 sequences, but this model paints 2 together: t1, t1ce"):
        inpaint(make_slice(channels=4), {"tumor": make_mask()}, inpainter=inpainter, **STEPS)


def test_blending_is_of_normal_tissue_alone():
    shape = (40, 36)
    image = np.zeros(shape, np.float32)
    image[2:38, 2:34] = 300
    image[2:38, 10:12] = 320  # So that the scale is not that of one number.
    normal, edema = np.zeros(shape, bool), np.zeros(shape, bool)
    normal[8:20, 14:28] = edema[26:34, 14:28] = True
    rois = {"normal": normal, "edema": edema}
    options = {"intensity_range": (0.0, 400.0), "num_samples": 2, **STEPS}
    plain, made = (inpaint(image, rois, blend=blend, **options) for blend in (False, True))
    units = [out[..., None] / 200 - 1 for out in (image, *plain.images)]
    for before, after, fill in zip(plain.images, made.images, units[1:], strict=True):
        np.testing.assert_array_equal(after[~normal], before[~normal])
        tissue = normal & (fill[..., 0] > -0.98)
        expected = blended(fill, normal, (image > 0) & ~normal & ~edema, tissue)
        np.testing.assert_allclose(after / 200 - 1, expected[..., 0], atol=1e-5)
        assert np.abs(after - before)[normal].max() > 1
    assert made.provenance["sampling"]["blend"] is True
    assert "blend" not in plain.provenance["sampling"]
    # On the network's own grid the same, where nothing is resampled.
    inpainter = tiny_inpainter()
    size = inpainter.image_size
    context = np.full((1, size, size, 1), 0.2, np.float32)
    masks = np.zeros((size, size, len(CHANNELS)), bool)
    masks[4:12, 5:12, 0] = True
    condition = Condition.stack([Rois(masks).condition()])
    out = [
        inpainter.sample(context, condition, Sampling(3, blend=blend)).images[0, 0]
        for blend in (False, True)
    ]
    roi, size_mm = masks[..., 0], WINDOW / size
    np.testing.assert_array_equal(out[1][~roi], context[0][~roi])
    tissue = roi & (out[0][..., 0] > -0.98)
    expected = blended(out[0], roi, ~roi, tissue, (size_mm, size_mm))
    np.testing.assert_allclose(out[1][roi], expected[roi], atol=1e-5)


@pytest.mark.parametrize("channels", [None, 2])
def test_the_mean_of_samples_and_their_deviation(channels):
    image, rois = make_slice(channels=channels, dtype=np.float64), {"edema": make_mask()}
    request = {"num_samples": 5, "seed": 4, **STEPS}
    samples = inpaint(image, rois, **request)
    mean = inpaint(image, rois, estimate="mean", **request)
    assert mean.images.shape == (1, *image.shape) and mean.images.dtype == image.dtype
    np.testing.assert_allclose(mean.images[0], samples.images.mean(0), rtol=1e-12)
    expected = samples.images.std(0, ddof=1)
    np.testing.assert_allclose(mean.std, expected, rtol=1e-5)
    outside = ~make_mask()
    np.testing.assert_array_equal(mean.images[0][outside], image[outside])
    assert (mean.std[outside] == 0).all() and (mean.std[make_mask()] > 0).all()
    record = mean.provenance["sampling"]
    assert record["estimate"] == "mean" and record["num_samples"] == 5
    assert "units of the input" in mean.provenance["std"]
    assert "std" not in samples.provenance
    whole = inpaint(image.astype(np.int16), rois, estimate="mean", **request)
    np.testing.assert_array_equal(whole.images, np.rint(mean.images).astype(np.int16))


def test_the_mean_in_one_pass_is_the_networks_first_estimate():
    """v at t = T - 1 for zeros in the ROI, x_0 = a x_t - s v, clipped; one pass and unguided."""
    image, rois = (
        make_slice((16, 16), dtype=np.float64),
        {"edema": make_mask((16, 16), (4, 4, 9, 10))},
    )
    inpainter = tiny_inpainter()
    # Pixels of 2 mm, so that the network's image is the slice.
    request = {"intensity_range": (0.0, 900.0), "pixel_size": 2.0, "seed": 6}
    result = inpaint(image, rois, estimate="mean", mean_passes=1, **request)
    assert result.std is None and result.images.shape == (1, 16, 16)
    record = result.provenance["sampling"]
    assert (record["evaluations"], record["network_passes"]) == (1, 1)
    assert record["guidance_weight"] == 0.0
    roi = rois["edema"]
    scaled = np.where(image != 0, image / 450 - 1, -1).astype(np.float32)
    x_t = np.where(roi, 0, scaled)[None, ..., None]
    condition = Condition.stack([Rois.of(rois, roi.shape).condition()])
    process = inpainter.pipeline.process
    t = np.array([999])
    v = inpainter.pipeline.apply(inpainter._params, x_t, t, condition).image
    x_0 = process.alpha(t) * x_t - process.sigma(t) * np.asarray(v)
    expected = (np.clip(x_0[0, ..., 0], -1, 3) + 1) * 450
    np.testing.assert_allclose(result.images[0][roi], expected[roi], rtol=1e-4, atol=0.05)
    other = inpaint(image, rois, estimate="mean", mean_passes=1, **(request | {"seed": 7}))
    np.testing.assert_array_equal(other.images, result.images)
    guided = inpaint(image, rois, estimate="mean", mean_passes=1, guidance=3.0, **request)
    assert guided.provenance["sampling"]["network_passes"] == 2
    assert (guided.images != result.images).any()


def test_samples_near_the_mean_are_several():
    image = make_slice((16, 16), dtype=np.float64)
    rois = {"normal": make_mask((16, 16), (4, 4, 9, 10))}
    found = inpaint(image, rois, estimate="near_mean", num_samples=3, num_steps=4)
    assert found.images.shape == (3, 16, 16)
    alone = inpaint(image, rois, estimate="near_mean", num_steps=4)
    np.testing.assert_array_equal(found.images[:1], alone.images)
    assert (found.std > 0)[rois["normal"]].all()
    assert (found.images[0] != found.images[1])[rois["normal"]].mean() > 0.9
    # Guidance, which normal tissue does not need, is for those who ask.
    record = alone.provenance["sampling"]
    assert (record["guidance_weight"], record["network_passes"]) == (0.0, 4)
    guided = inpaint(image, rois, estimate="near_mean", num_steps=4, guidance=3.0)
    assert guided.provenance["sampling"]["network_passes"] == 8
    assert (guided.images != alone.images).any()


def test_units_of_the_input():
    """An image in other units gives the same result in those units."""
    image = make_slice(dtype=np.float64)
    rois = {"normal": make_mask()}
    plain = inpaint(image, rois, intensity_range=(0, 800), **STEPS).images
    scaled = inpaint(image * 0.25, rois, intensity_range=(0, 200), **STEPS).images
    np.testing.assert_allclose(scaled, 0.25 * plain, rtol=1e-5, atol=1e-3)


def test_clipping_to_the_data_type_is_counted():
    image = (make_slice() // 4).astype(np.uint8)
    rois = {"normal": make_mask()}
    # A scale so wide that much of the result lies beyond 255.
    result = inpaint(image, rois, intensity_range=(-5000, 5000), **STEPS)
    inside = result.images[0][make_mask()]
    count = result.provenance["clipped_to_dtype"]
    assert 0 < count <= ((inside == 0) | (inside == 255)).sum()


def test_progress_and_cancel():
    calls = []
    image, rois = make_slice(), {"normal": make_mask()}
    inpaint(image, rois, num_samples=5, num_steps=3, progress=lambda *call: calls.append(call))
    # Two batches of three steps, and each step is one.
    assert calls == [(done, 6) for done in range(1, 7)]
    with pytest.raises(SamplingCancelled):
        inpaint(image, rois, cancel=lambda: True, **STEPS)


def test_default_scale_is_warned_of():
    image, rois = make_slice(), {"normal": make_mask()}
    record = inpaint(image, rois, **STEPS).provenance
    assert (
        "percentiles" in record["intensity"]["from"] and "intensity_range" in record["warnings"][0]
    )
    record = inpaint(image, rois, intensity_range=(0, 900), **STEPS).provenance
    assert record["intensity"]["low_high"] == [[0, 900]] and record["warnings"] == []


def test_loads_a_training_run_and_its_export(tmp_path):
    inpainter = tiny_inpainter()
    params = tiny_params(inpainter.metadata)
    metadata = {name: inpainter.metadata[name] for name in ("contract", "inference")}
    state = TrainState(np.int32(7), params, params, {})
    checkpointer = Checkpointer(tmp_path / "run", metadata)
    checkpointer.save(state)
    checkpointer.wait()
    checkpointer.close()
    card = {"title": "tiny", "data": "none", "license": "none"}
    write_export(tmp_path / "export", params, {**metadata, "step": 7}, card)
    loaded = [Inpainter.load(tmp_path / name).checkpoint for name in ("run", "export")]
    assert [record.pop("name") for record in loaded] == ["run", "export"]
    assert loaded[0] == loaded[1] and loaded[0]["step"] == 7
    assert loaded[0]["weights_sha256"] == inpainter.checkpoint["weights_sha256"]
    with pytest.raises(ValueError, match="holds no checkpoints"):
        Inpainter.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("phantm", r"phantm is not there; .*did you mean phantom\?"),
        ("runs/none", "runs/none is not there; give"),
    ],
)
def test_a_model_that_is_not_there_is_answered_with_what_there_is(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        Inpainter.load(name)


def test_a_sampler_is_no_sampling():
    inpainter = tiny_inpainter()
    for paint in (inpainter.inpaint, inpainter.inpaint_volume):
        with pytest.raises(TypeError, match=r"sampling must be a Sampling, such as .*, not 'ddim'"):
            paint(make_slice(), {"normal": make_mask()}, "ddim")
    assert repr(inpainter) == f"Inpainter({inpainter.name!r}: t1, t1ce, t2, flair, one at a time)"


GOOD = {"image": make_slice(), "rois": {"normal": make_mask()}}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image": np.full((40, 36), np.nan)}, "NaN or infinite"),
        ({"image": np.full((40, 36), 5)}, "image is constant"),
        ({"image": np.zeros((40, 36), bool)}, "integers or floats are needed"),
        ({"image": np.zeros(40)}, r"has shape \(40,\)"),
        ({"image": make_slice((30, 30))}, r"ROI normal has shape \(40, 36\), the image \(30, 30\)"),
        ({"rois": {}}, "ROI is empty"),
        ({"box": ("edma",)}, "unknown ROI 'edma'"),
        ({"num_samples": 0}, "num_samples must be a whole number from 1"),
        ({"estimate": "mean"}, "num_samples must be at least 2 for their mean"),
        ({"num_steps": 0}, "1"),
        ({"num_steps": 1001}, "1000"),
        ({"spacing": "leading"}, "Unknown spacing 'leading'"),
        ({"spacing": "ddim", "num_steps": 400}, "No integer stride leaves exactly 400"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"eta": 2}, "eta must be between 0 and 1"),
        ({"guidance_weight": np.inf}, "guidance_weight"),
        ({"intensity_range": (5, 5)}, "low < high"),
        ({"guidance_weight": 1e39}, "guidance"),
        ({"intensity_range": (0, np.inf)}, "low < high"),
        ({"intensity_range": (0, 1e-300)}, "in what float32 can tell apart"),
        ({"intensity_range": (0, 1e39)}, "in what float32 can tell apart"),
        ({"intensity_range": (0, 1e-37)}, "do.* not fit the image"),
        ({"pixel_size": 1e-6}, "pixel_size must be millimeters above 0, from 0.1 to 20"),
        ({"intensity_range": [(0, 1), (0, 2)]}, "each of the 1 sequences"),
        ({"pixel_size": 0}, "pixel_size must be millimeters above 0"),
        ({"pixel_size": (1, 1, 1)}, "pixel_size must be millimeters above 0"),
        ({"slice_index": -3}, "slice_index"),
        ({"brain_box": (0, 0, 50, 2)}, "brain_box"),
    ],
)
def test_refused(change, sentence):
    request = {**GOOD, **change}
    with pytest.raises(ValueError, match=sentence):
        inpaint(request.pop("image"), request.pop("rois"), **request)

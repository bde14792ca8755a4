"""The part "volumes": who is compared at which cost, what is measured, and the tables."""

import dataclasses
import json
import re

import numpy as np
import pytest
from matplotlib.image import imread
from solid_workbench import CARD, solid_workbench, write_regressor
from tiny_inpainter import tiny_metadata, tiny_params

from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation import healthy, volumes
from mbti_jax.evaluation.baselines import biharmonic
from mbti_jax.evaluation.healthy_masks import case_mask, read_shapes
from mbti_jax.evaluation.metrics import brats_inpainting_metrics
from mbti_jax.evaluation.rivals import rivals, without_neighbors
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.interop.inference_checkpoint import write_export
from mbti_jax.rois.regions import Rois
from tfds_brats.cases import read_case
from tfds_brats.slices import to_slices

SETTINGS = {
    "num_cases": 1,
    "num_shape_cases": 99,
    "passes": (4,),
    "num_samples": 2,
    "z_sigma_mm": (None, 0.0),
    "tumors": ("replace", "random box"),
    "models": (),
    "hide_neighbors": False,
    "regressor": "",
}


@pytest.fixture(scope="module")
def workbench(tmp_path_factory):
    return solid_workbench(tmp_path_factory.mktemp("volumes"), num_cases=10)


@pytest.fixture(scope="module")
def result(workbench, tmp_path_factory):
    """With a second model that is the first one by another name."""
    folder = tmp_path_factory.mktemp("models")
    metadata = json.loads(json.dumps(workbench.inpainter.metadata))
    write_export(folder / "twin", tiny_params(metadata), metadata, CARD)
    regressor = write_regressor(workbench, folder / "regressor")
    others = {"models": (str(folder / "twin"),), "regressor": str(regressor)}
    settings = volumes.VolumesSettings(**SETTINGS | others)
    found = volumes.run(workbench, settings, folder)
    assert imread(folder / "planes.png").std() > 0.05
    return found


def test_rivals_cost_the_same():
    """A guided evaluation takes two passes; Heun's method evaluates 2 n - 1 times in n steps."""
    metadata = tiny_metadata()
    second_order = {**metadata, "inference": {**metadata["inference"], "sampler": "heun"}}
    params = tiny_params(metadata)
    models = {
        "a": Inpainter(params, metadata, 4, "a"),
        "b": Inpainter(params, second_order, 4, "b"),
    }
    compared = {"passes": (8, 13), "z_sigma_mm": (None, 0.0), "num_samples": 2}
    records = {rival.name: rival.record() for rival in rivals(models, **compared)}
    assert len(records) == 2 * (2 * 3 + 1)
    steps = {name: (r["num_steps"], r["network_passes"]) for name, r in records.items()}
    assert steps["a: sample, own noise, 8 passes"] == (4, 8)
    assert steps["a: mean of 2, own noise, 8 passes"] == (2, 8)
    assert steps["b: sample, independent noise, 8 passes"] == (2, 6)
    assert steps["b: sample, independent noise, 13 passes"] == (3, 10)
    assert steps["b: mean of 2, own noise, 8 passes"] == (1, 4)
    # What does not divide is not exceeded.
    assert steps["a: sample, own noise, 13 passes"] == (6, 12)
    assert steps["a: mean in one pass, own noise"] == (1, 1)
    (alone, *_) = rivals({"a": models["a"]}, **compared)
    assert alone.name == "sample, own noise, 8 passes"
    # Where nothing is said.
    assert alone.record()["z_sigma_mm"] == 2


def test_all_methods_fill_the_same_regions_in_all_sequences(result):
    settings = ("sample, own noise, 4 passes", "sample, independent noise, 4 passes")
    means = ("mean of 2, own noise, 4 passes", "mean in one pass, own noise")
    own = [f"{model}: {name}" for model in ("tiny", "twin") for name in settings + means]
    assert result["methods"] == ["Telea", "biharmonic", "U-Net regressor", *own]
    assert list(result["healthy"]) == ["t1", "t1ce", "t2", "flair"]
    assert len(result["values"]["healthy"]) == 4 * len(result["methods"])
    assert list(result["tumors"]) == ["random box", "replace"]
    # Of tumors samples only, of both models.
    assert len(result["values"]["tumors"]) == 2 * 4 * 4
    assert {row["method"] for row in result["values"]["tumors"]} == {
        f"{model}: {name}" for model in ("tiny", "twin") for name in settings
    }


def test_the_numbers_are_those_of_the_fill_done_again(workbench, result):
    """The biharmonic fill of the one case, with NumPy."""
    case = read_case(workbench.cases("test")[0], ("t1", "t1ce", "t2", "flair"))
    mask = case_mask(case, read_shapes(workbench.cases("train")), (0, 0))
    voided, numbers = healthy.voided_case(case, mask), np.flatnonzero(mask.healthy.any((0, 1)))
    fill = {
        name: healthy.fill_slices(biharmonic, voided.values(name), mask.whole, numbers)
        for name in ("t1", "flair")
    }
    t1 = case.values("t1")
    prediction = np.where(mask.whole, fill["t1"], t1)
    expected = brats_inpainting_metrics(prediction, t1, voided.values("t1"), mask.healthy)
    (row,) = (r for r in result["values"]["official_3d"] if r["method"] == "biharmonic")
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    inside = mask.healthy & (case.values("flair") != 0)
    pairs = inside[..., 1:] & inside[..., :-1]
    steps = [np.abs(np.diff(v))[pairs].mean() for v in (fill["flair"], case.values("flair"))]
    (row,) = (
        r
        for r in result["values"]["healthy"]
        if (r["method"], r["sequence"]) == ("biharmonic", "flair")
    )
    assert row["step"] == pytest.approx(steps[0] / steps[1])


def test_a_model_and_its_twin_differ_in_nothing(result):
    """The same weights by another name: every paired difference is 0; of two kinds of noise not."""
    sample = "sample, own noise, 4 passes"
    for found in (result["official_3d"], *result["healthy"].values()):
        for metric in found.values():
            if f"twin: {sample}" in metric:
                assert metric[f"twin: {sample}"]["minus"][f"tiny: {sample}"]["mean"] == 0
    independent = result["healthy"]["t1"]["step"]["tiny: sample, independent noise, 4 passes"]
    assert independent["minus"][f"tiny: {sample}"]["mean"] != 0
    # One patient has no interval.
    assert independent["low"] is None


def test_the_section_shows_all_of_it(result):
    result = json.loads(json.dumps(result, allow_nan=False))
    text = volumes.tables(result)
    for method in result["methods"]:
        # Three official metrics, and four sequences.
        count = len(re.findall(rf"^\| {re.escape(method)} \|", text, re.MULTILINE))
        count += len(re.findall(rf"^\| \w+ \| {re.escape(method)} \|", text, re.MULTILINE))
        assert count >= 7
    value = result["healthy"]["t2"]["step"]["Telea"]["mean"]
    assert f"| t2 | Telea | {value:.2f} |" in text
    assert "| random box | flair | twin: sample, independent noise, 4 passes |" in text
    assert "minus tiny, same setting" in text
    assert "{" not in text


def test_a_second_run_samples_nothing_anew(workbench, result, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("sampled again")

    monkeypatch.setattr(Inpainter, "inpaint_volume", fail)
    again = volumes.run(workbench, volumes.VolumesSettings(**SETTINGS), tmp_path)
    sample = "sample, own noise, 4 passes"
    ssim = again["official_3d"]["ssim"][sample]["mean"]
    assert ssim == result["official_3d"]["ssim"][f"tiny: {sample}"]["mean"]
    assert "One model was measured." in volumes.tables(again)
    # Without tumors there is no table of them.
    assert "No tumor was painted." in volumes.tables({**again, "tumors": {}})


def test_models_that_cannot_be_compared_are_refused(workbench, tmp_path):
    regressor = write_regressor(workbench, tmp_path / "regressor")
    settings = volumes.VolumesSettings(**SETTINGS | {"models": (str(regressor),)})
    with pytest.raises(ValueError, match="is a regressor"):
        volumes.run(workbench, settings, tmp_path)
    metadata = json.loads(json.dumps(workbench.inpainter.metadata))
    metadata["contract"]["data"]["fingerprint"] = "another"
    write_export(tmp_path / "other", tiny_params(metadata), metadata, CARD)
    settings = volumes.VolumesSettings(**SETTINGS | {"models": (str(tmp_path / "other"),)})
    with pytest.raises(ValueError, match="other data"):
        volumes.run(workbench, settings, tmp_path)


def test_the_model_with_its_neighbors_hidden(workbench, tmp_path):
    """As it paints slices so far apart that it sees none of them."""
    metadata = json.loads(json.dumps(workbench.inpainter.metadata))
    metadata["contract"]["model"]["neighbors"] = 1
    write_export(tmp_path / "seeing", tiny_params(metadata), metadata, CARD)
    inpainter = Inpainter.load(tmp_path / "seeing", 4)
    case = read_case(workbench.cases("test")[0], ("t1",))
    apart = dataclasses.replace(case, affine=case.affine @ np.diag([1, 1, 5, 1]))
    roi = to_slices(case.brain & (np.indices(case.brain.shape)[2] % 40 < 20))
    rois = Rois.of({"normal": roi}, roi.shape)
    sampling = Sampling(1, guidance=0.0, z_sigma_mm=0.0)

    def painted(model, of):
        return model.inpaint_volume(of, rois, sampling)[0].values["t1"]

    hidden = painted(without_neighbors(inpainter), case)
    np.testing.assert_array_equal(hidden, painted(inpainter, apart))
    assert (hidden != painted(inpainter, case)).any()

    seeing = Workbench(inpainter, workbench.dataset, tmp_path / "samples", 0)
    fields = {"tumors": (), "num_samples": 1, "z_sigma_mm": (None,), "hide_neighbors": True}
    found = volumes.run(seeing, volumes.VolumesSettings(**SETTINGS | fields), tmp_path)
    assert {"seeing", "seeing, neighbors hidden"} == {r["model"] for r in found["rivals"]}
    assert "seeing, neighbors hidden: sample" in volumes.tables(found)

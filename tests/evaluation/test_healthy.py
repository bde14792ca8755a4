"""The part "healthy": what methods get to see, what is judged, and the tables it writes."""

import copy
import dataclasses
import json
import re

import numpy as np
import pytest
from matplotlib.image import imread
from solid_cases import ball
from solid_workbench import CARD, REGRESSION, solid_workbench, write_regressor
from tiny_inpainter import tiny_params

from mbti_jax.evaluation import healthy
from mbti_jax.evaluation.baselines import biharmonic, surrounding_mean
from mbti_jax.evaluation.healthy_masks import HealthyMask, healthy_mask, read_shapes
from mbti_jax.evaluation.metrics import axial_inpainting_metrics, brats_inpainting_metrics
from mbti_jax.evaluation.statistics import mean_with_interval, paired_difference
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.interop.inference_checkpoint import write_export
from tfds_brats.cases import read_case
from tfds_brats.conventions import CaseError

SETTINGS = healthy.HealthySettings(
    num_cases=2,
    num_samples=2,
    num_steps=2,
    slices_per_case=3,
    z_sigma_mm=2.0,
    num_shape_cases=99,
    regressor="",
)


@pytest.fixture(scope="module")
def workbench(tmp_path_factory) -> Workbench:
    return solid_workbench(tmp_path_factory.mktemp("healthy"))


@pytest.fixture(scope="module")
def regressor(workbench, tmp_path_factory):
    return write_regressor(workbench, tmp_path_factory.mktemp("regressor") / "exported")


@pytest.fixture(scope="module")
def result(workbench, regressor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("part")
    settings = dataclasses.replace(SETTINGS, regressor=str(regressor))
    return healthy.run(workbench, settings, folder), folder


def first_case(workbench):
    case = read_case(workbench.cases("test")[0], ("t1",))
    shapes = read_shapes(workbench.cases("train"))
    return case, healthy_mask(case.labels, case.brain, shapes, (0, 0))


def test_the_methods_see_nothing_of_what_was_cut_out(workbench, regressor):
    """Everything inside the mask, tumor included, is replaced by other numbers before voiding."""
    case, mask = first_case(workbench)
    t1 = case.images["t1"]
    noise = np.random.default_rng(0).integers(1, 30_000, t1.shape).astype(t1.dtype)
    other = dataclasses.replace(case, images={"t1": np.where(mask.whole, noise, t1)})
    voided, again = (healthy.voided_case(c, mask) for c in (case, other))
    assert not voided.values("t1")[mask.whole].any()
    np.testing.assert_array_equal(voided.values("t1")[~mask.whole], case.values("t1")[~mask.whole])
    np.testing.assert_array_equal(voided.values("t1"), again.values("t1"))
    assert voided.scale("t1") == again.scale("t1") != other.scale("t1")
    assert voided.labels is None


def voided_scale(voided):
    """The intensity scale as ARCHITECTURE.md states it."""
    brain = voided[voided != 0]
    low, high = np.percentile(brain, (0.1, 99.5))
    return min(0, low), high


def test_fills_go_slice_by_slice():
    rng = np.random.default_rng(0)
    values = rng.uniform(100, 900, (20, 18, 4))
    values[..., 3] = 0
    roi = np.zeros(values.shape, bool)
    roi[5:12, 6:11] = True
    values[roi] = 0
    brain = values != 0
    for fill in (surrounding_mean, biharmonic):
        filled = healthy.fill_slices(fill, values, roi, [1, 3])
        expected = fill(values[..., 1].astype(np.float32), roi[..., 1], brain[..., 1])
        np.testing.assert_allclose(filled[..., 1], expected, rtol=1e-6)
        # Neither a slice that was not asked for, nor one without brain.
        assert not filled[..., [0, 2, 3]].any()


def test_a_table_of_constructed_numbers():
    """Pipeline b is a + 1 in every slice, so its difference is exactly 1, whatever the slices are."""
    rng = np.random.default_rng(0)
    rows = []
    for subject in "uvwx":
        a = rng.normal(0, 9, 4)
        for method, values in (("a", a), ("b", a + 1), ("c", -a)):
            numbers = enumerate(values)
            named = [{"slice": k, "score": float(v)} for k, v in numbers]
            rows += [{"subject": subject, "method": method, **row} for row in named]
    found = healthy.compared(rows, ["a"], seed=0)
    assert list(found) == ["score"]
    assert found["score"]["b"]["minus"] == {"a": pytest.approx({"mean": 1, "low": 1, "high": 1})}
    assert found["score"]["a"]["minus"] == {}
    a, c = ([r["score"] for r in rows if r["method"] == m] for m in "ac")
    assert found["score"]["a"]["mean"] == pytest.approx(np.mean(a))
    assert found["score"]["a"]["median"] == pytest.approx(np.median(a))
    assert found["score"]["a"]["sd"] == pytest.approx(np.std(a, ddof=1))
    expected = paired_difference(np.array(c), np.array(a), np.repeat(list("uvwx"), 4), 0)
    assert found["score"]["c"]["minus"]["a"] == expected


def test_numbers_that_are_missing_are_left_out_of_means_and_pairs():
    """The difference is 1 in the four patients that both have; a method without any has no row."""
    rows = []
    for number, subject in enumerate("tuvwx"):
        a = None if subject == "t" else float(number**2)
        values = {"a": a, "b": float(number**2 + 1), "c": None}
        rows += [{"subject": subject, "method": m, "score": v} for m, v in values.items()]
    found = healthy.compared(rows, ["a", "c"], seed=0)["score"]
    assert list(found) == ["a", "b"]
    assert (found["a"]["count"], found["b"]["count"]) == (4, 5)
    assert found["a"]["mean"] == pytest.approx((1 + 4 + 9 + 16) / 4)
    assert found["b"]["minus"] == {"a": pytest.approx({"mean": 1, "low": 1, "high": 1})}


def test_timepoints_of_a_patient_are_no_further_patients():
    values = np.random.default_rng(0).normal(size=12)
    rows = [
        {"subject": f"s{n}", "patient": f"p{n // 2}", "method": "a", "score": float(value)}
        for n, value in enumerate(values)
    ]
    found = healthy.compared(rows, [], seed=0)["score"]["a"]
    expected = mean_with_interval(values, np.arange(12) // 2, 0)
    assert (found["low"], found["high"]) == (expected["low"], expected["high"])
    apart = [{**row, "patient": row["subject"]} for row in rows]
    assert healthy.compared(apart, [], seed=0)["score"]["a"]["low"] != found["low"]


def test_all_methods_are_judged_on_the_same_masks(result):
    found, folder = result
    assert found["methods"] == [
        *("surrounding mean", "Telea", "biharmonic", "U-Net regressor"),
        *("diffusion, one sample", "diffusion, mean of 2", "diffusion, one sample, blended"),
        *("diffusion, mean in one pass", "diffusion, mean in one pass, blended"),
        "diffusion, near the mean, blended",
    ]
    volumes, slices = found["values"]["official_3d"], found["values"]["axial_2d"]
    assert len(volumes) == 2 * 10
    assert len(slices) == found["num_slices"] * 10
    numbers = {
        m: [(r["subject"], r["slice"]) for r in slices if r["method"] == m]
        for m in found["methods"]
    }
    assert len({tuple(n) for n in numbers.values()}) == 1
    assert "ssim" not in slices[0]
    assert "ssim_axial" not in volumes[0]
    assert found["images_seen"] == {"diffusion": 30, "regressor": 30}
    assert imread(folder / "slices.png").std() > 0.05


def test_the_numbers_are_those_of_the_metrics_on_the_voided_volume(workbench, result):
    """The surrounding mean of the first case, done again with the functions below."""
    found, _ = result
    case, mask = first_case(workbench)
    t1 = case.values("t1")
    voided = np.where(mask.whole, 0, t1)
    numbers = np.flatnonzero(mask.healthy.any((0, 1)))
    filled = healthy.fill_slices(surrounding_mean, voided, mask.whole, numbers)
    prediction = np.where(mask.healthy, filled, t1)
    expected = brats_inpainting_metrics(prediction, t1, voided, mask.healthy)
    row = found["values"]["official_3d"][0]
    assert (row["subject"], row["method"]) == (case.subject, "surrounding mean")
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    row = found["values"]["region"][0]
    outside = mask.healthy & (t1 == 0)
    low, high = voided_scale(voided)
    expected = np.mean(filled[outside] > low + 0.1 * (high - low)) if outside.any() else None
    assert row["false_brain"] == pytest.approx(expected)
    row = found["values"]["axial_2d"][1]
    alone = np.zeros_like(mask.healthy)
    alone[..., row["slice"]] = mask.healthy[..., row["slice"]]
    expected = axial_inpainting_metrics(prediction, t1, voided, alone)
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_the_mean_of_samples_is_their_mean(workbench):
    case, mask = first_case(workbench)
    voided = healthy.voided_case(case, mask)
    painted = {}
    for count in (1, 2):
        settings = dataclasses.replace(SETTINGS, num_samples=count)
        painted[count] = healthy.paint(workbench, voided, mask, settings, 0, None)
    one, mean = (painted[2][m] for m in ("diffusion, one sample", "diffusion, mean of 2"))
    np.testing.assert_array_equal(painted[1]["diffusion, one sample"], one)
    assert "diffusion, mean of 1" not in painted[1]
    one_pass = [painted[count]["diffusion, mean in one pass"] for count in (1, 2)]
    np.testing.assert_array_equal(*one_pass)
    assert (one_pass[0] != one).any() and (one_pass[0] != mean).any()
    second = 2 * mean - one
    roi = np.zeros_like(mask.whole)
    roi[..., mask.healthy.any((0, 1))] = mask.whole[..., mask.healthy.any((0, 1))]
    assert np.abs(second - one)[roi].mean() > 1
    assert not mean[~roi].any()


def test_a_model_tuned_for_few_steps_has_no_means_but_of_samples(workbench):
    metadata = copy.deepcopy(workbench.inpainter.metadata)
    metadata["contract"]["diffusion"] |= {"objective": "consistency", "halve_every": 3}
    tuned = copy.copy(workbench)
    tuned.inpainter = Inpainter(workbench.inpainter._params, metadata, 4, "runs/tuned")
    case, mask = first_case(workbench)
    painted = healthy.paint(tuned, healthy.voided_case(case, mask), mask, SETTINGS, 0, None)
    assert [name for name in painted if "diffusion" in name] == [
        *("diffusion, one sample", "diffusion, mean of 2", "diffusion, one sample, blended"),
    ]


def test_the_same_again_samples_nothing_anew(workbench, regressor, result, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("sampled again")

    monkeypatch.setattr(Inpainter, "inpaint_volume", fail)
    settings = dataclasses.replace(SETTINGS, regressor=str(regressor))
    assert healthy.run(workbench, settings, tmp_path) == result[0]


def test_a_case_without_a_place_is_left_out_and_named(workbench, tmp_path, monkeypatch):
    case_mask = healthy.healthy_masks.case_mask

    def refuse_first(case, shapes, seed):
        if seed[1] == 0:
            raise CaseError(f"{case.subject}: no brain lies 5 voxels from the tumor")
        return case_mask(case, shapes, seed)

    monkeypatch.setattr(healthy.healthy_masks, "case_mask", refuse_first)
    found = healthy.run(workbench, dataclasses.replace(SETTINGS, num_samples=1), tmp_path)
    first, second = (files.subject for files in workbench.cases("test"))
    assert found["num_cases"] == 1
    assert {row["subject"] for row in found["values"]["official_3d"]} == {second}
    (mask,) = found["masks"]
    assert mask["subject"] == second and 0 <= mask["on_background"] <= 0.25 * mask["voxels"]
    text = healthy.tables(json.loads(json.dumps(found, allow_nan=False)))
    assert f"Left out: {first}: no brain lies 5 voxels from the tumor." in text
    assert f"{mask['on_background'] / mask['voxels']:.1%} of the masks' voxels" in text

    def refuse(case, shapes, seed):
        raise CaseError(f"{case.subject}: full")

    monkeypatch.setattr(healthy.healthy_masks, "case_mask", refuse)
    with pytest.raises(ValueError, match=f"no test case has a place for a mask: {first}: full; "):
        healthy.run(workbench, SETTINGS, tmp_path)


def test_the_section_shows_every_method_and_both_kinds_of_ssim(result):
    found, folder = result
    found = json.loads(json.dumps(found, allow_nan=False))
    text = healthy.tables(found)
    for method in found["methods"]:
        assert len(re.findall(rf"^\| {re.escape(method)} \|", text, re.MULTILINE)) == 7
    official, axial, region = text.split("### ")[1:]
    assert "| `ssim` |" in official
    assert "ssim_axial" not in official
    assert "| `ssim_axial` |" in axial
    assert "not comparable" in axial
    value = found["official_3d"]["ssim"]["Telea"]
    assert f"| Telea | {value['mean']:.3f} |" in official  # Two patients have no interval.
    seam, false = (found["region"][name]["Telea"]["mean"] for name in ("seam", "false_brain"))
    texture = found["region"]["texture"]["Telea"]["mean"]
    assert f"| Telea | {texture:.2f} | {seam:.2f} | {false:.2f} |" in region
    pictures = re.findall(r"!\[.*\]\(healthy/(.*)\)", text)
    assert pictures == ["slices.png"]
    assert (folder / pictures[0]).is_file()
    assert "trained on 30 images" in text
    without = {**found, "methods": found["methods"][:3], "images_seen": {"regressor": None}}
    assert "**No regressor was given**" in healthy.tables(without)


def test_a_model_that_is_not_a_regressor_or_of_other_data_is_refused(workbench, tmp_path):
    metadata = json.loads(json.dumps(workbench.inpainter.metadata))
    write_export(tmp_path / "diffusion", tiny_params(metadata), metadata, CARD)
    with pytest.raises(ValueError, match="is not a regressor"):
        healthy.load_regressor(str(tmp_path / "diffusion"), workbench.inpainter)
    metadata["contract"]["diffusion"] = REGRESSION
    metadata["contract"]["data"]["fingerprint"] = "another"
    write_export(tmp_path / "other", tiny_params(metadata), metadata, CARD)
    with pytest.raises(ValueError, match="other data"):
        healthy.load_regressor(str(tmp_path / "other"), workbench.inpainter)


def test_a_mask_is_both_of_its_parts():
    a, b = ball((20, 20, 20), 5), ball((40, 40, 20), 5)
    np.testing.assert_array_equal(HealthyMask(a, b).whole, a | b)

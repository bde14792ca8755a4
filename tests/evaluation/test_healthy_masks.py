"""Masks of healthy tissue: the rules of the challenge, checked on what comes out, and the files."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree
from solid_cases import SIZE, ball, ellipsoid, labels_with
from tiny_inpainter import tiny_metadata, tiny_params

from configs import healthy_masks as config_file
from configs import inpaint as inpaint_config
from mbti_jax.commands import healthy_masks as command
from mbti_jax.commands import inpaint
from mbti_jax.evaluation import healthy_masks as hm
from mbti_jax.fields import FieldError
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.inputs import read_roi_volume, voided_cases
from tfds_brats.cases import read_case
from tfds_brats.conventions import CaseError
from tfds_brats.search import find_cases


def some_shapes():
    """Four shapes of 1,000 to 1,900 voxels, none its own mirror image."""
    shapes = []
    for radius in (6.5, 7, 7.5, 8):
        mask = ball((10, 10, 10), radius, (21, 21, 21))
        mask[10:, 10:, 10:] = False
        (box,) = ndimage.find_objects(mask.astype(int))
        shapes.append(hm.Shape(mask[box], mask.sum() / ellipsoid().sum()))
    return shapes


def test_components_are_those_of_the_recipe():
    """A hollow ball of enough voxels, which is filled, and a ball of too few."""
    hollow = ball((15, 15, 15), 8) & ~ball((15, 15, 15), 3)
    small = ball((45, 45, 30), 5)
    assert small.sum() < hm.MIN_VOXELS < hollow.sum()
    np.testing.assert_array_equal(hm.large_components(hollow | small), ball((15, 15, 15), 8))
    assert not hm.large_components(small).any()


def test_the_largest_component_is_filled_as_by_scipy():
    """Noise has holes of every kind, also such as touch each other and the outside by edges only."""
    noise = np.random.default_rng(0).random(SIZE) < 0.7
    numbers, _ = ndimage.label(noise, np.ones((3, 3, 3)))
    expected = ndimage.binary_fill_holes(numbers == np.bincount(numbers[noise]).argmax())
    assert expected.sum() > (numbers == 1).sum()
    np.testing.assert_array_equal(hm.largest_component(noise), expected)


@pytest.mark.parametrize("seed", range(6))
def test_a_mask_keeps_every_rule(seed):
    brain, tumor = ellipsoid(), ball((38, 38, 22), 7)
    found = hm.healthy_mask(labels_with(tumor), brain, some_shapes(), seed)
    healthy = np.argwhere(found.healthy)
    assert len(healthy) >= 800
    assert (found.healthy & brain).sum() >= 0.75 * len(healthy)
    # Distances by a tree over the points, not by a distance transform.
    to_tumor = cKDTree(np.argwhere(tumor))
    everywhere = np.argwhere(np.ones(SIZE, bool))
    near = to_tumor.query(everywhere)[0].reshape(SIZE) < 5
    np.testing.assert_array_equal(found.unhealthy, near)
    assert cKDTree(np.argwhere(found.unhealthy)).query(healthy)[0].min() >= 5
    np.testing.assert_array_equal(found.whole, found.healthy | near)


def test_masks_follow_from_the_seed():
    brain, labels = ellipsoid(), labels_with(ball((38, 38, 22), 7))
    masks = [hm.healthy_mask(labels, brain, some_shapes(), (3, n)).healthy for n in (0, 0, 1, 2)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert len({mask.tobytes() for mask in masks}) == 3


def test_sizes_go_against_each_other():
    """Ten shapes: a case with less tumor than all of them gets the largest, and the other way round."""
    brain = ellipsoid()
    shapes = []
    for n in range(10):
        mask = np.ones((10, 10, 9 + n), bool)
        shapes.append(hm.Shape(mask, mask.sum() / brain.sum()))
    sizes = {}
    for radius in (0, 12):
        tumor = ball((42, 44, 22), radius) & (radius > 0)
        assert (tumor.sum() > 1900) == (radius > 0)
        found = hm.healthy_mask(labels_with(tumor), brain, shapes, 0)
        sizes[radius] = found.healthy.sum()
        assert found.unhealthy.any() == (radius > 0)
    # A rotation changes the number of voxels by some per cent.
    assert sizes[0] > 1500
    assert sizes[12] < 1200


def test_what_is_not_voided_is_kept_away_from_as_well():
    """Half of the brain is cavity, and in the other half there is a tumor of a single voxel."""
    brain = ellipsoid()
    half = np.indices(SIZE)[0] < 20
    labels = np.where(brain & half, 4, 0).astype(np.uint8)
    labels[30, 10, 21] = 3
    for seed in range(5):
        found = hm.healthy_mask(labels, brain, some_shapes()[:1], seed)
        assert not found.unhealthy.any()
        away = ndimage.distance_transform_edt(labels == 0)
        assert away[found.healthy].min() >= 5


def test_turning_keeps_the_shape_and_its_size():
    shape = some_shapes()[3].mask
    rng = np.random.default_rng(0)
    turned = [hm.turned(shape, rng) for _ in range(20)]
    sizes = np.array([t.sum() for t in turned])
    np.testing.assert_allclose(sizes, shape.sum(), rtol=0.03)
    assert len({t.tobytes() for t in turned}) == 20
    for t in turned:
        # Cut to what is in it, and in one piece.
        assert all(t.any(tuple({0, 1, 2} - {axis}))[[0, -1]].all() for axis in range(3))
        assert ndimage.label(t, np.ones((3, 3, 3)))[1] == 1


def test_placing_centres_the_box_or_says_that_it_does_not_fit():
    shape = np.ones((3, 4, 5), bool)
    out = hm.placed(shape, (5, 5, 5), (10, 10, 10))
    assert [(int(i.min()), int(i.max())) for i in np.nonzero(out)] == [(4, 6), (3, 6), (3, 7)]
    assert hm.placed(shape, (0, 5, 5), (10, 10, 10)) is None
    assert hm.placed(shape, (5, 9, 5), (10, 10, 10)) is None


@pytest.mark.parametrize("what", ["size", "distance", "brain"])
def test_each_rule_refuses_by_itself(what):
    healthy = np.zeros((20, 20, 20), bool)
    healthy[:10, :10, :10] = True
    brain, distance = np.ones_like(healthy), np.full(healthy.shape, 5.0)
    brain[:, :, :2] = False  # 80% are inside.
    assert hm.fits(healthy, brain, distance)
    if what == "size":
        healthy[:, :, 7:10] = False
        brain[:] = True
    elif what == "distance":
        distance[9, 9, 9] = 4.9
    else:
        brain[:, :, :3] = False
    assert not hm.fits(healthy, brain, distance)


def test_where_nothing_fits_is_an_error():
    brain = ellipsoid()
    with pytest.raises(ValueError, match="none of the 4 tumor shapes fits"):
        hm.healthy_mask(labels_with(ball((27, 30, 21), 14)), brain, some_shapes(), 0)
    with pytest.raises(ValueError, match="no brain lies 5 voxels"):
        hm.healthy_mask(labels_with(brain), brain, some_shapes(), 0)


def write_cases(folder, tumors, dtype=np.int16, endings=("t1n",)):
    """Cases in BraTS 2023's names; their files are in RAS, and so not in the canonical order."""
    rng = np.random.default_rng(1)
    brain = ellipsoid()
    for number, tumor in enumerate(tumors):
        name = f"BraTS-GLI-{number:05d}-000"
        images = {}
        for ending in endings:
            images[ending] = np.where(brain, rng.integers(50, 900, SIZE), 0).astype(dtype)
            images[ending][brain] += 1
        for ending, array in {**images, "seg": labels_with(tumor & brain)}.items():
            affine = np.diag([1.0, 1, 1, 1])
            affine[:3, 3] = (-20, 7, 3)
            file = nib.Nifti1Image(array, affine)
            file.header["descrip"] = b"of a test"
            (folder / name).mkdir(parents=True, exist_ok=True)
            nib.save(file, folder / name / f"{name}-{ending}.nii.gz")


def run(source, workdir, **fields):
    config = config_file.get_config()
    config.update({"source": str(source), "convention": "brats2023", **fields})
    command.main(config, str(workdir))


def load(path):
    return np.asanyarray(nib.load(path).dataobj)


def test_the_layout_is_the_challenges(tmp_path):
    source, workdir = tmp_path / "cases", tmp_path / "voided"
    tumors = [ball((38, 38, 22), 7), ball((18, 20, 20), 8), ball((0, 0, 0), 1)]
    write_cases(source, tumors)
    run(source, workdir)
    for number, tumor in enumerate(tumors):
        name = f"BraTS-GLI-{number:05d}-000"
        case = workdir / name
        original = nib.load(source / name / f"{name}-t1n.nii.gz")
        files = {p.name.removeprefix(f"{name}-").removesuffix(".nii.gz"): p for p in case.iterdir()}
        t1, voided = load(files["t1n"]), load(files["t1n-voided"])
        mask, healthy = load(files["mask"]), load(files["mask-healthy"])
        np.testing.assert_array_equal(t1, np.asanyarray(original.dataobj))
        np.testing.assert_array_equal(voided, t1 * (1 - mask))
        assert voided.dtype == t1.dtype == np.int16
        assert nib.load(files["t1n-voided"]).header == original.header
        for file in ("mask", "mask-healthy", "t1n-voided"):
            np.testing.assert_array_equal(nib.load(files[file]).affine, original.affine)
        assert set(np.unique(healthy)) == {0, 1}
        assert healthy.sum() >= 800
        has_tumor = tumor.sum() >= 800
        assert ("mask-unhealthy" in files) == has_tumor
        unhealthy = load(files["mask-unhealthy"]) if has_tumor else np.zeros_like(mask)
        np.testing.assert_array_equal(mask, healthy + unhealthy)
        if has_tumor:
            near = ndimage.distance_transform_edt(~(tumor & ellipsoid())) < 5
            np.testing.assert_array_equal(unhealthy, near)
    # What the inpainting task reads is what was voided.
    found, problems = voided_cases(workdir, with_all_sequences=False)
    assert not problems
    assert [files.subject for files in found] == [f"BraTS-GLI-{n:05d}-000" for n in range(3)]
    case = read_case(found[0], ("t1",), labels=False)
    roi = read_roi_volume(found[0].segmentation, case, {1: "normal"}).union
    assert roi.sum() == load(found[0].segmentation).sum()


def inpaint_voided(voided, workdir, inpainter, monkeypatch):
    monkeypatch.setattr(Inpainter, "load", lambda *_: inpainter)
    config = inpaint_config.get_config()
    fields = {"layout": "brats_inpainting", "source": str(voided), "num_steps": 1}
    config.update(fields)
    inpaint.main(config, str(workdir))


def test_what_is_voided_can_be_painted_by_a_model_of_four_sequences(tmp_path, monkeypatch):
    """The documented way, as the bundled model takes it; one model sees no more than the other truth."""
    metadata = tiny_metadata(joint=True)
    metadata["contract"]["data"]["window"] = 64
    joint = Inpainter(tiny_params(metadata), metadata, 16, "runs/tiny")
    source, voided, painted = (tmp_path / name for name in ("cases", "voided", "painted"))
    endings = ("t1n", "t1c", "t2w", "t2f")
    write_cases(source, [ball((38, 38, 22), 7)], endings=endings)
    name = "BraTS-GLI-00000-000"
    # One sequence is stored in other axes than the rest.
    turned = source / name / f"{name}-t2w.nii.gz"
    nib.save(nib.load(turned).as_reoriented([[1, 1], [0, -1], [2, 1]]), turned)
    run(source, voided)
    mask = load(voided / name / f"{name}-mask.nii.gz") > 0
    for ending in endings[1:]:
        path = voided / name / f"{name}-{ending}.nii.gz"
        before = nib.load(source / name / path.name)
        assert nib.load(path).header == before.header
        inside = nib.as_closest_canonical(nib.load(path)).get_fdata()
        truth = nib.as_closest_canonical(before).get_fdata()
        np.testing.assert_array_equal(inside, np.where(mask, 0, truth))
    inpaint_voided(voided, painted, joint, monkeypatch)
    t1 = load(voided / name / f"{name}-t1n.nii.gz")
    after = load(painted / f"{name}-t1n-inference.nii.gz")
    np.testing.assert_array_equal(after[~mask], t1[~mask])
    assert (after[mask] != 0).mean() > 0.5


def test_the_challenges_own_folders_are_read_by_a_model_of_one_sequence(tmp_path, monkeypatch):
    metadata = tiny_metadata()
    metadata["contract"]["data"]["window"] = 64
    single = Inpainter(tiny_params(metadata), metadata, 16, "runs/tiny")
    write_cases(tmp_path / "cases", [ball((38, 38, 22), 7)])
    run(tmp_path / "cases", tmp_path / "voided")
    inpaint_voided(tmp_path / "voided", tmp_path / "painted", single, monkeypatch)
    assert (tmp_path / "painted" / "BraTS-GLI-00000-000-t1n-inference.nii.gz").is_file()


def test_the_same_command_again_makes_nothing_anew_and_another_seed_is_refused(tmp_path):
    source, workdir = tmp_path / "cases", tmp_path / "voided"
    write_cases(source, [ball((38, 38, 22), 7), ball((18, 20, 20), 8)])
    run(source, workdir)
    record = workdir / "BraTS-GLI-00000-000" / "provenance.json"
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*.nii.gz")}
    first = json.loads(record.read_text())
    run(source, workdir)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*.nii.gz")} == before
    with pytest.raises(ValueError, match="another request"):
        run(source, workdir, seed=1)
    run(source, tmp_path / "again")
    again = tmp_path / "again" / "BraTS-GLI-00000-000"
    assert json.loads((again / "provenance.json").read_text()) == first
    for path in again.glob("*.nii.gz"):
        assert path.read_bytes() == (record.parent / path.name).read_bytes()


def test_a_case_without_a_place_does_not_keep_the_others_from_theirs(tmp_path):
    """The second of three is tumor all over."""
    source, workdir = tmp_path / "cases", tmp_path / "voided"
    tumors = [ball((38, 38, 22), 7), np.ones(SIZE, bool), ball((18, 20, 20), 8)]
    write_cases(source, tumors)
    shapes = tmp_path / "shapes"
    write_cases(shapes, [ball((38, 38, 22), 7)])
    for _ in range(2):
        with pytest.raises(CaseError, match=r"1 of 3 cases.*\n.*00001-000: no brain lies 5 voxels"):
            run(source, workdir, shapes_source=str(shapes))
        done = sorted(path.parent.name for path in workdir.glob("*/provenance.json"))
        assert done == ["BraTS-GLI-00000-000", "BraTS-GLI-00002-000"]
    assert not list(workdir.glob(".partial*"))
    record = json.loads((workdir / done[0] / "provenance.json").read_text())
    healthy = load(workdir / done[0] / f"{done[0]}-mask-healthy.nii.gz") > 0
    t1 = load(workdir / done[0] / f"{done[0]}-t1n.nii.gz")
    assert record["voxels"]["healthy_on_background"] == (t1[healthy] == 0).sum()


@pytest.mark.parametrize(
    ("field", "value"), [("source", ""), ("source", None), ("convention", ""), ("seed", -1)]
)
def test_a_setting_that_cannot_be_used_is_named(tmp_path, field, value):
    config = config_file.get_config()
    config.update({"source": str(tmp_path), "convention": "brats2023"})
    with config.ignore_type():
        config[field] = value
    with pytest.raises(FieldError) as error:
        command.main(config, str(tmp_path / "voided"))
    assert error.value.field == field


def test_cases_without_a_large_tumor_give_no_shape(tmp_path):
    write_cases(tmp_path / "cases", [ball((30, 30, 20), 4)])
    with pytest.raises(ValueError, match="none of the 1 cases has a tumor component of 800"):
        run(tmp_path / "cases", tmp_path / "voided")


def test_real_tumors_give_masks(real_cases):
    files = find_cases(real_cases, "brats2018")[:2]
    shapes = hm.read_shapes(files)
    case = read_case(files[0], ("t1",))
    found = hm.healthy_mask(case.labels, case.brain, shapes, 0)
    assert found.healthy.sum() >= 800
    assert (found.healthy & case.brain).sum() >= 0.75 * found.healthy.sum()
    assert not (found.healthy & found.unhealthy).any()
    assert found.unhealthy[(case.labels > 0) & hm.large_components(case.labels > 0)].all()

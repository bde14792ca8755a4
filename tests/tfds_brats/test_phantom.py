"""The digital phantom: geometry, contrasts, growth and files."""

import itertools
import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from skimage.graph import MCP_Geometric

from tfds_brats import phantom, phantom_anatomy, phantom_tumor
from tfds_brats.plausible_order import likely_order

SEED = 1


@pytest.fixture(scope="module")
def subject():
    """First subject with a fair amount of all three labels."""
    for index in range(20):
        images, labels = phantom.make_phantom(SEED, index)
        if all(np.sum(labels == label) > 2000 for label in (1, 2, 4)):
            return index, images, labels
    pytest.fail("no subject of 20 has necrosis, edema and enhancement")


@pytest.fixture(scope="module")
def written(tmp_path_factory, subject):
    """Folder with subjects 0 .. index, at least two, written by two processes."""
    directory = tmp_path_factory.mktemp("phantoms") / "set"
    folders = phantom.write_phantoms(directory, max(subject[0] + 1, 2), SEED, num_workers=2)
    return directory, folders


@pytest.fixture
def quick_phantom(monkeypatch):
    """Replaces the generator by one that takes no time; its images still tell the subjects apart."""

    def make(seed, index):
        images = {name: np.full((4, 4, 4), index + 1, np.int16) for name in phantom.SEQUENCES}
        return images, np.zeros((4, 4, 4), np.uint8)

    monkeypatch.setattr(phantom, "make_phantom", make)


def test_arrays(subject):
    _, images, labels = subject
    assert tuple(images) == ("t1", "t1ce", "t2", "flair")
    brain = images["t1"] != 0
    for volume in images.values():
        assert volume.shape == (240, 240, 155) and volume.dtype == np.int16
        assert volume.min() == 0
        np.testing.assert_array_equal(volume != 0, brain)
    assert labels.shape == (240, 240, 155) and labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 1, 2, 4}
    assert brain[labels > 0].all()
    # The largest brain box among the real cases, and the range of their volumes, widened by 10 %.
    low, high = np.argwhere(brain).min(axis=0), np.argwhere(brain).max(axis=0)
    assert (high - low + 1 <= [148, 190, 149]).all()
    assert 1.05e6 < brain.sum() < 1.75e6


def test_brain_lies_where_real_brains_lie(subject, real_cases):
    def box(volume):
        indices = np.argwhere(volume != 0)
        return np.stack([indices.min(axis=0), indices.max(axis=0)])

    paths = sorted(real_cases.glob("*/*_flair.nii.gz"))
    if not paths:
        pytest.skip(f"no *_flair.nii.gz below {real_cases}")
    boxes = np.array([box(np.asarray(nib.load(path).dataobj)) for path in paths])
    ours = box(subject[1]["flair"])
    assert (ours >= boxes.min(axis=0) - 12).all()
    assert (ours <= boxes.max(axis=0) + 12).all()


def test_contrasts_are_those_of_a_glioma(subject):
    _, images, labels = subject
    brain = images["t1"] != 0
    healthy = brain & ~ndimage.binary_dilation(labels > 0, iterations=4)
    white = healthy & (images["t1"] > np.percentile(images["t1"][healthy], 65))
    fluid = healthy & (images["t2"] > np.percentile(images["t2"][healthy], 98))
    regions = {"white": white, "fluid": fluid}
    regions |= {"necrosis": labels == 1, "edema": labels == 2, "enhancing": labels == 4}
    signal = {
        name: {region: np.median(volume[mask]) for region, mask in regions.items()}
        for name, volume in images.items()
    }
    t1, t1ce, t2, flair = (signal[name] for name in ("t1", "t1ce", "t2", "flair"))
    assert t1["fluid"] < t1["necrosis"] < t1["edema"] < t1["white"]
    assert t1ce["necrosis"] < min(t1ce["edema"], t1ce["white"])
    assert max(t1ce["edema"], t1ce["white"]) < 0.9 * t1ce["enhancing"]
    assert t2["white"] < t2["edema"] < t2["necrosis"] < 1.3 * t2["fluid"]
    assert flair["fluid"] < flair["white"] < min(flair["edema"], flair["enhancing"])


def test_tissue_has_texture_and_noise(subject):
    _, images, labels = subject
    brain = images["t1"] != 0
    deep = ndimage.binary_erosion(brain & (labels == 0), iterations=3)
    for volume in images.values():
        smooth = ndimage.uniform_filter(volume.astype(np.float32), 3)
        residual = np.abs(volume - smooth)[deep] / np.median(volume[deep])
        assert np.median(residual) > 0.003


def test_subjects_depend_on_seed_and_index_alone(subject, written):
    index, images, labels = subject
    _, folders = written
    for name, volume in {**images, "seg": labels}.items():
        path = folders[index] / f"{folders[index].name}_{name}.nii.gz"
        np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), volume)
    neighbor = folders[1 - min(index, 1)]
    other = np.asarray(nib.load(neighbor / f"{neighbor.name}_t1.nii.gz").dataobj)
    assert np.mean((other != 0) != (images["t1"] != 0)) > 0.001


def test_bad_numbers_are_errors_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="negative"):
        phantom.make_phantom(-1, 0)
    with pytest.raises(ValueError, match="negative"):
        phantom.write_phantoms(tmp_path / "set", 1, -1)
    with pytest.raises(ValueError, match="at least 1"):
        phantom.write_phantoms(tmp_path / "set", 0, 0)
    assert not (tmp_path / "set").exists()


def test_files(written):
    directory, folders = written
    assert [folder.name for folder in folders[:2]] == ["Phantom_0000", "Phantom_0001"]
    assert sorted(path.name for path in directory.iterdir()) == sorted(
        [folder.name for folder in folders] + ["phantom.json"]
    )
    for folder in folders:
        names = {f"{folder.name}_{name}.nii.gz" for name in ("t1", "t1ce", "t2", "flair", "seg")}
        assert {path.name for path in folder.iterdir()} == names
        for name in names:
            image = nib.load(folder / name)
            assert image.shape == (240, 240, 155)
            assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
            np.testing.assert_array_equal(
                image.affine, [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]
            )
            assert image.get_data_dtype() == (np.uint8 if "seg" in name else np.int16)
            assert image.header["scl_slope"] != image.header["scl_slope"]  # NaN: not scaled


def test_interrupted_run_is_completed_and_finished_subjects_are_kept(tmp_path, quick_phantom):
    first = phantom.write_phantoms(tmp_path / "set", 1, 3, num_workers=1)
    before = (first[0] / "Phantom_0000_t1.nii.gz").stat().st_mtime_ns
    (tmp_path / "set/.Phantom_0001.partial").mkdir()
    (tmp_path / "set/.Phantom_0001.partial/Phantom_0001_t1.nii.gz").write_bytes(b"half a file")
    folders = phantom.write_phantoms(tmp_path / "set", 2, 3, num_workers=1)
    assert (first[0] / "Phantom_0000_t1.nii.gz").stat().st_mtime_ns == before
    assert (nib.load(folders[1] / "Phantom_0001_t1.nii.gz").get_fdata() == 2).all()
    assert not list((tmp_path / "set").glob(".*"))


def test_failure_leaves_no_subject_behind(tmp_path, quick_phantom, monkeypatch):
    save = nib.save

    def fail_at_t2(image, path):
        if "t2" in path.name:
            raise OSError("disk full")
        save(image, path)

    monkeypatch.setattr(phantom.nib, "save", fail_at_t2)
    with pytest.raises(OSError, match="disk full"):
        phantom.write_phantoms(tmp_path / "set", 1, 3, num_workers=1)
    assert not (tmp_path / "set/Phantom_0000").exists()


def test_other_seed_version_or_content_is_an_error(tmp_path, quick_phantom):
    directory = tmp_path / "set"
    phantom.write_phantoms(directory, 1, 3, num_workers=1)
    with pytest.raises(ValueError, match=r"'seed': 3.*'seed': 4"):
        phantom.write_phantoms(directory, 1, 4, num_workers=1)
    record = json.loads((directory / "phantom.json").read_text())
    record["version"] -= 1
    (directory / "phantom.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="version"):
        phantom.write_phantoms(directory, 1, 3, num_workers=1)
    (directory / "phantom.json").write_text("{")
    with pytest.raises(ValueError, match=rf"^{directory}/phantom\.json is damaged; .* delete it"):
        phantom.write_phantoms(directory, 1, 3, num_workers=1)
    (directory / "phantom.json").unlink()
    with pytest.raises(ValueError, match="not empty"):
        phantom.write_phantoms(directory, 1, 3, num_workers=1)


def test_mass_effect_pushes_outward_as_its_formula_says():
    center, radius, strength = np.array([3.0, -2.0, 5.0]), 12.0, 0.5
    rng = np.random.default_rng(0)
    points = center + rng.normal(0.0, 12.0, (200, 3))

    def displacement(x):
        return x - phantom_anatomy.radial_pullback(x, center, radius, strength)

    step = 1e-4
    divergence = sum(
        (displacement(points + step * axis) - displacement(points - step * axis)) @ axis
        for axis in np.eye(3)
    ) / (2 * step)
    squared = np.sum((points - center) ** 2, axis=1)
    falloff = strength * np.exp(-squared / (2 * radius**2))
    np.testing.assert_allclose(divergence, falloff * (3 - squared / radius**2), atol=1e-6)
    outward = np.sum(displacement(points) * (points - center), axis=1)
    assert (outward > 0).all()
    line = center + np.linspace(0, 60, 601)[:, None] * [0.6, 0.0, 0.8]
    shift = np.linalg.norm(displacement(line), axis=1)
    assert np.argmax(shift) == pytest.approx(10 * radius, abs=1)
    assert shift.max() == pytest.approx(strength * radius * np.exp(-0.5), rel=1e-4)
    # One-to-one: points keep their order along a ray.
    origin = np.linalg.norm(
        phantom_anatomy.radial_pullback(line, center, radius, 0.95) - center, axis=1
    )
    assert (np.diff(origin) > 0).all()


def test_mass_effect_moves_the_brain_but_not_its_surface():
    head = phantom_anatomy.sample_head(np.random.default_rng(1))
    focus = phantom_tumor.Focus(np.array([90.0, 110.0, 85.0]), 20.0, np.eye(3))
    plan = phantom_tumor.TumorPlan("ring", (focus,), push=0.5, edema_width=5.0, rim=3.0)
    points = phantom_anatomy.lattice_points()
    depth = phantom_anatomy.template_depth(head.to_template(points))
    shift = points - phantom_tumor.before_tumor(points, plan, head)
    size = np.linalg.norm(shift, axis=-1)
    assert (size[depth <= 0] == 0).all()
    near = (np.linalg.norm(points - focus.center, axis=-1) < 30) & (depth > 4)
    outward = np.sum(shift * (points - focus.center), axis=-1)[near]
    assert (outward > 0).all()
    assert 4.0 < size.max() <= 0.5 * 1.25 * 20.0 * np.exp(-0.5)


def test_edema_prefers_white_matter_and_spares_fluid():
    rng = np.random.default_rng(2)
    head = phantom_anatomy.sample_head(rng)
    focus = phantom_tumor.Focus(np.array([92.0, 100.0, 88.0]), 10.0, np.eye(3))
    plan = phantom_tumor.TumorPlan("ring", (focus,), push=0.3, edema_width=14.0, rim=3.0)
    tissue = phantom_anatomy.sample_tissue(
        rng, head, lambda points: phantom_tumor.before_tumor(points, plan, head)
    )
    total = (tissue.fluid + tissue.gray + tissue.white)[tissue.brain]
    np.testing.assert_allclose(total, 1.0, atol=1e-5)
    tumor = phantom_tumor.grow_tumor(rng, plan, tissue)
    core = np.isin(tumor.labels, (1, 4))
    distance = ndimage.distance_transform_edt(~core)
    around = tissue.brain & ~core & (distance < 14)
    edema = tumor.labels == 2
    assert edema.sum() > 3000
    assert tissue.white[edema].mean() > 1.2 * tissue.white[around].mean()
    assert tissue.fluid[edema].mean() < 0.3 * tissue.fluid[around].mean()
    # A rim encloses the necrosis: nearly all of its neighbors outside itself are enhancing.
    necrosis = tumor.labels == 1
    border = ndimage.binary_dilation(necrosis) & ~necrosis
    assert np.mean(tumor.labels[border] == 4) > 0.6


def test_arrival_time_equals_shortest_paths():
    rng = np.random.default_rng(3)
    slowness = rng.uniform(0.5, 5.0, (9, 8, 7)).astype(np.float32)
    start = np.full(slowness.shape, np.inf, np.float32)
    start[2, 3, 4] = start[7, 1, 1] = 0.0
    expected, _ = MCP_Geometric(slowness).find_costs([(2, 3, 4), (7, 1, 1)])
    limit = np.percentile(expected, 60)
    time = phantom_tumor.arrival_time(start, slowness, limit)
    reached = expected <= limit
    np.testing.assert_allclose(time[reached], expected[reached], rtol=1e-5)
    assert (time[~reached] > limit).all()


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("spacing", [2.0, 3.5])
def test_upsample_equals_scipy(order, spacing):
    shape = (13, 12, 11)
    margin = 1 if order == 3 else 0
    knots = tuple(int(np.ceil((size - 1) / spacing)) + 1 + 2 * margin for size in shape)
    lattice = np.random.default_rng(4).standard_normal(knots, dtype=np.float32)
    points = np.meshgrid(*(np.arange(size) / spacing + margin for size in shape), indexing="ij")
    expected = ndimage.map_coordinates(lattice, points, order=order, prefilter=False)
    np.testing.assert_allclose(
        phantom_anatomy.upsample(lattice, shape, spacing, order), expected, atol=1e-5
    )


def test_smooth_field_has_unit_variance():
    rng = np.random.default_rng(5)
    fields = [phantom_anatomy.smooth_field(rng, (40, 41, 42), 3.0) for _ in range(8)]
    assert np.mean(np.square(fields)) == pytest.approx(1.0, rel=0.05)
    assert np.mean(fields) == pytest.approx(0.0, abs=0.05)


def test_exchanged_sequences_are_found(subject):
    _, images, _ = subject
    images = {name: image[::2, ::2, ::2] for name, image in images.items()}
    brain = images["t1"] != 0
    assert likely_order(images, brain) == {}
    for one, other in itertools.combinations(images, 2):
        given = {**images, one: images[other], other: images[one]}
        assert likely_order(given, brain) == {one: other, other: one}

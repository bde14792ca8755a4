"""The bundled model, on a phantom that it has not seen."""

import functools
import json
import runpy

import numpy as np
import pytest
from conftest import ROOT

from mbti_jax import Inpainter, Rois, Sampling
from mbti_jax.evaluation import baselines
from mbti_jax.inference.load import JOINT, PRETRAINED, SINGLE
from tfds_brats.conventions import SEQUENCES
from tfds_brats.phantom import VERSION, make_phantom
from tfds_brats.scale import fit_scale
from tfds_brats.slices import to_slices

# The model was trained with subjects 0 to 95 of seed 0.
SEED, SUBJECT = 1, 0
SAMPLING = Sampling(num_steps=5)


@functools.cache
def inpainter() -> Inpainter:
    return Inpainter.load("phantom", batch_size=4)


@functools.cache
def subject() -> tuple[np.ndarray, np.ndarray, list[tuple[float, float]]]:
    """Images [Z, H, W, 4], labels [Z, H, W] and the four intensity ranges."""
    images, labels = make_phantom(SEED, SUBJECT)
    brain = np.any([image != 0 for image in images.values()], axis=0)
    scales = [fit_scale(images[name], brain) for name in SEQUENCES]
    stacked = np.stack([to_slices(images[name]) for name in SEQUENCES], axis=-1)
    return stacked, to_slices(labels), [(scale.low, scale.high) for scale in scales]


def paint(image: np.ndarray, rois: dict, box=(), num_samples=2) -> dict[str, np.ndarray]:
    """Sequence -> mean over the samples of a slice, float64 [H, W]."""
    result = inpainter().inpaint(
        image,
        Rois.of(rois, image.shape[:2], box),
        SAMPLING,
        num_samples=num_samples,
        intensity_range=subject()[2],
    )
    return dict(zip(SEQUENCES, np.moveaxis(result.images.mean(0), -1, 0), strict=True))


@pytest.mark.parametrize(("name", "recipe"), [(JOINT, "phantom_model"), (SINGLE, "phantom_single")])
def test_what_is_shipped(name, recipe):
    folder = PRETRAINED[name]
    weights = folder / "model.safetensors"
    assert weights.stat().st_size <= 10_000_000
    card = (folder / "README.md").read_text()
    assert f"configs/{recipe}.py" in card and "phantoms only" in card
    metadata = json.loads((folder / "config.json").read_text())
    contract = metadata["contract"]
    assert contract["data"]["image_size"] == 192
    # The network of the recipe.
    config = runpy.run_path(str(ROOT / "configs" / f"{recipe}.py"))["get_config"]()
    assert contract["data"]["joint"] == config.data.joint == (name == JOINT)
    # Known again on any machine.
    assert contract["data"]["phantoms"] == {
        **{"generator": "tfds_brats.phantom", "version": VERSION, "seed": 0},
        "subjects": "9d47cb8ff59dfb4666de9ca7de210f944a433a7c8c324629e665b63d6875b880",
    }
    assert metadata["inference"]["guidance_weight"] == config.guidance_weight
    assert {k: contract["model"][k] for k in ("neighbors", "mirror", "detail_channels")} == {
        k: config.model[k] for k in ("neighbors", "mirror", "detail_channels")
    }
    assert "pretrained/**" in (ROOT / "setup.cfg").read_text()


def test_one_sequence_alone():
    """Edema is bright on FLAIR, and normal tissue in its place is like what is around."""
    images, labels, ranges = subject()
    number, c = int((labels == 2).sum((1, 2)).argmax()), SEQUENCES.index("flair")
    image, edema = images[number][..., c], labels[number] == 2
    single = Inpainter.load(SINGLE, batch_size=2)
    painted = {}
    for name in ("edema", "normal"):
        result = single.inpaint(
            image, {name: edema}, SAMPLING, num_samples=2, intensity_range=ranges[c]
        )
        assert result.images.shape == (2, *image.shape)
        assert (result.images[:, ~edema] == image[~edema]).all()
        painted[name] = result.images.mean(0)[edema].mean()
    healthy = np.median(image[(image != 0) & (labels[number] == 0)])
    assert painted["edema"] > 1.2 * healthy
    assert abs(painted["normal"] - healthy) < 0.5 * abs(painted["edema"] - healthy)


def test_every_output_says_that_the_model_knows_phantoms_only():
    images, labels, ranges = subject()
    number = int((labels > 0).sum((1, 2)).argmax())
    rois = {"normal": labels[number] > 0}
    result = inpainter().inpaint(images[number], rois, Sampling(1), intensity_range=ranges)
    assert "phantoms only" in result.provenance["checkpoint"]["note"]
    assert result.provenance["synthetic"] is True


def healthy_square(labels: np.ndarray, brain: np.ndarray, side: int = 40) -> np.ndarray:
    """A square of healthy brain, as far from the tumor as the slice allows."""
    rows, columns = np.nonzero(brain)
    inside = [
        (y, x)
        for y, x in zip(rows, columns, strict=True)
        if brain[y : y + side, x : x + side].mean() == 1
        and not labels[y : y + side, x : x + side].any()
    ]
    tumor = np.argwhere(labels > 0).mean(0) if labels.any() else np.zeros(2)
    y, x = max(inside, key=lambda place: np.hypot(*(np.array(place) - tumor)))
    mask = np.zeros(labels.shape, bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_healthy_tissue_is_nearer_to_the_truth_than_a_constant():
    """Mean absolute error over slices and sequences, as a share of each sequence's range."""
    images, labels, ranges = subject()
    model, constant = [], []
    for number in (60, 70, 80, 90, 100):
        brain = (images[number] != 0).any(-1)
        mask = healthy_square(labels[number], brain)
        painted = paint(images[number], {"normal": mask}, box=("normal",), num_samples=4)
        for c, (name, (low, high)) in enumerate(zip(SEQUENCES, ranges, strict=True)):
            image = images[number][..., c].astype(np.float32)
            filled = baselines.surrounding_mean(image, mask, brain)
            for errors, result in ((model, painted[name]), (constant, filled)):
                errors.append(np.abs(result - image)[mask].mean() / (high - low))
    assert np.mean(model) < np.mean(constant)


def test_components_have_their_contrast():
    """Edema is brighter than the tissue around it on FLAIR, an enhancing rim than its core on T1CE."""
    images, labels, _ = subject()
    number = int((labels == 4).sum((1, 2)).argmax())
    image, tissue = images[number], labels[number]
    names = {"necrotic_core": 1, "edema": 2, "enhancement": 4}
    rois = {name: tissue == label for name, label in names.items()}
    painted = paint(image, rois)
    healthy = (image != 0).all(-1) & (tissue == 0)
    flair, t1ce = painted["flair"], painted["t1ce"]
    assert flair[rois["edema"]].mean() > 1.2 * np.median(flair[healthy])
    assert t1ce[rois["enhancement"]].mean() > 1.2 * t1ce[rois["necrotic_core"]].mean()


def test_a_removed_tumor_is_gone():
    """Inside its box the bright edema of FLAIR gives way to tissue like that around."""
    images, labels, _ = subject()
    number = int((labels == 2).sum((1, 2)).argmax())
    tumor = labels[number] > 0
    before = images[number][..., SEQUENCES.index("flair")]
    after = paint(images[number], {"normal": tumor}, box=("normal",))["flair"]
    inside = Rois.of({"normal": tumor}, tumor.shape, ("normal",)).union
    healthy = np.median(before[(before != 0) & ~inside])
    was, now = before[labels[number] == 2].mean(), after[labels[number] == 2].mean()
    assert abs(now - healthy) < 0.5 * abs(was - healthy)

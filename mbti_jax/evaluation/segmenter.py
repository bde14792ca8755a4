"""Small networks of our own that segment a slice of one sequence, trained for an evaluation.

A segmenter tells what a sequence shows: it learns from slices of the training split and scores slices of
the test split, real and repainted alike. It is small on purpose and no more than a ruler; what counts is
a repainted slice's score beside that of the same segmenter on real slices.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from safetensors.numpy import save_file
from tqdm import tqdm

from mbti_jax.data.augment import augment
from mbti_jax.data.preprocess import area_resize
from mbti_jax.evaluation.setting import LabelledSlices, Setting, array_digest
from mbti_jax.inference.provenance import digest
from mbti_jax.interop.tensors import read_safetensors
from mbti_jax.io.files import replacing
from mbti_jax.models.unet import Params, UNet, init_params, param_shapes
from tfds_brats.cases import is_tumor

# Background and the three components; a resection cavity is background.
NUM_CLASSES = 4
# Slices segmented at once; the last batch is filled up, so that one compiled program serves all.
_BATCH = 16
# The last block before the way up: the network's narrowest place.
_BOTTLENECK = "middle_block_2"


@dataclasses.dataclass(frozen=True)
class Training:
    """Size of a segmenter and of its training.

    Attributes:
        model_channels: width of the first level; the second and last has twice as much.
        num_steps: updates.
        batch_size: slices in an update.
        learning_rate: of Adam at the start; falls to 0 along a half cosine.
    """

    model_channels: int = 32
    num_steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 1e-3


class Segmenter:
    """A trained network: label maps and bottleneck features of slices of one sequence."""

    def __init__(self, params: Params, training: Training, image_size: int):
        self.params = params
        self._model = make_network(training, image_size)

    def labels(self, images: np.ndarray) -> np.ndarray:
        """Label maps.

        Args:
            images: float32 [N, S, S], background -1.

        Returns:
            uint8 [N, S, S], 0 to 3.
        """
        return self._in_batches(images, np.ones(images.shape, bool))[0]

    def features(self, images: np.ndarray, regions: np.ndarray | None = None) -> np.ndarray:
        """What the middle block returns, averaged over its positions.

        Args:
            images: float32 [N, S, S], background -1.
            regions: bool [N, S, S], none empty; positions count by the share of them that lies in the
                region. Default is all of the slice.

        Returns:
            float32 [N, 2 model_channels].
        """
        regions = np.ones(images.shape, bool) if regions is None else regions
        return self._in_batches(images, regions)[1]

    def _in_batches(self, images: np.ndarray, regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for start in range(0, len(images), _BATCH):
            part = [array[start : start + _BATCH] for array in (images, regions)]
            padded = [np.resize(array, (_BATCH, *array.shape[1:])) for array in part]
            out = jax.device_get(_labels_and_features(self._model, self.params, *padded))
            parts.append([array[: len(part[0])] for array in out])
        labels, features = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return labels, features


def make_network(training: Training, image_size: int) -> UNet:
    """The UNet without classes; its timestep is always 0."""
    return UNet(
        image_size=image_size,
        in_channels=1,
        out_channels=NUM_CLASSES,
        num_classes=0,
        model_channels=training.model_channels,
        num_res_blocks=1,
        attention_resolutions=(),
        channel_mult=(1, 2),
        num_groups=8,
        patch_size=4,
    )


def train(
    images: np.ndarray, labels: np.ndarray, training: Training, seed: int, name: str = "segmenter"
) -> Segmenter:
    """Trains a segmenter on slices, each update on a random choice of them, flipped and rotated.

    The loss is cross-entropy plus soft Dice loss over the batch (Isensee et al. 2021, nnU-Net), see
    `segmentation_loss`. The cross-entropy weighs a label by 1 / sqrt(its share of the pixels): with
    equal weights the components, of 1% each, are given up for hundreds of steps.

    Args:
        images: float32 [N, S, S], background -1.
        labels: uint8 [N, S, S], canonical.
        seed: of the initial parameters, the choice of slices and their augmentation.
        name: what the progress bar says.
    """
    model = make_network(training, images.shape[1])
    init_key, key = jax.random.split(jax.random.key(seed))
    params, opt_state = _start(model, training, init_key)
    labels = component_labels(labels)
    # A label that never occurs is taken to have one pixel.
    counts = np.maximum(1, np.bincount(labels.ravel(), minlength=NUM_CLASSES))
    weights = np.sqrt(labels.size / counts).astype(np.float32)
    size = (training.num_steps, training.batch_size)
    choice = np.random.default_rng(seed).integers(len(images), size=size)
    for step, rows in enumerate(tqdm(choice, desc=name, unit="step", leave=False)):
        batch = (images[rows], labels[rows], weights)
        params, opt_state = _update(model, training, params, opt_state, key, step, *batch)
    return Segmenter(jax.block_until_ready(params), training, images.shape[1])


def trained(
    folder: Path,
    images: np.ndarray,
    labels: np.ndarray,
    training: Training,
    seed: int,
    name: str = "segmenter",
) -> Segmenter:
    """`train`, or what it made before of the same slices and settings, read from `folder`.

    Raises:
        ValueError: the file there is damaged.
    """
    content = [dataclasses.asdict(training), seed, array_digest(images), array_digest(labels)]
    path = folder / f"segmenter-{digest(content)[:32]}.safetensors"
    size = images.shape[1]
    if path.is_file():
        return Segmenter(_read_params(path, make_network(training, size)), training, size)
    segmenter = train(images, labels, training, seed, name)
    leaves = jax.tree.leaves_with_path(jax.device_get(segmenter.params))
    with replacing(path) as beside:
        save_file({jax.tree_util.keystr(key): leaf for key, leaf in leaves}, beside)
    return segmenter


def of_real_slices(setting: Setting, settings: ConfigDict) -> dict[str, Segmenter]:
    """A segmenter for each sequence, trained on real slices of the training split.

    Args:
        settings: `num_slices` (two thirds of them with tumour), `seed` and the fields of `Training`.

    Returns:
        Segmenters by the name of the sequence.

    Raises:
        ValueError: a patient is in the training and in the test split.
    """
    check_held_out(setting.patients("train"), setting.patients("test"))
    slices = training_slices(setting, settings.num_slices)
    return {
        sequence: trained(
            setting.folder,
            slices.images[..., channel],
            slices.labels,
            training_of(settings),
            settings.seed,
            f"segmenter of {sequence}",
        )
        for channel, sequence in enumerate(setting.sequences)
    }


def training_of(settings: ConfigDict) -> Training:
    """The fields of `Training` in a section of the config."""
    return Training(**{f.name: settings[f.name] for f in dataclasses.fields(Training)})


def training_slices(setting: Setting, count: int) -> LabelledSlices:
    """Slices of the training split, two thirds of them with tumour."""
    without = count // 3
    return LabelledSlices.joined(
        setting.slices("train", count - without, with_tumor=True),
        setting.slices("train", without, with_tumor=False),
    )


def check_held_out(trained_on: Sequence[str], scored: Sequence[str]) -> None:
    """Checks that nobody is scored by what has learnt from them, be it generator or segmenter.

    Args:
        trained_on: patients or subjects of the training slices.
        scored: of the slices to score.

    Raises:
        ValueError: one is in both.
    """
    both = sorted(set(map(str, trained_on)) & set(map(str, scored)))
    if both:
        raise ValueError(
            f"{len(both)} would be scored by a network that was trained on them, such as {both[0]}; "
            "the splits have to be of different patients"
        )


def component_labels(labels: np.ndarray) -> np.ndarray:
    """uint8 [...], canonical -> the same with components only: a resection cavity becomes 0."""
    return np.where(is_tumor(labels), labels, 0).astype(np.uint8)


def segmentation_loss(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean cross-entropy plus 1 - the mean soft Dice of the components over the batch.

    Args:
        logits: float32 [B, S, S, 4].
        labels: uint8 [B, S, S], 0 to 3.
        weights: float32 [4], of the pixels of each label in the cross-entropy.

    Returns:
        float32 scalar.
    """
    truth = jax.nn.one_hot(labels, NUM_CLASSES)
    weight = truth @ weights
    cross_entropy = (weight * optax.softmax_cross_entropy(logits, truth)).sum() / weight.sum()
    shares, truth = jax.nn.softmax(logits)[..., 1:], truth[..., 1:]
    positions = (0, 1, 2)
    # 1 pixel, so that a batch without a component divides by no zero and asks for none of it.
    dice = (2 * (shares * truth).sum(positions) + 1) / (
        shares.sum(positions) + truth.sum(positions) + 1
    )
    return cross_entropy + 1 - dice.mean()


def _optimizer(training: Training) -> optax.GradientTransformation:
    steps = max(1, training.num_steps)
    return optax.adam(optax.cosine_decay_schedule(training.learning_rate, steps))


# These are compiled once for all segmenters of a size.
@functools.partial(jax.jit, static_argnames=("model", "training"))
def _start(model, training, key):
    params = init_params(model, key)
    return params, _optimizer(training).init(params)


@functools.partial(
    jax.jit, static_argnames=("model", "training"), donate_argnames=("params", "opt_state")
)
def _update(model, training, params, opt_state, key, step, images, labels, weights):
    keys = jax.random.split(jax.random.fold_in(key, step), training.batch_size)
    image, label = jax.vmap(augment)(keys, images[..., None], labels)

    def loss(params):
        return segmentation_loss(_logits(model, params, image[..., 0]), label, weights)

    updates, opt_state = _optimizer(training).update(jax.grad(loss)(params), opt_state)
    return optax.apply_updates(params, updates), opt_state


def _logits(model: UNet, params: Params, images: jax.Array, **options):
    batch = len(images)
    return model.apply(
        {"params": params}, images[..., None], jnp.zeros(batch), jnp.zeros((batch, 0)), **options
    )


@functools.partial(jax.jit, static_argnames="model")
def _labels_and_features(model, params, images, regions):
    logits, state = _logits(
        model, params, images, capture_intermediates=lambda module, _: module.name == _BOTTLENECK
    )
    (bottleneck,) = state["intermediates"][_BOTTLENECK]["__call__"]
    # Slices in the place of channels: each position's share of the region.
    shares = area_resize(jnp.moveaxis(regions.astype(jnp.float32), 0, -1), bottleneck.shape[1:3])
    shares = jnp.moveaxis(shares, -1, 0)[..., None]
    features = (shares * bottleneck).sum((1, 2)) / shares.sum((1, 2))
    return jnp.argmax(logits, -1).astype(jnp.uint8), features


def _read_params(path: Path, model: UNet) -> Params:
    tensors = read_safetensors(path)
    shapes = param_shapes(model)
    names = [jax.tree_util.keystr(key) for key, _ in jax.tree.leaves_with_path(shapes)]
    if set(names) != tensors.keys():
        raise ValueError(f"{path} holds another network; remove it")
    return jax.tree.unflatten(jax.tree.structure(shapes), [tensors[name] for name in names])

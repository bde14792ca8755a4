"""Small networks of our own that segment a slice of one sequence, trained for an evaluation.

A segmenter measures what a sequence shows: it is trained on slices of the training split and scores
slices of the test split, real and repainted alike. It is small on purpose and only a yardstick; what
counts is the score of a repainted slice compared with that of the same segmenter on real slices.
"""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from mbti_jax.data.augment import augment
from mbti_jax.data.preprocess import area_resize
from mbti_jax.diffusion.condition import Condition
from mbti_jax.evaluation.cache import array_digest, cached
from mbti_jax.evaluation.slices import LabeledSlices, in_batches
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.fields import Count, FieldError, Interval, Positive, check_fields
from mbti_jax.interop.names import from_guided_diffusion, to_guided_diffusion
from mbti_jax.models.parameters import Params, init_params
from mbti_jax.models.unet import UNet
from tfds_brats.cases import is_tumor

# Background and the three components; a resection cavity is background.
NUM_CLASSES = 4
# Channels are normalized in so many groups.
_NUM_GROUPS = 8
# Slices segmented at once.
_BATCH = 16
# The last block before the way up: the network's narrowest place.
_BOTTLENECK = "middle_block_2"


@dataclasses.dataclass(frozen=True)
class SegmenterSettings:
    """Size of a segmenter and of its training.

    Attributes:
        model_channels: width of the first level, a multiple of 8; the second and last level is twice as
            wide.
        num_steps: updates.
        batch_size: slices per update.
        learning_rate: of Adam at the start; falls to 0 along a half cosine.

    Raises:
        FieldError: a field is not as above.
    """

    model_channels: Count
    num_steps: Count
    batch_size: Count
    learning_rate: Positive

    def __post_init__(self):
        check_fields(self)
        if self.model_channels % _NUM_GROUPS:
            problem = f"must be a multiple of {_NUM_GROUPS}, not {self.model_channels}"
            raise FieldError("model_channels", problem)


@dataclasses.dataclass(frozen=True)
class RealSegmenterSettings(SegmenterSettings):
    """Segmenters trained on real slices; parts with the same settings share them.

    Attributes:
        num_slices: of the training split, two thirds of them with tumor.
        seed: of the training.
    """

    num_slices: Annotated[int, Interval(3)]
    seed: int


class Segmenter:
    """A trained network: label maps and bottleneck features of slices of one sequence."""

    def __init__(self, params: Params, settings: SegmenterSettings, image_size: int):
        self.params = params
        self._model = make_network(settings, image_size)

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
            regions: bool [N, S, S], none empty; positions are weighted by their share that lies in the
                region. Default is the whole slice.

        Returns:
            float32 [N, 2 model_channels].
        """
        regions = np.ones(images.shape, bool) if regions is None else regions
        return self._in_batches(images, regions)[1]

    def _in_batches(self, images: np.ndarray, regions: np.ndarray) -> tuple[np.ndarray, ...]:
        apply = functools.partial(_labels_and_features, self._model, self.params)
        return in_batches(apply, _BATCH, images, regions)


def make_network(settings: SegmenterSettings, image_size: int) -> UNet:
    """The UNet without classes; its timestep is always 0."""
    return UNet(
        image_size=image_size,
        in_channels=1,
        out_channels=NUM_CLASSES,
        num_classes=0,
        model_channels=settings.model_channels,
        num_res_blocks=1,
        attention_resolutions=(),
        channel_mult=(1, 2),
        num_groups=_NUM_GROUPS,
        patch_size=4,
    )


def train(
    images: np.ndarray,
    labels: np.ndarray,
    settings: SegmenterSettings,
    seed: int,
    name: str = "segmenter",
) -> Segmenter:
    """Trains a segmenter on slices, each update on a random choice of them, flipped and rotated.

    The loss is cross-entropy plus soft Dice loss over the batch (Isensee et al. 2021, nnU-Net), see
    `segmentation_loss`. The cross-entropy weighs a label by 1 / sqrt(its share of the pixels): with
    equal weights the components, at 1% each, are ignored for hundreds of steps.

    Args:
        images: float32 [N, S, S], background -1.
        labels: uint8 [N, S, S], canonical.
        settings: size and training.
        seed: of the initial parameters, the choice of slices and their augmentation.
        name: of the progress bar.
    """
    model = make_network(settings, images.shape[1])
    init_key, key = jax.random.split(jax.random.key(seed))
    state = _start(model, settings, init_key)
    labels = component_labels(labels)
    # A label that never occurs counts as one pixel.
    counts = np.maximum(1, np.bincount(labels.ravel(), minlength=NUM_CLASSES))
    weights = np.sqrt(labels.size / counts).astype(np.float32)
    size = (settings.num_steps, settings.batch_size)
    choice = np.random.default_rng(seed).integers(len(images), size=size)
    for step, rows in enumerate(tqdm(choice, desc=name, unit="step", leave=False)):
        batch = (images[rows], labels[rows], weights)
        state = _update(model, settings, state, key, step, batch)
    params, _ = jax.block_until_ready(state)
    return Segmenter(params, settings, images.shape[1])


def cached_segmenter(
    folder: Path,
    images: np.ndarray,
    labels: np.ndarray,
    settings: SegmenterSettings,
    seed: int,
    name: str = "segmenter",
) -> Segmenter:
    """`train`, or what it made before of the same slices and settings, read from `folder`.

    Raises:
        ValueError: the file there is damaged.
    """
    sizes, arrays = dataclasses.asdict(settings), (images, labels)
    request = {"settings": sizes, "seed": seed, "data": [array_digest(array) for array in arrays]}

    def compute() -> dict[str, np.ndarray]:
        params = train(images, labels, settings, seed, name).params
        return to_guided_diffusion(jax.device_get(params))

    named = cached(folder, "segmenter", request, compute)
    params = from_guided_diffusion(named, make_network(settings, images.shape[1]))
    return Segmenter(params, settings, images.shape[1])


def real_segmenters(workbench: Workbench, settings: RealSegmenterSettings) -> dict[str, Segmenter]:
    """A segmenter for each sequence, by its name, trained on real slices of the training split.

    Raises:
        ValueError: a patient is in the training and in the test split.
    """
    check_held_out(workbench.patients("train"), workbench.patients("test"))
    slices, folder = training_slices(workbench, settings.num_slices), workbench.folder
    out = {}
    for channel, sequence in enumerate(workbench.sequences):
        data = (slices.images[..., channel], slices.labels)
        name = f"segmenter of {sequence}"
        out[sequence] = cached_segmenter(folder, *data, settings, settings.seed, name)
    return out


def training_slices(workbench: Workbench, count: int) -> LabeledSlices:
    """Slices of the training split, two thirds of them with tumor."""
    counts = {True: count - count // 3, False: count // 3}
    parts = [workbench.slices("train", n, with_tumor=tumor) for tumor, n in counts.items()]
    return LabeledSlices.concatenate(parts)


def check_held_out(trained_on: Iterable[str], scored: Iterable[str]) -> None:
    """Checks that nobody is scored by a network, generator or segmenter, that was trained on them.

    Args:
        trained_on: patients or subjects of the training slices.
        scored: those of the slices to score.

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
    """Canonical labels, uint8 [...], with a resection cavity as background."""
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
    both, mine, asked = (x.sum((0, 1, 2)) for x in (shares * truth, shares, truth))
    # The 1 keeps the Dice of a component that is absent from the batch defined.
    return cross_entropy + 1 - ((2 * both + 1) / (mine + asked + 1)).mean()


def _optimizer(settings: SegmenterSettings) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.num_steps))


# These are compiled once for all segmenters of the same settings.
@functools.partial(jax.jit, static_argnames=("model", "settings"))
def _start(model, settings, key):
    params = init_params(model, key)
    return params, _optimizer(settings).init(params)


@functools.partial(jax.jit, static_argnames=("model", "settings"), donate_argnames=("state",))
def _update(model, settings, state, key, step, batch):
    (params, opt_state), (images, labels, weights) = state, batch
    keys = jax.random.split(jax.random.fold_in(key, step), settings.batch_size)
    image, label = jax.vmap(augment)(keys, images[..., None], labels)

    def loss(params):
        return segmentation_loss(_logits(model, params, image[..., 0]), label, weights)

    updates, opt_state = _optimizer(settings).update(jax.grad(loss)(params), opt_state)
    return optax.apply_updates(params, updates), opt_state


def _logits(model: UNet, params: Params, images: jax.Array) -> Any:
    return _apply(model, params, images).image


def _apply(model: UNet, params: Params, images: jax.Array, **options: Any) -> Any:
    images, batch = images[..., None], len(images)
    unconditional = Condition(images[..., :0], jnp.zeros((batch, 0)))
    return model.apply({"params": params}, images, jnp.zeros(batch), unconditional, **options)


@functools.partial(jax.jit, static_argnames="model")
def _labels_and_features(model, params, images, regions):
    (logits, _), state = _apply(
        model, params, images, capture_intermediates=lambda module, _: module.name == _BOTTLENECK
    )
    (bottleneck,) = state["intermediates"][_BOTTLENECK]["__call__"]
    # With slices in place of channels: each position's share of the region.
    shares = area_resize(jnp.moveaxis(regions.astype(jnp.float32), 0, -1), bottleneck.shape[1:3])
    shares = jnp.moveaxis(shares, -1, 0)[..., None]
    features = (shares * bottleneck).sum((1, 2)) / shares.sum((1, 2))
    return jnp.argmax(logits, -1).astype(jnp.uint8), features

"""The method put together: network, diffusion process and tasks, from the fields of a config.

Training, validation and inference all build theirs here, the last one from what a checkpoint recorded.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer, Key

from mbti_jax.data.augment import Augmentation, augment, crop_corner
from mbti_jax.data.preprocess import area_resize, decode, nearest_resize
from mbti_jax.diffusion.arrays import AnyArray, Images, Keys, Numbers
from mbti_jax.diffusion.condition import Condition, Neighbors, offsets
from mbti_jax.diffusion.guidance import drop_condition
from mbti_jax.diffusion.noise import slice_covariance
from mbti_jax.diffusion.output import Output
from mbti_jax.diffusion.process_settings import ProcessSettings
from mbti_jax.diffusion.processes import Process, squared_error_terms
from mbti_jax.fields import FieldError, Interval, check_field, check_names, field_types
from mbti_jax.models.losses import QUARTERS, LabelTerms, Terms, label_terms
from mbti_jax.models.parameters import Params
from mbti_jax.models.unet import ImageSize, UNet, check_unet
from mbti_jax.rois.kinds import NUM_KINDS, NUM_LABELS
from mbti_jax.rois.tasks import TaskSettings, sample_stack, sample_task

T = TypeVar("T", ProcessSettings, TaskSettings, Augmentation)

PixelSize = Annotated[float, Interval(0.01, 100)]


class _Data:
    """What a contract says of the images."""

    sequences: Annotated[tuple[str, ...], Interval(1, 64)]
    joint: bool
    image_size: ImageSize
    window: ImageSize
    pixel_size_mm: PixelSize | None
    slice_distance_mm: PixelSize | None


# Shares of training examples whose neighbors are all left out, so that the network paints single slices
# too; and of the single neighbors that are left out of others, as at a volume's end.
_ALONE, _ONE_ABSENT = 0.2, 0.05

LabelWeight = Annotated[float, Interval(0, 1000)]


class Inputs(NamedTuple):
    """What the device makes of a batch of records.

    Attributes:
        x_0: float32 [B, H, W, C], the image.
        condition: what to paint where. The images of its neighbors are not noised.
        labels: uint8 [B, H, W], canonical; None where no label head needs them.
    """

    x_0: jax.Array
    condition: Condition
    labels: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Network, process and tasks.

    Attributes:
        model: the network.
        process: noise schedule and what the network predicts.
        tasks: how tasks are drawn in training.
        image_size: height and width of the network's images.
        drop_rate: share of class vectors replaced by the null condition in training.
        label_weight: of the label head's cross-entropy beside the squared error.
        max_loss_weight, z_sigma: see `ProcessSettings`.
        augmentation: how training moves the slices.
    """

    model: UNet
    process: Process
    tasks: TaskSettings
    image_size: int
    drop_rate: float
    label_weight: float = 0.0
    max_loss_weight: float = 1.0
    z_sigma: float = 0.0
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 (frozen)

    @classmethod
    def from_contract(cls, contract: Mapping[str, Any]) -> "Pipeline":
        """Builds the parts that `data`, `model`, `diffusion`, `tasks` and the rest describe.

        Args:
            contract: see `training.checkpoint`.

        Raises:
            FieldError: a field has no such value.
        """
        for name, kind in field_types(_Data).items():
            check_field(f"data.{name}", contract["data"].get(name), kind)
        # Networks without a label head have none.
        label_weight = contract.get("label_weight", 0.0)
        check_field("label_weight", label_weight, LabelWeight)
        process = _settings(ProcessSettings, contract, "diffusion")
        tasks = _settings(TaskSettings, contract, "tasks")
        # Left out where it is the paper's.
        augmentation = _settings(Augmentation, {"augmentation": {}, **contract}, "augmentation")
        return cls.of(
            contract["data"], contract["model"], process, tasks, label_weight, augmentation
        )

    @classmethod
    def of(
        cls,
        data: Mapping[str, Any],
        model: Mapping[str, Any],
        process: ProcessSettings,
        tasks: TaskSettings,
        label_weight: float = 0.0,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen)
    ) -> "Pipeline":
        """Builds the parts.

        Args:
            data: `sequences`, `joint` and `image_size`.
            model: fields of `UNet`, apart from those that follow from the data.
            process, tasks: the settings.
            label_weight: of the label head's loss; 0 for a network without label head.
            augmentation: how training moves the slices.

        Raises:
            FieldError: a field has no such value.
        """
        num_sequences = len(data["sequences"]) if data["joint"] else 1
        network = make_unet(model, num_sequences, data["image_size"], label_weight > 0)
        _check_crop(augmentation, network)
        return cls(
            model=network,
            process=process.make(),
            tasks=tasks,
            image_size=data["image_size"],
            drop_rate=process.drop_condition,
            label_weight=label_weight,
            max_loss_weight=process.max_loss_weight,
            z_sigma=process.z_sigma,
            augmentation=augmentation,
        )

    def apply(self, params: Params, x_t: Images, t: Numbers, condition: Condition) -> Output:
        """The network without dropout."""
        return cast(Output, self.model.apply({"params": params}, x_t, t, condition))

    def resized(
        self, batch: Mapping[str, AnyArray]
    ) -> tuple[Float[AnyArray, "B S S C"], Integer[AnyArray, "B S S"]]:
        """Images and label maps of the network's size, out of a batch of records.

        Args:
            batch: arrays, see `data.loader.Examples`, with a leading batch axis.

        Returns:
            float32 [B, S, S, C] in model units, background -1; uint8 [B, S, S].
        """
        return jax.vmap(self._resized)(
            batch["codes"], batch["labels"], batch["gain"], batch["bias"]
        )

    def _resized(self, codes, labels, gain, bias):
        """`resized` of a slice."""
        size = (self.image_size, self.image_size)
        return area_resize(decode(codes, gain, bias), size), nearest_resize(labels, size)

    def prepare(self, batch: Mapping[str, AnyArray], keys: Keys, *, augmented: bool) -> Inputs:
        """Scales, resizes, augments and draws a task for every example, its neighbors included.

        Args:
            batch: arrays, see `data.loader.Examples`, with a leading batch axis.
            keys: typed keys [B].
            augmented: flip and rotate, leave neighbors out at random, and take of each example the part
                that the augmentation says.
        """
        images, labels = self.resized(batch)
        alike = functools.partial(augment, how=self.augmentation)

        def part(key, inputs):
            return self._part(jax.random.fold_in(key, 1), inputs) if augmented else inputs

        def one(key, image, labels, around):
            augment_key, task_key = jax.random.split(key)
            if augmented:
                image, labels = alike(augment_key, image, labels)
            targets = labels if self.model.label_head else None
            if around is None:
                condition = sample_task(task_key, image, labels, self.tasks)
                return part(key, Inputs(image, condition, targets))
            neighbors, labels_around = around
            if augmented:
                move = jax.vmap(alike, (None, 0, 0))
                moved, labels_around = move(augment_key, neighbors.images, labels_around)
                kept = _kept(jax.random.fold_in(key, 0), len(moved))
                neighbors = Neighbors(moved, None, neighbors.present * kept)
            condition, masks = sample_stack(task_key, image, labels, labels_around, self.tasks)
            neighbors = dataclasses.replace(neighbors, roi_masks=masks)
            condition = dataclasses.replace(condition, neighbors=neighbors)
            return part(key, Inputs(image, condition, targets))

        return jax.vmap(one)(keys, images, labels, self._neighbors(batch))

    def _part(self, key: Key[jax.Array, ""], inputs: Inputs) -> Inputs:
        """The part of an example that an update sees, see `Augmentation`."""
        size = self.augmentation.crop_size(self.image_size)
        if size == (self.image_size, self.image_size):
            return inputs
        # Of a centered part the network sees the mirror image as it would of the whole.
        corner = crop_corner(key, inputs.condition.roi, size, centered=self.model.mirror)

        def cut(leaf):
            starts = (*corner, *[0] * (leaf.ndim - 2))
            return jax.lax.dynamic_slice(leaf, starts, (*size, *leaf.shape[2:]))

        condition, neighbors = inputs.condition, inputs.condition.neighbors
        if neighbors is not None:
            neighbors = dataclasses.replace(
                neighbors,
                images=jax.vmap(cut)(neighbors.images),
                roi_masks=jax.vmap(cut)(neighbors.roi_masks),
            )
        condition = dataclasses.replace(
            condition, roi_masks=cut(condition.roi_masks), neighbors=neighbors
        )
        labels = None if inputs.labels is None else cut(inputs.labels)
        return Inputs(cut(inputs.x_0), condition, labels)

    def _neighbors(
        self, batch: Mapping[str, AnyArray]
    ) -> tuple[Neighbors, Integer[AnyArray, "B N S S"]] | None:
        """Images of the neighbors, as yet without ROIs, and their label maps; None if none are seen."""
        if not self.model.neighbors:
            return None
        resized = jax.vmap(jax.vmap(self._resized, (0, 0, None, None)))
        images, labels = resized(
            batch["neighbor_codes"], batch["neighbor_labels"], batch["gain"], batch["bias"]
        )
        return Neighbors(images, None, batch["neighbor_present"]), labels

    def _time_weight(self, t: Numbers) -> Numbers | float:
        """How much the squared error at times [B] counts, see `ProcessSettings.max_loss_weight`."""
        if self.max_loss_weight == 1:
            return 1.0
        alpha, sigma = jnp.asarray(self.process.alpha(t)), jnp.asarray(self.process.sigma(t))
        # Where sigma is that small, the weight is the bound.
        bounded = jnp.square(alpha) / jnp.maximum(jnp.square(sigma), 1 / self.max_loss_weight**2)
        return jnp.minimum(1 + bounded, self.max_loss_weight)

    def no_terms(self) -> Terms:
        """What `loss_terms` returns of no example."""
        none = jnp.zeros(QUARTERS)
        if not self.model.label_head:
            return Terms(none, none)
        return Terms(none, none, LabelTerms(none, none, jnp.zeros((2, NUM_LABELS, NUM_LABELS))))

    def loss_terms(
        self,
        params: Params,
        inputs: Inputs,
        weight: Numbers,
        keys: Keys,
        dropout_key: Key[jax.Array, ""] | None = None,
        step: Integer[AnyArray, ""] | None = None,
    ) -> tuple[Float[jax.Array, ""], Terms]:
        """The numerator of the loss, and the sums from which all losses are made.

        With a label head the loss of a batch is the mean squared error over the ROIs' pixels and
        sequences, plus `label_weight` times the mean cross-entropy over their pixels. As numerators add
        up and are divided once, the cross-entropy counts once for each sequence.

        Args:
            weight: float32 [B], 0 for padding.
            keys: typed keys [B], for timestep, noise and dropping of the condition.
            dropout_key: key for dropout inside the network; None for none.
            step: updates so far, for objectives that change with them; None for their last form.

        Returns:
            (sum, terms): what is to be divided by `terms.counts.sum()`, and the terms.
        """

        x_0, condition, labels = inputs
        neighbors = condition.neighbors

        def draw(key):
            time_key, noise_key, drop_key = jax.random.split(key, 3)
            t = self.process.draw_time(time_key)
            eps_around = None
            if neighbors is not None:
                around_key = jax.random.fold_in(noise_key, 0)
                eps_around = jax.random.normal(around_key, neighbors.images.shape[1:])
            eps = jax.random.normal(noise_key, x_0.shape[1:])
            if eps_around is not None and self.z_sigma:
                eps_around = self._noise_around(eps, eps_around)
            return t, eps, drop_key, eps_around

        t, eps, drop_keys, eps_around = jax.vmap(draw)(keys)
        roi = condition.roi
        x_t = self.process.corrupt(x_0, eps, t, roi)
        dropped = drop_condition(drop_keys, condition, self.drop_rate)

        def predict(x_t, t):
            seen = dropped
            if neighbors is not None and eps_around is not None:
                # Of the same time as x_t.
                noised = self.process.corrupt(neighbors.images, eps_around, t, neighbors.roi)
                noised = dataclasses.replace(neighbors, images=noised)
                seen = dataclasses.replace(dropped, neighbors=noised)
            output = self.model.apply(
                {"params": params},
                x_t,
                t,
                seen,
                deterministic=dropout_key is None,
                rngs=None if dropout_key is None else {"dropout": dropout_key},
            )
            return cast(Output, output)

        image, logits = predict(x_t, t)
        target = self.process.training_target(
            lambda x_t, t: predict(x_t, t).image, x_0, eps, t, roi, step
        )
        sums, counts = squared_error_terms(image, target, roi, weight)
        quarter = jnp.clip(t * QUARTERS // self.process.num_timesteps, 0, QUARTERS - 1)
        quarter = jax.nn.one_hot(quarter.astype(jnp.int32), QUARTERS)
        # What is reported is not weighed: it stays comparable.
        terms = Terms(sums @ quarter, counts @ quarter)
        total = jnp.sum(sums * self._time_weight(t))
        if logits is None or labels is None:
            return total, terms
        of_labels = label_terms(logits, labels, condition, weight, quarter)
        total += self.label_weight * x_0.shape[-1] * of_labels.cross_entropy.sum()
        return total, terms._replace(labels=of_labels)

    def _noise_around(
        self, eps: Float[jax.Array, "H W C"], white: Float[jax.Array, "2K H W C"]
    ) -> Float[jax.Array, "2K H W C"]:
        """Noise of the neighbors, given that of the slice between them, as sampling draws both."""
        covariance = slice_covariance(self.z_sigma, (0, *offsets(self.model.neighbors)))
        of_own = covariance[1:, 0]
        rest = np.linalg.cholesky(covariance[1:, 1:] - np.outer(of_own, of_own))
        mixed = jnp.tensordot(rest.astype(np.float32), white, 1)
        return jnp.asarray(of_own, jnp.float32)[:, None, None, None] * eps + mixed


def _kept(key: Key[jax.Array, ""], count: int) -> Float[jax.Array, " {count}"]:
    """Which neighbors of an example training leaves in their place: 1 or 0."""
    alone, single = jax.random.uniform(key, (2, count))
    return ((alone[0] >= _ALONE) & (single >= _ONE_ABSENT)).astype(jnp.float32)


def example_keys(
    key: Key[jax.Array, ""], step: Integer[AnyArray, ""] | int, batch_size: int
) -> Key[jax.Array, " {batch_size}"]:
    """Typed keys [batch_size], folded out of the step and the position in the global batch."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda position: jax.random.fold_in(step_key, position))(jnp.arange(batch_size))


def make_unet(
    fields: Mapping[str, Any], num_sequences: int, image_size: int, label_head: bool = False
) -> UNet:
    """The UNet of a config's `model` fields for images of `num_sequences` channels.

    Raises:
        FieldError: a field is unknown or cannot be used, by its full name.
    """
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    derived = {
        "image_size": image_size,
        "in_channels": num_sequences + NUM_KINDS,
        "out_channels": num_sequences,
        "num_classes": NUM_KINDS,
        "label_head": label_head,
    }
    known = [name for name in field_types(UNet) if name not in (*derived, "parent", "name")]
    try:
        check_names(fields, known)
        for name, value in {**derived, **fields}.items():
            check_field(name, value, field_types(UNet)[name])
        model = UNet(**derived, **fields)
        if "attention_resolutions" not in fields:
            # The default, of those levels that there are.
            rates = [2**level for level in range(len(model.channel_mult))]
            attended = tuple(rate for rate in model.attention_resolutions if rate in rates)
            model = model.clone(attention_resolutions=attended)
        check_unet(model)
    except FieldError as error:
        group = "data" if error.field in derived.keys() - fields.keys() else "model"
        raise error.within(group) from error
    return model


def _check_crop(augmentation: Augmentation, network: UNet) -> None:
    """Raises a FieldError if the network cannot take the parts of its images."""
    factor = network.patch_size * 2 ** (len(network.channel_mult) - 1)
    for name in ("crop_height", "crop_width"):
        length = getattr(augmentation, name)
        if length % factor or length > network.image_size:
            raise FieldError(
                f"augmentation.{name}",
                f"must be a multiple of {factor} (patch_size times the lowest level's rate) and at most "
                f"image_size, {network.image_size}, or 0 for the whole, not {length}",
            )
    if network.mirror and (network.image_size - augmentation.crop_width) % 2:
        problem = "must be even as image_size is, or odd as it is, for a network with mirror"
        raise FieldError("augmentation.crop_width", problem)


def _settings(cls: type[T], contract: Mapping[str, Any], name: str) -> T:
    """The settings of a part of a contract; a FieldError has the part's name, too."""
    try:
        check_names(contract[name], field_types(cls))
        for field, value in contract[name].items():
            check_field(field, value, field_types(cls)[field])
        return cls(**contract[name])
    except FieldError as error:
        raise error.within(name) from error

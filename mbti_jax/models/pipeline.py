"""The method put together: network, diffusion process and tasks, from the fields of a config.

Training, validation and inference all build theirs here, the last one from what a checkpoint recorded.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer, Key

from mbti_jax.data.augment import augment
from mbti_jax.data.preprocess import area_resize, decode, nearest_resize
from mbti_jax.diffusion.arrays import AnyArray, Images, Keys, Numbers
from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.guidance import drop_condition
from mbti_jax.diffusion.output import Output
from mbti_jax.diffusion.processes import Process, ProcessSettings, squared_error_terms
from mbti_jax.fields import FieldError, Interval, check_field, check_names, field_types
from mbti_jax.models.unet import ImageSize, Params, UNet, check_unet
from mbti_jax.rois.kinds import NUM_KINDS
from mbti_jax.rois.tasks import TaskSettings, sample_task

T = TypeVar("T", ProcessSettings, TaskSettings)

PixelSize = Annotated[float, Interval(0.01, 100)]


class _Data:
    """What a contract says of the images."""

    sequences: Annotated[tuple[str, ...], Interval(1, 64)]
    joint: bool
    image_size: ImageSize
    window: ImageSize
    pixel_size_mm: PixelSize | None


# The loss is also reported for each quarter of the timesteps.
QUARTERS = 4
Quarters = Float[AnyArray, "4"]


class Inputs(NamedTuple):
    """What the device makes of a batch of records.

    Attributes:
        x_0: float32 [B, H, W, C], the image.
        condition: what to paint where.
    """

    x_0: jax.Array
    condition: Condition


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Network, process and tasks.

    Attributes:
        model: the network.
        process: noise schedule and what the network predicts.
        tasks: how tasks are drawn in training.
        image_size: height and width of the network's images.
        drop_rate: share of class vectors replaced by the null condition in training.
    """

    model: UNet
    process: Process
    tasks: TaskSettings
    image_size: int
    drop_rate: float

    @classmethod
    def from_contract(cls, contract: Mapping[str, Any]) -> "Pipeline":
        """Builds the parts that the entries `data`, `model`, `diffusion` and `tasks` describe.

        Args:
            contract: see `training.checkpoint`.

        Raises:
            FieldError: a field has no such value.
        """
        for name, kind in field_types(_Data).items():
            check_field(f"data.{name}", contract["data"].get(name), kind)
        process = _settings(ProcessSettings, contract, "diffusion")
        tasks = _settings(TaskSettings, contract, "tasks")
        return cls.of(contract["data"], contract["model"], process, tasks)

    @classmethod
    def of(
        cls,
        data: Mapping[str, Any],
        model: Mapping[str, Any],
        process: ProcessSettings,
        tasks: TaskSettings,
    ) -> "Pipeline":
        """Builds the parts.

        Args:
            data: `sequences`, `joint` and `image_size`.
            model: fields of `UNet`, apart from those that follow from the data.
            process, tasks: the settings.

        Raises:
            FieldError: a field has no such value.
        """
        num_sequences = len(data["sequences"]) if data["joint"] else 1
        return cls(
            model=make_unet(model, num_sequences, data["image_size"]),
            process=process.make(),
            tasks=tasks,
            image_size=data["image_size"],
            drop_rate=process.drop_condition,
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
        size = (self.image_size, self.image_size)

        def one(codes, gain, bias, labels):
            return area_resize(decode(codes, gain, bias), size), nearest_resize(labels, size)

        return jax.vmap(one)(batch["codes"], batch["gain"], batch["bias"], batch["labels"])

    def prepare(self, batch: Mapping[str, AnyArray], keys: Keys, *, augmented: bool) -> Inputs:
        """Scales, resizes, augments and draws a task for every example.

        Args:
            batch: arrays, see `data.loader.Examples`, with a leading batch axis.
            keys: typed keys [B].
            augmented: flip and rotate.
        """
        images, labels = self.resized(batch)

        def one(key, image, labels):
            augment_key, task_key = jax.random.split(key)
            if augmented:
                image, labels = augment(augment_key, image, labels)
            return Inputs(image, sample_task(task_key, image, labels, self.tasks))

        return jax.vmap(one)(keys, images, labels)

    def loss_terms(
        self,
        params: Params,
        inputs: Inputs,
        weight: Numbers,
        keys: Keys,
        dropout_key: Key[jax.Array, ""] | None = None,
    ) -> tuple[Float[jax.Array, ""], tuple[Quarters, Quarters]]:
        """Sums from which the loss is made: over examples, and for each quarter of the timesteps.

        Args:
            weight: float32 [B], 0 for padding.
            keys: typed keys [B], for timestep, noise and dropping of the condition.
            dropout_key: key for dropout inside the network; None for none.

        Returns:
            (sum, (sums, counts)): the squared error summed over the batch's ROI pixels and sequences,
            the same by quarter of t, float32 [4], and the number of pixels times sequences, [4].
        """

        def draw(key):
            time_key, noise_key, drop_key = jax.random.split(key, 3)
            t = self.process.draw_time(time_key)
            return t, jax.random.normal(noise_key, inputs.x_0.shape[1:]), drop_key

        (x_0, condition), (t, eps, drop_keys) = inputs, jax.vmap(draw)(keys)
        roi = condition.roi
        x_t = self.process.corrupt(x_0, eps, t, roi)
        output = self.model.apply(
            {"params": params},
            x_t,
            t,
            drop_condition(drop_keys, condition, self.drop_rate),
            deterministic=dropout_key is None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
        )
        target = self.process.target(x_0, eps, t)
        sums, counts = squared_error_terms(cast(Output, output).image, target, roi, weight)
        quarter = jnp.clip(t * QUARTERS // self.process.num_timesteps, 0, QUARTERS - 1)
        quarter = jax.nn.one_hot(quarter.astype(jnp.int32), QUARTERS)
        return sums.sum(), (sums @ quarter, counts @ quarter)


def example_keys(
    key: Key[jax.Array, ""], step: Integer[AnyArray, ""] | int, batch_size: int
) -> Key[jax.Array, " {batch_size}"]:
    """Typed keys [batch_size], folded out of the step and the position in the global batch."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda position: jax.random.fold_in(step_key, position))(jnp.arange(batch_size))


def losses(sums: Quarters, counts: Quarters) -> dict[str, Float[AnyArray, ""]]:
    """`loss` and, by quarter of the timesteps, `loss_q1` ... `loss_q4` (NaN where there was none).

    Args:
        sums, counts: float32 [4], see `Pipeline.loss_terms`.
    """
    by_quarter = {f"loss_q{i}": loss for i, loss in enumerate(sums / counts, start=1)}
    return {"loss": sums.sum() / counts.sum(), **by_quarter}


def make_unet(fields: Mapping[str, Any], num_sequences: int, image_size: int) -> UNet:
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


def _settings(cls: type[T], contract: Mapping[str, Any], name: str) -> T:
    """The settings of a part of a contract; a FieldError has the part's name, too."""
    try:
        check_names(contract[name], field_types(cls))
        for field, value in contract[name].items():
            check_field(field, value, field_types(cls)[field])
        return cls(**contract[name])
    except FieldError as error:
        raise error.within(name) from error

"""Settings of a training run, checked where they are made."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from mbti_jax.data.loader import Examples
from mbti_jax.diffusion.processes import ProcessSettings
from mbti_jax.fields import FieldError, finite_number, whole_number, whole_numbers
from mbti_jax.models.pipeline import Pipeline
from mbti_jax.rois.tasks import TaskSettings
from tfds_brats.reading import SliceSource

# Fields of `TrainSettings` that decide what a run computes.
_CONTRACT = ("data", "seed", "batch_size", "model", "tasks", "diffusion", "optimizer", "ema_decay")


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """What a run is trained on.

    Attributes:
        dataset: folder that `tfds_brats.builder.build` wrote.
        train_split: of the dataset, for the updates.
        validation_split: of the dataset, for the losses and pictures of validation.
        sequences: names, in channel order where they are joint.
        joint: all sequences of a slice are the channels of one example.
        window: side of the square that is cut out of a slice, in pixels of the dataset.
        image_size: side that the window is resized to.
        tumor_repeats: how often a slice with tumor is counted.
        num_threads: that read ahead; 0 reads between two steps.

    Raises:
        FieldError: a number that cannot be used.
    """

    dataset: str
    train_split: str
    validation_split: str
    sequences: tuple[str, ...]
    joint: bool
    window: int
    image_size: int
    tumor_repeats: int
    num_threads: int

    def __post_init__(self):
        whole_numbers(self, "window", "image_size", "tumor_repeats", least=1)
        whole_numbers(self, "num_threads")

    def examples(self, source: SliceSource) -> Examples:
        """The examples of a split.

        Raises:
            ValueError: see `Examples`.
        """
        return Examples(
            source,
            self.sequences,
            joint=self.joint,
            window=self.window,
            tumor_repeats=self.tumor_repeats,
        )


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """Of Adam.

    Raises:
        FieldError: a number that cannot be used.
    """

    learning_rate: float

    def __post_init__(self):
        if not finite_number("learning_rate", self.learning_rate) > 0:
            raise FieldError("learning_rate", f"must be above 0, not {self.learning_rate}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """A training run.

    Attributes:
        seed: of everything that is drawn.
        data: what it is trained on.
        model: fields of `UNet`, apart from those that follow from the data.
        diffusion: the process.
        tasks: how tasks are drawn.
        optimizer: the optimizer.
        ema_decay: of the moving average of the parameters, in [0, 1).
        batch_size: examples per update, over all devices and microbatches.
        num_steps: updates in all.
        accumulation: microbatches that an update is summed over.
        fully_sharded: split parameters and optimizer state over the devices.
        multihost: several processes, which find each other through the cluster.
        log_every: steps between two lines of metrics.
        checkpoint_every: steps between two checkpoints.
        max_to_keep: checkpoints that are kept.
        validate_every: steps between two validations.
        validation_batches: batches that the validation loss is a mean of.
        num_pictures: examples in the picture of samples.
        picture_steps: steps of the sampler for that picture.
        guidance_weight: for that picture, and what the checkpoint recommends.

    Raises:
        FieldError: a value with which a run would fail late, or silently do something else.
    """

    seed: int
    data: DataSettings
    model: Mapping[str, Any]
    diffusion: ProcessSettings
    tasks: TaskSettings
    optimizer: OptimizerSettings
    ema_decay: float
    batch_size: int
    num_steps: int
    accumulation: int
    fully_sharded: bool
    multihost: bool
    log_every: int
    checkpoint_every: int
    max_to_keep: int
    validate_every: int
    validation_batches: int
    num_pictures: int
    picture_steps: int
    guidance_weight: float

    def __post_init__(self):
        whole_numbers(self, "seed")
        whole_numbers(
            self,
            "batch_size",
            "num_steps",
            "accumulation",
            "log_every",
            "checkpoint_every",
            "max_to_keep",
            "validate_every",
            "validation_batches",
            "num_pictures",
            "picture_steps",
            least=1,
        )
        for name in ("model_channels", "num_groups", "patch_size"):
            if name in self.model:
                whole_number(f"model.{name}", self.model[name], least=1)
        if not 0 <= self.ema_decay < 1:
            raise FieldError("ema_decay", f"must lie in [0, 1), not {self.ema_decay}")
        if self.picture_steps > self.diffusion.num_timesteps:
            raise FieldError(
                "picture_steps",
                f"must be at most diffusion.num_timesteps, {self.diffusion.num_timesteps}, "
                f"not {self.picture_steps}",
            )
        finite_number("guidance_weight", self.guidance_weight)
        if self.guidance_weight and not self.diffusion.make().is_stochastic:
            raise FieldError("guidance_weight", "is 0 for a regressor, which has no guidance")

    def contract(self, fingerprint: str) -> dict[str, Any]:
        """What a resumed run must share with this one, and what its model is; see `checkpoint`.

        Args:
            fingerprint: of the training examples.

        Returns:
            Plain JSON values.
        """
        fields = dataclasses.asdict(self)
        # Where the data lies, how it is read and what it is validated on change no update.
        for name in ("dataset", "validation_split", "num_threads"):
            del fields["data"][name]
        # Changes memory and time, not the result.
        fields["model"].pop("remat", None)
        fields["data"]["fingerprint"] = fingerprint
        return json.loads(json.dumps({name: fields[name] for name in _CONTRACT}))

    def pipeline(self) -> Pipeline:
        """Network, process and tasks: those of the contract, and rematerialization as asked for.

        Raises:
            ValueError: a field has no such value.
        """
        return Pipeline.from_contract({**self.contract(""), "model": self.model})

"""Settings of a training run, checked where they are made."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from mbti_jax.data.augment import Augmentation
from mbti_jax.data.loader import Examples
from mbti_jax.diffusion.guidance import GUIDANCE_WEIGHTS
from mbti_jax.diffusion.process_settings import ProcessSettings
from mbti_jax.fields import Count, FieldError, Interval, check_fields
from mbti_jax.models.pipeline import LabelWeight, Pipeline
from mbti_jax.models.unet import ImageSize
from mbti_jax.rois.tasks import TaskSettings
from mbti_jax.training.optimizer import OptimizerSettings
from tfds_brats.conventions import SEQUENCES
from tfds_brats.reading import SliceSource, find_dataset, read_summary
from tfds_brats.spelling import nearest

# A dataset's summary says here how large pixels are, (height, width) in mm; None: not all the same.
_SPACING = "spacing_mm"
# The same of the distance from slice to slice.
_DISTANCE = "slice_distance_mm"
# Relative difference up to which pixels are of one size.
_SAME_SIZE = 0.01
# Fields of `TrainSettings` that decide what a run computes.
_CONTRACT = (
    "data",
    "seed",
    "batch_size",
    "model",
    "tasks",
    "diffusion",
    "label_weight",
    "augmentation",
    "optimizer",
    "ema_decay",
    "started_from",
)


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
    train_split: Literal["train", "validation", "test"]
    validation_split: Literal["train", "validation", "test"]
    sequences: Annotated[tuple[str, ...], Interval(1)]
    joint: bool
    window: ImageSize
    image_size: ImageSize
    tumor_repeats: Annotated[int, Interval(1, 1000)]
    num_threads: Annotated[int, Interval(0, 1024)]

    def __post_init__(self):
        check_fields(self)
        unknown = [name for name in self.sequences if name not in SEQUENCES]
        if unknown or len({*self.sequences}) < len(self.sequences):
            way = nearest(unknown[0], SEQUENCES) if unknown else ""
            given = f"{', '.join(self.sequences)}{way}"
            raise FieldError(
                "sequences", f"must be different ones of {', '.join(SEQUENCES)}, not {given}"
            )
        if self.window < self.image_size:
            raise FieldError(
                "window",
                f"must be at least image_size, {self.image_size} pixels, not {self.window}: larger "
                "images would show nothing more",
            )

    def pixel_size_mm(self) -> float | None:
        """Side of a pixel of the dataset in millimeters; None where the dataset does not say.

        Raises:
            ValueError: the window would be another one in millimeters from subject to subject, or from
                rows to columns.
        """
        folder = find_dataset(self.dataset)
        summary = {} if folder is None else read_summary(folder)
        if _SPACING not in summary:
            return None
        spacing = summary[_SPACING]
        if spacing is None or max(spacing) > (1 + _SAME_SIZE) * min(spacing):
            what = "differ between subjects" if spacing is None else f"are {spacing} mm"
            raise ValueError(
                f"{self.dataset}: pixels {what}, and a window of {self.window} pixels would cut out "
                "another field of view from each; resample the cases to square pixels of one size"
            )
        return sum(spacing) / 2

    def slice_distance_mm(self, neighbors: int) -> float | None:
        """From slice to slice of the dataset in millimeters; None where it does not say, or they differ.

        Args:
            neighbors: how many slices on either side the network sees.

        Raises:
            ValueError: they differ between subjects, and the network is to see neighbors.
        """
        folder = find_dataset(self.dataset)
        summary = {} if folder is None else read_summary(folder)
        if _DISTANCE not in summary:
            return None
        if summary[_DISTANCE] is None:
            if neighbors:
                raise ValueError(
                    f"{self.dataset}: the distances from slice to slice differ between subjects, and "
                    "neighbors would be farther apart in some than in others; resample the cases to one "
                    "distance, or set model.neighbors to 0"
                )
            return None
        return summary[_DISTANCE][0]

    def examples(self, source: SliceSource, neighbors: int = 0) -> Examples:
        """The examples of a split, with as many neighbors on either side.

        Raises:
            ValueError: see `Examples`.
        """
        return Examples(
            source,
            self.sequences,
            joint=self.joint,
            window=self.window,
            tumor_repeats=self.tumor_repeats,
            neighbors=neighbors,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run goes on, whatever it trains.

    Attributes:
        seed: of everything that is drawn.
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
    """

    seed: int
    ema_decay: Annotated[float, Interval(0, 1, "left")]
    batch_size: Count
    num_steps: Count
    accumulation: Count
    fully_sharded: bool
    multihost: bool
    log_every: Count
    checkpoint_every: Count
    max_to_keep: Count
    validate_every: Count
    validation_batches: Count
    num_pictures: Annotated[int, Interval(1, 1024)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(RunSettings):
    """A training run.

    Attributes:
        data: what it is trained on.
        model: fields of `UNet`, apart from those that follow from the data.
        diffusion: the process.
        tasks: how tasks are drawn.
        label_weight: of the label head's loss; 0 for a network without label head.
        augmentation: how slices are moved.
        optimizer: the optimizer.
        picture_steps: steps of the sampler for that picture.
        guidance_weight: for that picture, and what the checkpoint recommends.
        init_from: the trained model whose weights the run starts from, see `inference.load_model`;
            empty for random ones, and where the weights are given without a name.
        started_from: SHA-256 of those weights; empty for random ones.

    Raises:
        FieldError: a value with which a run would fail late, or silently do something else.
    """

    data: DataSettings
    model: Mapping[str, Any]
    diffusion: ProcessSettings
    tasks: TaskSettings
    label_weight: LabelWeight
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 (frozen)
    optimizer: OptimizerSettings
    picture_steps: Count
    guidance_weight: Annotated[float, GUIDANCE_WEIGHTS]
    init_from: str = ""
    started_from: str = ""

    def __post_init__(self):
        check_fields(self)
        self.pipeline()
        if self.diffusion.objective == "consistency" and not self.started_from:
            problem = "consistency tunes a trained model: use configs/few_step.py"
            raise FieldError("diffusion.objective", problem)
        if self.accumulation > self.batch_size:
            raise FieldError(
                "accumulation",
                f"must be at most batch_size, {self.batch_size}, not {self.accumulation}",
            )
        if self.picture_steps > self.diffusion.num_timesteps:
            raise FieldError(
                "picture_steps",
                f"must be at most diffusion.num_timesteps, {self.diffusion.num_timesteps}, "
                f"not {self.picture_steps}",
            )
        if self.diffusion.z_sigma and not self.model.get("neighbors"):
            raise FieldError(
                "diffusion.z_sigma", "is 0 for a network that sees no neighbors (model.neighbors)"
            )
        if self.guidance_weight and not self.diffusion.make().is_stochastic:
            raise FieldError("guidance_weight", "is 0 for a regressor, which has no guidance")

    def contract(
        self,
        fingerprint: str,
        pixel_size_mm: float | None = None,
        slice_distance_mm: float | None = None,
        phantoms: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """What a resumed run must share with this one, and what its model is; see `checkpoint`.

        Args:
            fingerprint: of the training examples.
            pixel_size_mm: of the dataset, see `DataSettings.pixel_size_mm`.
            slice_distance_mm: likewise; left out where it is not known.
            phantoms: which ones the training examples are of, see `SliceSource.phantoms`; likewise.

        Returns:
            Plain JSON values.
        """
        fields = dataclasses.asdict(self)
        # Where the data lies, how it is read and what it is validated on change no update.
        for name in ("dataset", "validation_split", "num_threads"):
            del fields["data"][name]
        # Changes memory and time, not the result.
        fields["model"].pop("remat", None)
        for name in ("neighbors", "detail_channels", "mirror"):
            if not fields["model"].get(name):
                # As in contracts that are older than these.
                fields["model"].pop(name, None)
        if not self.label_weight:
            # As in contracts that are older than the label head.
            del fields["label_weight"]
        for name in ("crop_height", "crop_width", "crop_updates"):
            if not fields["augmentation"][name]:
                # As in contracts that are older than these.
                del fields["augmentation"][name]
        for name, only in {"method": "adam", "decay": ()}.items():
            if fields["optimizer"][name] == only:
                # As in contracts from when there was no other.
                del fields["optimizer"][name]
        if self.augmentation == Augmentation():
            # As in contracts from when there was no other.
            del fields["augmentation"]
        if not self.started_from:
            del fields["started_from"]
        fields["data"] |= {"fingerprint": fingerprint, "pixel_size_mm": pixel_size_mm}
        if slice_distance_mm is not None:
            fields["data"]["slice_distance_mm"] = slice_distance_mm
        if phantoms is not None:
            fields["data"]["phantoms"] = dict(phantoms)
        return json.loads(json.dumps({name: fields[name] for name in _CONTRACT if name in fields}))

    def recommended(self) -> dict[str, Any]:
        """What the checkpoint recommends for sampling because of its objective, in JSON values."""
        few = self.diffusion.objective == "consistency"
        return {"num_steps": self.picture_steps, "spacing": "trailing"} if few else {}

    def pipeline(self) -> Pipeline:
        """Network, process and tasks: those of the contract, and rematerialization as asked for.

        Raises:
            FieldError: a field has no such value.
        """
        return Pipeline.of(
            vars(self.data),
            self.model,
            self.diffusion,
            self.tasks,
            self.label_weight,
            self.augmentation,
        )

"""Command `few_step`: tunes a trained model towards few steps."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from ml_collections import ConfigDict

from mbti_jax.commands.initial import read_initial
from mbti_jax.commands.settings import from_config
from mbti_jax.data.augment import Augmentation
from mbti_jax.diffusion.process_settings import ProcessSettings
from mbti_jax.fields import Count, FieldError, Interval, Name, Positive
from mbti_jax.inference.provenance import weights_digest
from mbti_jax.rois.tasks import TaskSettings
from mbti_jax.training.cluster import join_cluster
from mbti_jax.training.loop import train
from mbti_jax.training.optimizer import OptimizerSettings
from mbti_jax.training.settings import DataSettings, RunSettings, TrainSettings

_Split = Literal["train", "validation", "test"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewStepSettings(RunSettings):
    """A run that tunes a model; see `configs/few_step.py`, and `RunSettings` for what is not here.

    Attributes:
        init_from: the trained model, see `inference.load_model`.
        dataset, train_split, validation_split, num_threads: see `DataSettings`.
        halve_every: see `consistency.Consistency`.
        learning_rate: of Adam.
        sampling_steps: that the result is meant for.
        remat: recompute blocks in the backward pass to save memory.
    """

    init_from: Name
    dataset: str
    train_split: _Split
    validation_split: _Split
    num_threads: Annotated[int, Interval(0, 1024)]
    halve_every: Count
    learning_rate: Positive
    sampling_steps: Count
    remat: bool

    def of_model(self, metadata: Mapping[str, Any], digest: str) -> TrainSettings:
        """The training that continues a model.

        Args:
            metadata: of the model, see `training.checkpoint`.
            digest: of its weights.

        Raises:
            FieldError: the model cannot be tuned, or a setting does not fit it.
        """
        contract = metadata["contract"]
        diffusion = contract["diffusion"]
        if diffusion.get("process") == "regression":
            raise FieldError(
                "init_from", "is a regressor, which has no steps; give a diffusion model"
            )
        if diffusion.get("objective") == "consistency":
            problem = "is tuned for few steps already; give the model that it was tuned from"
            raise FieldError("init_from", problem)
        # Tuning has errors of its own; what weighed those of the model is not for them.
        tuned = {
            "objective": "consistency",
            "halve_every": self.halve_every,
            "max_loss_weight": 1.0,
        }
        data = contract["data"]
        if self.sampling_steps > (most := diffusion.get("num_timesteps", 1000)):
            problem = f"must be at most {most}, as the model's timesteps, not {self.sampling_steps}"
            raise FieldError("sampling_steps", problem)
        return TrainSettings(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(RunSettings)},
            data=DataSettings(
                dataset=self.dataset,
                train_split=self.train_split,
                validation_split=self.validation_split,
                sequences=tuple(data["sequences"]),
                joint=data["joint"],
                window=data["window"],
                image_size=data["image_size"],
                # Imported models do not know of it.
                tumor_repeats=data.get("tumor_repeats", 2),
                num_threads=self.num_threads,
            ),
            model={**contract["model"], "remat": self.remat},
            diffusion=ProcessSettings(**{**diffusion, **tuned}),
            tasks=TaskSettings(**contract["tasks"]),
            label_weight=contract.get("label_weight", 0.0),
            # Whole slices, as sampling shows them.
            augmentation=Augmentation(**contract.get("augmentation", {})).of_whole_slices,
            optimizer=OptimizerSettings(self.learning_rate),
            picture_steps=self.sampling_steps,
            guidance_weight=metadata["inference"]["guidance_weight"],
            started_from=digest,
        )


def main(config: ConfigDict, workdir: str) -> bool:
    """Tunes `config.init_from` in `workdir`; see `training.loop.train`."""
    settings = from_config(FewStepSettings, config)
    join_cluster(settings.multihost)
    params, metadata = read_initial(settings.init_from)
    return train(settings.of_model(metadata, weights_digest(params)), workdir, params)

"""Command `inpaint`: cases, volumes, slices, BraTS's own layout, labeled sets."""

import dataclasses
import functools
import logging
from pathlib import Path

import jax
from ml_collections import ConfigDict

from mbti_jax.commands.settings import from_config
from mbti_jax.diffusion.guidance import Guidance, make_guidance
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.engine.settings import EngineSettings
from mbti_jax.fields import Count, Name
from mbti_jax.inference.challenge import inpaint_challenge
from mbti_jax.inference.files import inpaint_files
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.load import JOINT, SINGLE
from mbti_jax.inference.nnunet import make_labeled_set
from mbti_jax.inference.sets import Job
from mbti_jax.inference.settings import InpaintSettings
from tfds_brats.conventions import SEQUENCES
from tfds_brats.locking import only_process_in

_log = logging.getLogger(__name__)

_LAYOUTS = {
    "files": inpaint_files,
    "brats_inpainting": inpaint_challenge,
    "nnunet": make_labeled_set,
}
_SAMPLING = (
    "num_steps",
    "sampler",
    "spacing",
    "eta",
    "seed",
    "z_sigma_mm",
    "estimate",
    "mean_passes",
)


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The model, and its guidance, see `configs/inpaint.py`.

    Attributes:
        checkpoint: the model.
        batch_size: how many slices it samples at once; None for what suits.
        guidance_weight: below 0 for the one that the model recommends.
        guidance, guidance_interval, ...: see `make_guidance`.
    """

    checkpoint: Name
    batch_size: Count | None
    guidance_weight: float
    guidance: str
    guidance_interval: tuple[float, ...]
    guidance_damping: float
    guidance_max_rms: float
    guidance_rescale: float

    def make_guidance(self) -> Guidance:
        """The guidance.

        Raises:
            FieldError: there is none such.
        """
        return make_guidance(
            self.guidance,
            None if self.guidance_weight < 0 else self.guidance_weight,
            self.guidance_interval,
            damping=self.guidance_damping,
            max_rms=self.guidance_max_rms,
            rescale=self.guidance_rescale,
        )


_ENGINE = tuple(field.name for field in dataclasses.fields(EngineSettings))
MODEL_FIELDS = tuple(field.name for field in dataclasses.fields(ModelSettings))


def main(config: ConfigDict, workdir: str) -> None:
    """Inpaints what the config names; see `configs/inpaint.py`.

    Raises:
        ValueError, OSError: input that cannot be used, or a result that cannot be written.
    """
    model = from_config(ModelSettings, {name: config[name] for name in MODEL_FIELDS})
    drawn = {name: config[name] for name in _SAMPLING}
    drawn["estimate"] = config.estimate or "sample"
    sampling = from_config(Sampling, drawn, guidance=model.make_guidance())
    engine = from_config(EngineSettings, {name: config[name] for name in _ENGINE})
    others = (*_SAMPLING, *_ENGINE, *MODEL_FIELDS)
    fields = {name: config[name] for name in config if name not in others}
    settings = from_config(InpaintSettings, fields, sampling=sampling)
    checkpoint = model.checkpoint
    if checkpoint == JOINT and not {*SEQUENCES} <= {*settings.held_sequences()}:
        checkpoint = SINGLE
        _log.info(
            f"{SINGLE} in the place of {JOINT}, one sequence at a time: not all of "
            f"{', '.join(SEQUENCES)} are to be painted"
        )
    load = functools.partial(_load, checkpoint, model.batch_size, settings)
    # Shares of a set work side by side in one folder, each share once.
    share = engine.share()
    if engine.engine == "ray":
        # The GPUs are the workers'.
        jax.config.update("jax_platforms", "cpu")
    inpainter = load()
    is_open = (config.estimate, config.mean_passes, config.spacing) == (None, None, None)
    # What learns from a set shall see what could be there.
    is_set = settings.layout == "nnunet"
    if is_open and settings.fills and config.num_steps != 1 and not is_set:
        preset = settings.sampling.for_normal_tissue(inpainter.pipeline.process)
        settings = dataclasses.replace(settings, sampling=preset)
    with only_process_in(workdir, "run" if share is None else f"share-{share.number}"):
        _LAYOUTS[settings.layout](inpainter, settings, Path(workdir), Job(engine, load))


def _load(checkpoint: str, batch_size: int | None, settings: InpaintSettings) -> Inpainter:
    """The model, here or in a worker with other devices; batches are padded, and padding takes time."""
    suits = 4 if jax.default_backend() == "cpu" else 16
    inpainter = Inpainter.load(checkpoint, batch_size or suits)
    number = settings.images_at_once(inpainter.num_channels)
    if batch_size is None and number is not None:
        inpainter.shrink_batch(number)
    return inpainter

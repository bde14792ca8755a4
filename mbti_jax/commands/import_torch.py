"""Command `import_torch`: weights with guided-diffusion's names as an inference checkpoint."""

import dataclasses
from pathlib import Path
from typing import Annotated

from ml_collections import ConfigDict

import mbti_jax
from mbti_jax.commands.settings import from_config
from mbti_jax.diffusion.guidance import GUIDANCE_WEIGHTS
from mbti_jax.fields import FieldError, check_fields, increasing_numbers
from mbti_jax.interop.inference_checkpoint import write_export
from mbti_jax.interop.model_card import CardSettings
from mbti_jax.interop.names import from_guided_diffusion
from mbti_jax.interop.tensors import read_state_dict
from mbti_jax.interop.torch_checkpoint import GivenFields, describe
from mbti_jax.models.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class InferenceSettings:
    """What a checkpoint recommends for sampling.

    Attributes:
        x_0_bounds: range that x_0 is clipped to.
        guidance_weight: w.

    Raises:
        FieldError: a number that cannot be used.
    """

    x_0_bounds: tuple[float, ...]
    guidance_weight: Annotated[float, GUIDANCE_WEIGHTS]

    def __post_init__(self):
        check_fields(self)
        increasing_numbers("x_0_bounds", self.x_0_bounds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportSettings(GivenFields):
    """What to import, and what its tensors do not tell.

    Attributes:
        source: the file.
        key: of a file that holds several things: which.
        inference: what the checkpoint recommends.
        card: the model card.
    """

    source: str
    key: str
    inference: InferenceSettings
    card: CardSettings


def main(config: ConfigDict, workdir: str) -> None:
    """Imports the file `config.source` into the folder `workdir`; see configs/import_torch.py.

    Raises:
        ValueError: the file is not readable or not such a network's, or a field is to be given.
    """
    settings = from_config(ImportSettings, config)
    if not settings.source:
        raise ValueError("say which file to import with --config.source=FILE")
    state_dict = read_state_dict(settings.source, settings.key)
    try:
        contract, state_dict = describe(state_dict, dataclasses.asdict(settings))
        params = from_guided_diffusion(state_dict, Pipeline.from_contract(contract).model)
    except FieldError:
        raise
    except ValueError as error:
        raise ValueError(f"{settings.source}: {error}") from error
    metadata = {
        "contract": contract,
        "inference": {
            "x_0_bounds": list(settings.inference.x_0_bounds),
            "guidance_weight": settings.inference.guidance_weight,
            "note": f"imported from {Path(settings.source).name}",
            "version": mbti_jax.__version__,
        },
    }
    write_export(workdir, params, metadata, dataclasses.asdict(settings.card))
    print(f"Wrote {Path(workdir).absolute()}")

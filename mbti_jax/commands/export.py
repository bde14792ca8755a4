"""Task `export`: the averaged weights of a training run as an inference checkpoint."""

import dataclasses
from pathlib import Path
from typing import Literal

from ml_collections import ConfigDict

from mbti_jax.commands.settings import from_config
from mbti_jax.inference.load import load_model
from mbti_jax.interop.inference_checkpoint import write_export
from mbti_jax.interop.model_card import CardSettings


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """What to export, and what the export says of itself.

    Attributes:
        source: a training run's folder or another export.
        names: how the tensors are called.
        dtype: of the file; float16 rounds the weights to 11 bits.
        note: what every output shall say about the model.
        card: the model card.
    """

    source: str
    names: Literal["mbti_jax", "guided_diffusion"]
    dtype: Literal["float32", "float16"]
    note: str
    card: CardSettings


def main(config: ConfigDict, workdir: str) -> None:
    """Exports `config.source` to the folder `workdir`; see `ExportSettings`.

    Raises:
        ValueError: nothing readable there, or `workdir` holds something else.
    """
    settings = from_config(ExportSettings, config)
    if not settings.source:
        raise ValueError(
            "say what to export with --config.source=DIR, the folder of a training run"
        )
    params, metadata = load_model(settings.source)
    metadata = {key: metadata[key] for key in ("contract", "inference", "step") if key in metadata}
    if settings.note:
        metadata["inference"] = {**metadata["inference"], "note": settings.note}
    card = dataclasses.asdict(settings.card)
    write_export(workdir, params, metadata, card, settings.names, settings.dtype)
    print(f"Wrote {Path(workdir).absolute()}")

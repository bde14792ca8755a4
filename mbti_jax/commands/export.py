"""Task `export`: the averaged weights of a training run as an inference checkpoint."""

from pathlib import Path

from ml_collections import ConfigDict

from mbti_jax.inference.load import load_model
from mbti_jax.interop.inference_checkpoint import write_export


def main(config: ConfigDict, workdir: str) -> None:
    """Exports `config.source` to the folder `workdir`.

    Args:
        config: `source`, a training run's folder or another export; `names`, "mbti_jax" or
            "guided_diffusion"; `note`, what every output shall say about the model; `card`, the model
            card's `title`, `data` and `license`.
        workdir: the folder to write.

    Raises:
        ValueError: nothing readable there, or `workdir` holds something else.
    """
    if not config.source:
        raise ValueError(
            "say what to export with --config.source=DIR, the folder of a training run"
        )
    params, metadata = load_model(config.source)
    metadata = {key: metadata[key] for key in ("contract", "inference", "step") if key in metadata}
    if config.note:
        metadata["inference"] = {**metadata["inference"], "note": config.note}
    write_export(workdir, params, metadata, config.card.to_dict(), config.names)
    print(f"Wrote {Path(workdir).absolute()}")

"""Command `import_torch`: weights with guided-diffusion's names as an inference checkpoint."""

from pathlib import Path

from ml_collections import ConfigDict

import mbti_jax
from mbti_jax.interop.inference_checkpoint import write_export
from mbti_jax.interop.names import from_guided_diffusion
from mbti_jax.interop.tensors import read_state_dict
from mbti_jax.interop.torch_checkpoint import describe
from mbti_jax.models.pipeline import Pipeline


def main(config: ConfigDict, workdir: str) -> None:
    """Imports the file `config.source` into the folder `workdir`.

    Args:
        config: see configs/import_torch.py.
        workdir: the folder to write.

    Raises:
        ValueError: the file is not readable or not such a network's, or a field is to be given.
    """
    if not config.source:
        raise ValueError("say which file to import with --config.source=FILE")
    state_dict = read_state_dict(config.source, config.key)
    try:
        contract, state_dict = describe(state_dict, config.to_dict())
        params = from_guided_diffusion(state_dict, Pipeline.from_contract(contract).model)
    except ValueError as error:
        raise ValueError(f"{config.source}: {error}") from error
    metadata = {
        "contract": contract,
        "inference": {
            "x_0_bounds": list(config.inference.x_0_bounds),
            "guidance_weight": config.inference.guidance_weight,
            "note": f"imported from {Path(config.source).name}",
            "version": mbti_jax.__version__,
        },
    }
    write_export(workdir, params, metadata, config.card.to_dict())
    print(f"Wrote {Path(workdir).absolute()}")

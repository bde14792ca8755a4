"""Exports the averaged weights of a training run as one safetensors file with its model card.

    python run.py --config=configs/export.py --config.source=runs/train --workdir=my_model

The folder can be given wherever a trained model is asked for.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "export"
    # Folder for the exported model.
    config.workdir = "export"
    # Folder of the training run.
    config.source = ""
    # How the tensors are called: "mbti_jax", or "guided_diffusion" for PyTorch.
    config.names = "mbti_jax"
    # float16 halves the file; its weights are read back as float32 of exactly the rounded values.
    config.dtype = "float32"

    # A sentence that every output of the model carries: in its provenance record and under pictures.
    config.note = ""

    # For the model card: what the model was trained on, and under which license the weights are.
    config.card = ConfigDict()
    config.card.title = "Multitask brain-tumor inpainting"
    config.card.data = ""
    config.card.license = ""
    return config

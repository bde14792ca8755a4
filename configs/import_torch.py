"""Imports a PyTorch checkpoint of the authors' or of guided-diffusion's UNet.

    python run.py --config=configs/import_torch.py --config.source=FILE --workdir=my_model

FILE is a .pt, .pth, .safetensors or .npz file. Sizes are read from the tensors; what they do not
tell is asked for. The folder can be given wherever a trained model is asked for.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "import_torch"
    # Folder for the imported model.
    config.workdir = "imported"
    # The checkpoint.
    config.source = ""
    # Of a .pt file that holds several things: the entry to read, e.g. "ema" or "state.model".
    config.key = ""

    # To be given: heads or their width, and guided-diffusion's attention order.
    config.model = ConfigDict()
    config.model.num_heads = placeholder(int)
    config.model.num_head_channels = placeholder(int)
    config.model.num_heads_upsample = placeholder(int)
    config.model.use_new_attention_order = placeholder(bool)
    # Groups of every normalization; patches and number format as in configs/train.py.
    config.model.num_groups = 32
    config.model.patch_size = 1
    config.model.dtype = "float32"

    # To be given: "linear" or "cosine".
    config.diffusion = ConfigDict()
    config.diffusion.schedule = placeholder(str)
    # How many timesteps there are, and what the network predicts: eps, v or x_0.
    config.diffusion.num_timesteps = 1000
    config.diffusion.prediction = "eps"

    # To be given: image_size. The window of the slice that is resampled to it; the same by default.
    config.data = ConfigDict()
    config.data.image_size = placeholder(int)
    config.data.window = placeholder(int)
    # The sequences that it was trained on.
    config.data.sequences = ("t1", "t1ce", "t2", "flair")

    config.inference = ConfigDict()
    # Between these the sampler keeps estimates of the image, -1 being background.
    config.inference.x_0_bounds = (-1.0, 1.0)
    # The guidance weight that the model recommends.
    config.inference.guidance_weight = 0.4

    config.card = ConfigDict()
    # For the model card: what the model was trained on, and under which license the weights are.
    config.card.title = "Multitask brain-tumor inpainting"
    config.card.data = ""
    config.card.license = ""
    return config

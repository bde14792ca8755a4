r"""The bundled model's method in a network that wants an accelerator.

    python run.py --config=configs/accelerator_model.py --config.data.dataset=DIR

DIR holds the slices of phantoms (or of your cases, see configs/data.py). `python -m
benchmarks.accelerator` trains this in the time that its other stages leave; see benchmarks/README.md.
Unlike configs/phantom_model.py it folds 2 x 2 instead of 4 x 4 pixels, so that 64 channels take the
place of 16 numbers at a position, and sees whole slices from the start.
"""

from ml_collections import ConfigDict

from configs import train


def get_config() -> ConfigDict:
    config = train.get_config()
    config.workdir = "runs/accelerator_model"

    config.data.joint = True
    # 192 x 192 pixels around the brain, not resized.
    config.data.window = 192
    config.data.image_size = 192
    config.data.num_threads = 16

    # 96 x 96 positions; 4.8 million parameters, 9.6 MB in float16.
    config.model.patch_size = 2
    config.model.model_channels = 64
    config.model.channel_mult = (1, 1, 2)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (4,)
    config.model.num_head_channels = 16
    config.model.num_groups = 8
    config.model.detail_channels = 16
    config.model.neighbors = 1
    config.model.mirror = True
    config.model.dtype = "bfloat16"
    config.label_weight = 0.1

    # Heads stand about upright, so that left and right can be told.
    config.augmentation.vertical_flip = 0.0
    config.augmentation.max_angle = 4.0

    config.diffusion.prediction = "v"
    # Volumes are sampled with noise that slices share, as that is what they see of each other.
    config.diffusion.z_sigma = 2.0
    config.optimizer.method = "muon"
    config.optimizer.learning_rate = 2e-3
    config.ema_decay = 0.999
    config.batch_size = 64
    # More than half an hour of one accelerator: the clock stops it.
    config.num_steps = 100_000

    config.log_every = 50
    config.checkpoint_every = 500
    config.validate_every = 1_000
    config.validation_batches = 4
    config.picture_steps = 25
    return config

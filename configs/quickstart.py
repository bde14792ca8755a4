"""From nothing to a figure in about five minutes on two CPU cores, without any download.

    python run.py --config=configs/quickstart.py

Makes phantom subjects, builds the dataset, trains a small model, writes quickstart/figure.png and
prints how far its healthy tissue is from the truth. Run again, it reuses what is there.
"""

from ml_collections import ConfigDict

from configs import train


def get_config() -> ConfigDict:
    config = train.get_config()
    config.task = "quickstart"
    config.workdir = "quickstart"

    config.phantom = ConfigDict()
    config.phantom.num_subjects = 12
    config.phantom.seed = 0

    # One example holds all four sequences of a slice: four times the images for the same network.
    config.data.together = True
    # 192 x 192 pixels around the brain, averaged to 64 x 64.
    config.data.dataset = "quickstart/slices"
    config.data.window = 192
    config.data.image_size = 64
    config.data.num_threads = 2

    # A network of 32 x 32 positions: each takes 2 x 2 pixels.
    config.model.patch_size = 2
    config.model.model_channels = 32
    config.model.channel_mult = (1, 2, 2)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (4,)
    config.model.num_head_channels = 32
    config.model.num_groups = 8
    config.model.dtype = "float32"

    config.diffusion.schedule = "cosine"
    config.diffusion.prediction = "v"
    config.optimizer.learning_rate = 1e-3
    config.ema_decay = 0.99
    config.batch_size = 16
    config.num_steps = 500

    config.log_every = 20
    config.checkpoint_every = 250
    config.validate_every = 500
    config.validation_batches = 4
    config.num_pictures = 4
    config.picture_steps = 10

    config.evaluation = ConfigDict()
    config.evaluation.num_rois = 32
    config.evaluation.num_samples = 8
    config.evaluation.num_steps = 10
    config.evaluation.figure_steps = 25
    config.evaluation.batch_size = 32
    return config

r"""From nothing to a first picture in less than a minute, and to a model of one's own in some more.

    python run.py --config=configs/quickstart.py

Draws quickstart/first.png, what the bundled model makes of a phantom's tumor. Then it goes the whole
path: makes phantom subjects, builds the dataset, trains a small model until four minutes are over,
writes quickstart/figure.png and prints how far its healthy tissue is from the truth. No download. Run
again, it reuses what was made before. To do the same with your own cases (at least three patients)
instead of phantoms:

    python run.py --config=configs/quickstart.py --workdir=mine --config.source=DIR \
        --config.convention=brats2021
"""

from ml_collections import ConfigDict

from configs import train


def get_config() -> ConfigDict:
    config = train.get_config()
    config.task = "quickstart"
    # Folder for everything that is made.
    config.workdir = "quickstart"

    # A folder of cases and their convention, instead of phantoms.
    config.source = ""
    config.convention = ""
    config.phantom = ConfigDict()
    # How many phantoms, and the seed of the set.
    config.phantom.num_subjects = 12
    config.phantom.seed = 0

    # One example holds all four sequences of a slice: four times the images for one network call.
    config.data.joint = True
    # Where the slices are written; empty for WORKDIR/slices.
    config.data.dataset = ""
    # 192 x 192 pixels around the brain, averaged to 64 x 64.
    config.data.window = 192
    config.data.image_size = 64
    config.data.num_threads = 2

    # A network of 32 x 32 positions: each takes 2 x 2 pixels.
    config.model.patch_size = 2
    config.model.model_channels = 32
    config.model.channel_mult = (1, 1, 1.5)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (4,)
    config.model.num_head_channels = 24
    config.model.num_groups = 8
    config.model.dtype = "float32"

    config.diffusion.schedule = "cosine"
    config.diffusion.prediction = "x_0"
    config.optimizer.learning_rate = 2e-3
    config.ema_decay = 0.995
    config.batch_size = 8
    # Time from the start until training ends, over all runs in the workdir, and the most updates. On a
    # slow machine it is the time that ends it; training has at least half of it, whatever came before.
    # Not limited is what comes after: the last validation, the figure, and the errors, about a minute on
    # two cores. Models of the same seed that reached the same update are the same.
    config.minutes = 4.0
    config.num_steps = 1000

    config.log_every = 50
    config.checkpoint_every = 250
    config.validate_every = 500
    config.validation_batches = 8
    config.num_pictures = 8
    config.picture_steps = 25

    config.evaluation = ConfigDict()
    # Held-out ROIs of healthy tissue whose errors are measured, the samples of each, and the sampler's
    # steps.
    config.evaluation.num_rois = 32
    config.evaluation.num_samples = 8
    config.evaluation.num_steps = 10
    # The sampler's steps for figure.png.
    config.evaluation.figure_steps = 50
    # Slices sampled at once over all devices.
    config.evaluation.batch_size = 8
    return config

r"""Trains the bundled model, on digital phantoms alone.

    python run.py --config=configs/phantom_model.py
    python run.py --config=configs/export_phantom_model.py

Makes 64 phantoms (seed 0), builds their dataset and trains a network of 1.2 million parameters on the
four sequences jointly; an hour or two on two CPU cores. Stopped and started again, it resumes.

The four sequences are painted jointly, unlike in the paper, because that can be learned in this time:
after a quarter of an hour on one core, a network for one sequence at a time had not learned to continue
the brightness of its surroundings, which depends on the sequence; this one had in five minutes.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.workdir = "phantom_model"
    config.phantom.num_subjects = 64

    # 192 x 192 pixels around the brain, averaged to 128 x 128.
    config.data.image_size = 128
    config.data.num_threads = 1

    # 32 x 32 positions of 4 x 4 pixels: 25 steps of one slice take about a second on a core.
    config.model.patch_size = 4
    config.model.channel_mult = (1, 1, 2)
    config.model.num_head_channels = 16

    # At this size the coarse structure is decided while the image is almost pure noise; the linear
    # schedule spends more of its steps there.
    config.diffusion.schedule = "linear"
    config.ema_decay = 0.999
    # The updates end it, not the time.
    config.minutes = 100_000.0
    config.num_steps = 20_000
    config.validate_every = 1_000
    return config

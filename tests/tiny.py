"""The smallest training run that still has every part: four residual blocks would not teach more."""

from fake_slices import FakeSlices
from ml_collections import ConfigDict

from configs.train import get_config
from mbti_jax.commands.settings import from_config
from mbti_jax.data import loader
from mbti_jax.training.settings import TrainSettings


def tiny_config() -> ConfigDict:
    """The paper's config, shrunk until it compiles in seconds.

    The middle of the UNet keeps its attention. Patches make the network small in space, so that the
    images can be large enough to hold a tumor.
    """
    config = get_config()
    config.seed = 3
    config.data.window = 40
    config.data.image_size = 16
    config.data.num_threads = 2
    config.model.model_channels = 8
    config.model.num_groups = 4
    config.model.channel_mult = (1,)
    config.model.num_res_blocks = 0
    config.model.attention_resolutions = ()
    config.model.num_head_channels = 8
    config.model.patch_size = 2
    config.model.dtype = "float32"
    config.tasks.num_candidates = 4
    config.optimizer.learning_rate = 1e-3
    config.ema_decay = 0.9
    config.batch_size = 10
    return config


def tiny_settings() -> TrainSettings:
    return from_config(TrainSettings, tiny_config())


def tiny_examples() -> loader.Examples:
    return loader.Examples(FakeSlices(), ("t1", "flair"), joint=False, window=40, tumor_repeats=2)

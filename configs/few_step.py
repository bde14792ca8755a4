r"""Tunes a trained model towards one to four steps.

    python run.py --config=configs/few_step.py --config.init_from=runs/flow \
        --config.dataset=DIR --workdir=runs/few_step

Continues any trained model - predicting eps, v or x_0, a Gaussian process or a flow; a training run's
folder, an exported model, or "phantom" - as a consistency model (`diffusion/consistency.py`). It
takes neither a teacher nor a derivative in time: an update costs a training update and a forward pass.
Network, process, tasks, sequences and window are the model's; what is set here is the run. It resumes
and repeats exactly, like all training, and writes a checkpoint like any other, which samples with the
sampler "consistency" and says for how many steps it is meant. Guidance stays adjustable, in two passes.

Where to start: a flow, v or x_0 (`configs/flow.py`). From eps with the paper's schedule the first step
multiplies the network's errors by up to 157, and one or two steps cannot end well.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "few_step"
    config.workdir = "runs/few_step"
    # Folder of a training run or an exported model, or "phantom".
    config.init_from = "runs/flow"
    config.seed = 0

    config.dataset = "data/slices"
    config.train_split = "train"
    config.validation_split = "validation"
    config.num_threads = 8

    # Between the two times whose estimates shall agree lies half of the time to the image at first, then
    # half as much after every so many updates, down to 1/256 after seven times as many.
    config.halve_every = 2_500
    config.learning_rate = 2e-5
    config.ema_decay = 0.999
    config.batch_size = 108
    config.num_steps = 20_000
    # Steps that the result is meant for, and that the pictures of validation take.
    config.sampling_steps = 2

    config.accumulation = 1
    config.fully_sharded = False
    config.multihost = False
    config.remat = False
    config.log_every = 100
    config.checkpoint_every = 1_000
    config.max_to_keep = 3
    config.validate_every = 2_500
    config.validation_batches = 10
    config.num_pictures = 8
    return config

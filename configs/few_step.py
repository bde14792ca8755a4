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
    # Folder of the run: checkpoints, metrics, pictures.
    config.workdir = "runs/few_step"
    # Folder of a training run or an exported model, or "phantom".
    config.init_from = "runs/flow"
    # Of everything that is drawn.
    config.seed = 0

    # Folder of the dataset, as `mbti data` writes it.
    config.dataset = "data/slices"
    # Its splits for the updates and for validation.
    config.train_split = "train"
    config.validation_split = "validation"
    # Threads that read ahead; 0 reads between two steps.
    config.num_threads = 8

    # Between the two times whose estimates shall agree lies half of the time to the image at first, then
    # half as much after every so many updates, down to 1/256 after seven times as many.
    config.halve_every = 2_500
    # Of Adam.
    config.learning_rate = 2e-5
    # Of the moving average of the weights, which is what samples.
    config.ema_decay = 0.999
    # Examples of an update, over all devices.
    config.batch_size = 108
    # Updates.
    config.num_steps = 20_000
    # Steps that the result is meant for, and that the pictures of validation take.
    config.sampling_steps = 2

    # Microbatches per update, which take less memory and change nothing.
    config.accumulation = 1
    # Splits parameters and optimizer state over the devices.
    config.fully_sharded = False
    # True on several hosts: the processes find each other through SLURM, Open MPI or the variables
    # JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    config.multihost = False
    # Computes activations again in the backward pass instead of keeping them.
    config.remat = False
    # Steps between two lines of metrics.
    config.log_every = 100
    # Steps between two checkpoints, and how many are kept.
    config.checkpoint_every = 1_000
    config.max_to_keep = 3
    # Steps between two validations, the batches of one, and the examples that it draws.
    config.validate_every = 2_500
    config.validation_batches = 10
    config.num_pictures = 8
    return config

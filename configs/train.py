"""Trains the paper's model (Rouzrokh et al. 2022).

    python run.py --config=configs/train.py --config.data.dataset=DIR --workdir=runs/paper

DIR is what `configs/data.py` wrote. The same command resumes; SIGTERM and Ctrl-C save first.

The paper gives batch size, iterations, learning rate and augmentation, and says that the network is
Dhariwal & Nichol's UNet, but not how large. This one has the published code's default size for 256 x 256
images: 150 million parameters, 551 GFLOP per slice forward (1.65 TFLOP in training, two FLOPs per
multiply-add). 40 million images then cost 66 EFLOP, some days of the paper's three A100s.

Peak memory of a training step on one device (XLA's analysis for CPUs, bf16, by
`python -m benchmarks.memory`; not measured on GPUs):

    images on the device    1         2         4         each further
    without remat           6.4 GB    8.9 GB    14.8 GB   2.9 GB
    remat = True            3.2 GB    3.7 GB     5.0 GB   0.6 GB
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "train"
    config.workdir = "runs/train"
    config.seed = 0

    config.data = ConfigDict()
    config.data.dataset = "data/slices"
    config.data.train_split = "train"
    config.data.validation_split = "validation"
    # Each sequence is an example of its own (C = 1). True: all of them are channels of one example.
    config.data.sequences = ("t1", "t1ce", "t2", "flair")
    config.data.joint = False
    # 240 x 240 slices are padded to 256 x 256 and not resized.
    config.data.window = 256
    config.data.image_size = 256
    config.data.tumor_repeats = 2
    config.data.num_threads = 8

    config.model = ConfigDict()
    config.model.model_channels = 128
    config.model.channel_mult = (1, 1, 2, 2, 4, 4)
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = (16, 32)
    config.model.num_head_channels = 64
    config.model.use_scale_shift_norm = True
    config.model.resblock_updown = True
    config.model.use_new_attention_order = True
    config.model.dropout = 0.0
    config.model.num_groups = 32
    config.model.patch_size = 1
    # Features per pixel of layers at full resolution, for patch_size above 1; 0: none, as in the paper.
    config.model.detail_channels = 0
    # Slices on either side that the network sees, 0 to 2. With some, the slices of a volume are painted
    # together and fit each other in all three planes; single slices are painted as ever.
    config.model.neighbors = 0
    # Whether the network also sees its input with left and right exchanged, so that it can fill a
    # hemisphere after the other. Heads must stand about upright, so turn the augmentation below down.
    config.model.mirror = False
    config.model.dtype = "bfloat16"
    config.model.remat = False

    config.diffusion = ConfigDict()
    # gaussian; flow (configs/flow.py); regression (configs/baseline.py).
    config.diffusion.process = "gaussian"
    config.diffusion.schedule = "linear"
    config.diffusion.num_timesteps = 1000
    config.diffusion.prediction = "eps"
    config.diffusion.drop_condition = 0.1
    # Of a Gaussian schedule: noise alone at the last timestep; v or x_0 is predicted then.
    config.diffusion.zero_terminal_snr = False
    # The squared error of an x_0-prediction counts min(1 + SNR, this) times; 1: all times alike.
    config.diffusion.max_loss_weight = 1.0
    # Of a flow: uniform or logit_normal.
    config.diffusion.time_sampling = "uniform"

    config.tasks = ConfigDict()
    config.tasks.prob_tumor = 0.8
    config.tasks.prob_normal = 0.5
    config.tasks.prob_mixed = 0.5
    config.tasks.prob_box = 0.5
    config.tasks.prob_normal_box = 0.5
    config.tasks.max_circles = 3
    config.tasks.min_radius = 0.1
    config.tasks.max_radius = 0.5
    config.tasks.max_aspect = 2.0
    config.tasks.min_brain_fraction = 0.75
    config.tasks.num_candidates = 16

    # Weight of the label head's cross-entropy (per pixel of the ROI, in nats) beside the squared error.
    # 0: no such head, as in the paper. With one, samples come with a map of what was painted where. On
    # phantoms, a small network's squared error after 750 steps was the same with 0 and 0.1 (0.065), and
    # 0.070 with 0.5.
    config.label_weight = 0.0

    # Probabilities of flips, and the largest rotation in degrees: the paper's.
    config.augmentation = ConfigDict()
    config.augmentation.vertical_flip = 0.5
    config.augmentation.horizontal_flip = 0.5
    config.augmentation.max_angle = 15.0

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-4
    config.ema_decay = 0.9999
    config.batch_size = 108
    config.num_steps = 370_000
    # Microbatches per update; whether parameters and optimizer state are split over the devices.
    config.accumulation = 1
    config.fully_sharded = False
    # True on several hosts: calls jax.distributed.initialize(), which asks the cluster.
    config.multihost = False

    config.log_every = 100
    config.checkpoint_every = 2_500
    config.max_to_keep = 3
    config.validate_every = 5_000
    config.validation_batches = 10
    config.num_pictures = 8
    config.picture_steps = 50
    config.guidance_weight = 0.4
    return config

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
    # Folder of the run: checkpoints, metrics, pictures.
    config.workdir = "runs/train"
    # A trained model whose weights this run starts from: the folder of a run or an export, or phantom,
    # the bundled one. Its network must be this one. Empty: random weights.
    config.init_from = ""
    # Of everything that is drawn: initial weights, tasks, noise, augmentation, order of the examples.
    config.seed = 0

    config.data = ConfigDict()
    # Folder of the dataset, as `mbti data` writes it.
    config.data.dataset = "data/slices"
    # Split of the dataset for the updates, and the one for losses and pictures of validation.
    config.data.train_split = "train"
    config.data.validation_split = "validation"
    # Each sequence is an example of its own (C = 1). True: all of them are channels of one example.
    config.data.sequences = ("t1", "t1ce", "t2", "flair")
    config.data.joint = False
    # Side in pixels of the square that is cut out of a slice, and of the network's image, to which it is
    # resized. The paper's slices of 240 x 240 are padded to 256 x 256 and not resized.
    config.data.window = 256
    config.data.image_size = 256
    # How often a slice with tumor counts.
    config.data.tumor_repeats = 2
    # Threads that read ahead; 0 reads between two steps.
    config.data.num_threads = 8

    config.model = ConfigDict()
    # Width of the network, and the multiple of it at each level; each level halves the image.
    config.model.model_channels = 128
    config.model.channel_mult = (1, 1, 2, 2, 4, 4)
    # Residual blocks of a level on the way down; there is one more on the way up.
    config.model.num_res_blocks = 2
    # Downsampling rates with self-attention: 1 at the first level, 2 at the second, then 4, 8, ...
    config.model.attention_resolutions = (16, 32)
    # Width of an attention head.
    config.model.num_head_channels = 64
    # Timestep and request scale and shift the features, rather than being added to them.
    config.model.use_scale_shift_norm = True
    # Residual blocks change the resolution, rather than convolutions between them.
    config.model.resblock_updown = True
    # guided-diffusion's order of the attention's channels: the new one.
    config.model.use_new_attention_order = True
    # Share of features that residual blocks drop in training.
    config.model.dropout = 0.0
    # Groups of every normalization.
    config.model.num_groups = 32
    # p x p pixels become channels before the network and pixels after it: p^2 times cheaper.
    config.model.patch_size = 1
    # Features per pixel of layers at full resolution, for patch_size above 1; 0: none, as in the paper.
    config.model.detail_channels = 0
    # Slices on either side that the network sees, 0 to 2. With some, the slices of a volume are painted
    # together and fit each other in all three planes; single slices are painted as ever.
    config.model.neighbors = 0
    # Whether the network also sees its input with left and right exchanged, so that it can fill a
    # hemisphere after the other. Heads must stand about upright, so turn the augmentation below down.
    config.model.mirror = False
    # float32 or bfloat16, of the computation; weights are float32.
    config.model.dtype = "bfloat16"
    # Computes activations again in the backward pass instead of keeping them; the table above.
    config.model.remat = False

    config.diffusion = ConfigDict()
    # gaussian; flow (configs/flow.py); regression (configs/baseline.py).
    config.diffusion.process = "gaussian"
    # Of the Gaussian process: linear or cosine.
    config.diffusion.schedule = "linear"
    # How many noise levels there are.
    config.diffusion.num_timesteps = 1000
    # What the network predicts: eps, v or x_0.
    config.diffusion.prediction = "eps"
    # Share of examples that are trained without their request, for guidance.
    config.diffusion.drop_condition = 0.1
    # Of a Gaussian schedule: noise alone at the last timestep; v or x_0 is predicted then.
    config.diffusion.zero_terminal_snr = False
    # The squared error of an x_0-prediction counts min(1 + SNR, this) times; 1: all times alike.
    config.diffusion.max_loss_weight = 1.0
    # Over how many slices those that see each other (model.neighbors) share their noise, in sampling as
    # in training: what neighbors' noise has in common is taken for signal by a model that was trained
    # without. 0: each has noise of its own, with which volumes are less smooth along z.
    config.diffusion.z_sigma = 0.0
    # Of a flow: uniform or logit_normal.
    config.diffusion.time_sampling = "uniform"

    config.tasks = ConfigDict()
    # In a slice with tumor, probability of ROIs of tumor.
    config.tasks.prob_tumor = 0.8
    # Probability of an ROI of normal tissue beside them; without them there always is one.
    config.tasks.prob_normal = 0.5
    # Probability that the ROIs of tumor are one mixed ROI, and not one for each component.
    config.tasks.prob_mixed = 0.5
    # Probability of a bounding box instead of a free-form ROI, for every kind of tumor ROI.
    config.tasks.prob_box = 0.5
    # Probability that an ROI of normal tissue is a rectangle, and not circles.
    config.tasks.prob_normal_box = 0.5
    # Circles are between 1 and so many.
    config.tasks.max_circles = 3
    # Least and largest radius of a circle, in radii of the disk of the brain's area; a rectangle has a
    # circle's area.
    config.tasks.min_radius = 0.1
    config.tasks.max_radius = 0.5
    # Rectangles' height / width lies between 1 / this and this.
    config.tasks.max_aspect = 2.0
    # Least share of brain in a circle or rectangle.
    config.tasks.min_brain_fraction = 0.75
    # How many places are tried for them, all at once.
    config.tasks.num_candidates = 16

    # Weight of the label head's cross-entropy (per pixel of the ROI, in nats) beside the squared error.
    # 0: no such head, as in the paper. With one, samples come with a map of what was painted where. On
    # phantoms, a small network's squared error after 750 steps was the same with 0 and 0.1 (0.065), and
    # 0.070 with 0.5.
    config.label_weight = 0.0

    config.augmentation = ConfigDict()
    # Probability of exchanging anterior and posterior. The three values are the paper's.
    config.augmentation.vertical_flip = 0.5
    # Probability of exchanging left and right.
    config.augmentation.horizontal_flip = 0.5
    # Of the random rotation, in degrees.
    config.augmentation.max_angle = 15.0
    # Height and width in pixels of the part of a slice, around its ROI, that an update sees; 0: all of
    # it. A third of the slice takes about a third of the time.
    config.augmentation.crop_height = 0
    config.augmentation.crop_width = 0
    # How many updates see parts; those after it see whole slices, as sampling does. 0: all see parts.
    config.augmentation.crop_updates = 0

    config.optimizer = ConfigDict()
    # adam, or muon, with the same learning rates; docs/training.md compares them.
    config.optimizer.method = "adam"
    config.optimizer.learning_rate = 1e-4
    # The updates between which the learning rate falls to a tenth, such as (300_000, 370_000); empty:
    # it stays.
    config.optimizer.decay = ()
    # Of the moving average of the weights, which is what samples.
    config.ema_decay = 0.9999
    # Examples of an update, over all devices.
    config.batch_size = 108
    # Updates.
    config.num_steps = 370_000
    # Microbatches per update, which take less memory and change nothing.
    config.accumulation = 1
    # Splits parameters and optimizer state over the devices.
    config.fully_sharded = False
    # True on several hosts: the processes find each other through SLURM, Open MPI or the variables
    # JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    config.multihost = False

    # Steps between two lines of metrics.
    config.log_every = 100
    # Steps between two checkpoints, and how many are kept.
    config.checkpoint_every = 2_500
    config.max_to_keep = 3
    # Steps between two validations, and the batches of one.
    config.validate_every = 5_000
    config.validation_batches = 10
    # Examples that a validation draws, the sampler's steps for them, and the guidance weight, which the
    # model then recommends.
    config.num_pictures = 8
    config.picture_steps = 50
    config.guidance_weight = 0.4
    return config

r"""The paper's figures 3 to 7, and its scheme 1B as a sixth, on slices of a test split.

    python run.py --config=configs/figures.py --config.sampler=unipc --config.num_steps=8

needs no data: it makes phantom subjects that the bundled model has not seen and draws with that model.
With your own model and data, and the paper's 1000 steps:

    python run.py --config=configs/figures.py --workdir=runs/figures \
        --config.checkpoint=runs/paper --config.data_dir=data/slices

Each figure has a row for each sequence of the model, T1, T1CE, T2 and FLAIR: a random slice that shows
all three tumor components. WORKDIR gets figure_N.png, the same as PDF, and figure_N.json, which says how
it was made.
Run again, the same command draws what is missing.

    3   components, free-form; with edema as a box
    4   a tumor whose components the model chooses, free-form; in a box
    5   normal tissue, free-form; in a box
    6   a tumor in a box, one seed, rising guidance weight
    7   a tumor in a box, different seeds
    1b  normal tissue and a tumor elsewhere in the same pass, free-form and boxes mixed
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "figures"
    # Folder for the figures.
    config.workdir = "figures"
    # Folder of a training run or an exported model, or "phantom" for the bundled model.
    config.checkpoint = "phantom"
    # Slices sampled at once over all devices; a prediction has one for each sequence.
    config.batch_size = 4
    # Which figures, see above.
    config.figures = ("3", "4", "5", "6", "7", "1b")

    # Where configs/data.py wrote the slices; empty for phantoms, made in the workdir.
    config.data_dir = ""
    # Split of the dataset.
    config.split = "test"
    config.phantom = ConfigDict()
    # The bundled model was trained on phantoms of seed 0.
    config.phantom.seed = 1
    # One for each row; all of them are in the split.
    config.phantom.num_subjects = 4
    # Pixels that each component must have in a slice.
    config.min_component_area = 50

    # Of the sampler, the slices, and the places where figure 1b inserts a tumor.
    config.seed = 0
    # The paper's; see configs/inpaint.py for others.
    config.num_steps = 1000
    config.sampler = "ddim"
    # Of the timesteps; empty: what suits the sampler.
    config.spacing = placeholder(str)
    # Of figures other than 6, see configs/inpaint.py.
    config.guidance_weight = 0.4
    # Share of fresh noise, for ddim: 0 is deterministic.
    config.eta = 0.0
    # Of figure 6; the paper gives the first and the last.
    config.weights = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0)
    # Of figure 7: seed, seed + 1, ...
    config.num_seeds = 6
    return config

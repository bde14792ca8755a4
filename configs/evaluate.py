r"""Measures a trained model on cases that it has not seen, and writes one report.

    # The bundled model, on the phantoms that it was trained and tested with:
    python run.py --config=configs/evaluate.py

    # Your own:
    python run.py --config=configs/evaluate.py --config.checkpoint=runs/paper --config.source=DIR \
        --config.convention=brats2021 --config.data_dir=data/slices

Writes `report.md`, `report.json` and their pictures to the workdir. The same command again resumes
where it stopped. Give the cases that the model was trained with: they are split by patient as for
training, and only the test split is scored.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "evaluate"
    # Folder for the report.
    config.workdir = "evaluation"
    # Folder of a training run, an exported model, or "phantom".
    config.checkpoint = "phantom"
    # Slices sampled at once over all devices.
    config.batch_size = 16
    # Of everything that is drawn.
    config.seed = 0

    # Folder of cases and their convention; an empty folder for the phantoms below, which are those of
    # the bundled model. Its training and test split follow from all of them.
    config.source = ""
    config.convention = ""
    config.phantom = ConfigDict({"num_subjects": 96, "seed": 0})
    # The dataset of these cases, as `configs/data.py` writes it; empty to build it in the workdir.
    config.data_dir = ""

    # Which parts to do; empty for all.
    config.parts = ()
    # local: one part after the other on this machine. ray: on a cluster, as in configs/inpaint.py, with
    # the same results; times per image are those of a worker beside others.
    config.engine = "local"
    config.ray = ConfigDict({"address": "", "workers": 0, "cpus": 1, "retries": 2})
    # Without Ray: which of so many shares of the parts this process measures, as in configs/inpaint.py.
    # The report is of the parts that are there; merge: writes it anew, and says which are missing.
    config.piece = ""
    config.pieces = 0

    # Tumor-shaped regions of healthy tissue: whole volumes, and some slices of each by itself.
    config.healthy = ConfigDict()
    config.healthy.num_cases = 6
    config.healthy.num_samples = 8
    config.healthy.num_steps = 8
    config.healthy.slices_per_case = 8
    config.healthy.z_sigma_mm = placeholder(float)
    # Training cases whose tumors give the shapes.
    config.healthy.num_shape_cases = 48
    # Folder of a run of `configs/baseline.py` on the same data; empty for none.
    config.healthy.regressor = ""

    # How whole volumes hold together in all planes: healthy regions and painted tumors, models compared
    # at equal passes of the network, of which a guided step takes two.
    config.volumes = ConfigDict()
    config.volumes.num_cases = 6
    config.volumes.num_shape_cases = 48
    config.volumes.passes = (40,)
    # Of means, which share the passes; 1 for none.
    config.volumes.num_samples = 4
    # Over how many millimeters slices share their noise: None for the usual 2, nearly everywhere,
    # nowhere. Means have the first.
    config.volumes.z_sigma_mm = (None, 60.0, 0.0)
    # Modes as in configs/inpaint.py; empty for no tumors.
    config.volumes.tumors = ("replace", "random box")
    # Whether a model that sees neighbors is also measured without seeing any, as a model of slices.
    config.volumes.hide_neighbors = False
    # Further models that were trained on the same data, and a regressor.
    config.volumes.models = ()
    config.volumes.regressor = ""

    # Samples of the same request compared with each other, for each of six tasks. Areas of brain are
    # minima in slices without tumor, in the dataset's pixels.
    config.diversity = ConfigDict()
    config.diversity.num_slices = 6
    config.diversity.num_samples = 8
    config.diversity.num_steps = 8
    config.diversity.min_brain_area = 6000

    # Segmenters of our own; parts with the same settings share them.
    segmenter = {
        "num_slices": 900,
        "seed": 0,
        "model_channels": 32,
        "num_steps": 1000,
        "batch_size": 8,
        "learning_rate": 1e-3,
    }

    # Components, boxes and removal, in slices with tumor and in as many without. Other areas are minima
    # of what is scored, in the model's pixels.
    config.control = ConfigDict()
    config.control.num_slices = 18
    config.control.num_steps = 8
    config.control.min_area = 12
    config.control.min_brain_area = 6000
    config.control.segmenter = ConfigDict(segmenter)

    # The label maps that models with a label head return; of other models nothing.
    config.labels = ConfigDict()
    config.labels.num_slices = 36
    config.labels.num_steps = 8
    config.labels.min_area = 12
    config.labels.segmenter = ConfigDict(segmenter)

    # The same, and more, measured against guidance, and against sampler and steps, in fewer slices.
    config.guidance = ConfigDict()
    # plain, projected, rescaled, or interval: plain guidance at these noise shares only.
    config.guidance.kinds = ("plain", "interval", "projected", "rescaled")
    config.guidance.interval = (0.2, 0.8)
    config.guidance.weights = (0.0, 0.4, 1.0, 2.0, 4.0, 8.0, 16.0, 40.0)
    config.guidance.num_steps = 8
    config.guidance.num_slices = 4
    config.guidance.min_area = 12
    config.guidance.min_brain_area = 6000
    config.guidance.segmenter = ConfigDict(segmenter)
    config.steps = ConfigDict()
    # Samplers with their spacings, how often a sample may evaluate the network, and how often one of the
    # reference does, which is DDIM.
    config.steps.samplers = (("ddim", "trailing"), ("dpmpp_2m", "cubic"), ("unipc", "cubic"))
    config.steps.evaluations = (1, 2, 4, 5, 8, 10, 16, 25, 50)
    config.steps.reference = 250
    config.steps.num_samples = 2
    config.steps.guidance_weight = 0.4
    config.steps.num_slices = 4
    config.steps.min_area = 12
    config.steps.min_brain_area = 6000
    config.steps.segmenter = ConfigDict(segmenter)

    # Fidelity and memorization use the same samples. With 64 features FID needs 128 slices in each half
    # of the subjects.
    config.fidelity = ConfigDict()
    config.fidelity.num_slices = 288
    config.fidelity.num_normal_slices = 48
    config.fidelity.min_brain_area = 6000
    config.fidelity.num_steps = 8
    config.fidelity.num_subsets = 200
    config.fidelity.segmenter = ConfigDict(segmenter)
    config.memorization = ConfigDict()
    config.memorization.num_slices = 288
    config.memorization.num_normal_slices = 48
    config.memorization.min_brain_area = 6000
    config.memorization.num_steps = 8
    config.memorization.num_rois = 48
    config.memorization.min_area = 150
    config.memorization.num_training_slices = 512
    config.memorization.num_pairs = 4

    # Segmenters trained on real slices, on as many repainted ones, and on both; of a model with a label
    # head also on slices painted in boxes and as mixed tumors.
    config.downstream = ConfigDict()
    config.downstream.num_slices = 150
    config.downstream.num_steps = 8
    config.downstream.num_seeds = 2
    config.downstream.num_test_slices = 60
    config.downstream.min_area = 12
    config.downstream.min_brain_area = 6000
    config.downstream.segmenter = ConfigDict(
        {"model_channels": 32, "num_steps": 500, "batch_size": 8, "learning_rate": 1e-3}
    )
    return config

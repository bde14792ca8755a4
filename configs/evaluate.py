r"""Measures a trained model on cases that it has not seen, and writes one report.

    # The model that comes with the package, on the phantoms that it was trained and tested with:
    python run.py --config=configs/evaluate.py

    # Your own:
    python run.py --config=configs/evaluate.py --config.checkpoint=runs/paper --config.source=DIR \
        --config.convention=brats2021 --config.data_dir=data/slices

Writes `report.md`, `report.json` and the pictures behind them to the workdir. The same command again
goes on where it stopped. Give the cases that the model was trained with: they are split by patient as
for training, and only the test split is scored.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "evaluate"
    config.workdir = "evaluation"
    # Folder of a training run, an exported model, or "phantom".
    config.checkpoint = "phantom"
    # Slices sampled at once over all devices.
    config.batch_size = 16
    config.seed = 0

    # Folder of cases and their convention; empty for the phantoms below.
    config.source = ""
    config.convention = ""
    config.phantom = ConfigDict({"num_subjects": 64, "seed": 0})
    # The dataset of these cases, as `configs/data.py` writes it; empty to build it in the workdir.
    config.data_dir = ""

    # Which parts to do; empty for all.
    config.parts = ()

    # Tumour-shaped regions of healthy tissue: whole volumes, and some slices of each by itself.
    config.healthy = ConfigDict({"num_cases": 6, "num_samples": 8, "num_steps": 20})
    config.healthy.slices_per_case = 8
    config.healthy.z_sigma_mm = 2.0
    # Training cases whose tumours give the shapes.
    config.healthy.num_shape_cases = 48
    # Folder of a run of `configs/baseline.py` on the same data; empty to go without it.
    config.healthy.regressor = ""

    # Samples of the same request beside each other, for each of six tasks.
    config.diversity = ConfigDict({"num_slices": 6, "num_samples": 8, "num_steps": 25})
    config.diversity.least_brain = 6000

    # Segmenters of our own; parts with the same settings share them.
    segmenter = {
        **{"num_slices": 900, "seed": 0},
        **{"model_channels": 32, "num_steps": 1000, "batch_size": 8, "learning_rate": 1e-3},
    }
    # Components, boxes and removal, in slices with tumour and in as many without. Areas in pixels: of
    # what is scored, in the model's size; of brain in slices without tumour, in the dataset's.
    config.control = ConfigDict({"num_slices": 18, "num_steps": 25})
    config.control.update({"least_area": 12, "least_brain": 6000})
    config.control.segmenter = ConfigDict(segmenter)

    # The same measured against guidance weight and number of steps, in fewer slices.
    sweep = {"num_slices": 4, "least_area": 12, "least_brain": 6000}
    config.guidance = ConfigDict({**sweep, "num_steps": 50})
    config.guidance.weights = (0.0, 0.4, 1.0, 2.0, 4.0, 8.0, 16.0, 40.0)
    config.guidance.segmenter = ConfigDict(segmenter)
    config.steps = ConfigDict({**sweep, "guidance_weight": 0.4})
    config.steps.steps = (1, 2, 5, 10, 25, 50, 100, 250, 1000)
    config.steps.segmenter = ConfigDict(segmenter)

    # Fidelity and memorisation look at the same samples. With 64 features FID needs 128 slices in each
    # half of the subjects.
    repainted = {"num_slices": 288, "num_normal_slices": 48, "least_brain": 6000, "num_steps": 25}
    config.fidelity = ConfigDict({**repainted, "num_subsets": 200})
    config.fidelity.segmenter = ConfigDict(segmenter)
    config.memorisation = ConfigDict({**repainted, "num_rois": 48, "least_area": 150})
    config.memorisation.update({"num_training_slices": 512, "num_pairs": 4})

    # Segmenters trained on real slices, on as many repainted ones, and on both.
    config.downstream = ConfigDict({"num_slices": 150, "num_steps": 25, "num_seeds": 2})
    config.downstream.update({"num_test_slices": 60, "least_area": 12, "least_brain": 6000})
    config.downstream.segmenter = ConfigDict(
        {"model_channels": 32, "num_steps": 500, "batch_size": 8, "learning_rate": 1e-3}
    )
    return config

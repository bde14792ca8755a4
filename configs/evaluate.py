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
    # Samples of the same request beside each other, for each of six tasks.
    config.diversity = ConfigDict({"num_slices": 6, "num_samples": 8, "num_steps": 25})

    # Segmenters of our own; parts with the same settings share them.
    segmenter = {
        **{"num_slices": 1200, "seed": 0},
        **{"model_channels": 16, "num_steps": 600, "batch_size": 8, "learning_rate": 2e-3},
    }
    # With 64 features FID needs 128 slices in each half of the subjects.
    config.fidelity = ConfigDict(
        {"num_slices": 288, "num_normal_slices": 48, "num_steps": 25, "num_subsets": 200}
    )
    config.fidelity.segmenter = ConfigDict(segmenter)
    return config

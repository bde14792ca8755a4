"""Trains a plain regressor of healthy tissue, as a baseline for the diffusion model.

    python run.py --config=configs/baseline.py --config.data.dataset=DIR --workdir=runs/baseline

Network, data, batch size, number of steps and everything else not named here are those of `train.py`;
override the same fields for both, so that both see the same number of images. The network gets the image
with the ROI set to 0, at a time that is always 0, and is trained with the squared error inside the ROI.
All of its ROIs are of healthy tissue, also in slices with tumor, which is context there; the diffusion
model spends part of its images on tumors.
"""

from ml_collections import ConfigDict

from configs import train


def get_config() -> ConfigDict:
    config = train.get_config()
    config.workdir = "runs/baseline"

    config.diffusion.process = "regression"
    config.diffusion.prediction = "x_0"
    config.diffusion.num_timesteps = 1
    config.diffusion.drop_condition = 0.0
    config.tasks.prob_tumor = 0.0
    config.picture_steps = 1
    config.guidance_weight = 0.0
    return config

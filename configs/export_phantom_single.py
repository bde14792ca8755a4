"""Exports what configs/phantom_single.py trained to where the package keeps it.

python run.py --config=configs/export_phantom_single.py
"""

from ml_collections import ConfigDict

from configs import export_phantom_model

_DATA = """\
The slices that `phantom` learned from, each sequence an example of its own: 96 digital phantoms
(`tfds_brats.phantom`, seed 0; 76 for training, 10 each for validation and test), deformed copies of one
averaged brain, the ICBM 152 template that nilearn carries, with artificial gliomas. No image of a
patient, so it knows phantoms only: what it paints into a patient's image must not be taken for tissue.

Made by

    python run.py --config=configs/phantom_single.py
    python run.py --config=configs/export_phantom_single.py

from the weights that `phantom` had after its first five runs, but in two runs that continued each other,
with noise of the neighbors that is independent: 1,855 updates at a learning rate of 0.002, then 900
falling from 0.001 to 0.0001, both on parts of 160 x 144 pixels, and 200 on whole slices at 0.0001."""


def get_config() -> ConfigDict:
    config = export_phantom_model.get_config()
    config.source = "phantom_single"
    config.workdir = "mbti_jax/pretrained/phantom_single"
    config.card.title = "The phantom model of mbti-jax for single sequences"
    config.card.data = _DATA
    return config

r"""Trains the bundled model of single sequences, from the bundled one of four together.

    python run.py --config=configs/phantom_model.py
    python run.py --config=configs/phantom_single.py
    python run.py --config=configs/export_phantom_single.py

It starts from the filters of `phantom`, summed over the sequences
(`mbti_jax/models/one_sequence.py`), and learns from the slices that configs/phantom_model.py has made,
each sequence an example of its own, as in the paper. From random weights a network for one sequence at a
time had not learned to continue the brightness of its surroundings, which depends on the sequence, after
a quarter of an hour on one core. The bundled one took an hour and a half on one core that other work
shared. Stopped and started again, it resumes.
"""

from ml_collections import ConfigDict

from configs import phantom_model


def get_config() -> ConfigDict:
    config = phantom_model.get_config()
    config.task = "train"
    for name in ("source", "convention", "phantom", "minutes", "evaluation"):
        del config[name]
    config.workdir = "phantom_single"
    config.init_from = "phantom"
    config.data.dataset = "phantom_model/slices/brats_slices/1.0.0"
    config.data.joint = False
    config.augmentation.crop_updates = 2_750
    config.optimizer.decay = (1_850, 2_750)
    config.num_steps = 2_950
    return config

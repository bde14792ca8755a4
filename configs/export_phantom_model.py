"""Exports what configs/phantom_model.py trained to where the package keeps it.

python run.py --config=configs/export_phantom_model.py
"""

from ml_collections import ConfigDict

from configs import export

_DATA = """\
96 digital phantoms (`tfds_brats.phantom`, seed 0; 76 for training, 10 each for validation and test):
deformed copies of one averaged brain, the ICBM 152 template that nilearn carries, with artificial
gliomas. No image of a patient, so it knows phantoms only: what it paints into a patient's image must not
be taken for tissue.

Made by

    python run.py --config=configs/phantom_model.py
    python run.py --config=configs/export_phantom_model.py

but in nine runs that continued each other (`init_from`), while the recipe was being found. With noise
of the neighbors that is independent: 2,234 updates with Adam and 3,228 with Muon on parts of 64 x 160
pixels, 3,087 with Muon on parts of 160 x 144, the last 1,352 of them at a quarter of the learning rate,
and 480 on whole slices at a tenth. With noise that they share over two slices, Muon, and after each rise
of the learning rate a fall to a tenth, parts of 160 x 144 and then whole slices: 2,828 and 100 from
0.0015, 1,150 and 220 from 0.0008, 2,859 and 200 from 0.0012, 900 and 80 from 0.0008. In all ten
core-hours."""


def get_config() -> ConfigDict:
    config = export.get_config()
    config.source = "phantom_model/run"
    config.workdir = "mbti_jax/pretrained/phantom"
    config.dtype = "float16"
    config.note = (
        "This model knows digital phantoms only; it was never trained on images of patients."
    )
    config.card.title = "The phantom model of mbti-jax"
    config.card.data = _DATA
    config.card.license = (
        "Apache-2.0, as the software. It was trained on images made from the ICBM 152 template (Fonov "
        "et al. 2009, doi 10.1016/S1053-8119(09)70884-5), which has terms of its own."
    )
    return config

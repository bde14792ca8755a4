"""A web page for inpainting: load a slice or a case, paint, compare, download.

    pip install -c constraints.txt -e ".[web]"
    python run.py --config=configs/serve.py

and open http://127.0.0.1:7860. With a model of your own:

    python run.py --config=configs/serve.py --config.checkpoint=runs/paper

It listens on this machine alone. Where others can reach it (`--config.host=0.0.0.0`), it asks for a
password, which comes from the environment variable MBTI_PASSWORD or is typed in; `--config.open=True`
lets everybody in without one.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "serve"
    # Folder for uploads and results, which are deleted; the system's temporary folder when empty.
    config.workdir = ""
    # Folder of a training run or an export; "phantom" is the bundled model, beside
    # which "phantom_single" paints images that lack one of its four sequences.
    config.checkpoint = "phantom"
    # Images sampled at once. Fewer are filled up to it.
    config.batch_size = 4

    # Address and port of the page.
    config.host = "127.0.0.1"
    config.port = 7860
    # Whether the page may be used without a password from other machines.
    config.open = False
    # Names of a proxy in front of the page: requests for other hosts than this one are refused.
    config.host_names = ()
    # Runs that may wait; one is sampled at a time.
    config.max_waiting = 16
    # Users whose images are kept. More are refused, unless somebody has done nothing for ten minutes.
    config.max_sessions = 16
    # Steps that the page offers at first, where the model does not recommend others. Empty: the default.
    config.num_steps = placeholder(int)
    config.limits = ConfigDict(
        {
            # Of an uploaded file, and of a NIfTI file after decompression, in 10^6 bytes.
            "upload_mb": 100,
            "volume_mb": 500,
            # Of a slice.
            "pixels": 1_048_576,
            # Slices x sequences x samples in one run, and what they become in memory, in 10^6 bytes; two
            # samples of four sequences of a whole case of BraTS fit.
            "images": 2048,
            "run_mb": 2500,
            # What the images of one user, and of all, become in memory, in 10^6 bytes.
            "memory_mb": 1000,
            "total_mb": 4000,
            # Uploads on disk, in 10^6 bytes.
            "uploads_mb": 2000,
        }
    )
    return config

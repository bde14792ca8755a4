"""A web page for inpainting: load a slice or a case, paint, compare, download.

    pip install -c constraints.txt -e ".[web]"
    python run.py --config=configs/serve.py

and open http://127.0.0.1:7860. With a model of your own:

    python run.py --config=configs/serve.py --config.checkpoint=runs/paper

It listens on this machine alone; `--config.host=0.0.0.0` opens it to the network, with no password:
everybody who reaches the port can use it.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "serve"
    # Folder for uploads and results, which are deleted; the system's temporary folder when empty.
    config.workdir = ""
    # Folder of a training run or an export; "phantom" is the bundled model.
    config.checkpoint = "phantom"
    # Images sampled at once. Fewer are filled up to it.
    config.batch_size = 4

    config.host = "127.0.0.1"
    config.port = 7860
    # Runs that may wait; one is sampled at a time.
    config.max_waiting = 16
    # Users whose images are kept; beyond that the longest unused are dropped.
    config.max_sessions = 16
    # DDIM steps that the page offers at first.
    config.num_steps = 25
    config.limits = ConfigDict(
        {
            # Of an uploaded file, and of a NIfTI file after decompression, in 10^6 bytes.
            "upload_mb": 100,
            "volume_mb": 500,
            # Of a slice.
            "pixels": 1_048_576,
            # Slices x sequences x samples in one run.
            "images": 128,
        }
    )
    return config

"""Writes a run's numbers and pictures: JSON lines always, and TensorBoard event files."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import PIL.Image
from tensorboardX import SummaryWriter

from mbti_jax.io.files import replacing


class MetricsWriter:
    """Writes to `workdir`: `metrics.jsonl`, `pictures/*.png`, and `tensorboard/`.

    A resumed run starts at an earlier step than the one at which it was killed: lines of `start_step`
    or later are dropped on opening, as is a half-written last line, so each step appears once.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int = 0):
        """Opens the files.

        Args:
            workdir: the run's folder.
            start_step: the first step that this run will write.
        """
        self._workdir = Path(workdir)
        self._pictures = self._workdir / "pictures"
        self._pictures.mkdir(parents=True, exist_ok=True)
        path = self._workdir / "metrics.jsonl"
        kept = [record for record in read_metrics(path) if record["step"] < start_step]
        with replacing(path) as partial:
            partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        self._lines = path.open("a", buffering=1)
        self._tensorboard = SummaryWriter(
            str(self._workdir / "tensorboard"), purge_step=start_step or None
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line `{"step": step, name: value, ...}`; NaN and infinities as strings.

        A number that is not finite, such as the loss of a quarter of t without an example, is a gap in
        TensorBoard's curve.
        """
        plain = {name: float(value) for name, value in values.items()}
        for name, value in plain.items():
            if np.isfinite(value):
                self._tensorboard.add_scalar(name, value, step)
        finite = {k: v if np.isfinite(v) else str(v) for k, v in plain.items()}
        self._lines.write(json.dumps({"step": step, **finite}) + "\n")

    def picture(self, step: int, name: str, image: np.ndarray) -> Path:
        """Writes `image`, uint8 [H, W, 3] or [H, W], as `pictures/NAME_STEP.png`."""
        path = self._pictures / f"{name}_{step:08d}.png"
        with replacing(path) as partial:
            PIL.Image.fromarray(image).save(partial, format="png")
        formats = "HWC" if image.ndim == 3 else "HW"
        self._tensorboard.add_image(name, image, step, dataformats=formats)
        return path

    def close(self) -> None:
        self._lines.close()
        self._tensorboard.close()


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The records of a `metrics.jsonl`, in order; a half-written last line is left out."""
    path = Path(path)
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records

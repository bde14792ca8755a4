"""Writes a run's numbers and pictures: JSON lines always, and TensorBoard event files."""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import PIL.Image
from tensorboardX import SummaryWriter

from mbti_jax.io.files import replacing

logger = logging.getLogger(__name__)


class MetricsWriter:
    """Writes to `workdir`: `metrics.jsonl`, `pictures/*.png`, and `tensorboard/`.

    A resumed run starts at an earlier step than the one at which it was killed: lines of `start_step`
    or later are dropped on opening, as is a half-written last line, so each step appears once. Of a file
    with damaged lines a copy is kept, `metrics.jsonl.damaged`.
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
        records, damaged = _read(path)
        if damaged:
            before = len([*self._workdir.glob("metrics.jsonl.damaged*")])
            shutil.copy2(path, self._workdir / f"metrics.jsonl.damaged{before or ''}")
        kept = [record for record in records if record["step"] < start_step]
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
    """The records of a `metrics.jsonl`, in order; a half-written last line is left out.

    Damaged lines are left out, too, with a warning that names the file and them.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[list[dict], list[int]]:
    """The records of a `metrics.jsonl`, and the numbers of damaged lines, from 1."""
    records, damaged = [], []
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line.decode())
            if not isinstance(record["step"], int):
                raise TypeError
            records.append(record)
        # What is no JSON, or nested without end, or no record.
        except (ValueError, RecursionError, KeyError, TypeError):
            # Behind the last line break there is nothing, or what a killed process was writing.
            if number < len(lines):
                damaged.append(number)
    if damaged:
        numbers = ", ".join(map(str, damaged[:10])) + (", ..." if len(damaged) > 10 else "")
        logger.warning("%s is damaged and read without line %s", path, numbers)
    return records, damaged

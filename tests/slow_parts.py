"""Parts of an evaluation that wait, in worker processes, which find this under its name."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

import ray

from mbti_jax.commands import evaluate
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.rois.regions import Rois

_measure = evaluate._measure


class Part:
    """Samples the first slice with tumor of the test split, and has the sample's digest as result."""

    def __init__(self, name: str, seed: int, waits: bool = False, refuses: bool = False):
        self._name, self._seed, self._waits, self._refuses = name, seed, waits, refuses

    def run(self, workbench: Workbench, settings: Any, folder: Path) -> dict[str, Any]:
        """Says where it is; one that waits goes on as soon as the file `go` is beside the report."""
        if self._refuses:
            raise ValueError("it has no such slice")
        slices = workbench.slices("test", 1, with_tumor=True, min_area=1)
        rois = Rois.of({"normal": slices.labels > 0}, slices.labels.shape)
        sampling = Sampling(num_steps=1, seed=self._seed)
        sample = workbench.repaint(slices, rois.condition(), sampling, name=self._name)
        (folder / "sample.txt").write_text(str(sample.ravel()[:10]))
        partial = folder.parent / f".{self._name}"
        if ray.is_initialized():
            partial.write_text(ray.get_runtime_context().get_node_id())
        else:
            partial.touch()
        partial.replace(folder.parent / f"at.{self._name}.{os.getpid()}")
        while self._waits and not (folder.parent / "go").exists():
            time.sleep(0.05)
        return {"digest": hashlib.sha256(sample.tobytes()).hexdigest()}

    def tables(self, result: dict[str, Any]) -> str:
        """A line."""
        return f"## {self._name}\n\n{result['digest']}"


# Under names that have settings.
PARTS = {
    "healthy": Part("healthy", 1),
    "control": Part("control", 2, refuses=True),
    "diversity": Part("diversity", 3, waits=True),
}


def measure(workbench: Workbench, piece: Any) -> float:
    """As `evaluate` does it, with these parts."""
    with mock.patch.object(evaluate, "PARTS", PARTS):
        return _measure(workbench, piece)


def main() -> None:
    """The command line, with these parts."""
    from mbti_jax import cli

    evaluate.PARTS, evaluate._measure = PARTS, measure
    cli.run()


if __name__ == "__main__":
    # Under the name that workers find it by.
    import slow_parts

    slow_parts.main()

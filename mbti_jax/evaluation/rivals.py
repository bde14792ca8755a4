"""What is compared on volumes: models, estimates and kinds of noise, at equal passes of the network."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation.repainted import repainted
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.fields import FieldError
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.load import load_model
from mbti_jax.rois.regions import Rois
from tfds_brats.cases import Case

# Sequence -> float64 [Z, H, W] in the file's units.
Painted = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rival:
    """A model and how it is sampled.

    Attributes:
        model: its name; empty where there is only one.
        setting: how it is sampled, in words that are the same for all models.
        inpainter: the model.
        sampling: without its seed.
        num_samples: whose mean is taken.
    """

    model: str
    setting: str
    inpainter: Inpainter
    sampling: Sampling
    num_samples: int = 1

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"{self.model}: {self.setting}" if self.model else self.setting

    def record(self) -> dict[str, Any]:
        """In JSON values, with what a volume's slice costs."""
        cost = self.inpainter.passes(self.sampling)["network_passes"] * self.num_samples
        sampling = self.inpainter.resolve(self.sampling)
        return {
            "name": self.name,
            "model": self.model,
            "setting": self.setting,
            "weights_sha256": self.inpainter.checkpoint["weights_sha256"],
            "sampler": sampling.sampler,
            "num_steps": sampling.num_steps,
            "num_samples": self.num_samples,
            "z_sigma_mm": sampling.z_sigma_mm,
            "network_passes": cost,
        }

    def paint(self, workbench: Workbench, case: Case, rois: Rois, seed: int) -> Painted:
        """The sample, or the mean of the samples, of a case."""
        sampling = dataclasses.replace(self.sampling, seed=seed)
        total: Painted = {}
        count = self.num_samples
        drawn = repainted(workbench, self.inpainter, case, rois, sampling, num_samples=count)
        for values in drawn:
            total = {name: total.get(name, 0) + volume for name, volume in values.items()}
        return {name: volume / count for name, volume in total.items()}


def rivals(
    models: Mapping[str, Inpainter],
    passes: Sequence[int],
    z_sigma_mm: Sequence[float | None],
    num_samples: int,
) -> list[Rival]:
    """All that are compared, the first model's first.

    Args:
        models: by name.
        passes: of the network, that a slice of a result may cost.
        z_sigma_mm: see `Sampling`; None for each model's own. The means have the first one's noise.
        num_samples: of a mean, which share the passes; 1 for no means.
    """
    out, first = [], z_sigma_mm[0]
    for name, inpainter in models.items():
        shown = name if len(models) > 1 else ""
        for cost in passes:
            at = f"{cost} passes"
            steps = steps_within(inpainter, cost)
            for distance in z_sigma_mm:
                sampling = Sampling(steps, z_sigma_mm=distance)
                out.append(Rival(shown, f"sample, {_noise(distance)}, {at}", inpainter, sampling))
            if num_samples > 1:
                sampling = Sampling(steps_within(inpainter, cost // num_samples), z_sigma_mm=first)
                setting = f"mean of {num_samples}, {_noise(first)}, {at}"
                out.append(Rival(shown, setting, inpainter, sampling, num_samples))
        one_pass = Sampling(z_sigma_mm=first, estimate="mean", mean_passes=1)
        try:
            inpainter.resolve(one_pass)
        except FieldError:
            continue  # The first estimate of a model that was tuned for few steps is a sample.
        out.append(Rival(shown, f"mean in one pass, {_noise(first)}", inpainter, one_pass))
    return out


def without_neighbors(inpainter: Inpainter) -> Inpainter:
    """A model that sees neighbors, kept from seeing any: it paints every slice of a volume by itself.

    Neighbors enter the network by one linear layer without a bias, and those that are absent as zeros
    (`UNet.neighbors`). So this is the model as it paints single slices, at the same passes.
    """
    params, metadata = load_model(inpainter.name)
    contract = metadata["contract"]
    contract = {**contract, "model": {**contract["model"], "neighbors": 0}}
    kept = {name: layer for name, layer in params.items() if name != "neighbors_in"}
    metadata = {**metadata, "contract": contract}
    return Inpainter(kept, metadata, inpainter.batch_size, inpainter.name)


def steps_within(inpainter: Inpainter, passes: int) -> int:
    """The steps that a sample may take for so many passes of the network, at least one."""
    one, two = (inpainter.passes(Sampling(steps))["network_passes"] for steps in (1, 2))
    return max(1, 1 + (passes - one) // (two - one))


def _noise(z_sigma_mm: float | None) -> str:
    if z_sigma_mm is None:
        return "own noise"
    return f"noise along {z_sigma_mm:g} mm" if z_sigma_mm else "independent noise"

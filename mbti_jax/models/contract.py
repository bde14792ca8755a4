"""The contract of a checkpoint: what its model is and what it was trained on, in JSON values."""

from collections.abc import Mapping
from typing import Any


def upgrade(contract: Mapping[str, Any]) -> dict[str, Any]:
    """A contract with today's names, whichever version wrote it.

    Version 0.1 called `data.joint` `together`, and a regression a prediction instead of a process.
    """
    contract = {
        name: dict(part) if isinstance(part, Mapping) else part for name, part in contract.items()
    }
    data, diffusion = contract["data"], contract["diffusion"]
    if "together" in data:
        data["joint"] = data.pop("together")
    if "process" not in diffusion:
        is_regression = diffusion.get("prediction") == "regression"
        diffusion["process"] = "regression" if is_regression else "gaussian"
        if is_regression:
            # Its schedule had no effect, and is the default now.
            diffusion |= {"prediction": "x_0", "schedule": "linear"}
    return contract

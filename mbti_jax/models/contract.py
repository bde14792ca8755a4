"""The contract of a checkpoint: what its model is and what it was trained on, in JSON values."""

from collections.abc import Mapping
from typing import Any


def upgrade(contract: Mapping[str, Any]) -> dict[str, Any]:
    """A contract with today's names, whichever version wrote it.

    Version 0.1 called `data.joint` `together`, a regression a prediction instead of a process, and
    took attention at rates that no level has, to no effect.
    """
    contract = {
        name: dict(part) if isinstance(part, Mapping) else part for name, part in contract.items()
    }
    data, diffusion, model = contract["data"], contract["diffusion"], contract["model"]
    if "together" in data:
        data["joint"] = data.pop("together")
    if "attention_resolutions" in model and "channel_mult" in model:
        rates = [2**level for level in range(len(model["channel_mult"]))]
        attended = [rate for rate in model["attention_resolutions"] if rate in rates]
        model["attention_resolutions"] = attended
    if "process" not in diffusion:
        is_regression = diffusion.get("prediction") == "regression"
        diffusion["process"] = "regression" if is_regression else "gaussian"
        if is_regression:
            # Its schedule had no effect, and is the default now.
            diffusion |= {"prediction": "x_0", "schedule": "linear"}
    return contract

"""The contract of a checkpoint: what its model is and what it was trained on, in JSON values."""

from collections.abc import Mapping
from typing import Any

from mbti_jax.diffusion.guidance import GUIDANCE_WEIGHTS
from mbti_jax.diffusion.sampling import DEFAULTS, Sampling
from mbti_jax.fields import FieldError, finite_number, increasing_numbers

_PARTS = ("data", "diffusion", "model", "tasks")


def checked(metadata: Any) -> dict[str, Any]:
    """The metadata of a checkpoint with its contract `upgrade`d.

    Raises:
        ValueError: an entry is missing or is not what it should be; numbers of the inference are.
    """
    for name in ("contract", "inference"):
        if not isinstance(metadata, Mapping) or not isinstance(metadata.get(name), Mapping):
            raise ValueError(f"its metadata has no entry {name!r}")
    inference = metadata["inference"]
    try:
        if "x_0_bounds" in inference:
            increasing_numbers("x_0_bounds", inference["x_0_bounds"])
        if "guidance_weight" in inference:
            finite_number("guidance_weight", inference["guidance_weight"], GUIDANCE_WEIGHTS)
        Sampling(**{name: inference.get(name) for name in DEFAULTS})
    except FieldError as error:
        raise ValueError(f"its metadata says that inference.{error}") from error
    return {**metadata, "contract": upgrade(metadata["contract"])}


def same_data(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two contracts' `data` name the same training examples.

    Phantoms are the same if they were made in the same way: made on another machine, they have another
    fingerprint.
    """
    if one["fingerprint"] == other["fingerprint"]:
        return True
    made = one.get("phantoms")
    return made is not None and made == other.get("phantoms")


def upgrade(contract: Mapping[str, Any]) -> dict[str, Any]:
    """A contract with today's names, whichever version wrote it.

    Version 0.1 called `data.joint` `together`, a regression a prediction instead of a process, and
    took attention at rates that no level has, to no effect.

    Raises:
        ValueError: it lacks a part.
    """
    contract = {
        name: dict(part) if isinstance(part, Mapping) else part for name, part in contract.items()
    }
    for name in _PARTS:
        if not isinstance(contract.get(name), dict):
            raise ValueError(f"the contract of its model has no part {name!r}")
    data, diffusion, model = contract["data"], contract["diffusion"], contract["model"]
    if "together" in data:
        data["joint"] = data.pop("together")
    if isinstance(model.get("channel_mult"), list | tuple):
        rates = [2**level for level in range(len(model["channel_mult"]))]
        attended = model.get("attention_resolutions")
        if isinstance(attended, list | tuple):
            model["attention_resolutions"] = [rate for rate in attended if rate in rates]
    if "process" not in diffusion:
        is_regression = diffusion.get("prediction") == "regression"
        diffusion["process"] = "regression" if is_regression else "gaussian"
        if is_regression:
            # Its schedule had no effect, and is the default now.
            diffusion |= {"prediction": "x_0", "schedule": "linear"}
    return contract

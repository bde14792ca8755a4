"""The page's form of a run: as its settings, and as the arguments that paint."""

from collections.abc import Mapping
from typing import Any

from mbti_jax.diffusion.guidance import make_guidance
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.web.history import FIELDS, RunSettings
from mbti_jax.web.session import Session
from mbti_jax.web.values import ESTIMATES, estimate_for, flag, number, whole


def read(session: Session, *form: Any) -> tuple[RunSettings, dict[str, Any]]:
    """A form as settings, and as arguments of `results.run`.

    Raises:
        ValueError: something in it is no setting.
    """
    sequences, seed, num_samples, num_steps, guidance_weight, estimate, *advanced = form
    sampler, guidance, lowest_noise, highest_noise, blend = advanced
    if estimate not in ESTIMATES:
        raise ValueError(f"the result must be one of {', '.join(ESTIMATES)}, not {estimate!r:.40}")
    in_one_pass = estimate == "mean in one pass"
    interval = [
        number(f"the {name} noise share", share)
        for name, share in (("lowest", lowest_noise), ("highest", highest_noise))
    ]
    asked = RunSettings(
        tuple(name for name in session.sequences if name in (sequences or ())),
        whole("the seed", seed),
        whole("the number of samples", num_samples),
        whole("the number of steps", num_steps),
        None if guidance_weight is None else number("the guidance weight", guidance_weight),
        estimate,
        sampler,
        guidance,
        interval[0],
        interval[1],
        flag("blending", blend),
    )
    return asked, {
        "sequences": list(asked.sequences),
        "sampling": Sampling(
            num_steps=asked.num_steps,
            sampler=sampler,
            guidance=make_guidance(guidance, asked.guidance_weight, interval),
            seed=asked.seed,
            estimate=ESTIMATES[estimate],
            mean_passes=1 if in_one_pass else None,
            blend=asked.blend,
        ),
        # One pass has no samples.
        "num_samples": 1 if in_one_pass else asked.num_samples,
    }


def of_settings(session: Session, settings: RunSettings) -> tuple[Any, ...]:
    """The inputs of `Actions.inpaint` that belong to settings."""
    sequences = list(settings.sequences) or list(session.sequences)
    return sequences, *(getattr(settings, name) for name in FIELDS[1:])


def preset(session: Session) -> str:
    """The kind of result that suits what is painted."""
    return estimate_for(session.painted.values(), session.inpainter.pipeline.process)


def sizes(session: Session, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `results.check_run` asks of settings."""
    sequences = settings["sequences"] or session.sequences
    return {"sequences": sequences, "num_samples": settings["num_samples"]}

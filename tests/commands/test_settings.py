"""Settings: what a field cannot hold is refused where the settings are made, by the field's name."""

import copy
import dataclasses
import math
import runpy
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from conftest import ROOT
from tiny import tiny_config

from configs import inpaint as inpaint_config
from mbti_jax.commands import (
    data,
    evaluate,
    export,
    few_step,
    figures,
    healthy_masks,
    import_torch,
    inpaint,
    quickstart,
)
from mbti_jax.commands.serve import ServeSettings
from mbti_jax.commands.settings import from_config
from mbti_jax.diffusion.guidance import ClassifierFree, Limited, Projected
from mbti_jax.diffusion.process_settings import ProcessSettings
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.fields import (
    Count,
    FieldError,
    Interval,
    check_field,
    field_types,
    finite_number,
    increasing_numbers,
)
from mbti_jax.inference.settings import InpaintSettings
from mbti_jax.models.pipeline import make_unet
from mbti_jax.models.unet import UNet
from mbti_jax.rois.tasks import TaskSettings
from mbti_jax.training.optimizer import OptimizerSettings
from mbti_jax.training.settings import DataSettings, TrainSettings

# What no field of these types takes; the bounds of each come on top.
WRONG = {
    bool: [1, 0, 1.0, "True", None],
    int: [True, 1.5, "3", math.nan, -2, 2**31, 10**30, None, (3,)],
    float: [True, "0.5", math.nan, math.inf, -math.inf, 1e39, 1e-39, 1e-300, None, 10**400, 1j],
    str: [3, b"text", None, ("text",)],
    Literal: ["nonsense", "", 3, None, ("linear",)],
    tuple: [3, "text", None, (None,), (object(),)],
    Mapping: [3, "text", None, (1, 2)],
}


def load(name: str) -> dict[str, Any]:
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]().to_dict()
    if name == "inpaint":
        # As the command does: what belongs to the sampler, the model or the engine is made apart. (The
        # engine's fields are those of `data.Settings`.)
        for field in (*inpaint._SAMPLING, *inpaint.MODEL_FIELDS, *inpaint._ENGINE):
            del config[field]
        config |= {"source": "cases", "tumor": "remove", "sampling": Sampling()}
    if name == "healthy_masks":
        config |= {"source": "cases", "convention": "brats2021"}
    return config


SETTINGS = {
    "train": TrainSettings,
    "baseline": TrainSettings,
    "few_step": few_step.FewStepSettings,
    "quickstart": quickstart.QuickstartSettings,
    "evaluate": evaluate.EvaluateSettings,
    "figures": figures.Settings,
    "healthy_masks": healthy_masks.Settings,
    "serve": ServeSettings,
    "import_torch": import_torch.ImportSettings,
    "export": export.ExportSettings,
    "data": data.Settings,
    "inpaint": InpaintSettings,
}


def leaves(types: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """(name, type, whether None is allowed) of every field of a config, those of its groups too."""
    for name, value in values.items():
        kind = types[name]
        choices = [c for c in typing.get_args(kind) if c is not type(None)]
        optional = type(None) in typing.get_args(kind)
        kind = choices[0] if optional else kind
        if isinstance(value, Sampling):
            continue
        if typing.get_origin(kind) is Annotated:
            kind = typing.get_args(kind)[0]
        yield name, typing.get_origin(kind) or kind, optional
        if isinstance(value, dict):
            of_group = field_types(kind) if dataclasses.is_dataclass(kind) else field_types(UNet)
            if name == "images":
                of_group = dict.fromkeys(value, str)
            for inner, inner_kind, inner_optional in leaves(of_group, value):
                yield f"{name}.{inner}", inner_kind, inner_optional


def replaced(values: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    values = copy.deepcopy(values)
    *groups, last = name.split(".")
    group = values
    for part in groups:
        group = group[part]
    group[last] = value
    return values


@pytest.mark.parametrize("name", SETTINGS)
def test_a_value_of_the_wrong_type_or_size_is_refused_by_name(name):
    config = {key: value for key, value in load(name).items() if key not in ("task", "workdir")}
    fields = [*leaves(field_types(SETTINGS[name]), config)]
    assert len(fields) >= 4
    for field, kind, optional in fields:
        kind = Mapping if dataclasses.is_dataclass(kind) or kind is dict else kind
        kind = tuple if kind is Sequence else kind
        for value in WRONG[kind]:
            if value is None and optional:
                continue
            if value == (None,) and field == "volumes.z_sigma_mm":
                # One of these may be the model's own.
                continue
            with pytest.raises(FieldError) as error:
                from_config(SETTINGS[name], replaced(config, field, value))
                pytest.fail(f"{field} = {value!r} was taken")
            assert error.value.field == field, f"{field} = {value!r}: {error.value}"


@pytest.mark.parametrize("name", SETTINGS)
def test_the_configs_themselves_are_taken(name):
    config = load(name)
    if name in ("import_torch", "export"):
        config["source"] = "file"
    from_config(SETTINGS[name], config)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        # Downsampling rates of levels that are not there.
        ("model.attention_resolutions", (4,), "model.attention_resolutions"),
        ("model.attention_resolutions", (1, 7), "model.attention_resolutions"),
        ("model.attention_resolutions", (32, 16, 8), "model.attention_resolutions"),
        ("model.attention_resolutions", (0,), "model.attention_resolutions"),
        ("model.channel_mult", (), "model.channel_mult"),
        ("model.channel_mult", (0,), "model.channel_mult"),
        ("model.channel_mult", (0.01,), "model.num_groups"),
        ("model.channel_mult", (1,) * 17, "model.channel_mult"),
        ("model.channel_mult", (1, 1, 1, 1, 1), "data.image_size"),
        ("model.model_channels", 0, "model.model_channels"),
        ("model.model_channels", 10**9, "model.model_channels"),
        ("model.model_channels", 10, "model.num_groups"),
        ("model.num_groups", 3, "model.num_groups"),
        ("model.num_groups", 16, "model.num_groups"),
        ("model.num_head_channels", 0, "model.num_head_channels"),
        ("model.num_head_channels", 3, "model.num_head_channels"),
        ("model.num_res_blocks", 10**6, "model.num_res_blocks"),
        ("model.dropout", 1.0, "model.dropout"),
        ("model.dropout", -0.1, "model.dropout"),
        ("model.dtype", "float8", "model.dtype"),
        ("model.dtype", "float64", "model.dtype"),
        ("model.patch_size", 3, "data.image_size"),
        ("model.widht", 3, "model.widht"),
        ("model.image_size", 3, "model.image_size"),
        ("data.image_size", 0, "data.image_size"),
        ("data.image_size", 15, "data.image_size"),
        ("data.image_size", 64, "data.window"),
        ("data.window", 8, "data.window"),
        ("data.window", 10**6, "data.window"),
        ("data.sequences", (), "data.sequences"),
        ("data.sequences", ("t1", "t1"), "data.sequences"),
        ("data.sequences", ("t3",), "data.sequences"),
        ("data.sequences", "t1", "data.sequences"),
        ("data.train_split", "training", "data.train_split"),
        ("data.validation_split", "", "data.validation_split"),
        ("data.tumor_repeats", 0, "data.tumor_repeats"),
        ("data.num_threads", -1, "data.num_threads"),
        ("optimizer.learning_rate", -1e-4, "optimizer.learning_rate"),
        ("optimizer.learning_rate", 0.0, "optimizer.learning_rate"),
        ("optimizer.learning_rate", 0, "optimizer.learning_rate"),
        ("ema_decay", -0.1, "ema_decay"),
        # 1 in float32: the average would never move.
        ("ema_decay", 1 - 1e-9, "ema_decay"),
        ("accumulation", 11, "accumulation"),
        ("num_steps", -1, "num_steps"),
        ("seed", -1, "seed"),
        ("seed", 2**32, "seed"),
        ("picture_steps", 1001, "picture_steps"),
        ("diffusion.num_timesteps", 0, "diffusion.num_timesteps"),
        ("diffusion.num_timesteps", 20, "diffusion.num_timesteps"),
        ("diffusion.num_timesteps", 10**9, "diffusion.num_timesteps"),
        ("diffusion.prediction", "x0", "diffusion.prediction"),
        ("diffusion.schedule", "sigmoid", "diffusion.schedule"),
        ("diffusion.process", "brownian", "diffusion.process"),
        # A flow predicts no eps.
        ("diffusion.process", "flow", "diffusion.prediction"),
        ("diffusion.zero_terminal_snr", True, "diffusion.prediction"),
        ("diffusion.time_sampling", "logit_normal", "diffusion.time_sampling"),
        ("diffusion.max_loss_weight", 0.5, "diffusion.max_loss_weight"),
        # Of an x_0-prediction alone.
        ("diffusion.max_loss_weight", 20.0, "diffusion.max_loss_weight"),
        ("diffusion.drop_condition", 1.5, "diffusion.drop_condition"),
        ("diffusion.drop_condition", 1e-40, "diffusion.drop_condition"),
        ("diffusion.drop_kondition", 0.1, "diffusion.drop_kondition"),
        ("tasks.max_aspect", math.nan, "tasks.max_aspect"),
        ("tasks.prob_box", -0.5, "tasks.prob_box"),
        ("tasks.max_circles", 0, "tasks.max_circles"),
        ("tasks.prob_bocks", 0.5, "tasks.prob_bocks"),
    ],
)
def test_a_training_setting_that_cannot_be_is_refused_by_name(field, value, named):
    values = tiny_config().to_dict()
    with pytest.raises(FieldError) as error:
        from_config(TrainSettings, replaced(values, field, value))
    assert error.value.field == named


@pytest.mark.parametrize(
    ("heads", "named"),
    [
        ({"num_heads": 5}, "num_heads"),
        ({"num_heads": 0}, "num_heads"),
        ({"num_heads": 2, "num_heads_upsample": 5}, "num_heads_upsample"),
        ({"num_heads_upsample": 0}, "num_heads_upsample"),
        ({"num_head_channels": 5}, "num_head_channels"),
        ({"num_head_channels": -2}, "num_head_channels"),
        ({"num_head_channels": 16}, "num_head_channels"),
    ],
    ids=str,
)
def test_heads_that_do_not_divide_the_channels_are_refused(heads, named):
    """Levels of 8 and 24 channels; the second one attends, and so does the middle."""
    fields = {"model_channels": 8, "channel_mult": (1, 3), "num_groups": 4}
    fields |= {"attention_resolutions": (2,)}
    with pytest.raises(FieldError) as error:
        make_unet({**fields, **heads}, 1, 16)
    assert error.value.field == f"model.{named}"
    for good in ({"num_heads": 3}, {"num_head_channels": 12}, {"num_heads_upsample": 6}):
        make_unet({**fields, "model_channels": 16, "channel_mult": (1, 3), **good}, 1, 16)


def test_attention_at_a_rate_without_a_level_says_which_rates_there_are():
    """guided-diffusion's flag takes image sizes, this field downsampling rates."""
    config = load("quickstart")
    config["model"]["attention_resolutions"] = (32, 16, 8)
    with pytest.raises(FieldError, match=r"rate 32; there are 1, 2, 4, of images of 32, 16, 8"):
        from_config(quickstart.QuickstartSettings, config)


@pytest.mark.parametrize(
    ("field", "value"), [("evaluation.num_steps", 1001), ("evaluation.figure_steps", 1001)]
)
def test_a_quickstart_that_would_fail_after_training_is_refused(field, value):
    with pytest.raises(FieldError, match=f"^{field} must be at most"):
        from_config(quickstart.QuickstartSettings, replaced(load("quickstart"), field, value))


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_steps": 0},
        {"num_steps": -1},
        {"num_steps": True},
        {"num_steps": 2.0},
        {"num_steps": "50"},
        {"seed": -1},
        {"seed": 2**31},
        {"seed": 0.5},
        {"eta": -0.1},
        {"eta": 1.1},
        {"eta": 1e-45},
        {"eta": math.nan},
        {"eta": "0"},
        {"z_sigma_mm": -1.0},
        {"z_sigma_mm": math.inf},
        {"z_sigma_mm": 1e30},
        {"z_sigma_mm": 1e-50},
        {"spacing": "leading"},
        {"spacing": 3},
        {"spacing": ()},
        {"sampler": ""},
        {"sampler": ("ddim",)},
    ],
    ids=str,
)
def test_sampling_is_checked_where_it_is_made(wrong):
    with pytest.raises(FieldError) as error:
        Sampling(**wrong)
    # Timesteps of their own are the number of steps.
    assert error.value.field == ("num_steps" if wrong == {"spacing": ()} else next(iter(wrong)))


@pytest.mark.parametrize(
    "guidance", [1e39, -1e39, 1e-40, math.nan, math.inf, True, "1", (1.0,), 10**40]
)
def test_a_guidance_weight_is_a_number_of_float32(guidance):
    with pytest.raises(FieldError, match=r"^guidance_weight must"):
        Sampling(guidance=guidance)
    if isinstance(guidance, float):
        for weight in (guidance, np.array([0.0, guidance])):
            with pytest.raises(FieldError, match=r"^guidance_weight must"):
                Sampling(guidance=ClassifierFree(weight))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: OptimizerSettings(learning_rate=-1.0), "learning_rate"),
        (lambda: TaskSettings(max_aspect=math.nan), "max_aspect"),
        (lambda: TaskSettings(prob_box=1e-300), "prob_box"),
        (lambda: ProcessSettings(num_timesteps=10**9), "num_timesteps"),
        (lambda: ProcessSettings(drop_condition=math.nan), "drop_condition"),
        (
            lambda: DataSettings("", "train", "test", ("t1",), True, 40, 0, 1, 0),
            "image_size",
        ),
        (lambda: quickstart.EvaluationSettings(1, 1, 0, 1, 1), "num_steps"),
    ],
)
def test_settings_check_themselves_without_a_config(make, field):
    with pytest.raises(FieldError) as error:
        make()
    assert error.value.field == field


def test_numbers_are_judged_by_what_float32_makes_of_them():
    largest, least = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
    for value in (0, 0.0, -0.0, 1, largest, -largest, least, -least, np.float64(0.1), np.int8(3)):
        assert finite_number("x", value) == value
    for value in (2 * largest, least / 2, 5e-324, np.float64(1e300)):
        with pytest.raises(FieldError, match=r"^x must be .*float32"):
            finite_number("x", value)
    # Inside before rounding, outside after it.
    for interval, value in [
        (Interval(0, 1, "left"), 1 - 1e-10),
        (Interval(1, closed="neither"), 1 + 1e-10),
    ]:
        with pytest.raises(FieldError, match="in float32"):
            finite_number("x", value, interval)


@pytest.mark.parametrize(
    "values",
    [
        (0, 1e-300),
        (1, 1),
        (1, 0),
        (1.0, 1 + 1e-9),
        (0, math.inf),
        (math.nan, 1),
        (0, 1, 2),
        (0,),
        "01",
        5,
        (-3e38, 3e38),
        (False, True),
    ],
)
def test_a_range_needs_two_ends_that_differ_in_float32(values):
    with pytest.raises(FieldError, match=r"^range must be"):
        increasing_numbers("range", values)
    assert increasing_numbers("range", (-1, 1.5)) == (-1, 1.5)


def test_lengths_and_ends_are_named():
    with pytest.raises(FieldError, match=r"^x must not be empty$"):
        check_field("x", (), Annotated[tuple[Count, ...], Interval(1)])
    with pytest.raises(FieldError, match=r"^x must be a whole number from 1 to 3, not 4$"):
        check_field("x", 4, Annotated[int, Interval(1, 3)])
    with pytest.raises(FieldError, match=r"^x must be above 0, not -1"):
        check_field("x", -1, Annotated[float, Interval(0, closed="neither")])
    check_field("x", None, int | None)
    check_field("x", [1, 2], tuple[int, ...])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sampler": "ddpm"}, "sampler"),
        ({"sampler": "unipc", "eta": 0.5}, "eta"),
        ({"num_steps": 0}, "num_steps"),
        ({"spacing": "leading"}, "spacing"),
        ({"guidance": "autoguidance"}, "guidance"),
        ({"guidance_interval": (0.7, 0.2)}, "guidance_interval"),
        ({"guidance_interval": (0.2, 1.2)}, "guidance_interval"),
        ({"guidance": "projected", "guidance_damping": -0.5}, "guidance_damping"),
        ({"guidance_damping": 0.5}, "guidance_damping"),
        ({"guidance": "rescaled", "guidance_rescale": 2.0}, "guidance_rescale"),
        ({"guidance_weight": 1e39}, "guidance_weight"),
    ],
)
def test_sampler_and_guidance_are_checked_before_the_model_is_loaded(changes, field, tmp_path):
    config = inpaint_config.get_config()
    config.checkpoint = "nowhere"
    config.update(changes)
    with pytest.raises(FieldError) as error:
        inpaint.main(config, str(tmp_path))
    assert error.value.field == field


def test_the_guidance_of_a_config():
    config = inpaint_config.get_config()
    config.update(guidance="projected", guidance_damping=0.5, guidance_interval=(0.2, 0.8))
    fields = {name: config[name] for name in inpaint.MODEL_FIELDS}
    made = from_config(inpaint.ModelSettings, fields).make_guidance()
    # Below 0: the weight that the checkpoint recommends.
    assert made == Limited(Projected(None, damping=0.5, max_rms=0.05), 0.2, 0.8)

"""The command line: what is wrong with it is said in one line."""

import importlib
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT
from ml_collections import ConfigDict

from mbti_jax import cli

CONFIGS = sorted((ROOT / "configs").glob("*.py"))
TRAIN = "--config=configs/train.py"


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "run.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def mbti(*arguments: str) -> subprocess.CompletedProcess:
    """The console command."""
    return subprocess.run(
        [sys.executable, "-c", "from mbti_jax import cli; cli.main()", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_console_command_takes_fields_by_their_names(tmp_path):
    result = mbti("data", f"--source={tmp_path}/nowhere", "--convention=brats2021")
    assert f"--source: {tmp_path}/nowhere is not there" in result.stderr
    wrong = mbti("train", "--batch_size=abc").stderr
    assert "--batch_size must be a whole number, not 'abc'" in wrong
    typed = mbti("inpaint", "-i", str(tmp_path), "--move", "--box", "edma", "-c", "brats2021")
    assert "--box has an unknown ROI 'edma'" in typed.stderr
    overview = mbti().stdout
    assert "COMMAND" in overview
    users, title, maintainers = overview.partition("for maintainers")
    assert title
    for path in CONFIGS:
        of_maintainers = path.stem.endswith(
            ("phantom_model", "phantom_single", "accelerator_model")
        )
        assert (f"  {path.stem} " in maintainers) == of_maintainers
        assert (f"  {path.stem} " in users) != of_maintainers


def sole_line(*arguments: str) -> str:
    """The one line with which a command fails."""
    result = run(*arguments)
    assert result.returncode != 0
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            [TRAIN, "--config.batch_sise=3"],
            ["config.batch_sise", "did you mean --config.batch_size?", "num_steps"],
        ),
        ([TRAIN, "--config.model.widht", "3"], ["config.model.widht", "model_channels"]),
        ([TRAIN, "--config.seed.deep=3"], ["config.seed.deep", "no fields"]),
        ([TRAIN, "--config.batch_size=abc"], ["config.batch_size", "abc"]),
        ([TRAIN, "--config.seed=1.5"], ["config.seed", "must be a whole number, not '1.5'"]),
        ([TRAIN, "--config.ema_decay", "x"], ["config.ema_decay must be a number, not 'x'"]),
        ([TRAIN, "--config.data.joint=x"], ["config.data.joint must be True or False, not 'x'"]),
        ([TRAIN, "--config.task=trian"], ["'trian'", "did you mean train?", "data"]),
        (["--config=configs/nothing.py"], ["configs/nothing.py", "configs/quickstart.py"]),
        ([], ["config", "configs/quickstart.py"]),
        ([TRAIN, "--wrokdir=x"], ["wrokdir"]),
        ([TRAIN, "batch_size=3"], ["batch_size=3", "--config.field=value"]),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_valid(arguments, parts):
    line = sole_line(*arguments)
    for part in parts:
        assert part in line


def test_help_lists_the_fields_of_a_config_and_what_they_mean():
    result = run(TRAIN, "--help")
    assert result.returncode == 0
    for text in (
        "--config.batch_size N   [108]",
        "--config.num_steps N   [370000]",
        "SIGTERM and Ctrl-C save first",
        # The comment above `config.model.neighbors`.
        "Slices on either side that the network sees, 0 to 2.",
    ):
        assert text in result.stdout


def test_an_error_of_a_task_is_a_sentence_and_not_a_traceback(tmp_path):
    result = run("--config=configs/data.py", f"--workdir={tmp_path}")
    assert result.returncode == 1
    assert "--config.source=DIR" in result.stderr
    assert "Traceback" not in result.stderr


def load(path) -> ConfigDict:
    return runpy.run_path(str(path))["get_config"]()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_names_a_task_and_can_be_overridden(path):
    config = load(path)
    assert isinstance(config, ConfigDict)
    assert isinstance(config.workdir, str)
    assert config.task in cli.COMMANDS
    assert callable(importlib.import_module(f"mbti_jax.commands.{config.task}").main)
    # Absl takes the type of a field from its default: None has none, a placeholder has.
    assert all(config.get_type(name) is not type(None) for name in config)


def test_the_paper_is_the_default_of_training():
    config = load(ROOT / "configs" / "train.py")
    assert (config.data.window, config.data.image_size) == (256, 256)
    assert config.batch_size == 108
    assert config.num_steps == 370_000
    assert config.diffusion.num_timesteps == 1000
    assert config.diffusion.drop_condition == 0.1
    assert config.optimizer.learning_rate == 1e-4

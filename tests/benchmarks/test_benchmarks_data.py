"""The data benchmark: its clockwork under a made-up clock, and one tiny run from cases to report."""

import dataclasses
import json
from pathlib import Path
from unittest.mock import create_autospec

import jax
import pytest

from benchmarks import data as benchmark
from benchmarks import data_rivals, timing
from configs.train import get_config
from mbti_jax.commands.settings import from_config
from mbti_jax.training.settings import TrainSettings
from mbti_jax.training.step import make_train_step
from tfds_brats.search import find_cases

DUMMY_DATA = Path(__file__).resolve().parent.parent.parent / "tfds_brats" / "dummy_data"


def test_rivals_run_in_turn_and_ratios_are_of_the_same_round(monkeypatch):
    """The machine slows down from round to round; the ratio of 3 must not see it."""
    clock = {"cpu": 0.0, "wall": 0.0}
    monkeypatch.setattr(timing.time, "process_time", lambda: clock["cpu"])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock["wall"])
    calls = []

    def rival(name, cost, units):
        def run():
            calls.append(name)
            slowdown = 2.0 ** calls.count(name)
            clock["cpu"] += cost * slowdown
            clock["wall"] += 5 * cost * slowdown
            return units

        return run

    rivals = {"a": rival("a", cost=1, units=2), "b": rival("b", cost=3, units=2)}
    timings = timing.interleaved(rivals, rounds=3)

    assert "".join(calls) == "ab" * 4
    # Slowdown 2 is the warm-up; 4, 8 and 16 are timed, and 8 is their median.
    a, b = (timings[name].to_json() for name in "ab")
    assert (a["cpu_seconds"], a["wall_seconds"], a["cpu_ratio"], a["wall_ratio"]) == (4, 20, 1, 1)
    assert (b["cpu_seconds"], b["wall_seconds"], b["cpu_ratio"], b["wall_ratio"]) == (12, 60, 3, 3)
    assert (b["cpu_range"], b["wall_range"]) == ([6, 24], [30, 120])
    assert b["cpu_ratio_range"] == b["wall_ratio_range"] == [3, 3]
    assert timings["b"].to_json()["per_second"] == pytest.approx(1 / 60)


def tiny_settings() -> TrainSettings:
    config = get_config()
    config.data.window = 40
    config.data.image_size = 16
    config.model.model_channels = 8
    config.model.channel_mult = (1,)
    config.model.num_groups = 4
    config.model.attention_resolutions = ()
    config.model.num_head_channels = 8
    config.model.dtype = "float32"
    config.batch_size = 4
    return from_config(TrainSettings, config)


@pytest.fixture
def quick_compilation(monkeypatch):
    """Small shapes, no optimizations, and no network in the train step, which test_train.py covers."""

    def step(state, batch):
        return dataclasses.replace(state, step=state.step + len(batch["weight"])), {}

    monkeypatch.setattr(benchmark, "load_settings", lambda name: tiny_settings())
    monkeypatch.setattr(
        data_rivals, "make_train_step", create_autospec(make_train_step, return_value=step)
    )
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.usefixtures("quick_compilation")
def test_tiny_run_reports_every_rate(tmp_path):
    cases = find_cases(DUMMY_DATA, "brats2021")[:3]

    report = benchmark.measure(cases, tiny_settings(), tmp_path, rounds=1, batches=2)

    assert json.loads(json.dumps(report)) == report
    assert report["sizes"]["subjects"] == 3
    assert report["machine"]["cores"] >= 1
    firsts = {name: next(iter(part["rows"])) for name, part in report["sections"].items()}
    assert firsts == {
        "build": "floor",
        "loader": "floor",
        "preprocessing": "floor",
        "train_step": "train step",
    }
    text = benchmark.format_report(report)
    for name, section in report["sections"].items():
        assert section["title"] in text
        for row_name, row in section["rows"].items():
            assert row_name in text
            assert row["cpu_seconds"] > 0 and row["wall_seconds"] > 0
            assert row["per_cpu_second"] * row["cpu_seconds"] == pytest.approx(1)
            assert row["per_second"] * row["wall_seconds"] == pytest.approx(1)
        assert section["rows"][firsts[name]]["cpu_ratio"] == 1
    assert set(report["share_of_train_step"]) == {"prepare", "augment"}
    assert min(report["share_of_train_step"].values()) > 0
    for name in ("preprocessing", "train_step"):
        assert "prepare, 1 neighbor each side" in report["sections"][name]["rows"]
    build, loader = report["goals"].values()
    assert build["measured"] > 0 and loader["measured"] > 0


@pytest.mark.parametrize("arguments", [["--source=cases"], ["--subjects=2"], ["--rounds=0"]])
def test_unusable_arguments_are_refused(arguments):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)

"""The speed and memory benchmarks at tiny sizes: both frameworks agree, and the reports are whole."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import memory, speed
from benchmarks.speed_jax import Problem, Program
from configs.train import get_config
from mbti_jax.commands.settings import from_config
from mbti_jax.training.settings import TrainSettings


def tiny_settings(**model) -> TrainSettings:
    config = get_config()
    config.data.window = 24
    config.data.image_size = 16
    config.model.model_channels = 8
    config.model.channel_mult = (1, 2)
    config.model.num_res_blocks = 1
    config.model.num_groups = 4
    config.model.attention_resolutions = (2,)
    config.model.num_head_channels = 8
    config.model.dtype = "float32"
    config.model.update(model)
    config.batch_size = 2
    return from_config(TrainSettings, config)


@pytest.fixture
def quick_compilation():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def single_torch_thread():
    """Several would busy-wait for each other while other processes hold the cores."""
    torch = pytest.importorskip("torch", reason="the PyTorch rivals need the extra `bench`")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("quick_compilation", "single_torch_thread")
def test_both_frameworks_compute_the_same_and_the_report_is_whole():
    """`measure` itself refuses where images, samples or the losses of two steps differ."""
    rivals = ["torch-eager", "torch-eager-nchw"]

    report = speed.measure(tiny_settings(), rivals, rounds=1, num_steps=3, matmul_size=64)

    assert json.loads(json.dumps(report)) == report
    assert report["batch_size"] == 2 and report["dtype"] == "float32"
    peak = report["peak"]
    assert peak["best"] == max(peak["jax"], peak["torch"]) > 0
    assert list(report["sections"]) == ["forward", "train_step", "sampler"]
    for section in report["sections"].values():
        assert list(section["rows"]) == ["jax", *rivals]
        assert section["floor_seconds"] == pytest.approx(section["flops"] / peak["best"])
        for name, row in section["rows"].items():
            assert row["relative_l2"] < 1e-4
            assert row["flop_per_second"] * row["cpu_seconds"] == pytest.approx(section["flops"])
            # PyTorch counts no memory on a CPU.
            assert (row["peak_bytes"] is None) == (name != "jax")
    flops = {name: section["flops"] for name, section in report["sections"].items()}
    # Backward costs about two forwards, and every step of the sampler takes two.
    assert 2.5 < flops["train_step"] / flops["forward"] < 4
    assert 5.9 < flops["sampler"] / flops["forward"] < 6.5
    assert [goal["at_least"] for goal in report["goals"]] == [1.0]
    text = speed.format_report({"config": "train", **report})
    assert all(name in text for name in rivals)


def test_weights_leave_no_layer_silent():
    """Layers that start at zero would hide from the comparison what comes before them."""
    problem = Problem.from_settings(tiny_settings(), num_steps=1)
    kernels = [leaf for leaf in jax.tree.leaves(problem.params) if leaf.ndim > 1]
    assert all(np.abs(kernel).max() > 0 for kernel in kernels)


@pytest.mark.parametrize("wrong", [1.1, np.nan])
def test_outputs_that_differ_are_not_timed(wrong):
    outputs = {"jax": np.ones(4), "torch-eager": np.array([1, 1, 1, wrong])}
    with pytest.raises(speed.DisagreementError, match="torch-eager"):
        speed.check_agreement("forward", outputs, tolerance=1e-3)
    assert speed.check_agreement("forward", {**outputs, "torch-eager": np.ones(4)}, 1e-3) == {
        "jax": 0,
        "torch-eager": 0,
    }


class Side:
    """A rival whose outputs are given."""

    def __init__(self, *outputs):
        self.outputs = np.array(outputs)

    def prepare(self, section):
        return Program(lambda: None, lambda output: None, 0.0, None, self.outputs)


def test_a_rival_that_differs_takes_no_part_and_the_others_are_timed():
    sides = {"jax": Side(1.0, 2.0), "wrong": Side(1.0, 3.0), "right": Side(1.0, 2.0)}
    problem = types.SimpleNamespace(batch_size=2)
    failures = {}
    timings, programs, distances = speed.compare(
        problem, sides, "forward", 0.1, rounds=1, failures=failures
    )
    assert list(timings) == list(programs) == list(distances) == ["jax", "right"]
    assert list(failures) == ["wrong"] and "differs from JAX by 0.45" in failures["wrong"]
    with pytest.raises(speed.DisagreementError, match="wrong"):
        speed.compare(problem, sides, "forward", 0.1, rounds=1)
    # Without the first there is nothing to compare with.
    with pytest.raises(speed.DisagreementError, match="jax"):
        nan = {"jax": Side(1.0, np.nan), "right": Side(1.0, 2.0)}
        speed.compare(problem, nan, "forward", 0.1, rounds=1, failures={})


@pytest.mark.parametrize("arguments", [["--rounds=0"], ["--batch=0"], ["--rivals", "tensorflow"]])
def test_unusable_arguments_are_refused(arguments):
    with pytest.raises(SystemExit):
        speed.main(arguments)


def test_missing_torch_is_one_line_naming_the_extra(monkeypatch):
    monkeypatch.setitem(speed.sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="bench"):
        speed.main([])


def test_flops_are_two_per_multiply_add():
    a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 5), (5, 7)))
    assert memory.count_flops(jax.jit(jnp.matmul), a, b) == 2 * 3 * 5 * 7


@pytest.mark.usefixtures("quick_compilation")
def test_memory_report_at_tiny_size():
    settings = tiny_settings(channel_mult=(1,), attention_resolutions=(), num_res_blocks=3)
    report = memory.measure(settings, [16])
    assert json.loads(json.dumps(report)) == report
    without, with_remat = (row["peak_bytes"] for row in report["rows"])
    # Parameters, their average and the two moments of Adam are there all the time.
    assert with_remat > 4 * 4 * report["parameters"]
    assert with_remat < 0.9 * without
    assert 2.5 < report["train_flops"] / report["forward_flops"] < 4
    assert "rematerialization" not in memory.format_report({"config": "train", **report})
    # A line needs two batch sizes.
    report["rows"] += [
        {**row, "batch_size": 32, "peak_bytes": row["peak_bytes"] + 2**34} for row in report["rows"]
    ]
    assert "+ 1.00 GiB per slice" in memory.format_report({"config": "train", **report})

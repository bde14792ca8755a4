"""The cost model: limits that follow without it, and pieces that the project itself knows."""

import math

import jax
import pytest

from benchmarks import scaling
from benchmarks.scaling import Pieces
from benchmarks.settings import load_settings
from mbti_jax.models.parameters import param_shapes

PIECES = Pieces()
FREE = Pieces(network_bytes=math.inf, link_bytes=math.inf, hop_seconds=0.0)


def test_pieces_are_those_of_the_papers_config():
    settings = load_settings("train")
    shapes = param_shapes(settings.pipeline().model)
    assert PIECES.parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert (PIECES.batch_size, PIECES.num_steps) == (settings.batch_size, settings.num_steps)


def test_one_device_waits_for_nobody():
    cost = scaling.train_step(1, PIECES)
    # 108 x 1.658 TFLOP at 395.6 TFLOP/s.
    assert cost.seconds == pytest.approx(0.45263, rel=1e-4)
    assert cost.efficiency == 1
    assert cost.limit == "computing"


@pytest.mark.parametrize("devices", [2, 4, 12, 108])
def test_a_free_network_leaves_a_divided_batch_at_full_speed(devices):
    assert scaling.train_step(devices, FREE).efficiency == pytest.approx(1)


def test_devices_beyond_the_batch_gain_nothing():
    cost = scaling.train_step(512, FREE)
    assert cost.seconds == pytest.approx(scaling.train_step(108, FREE).seconds)
    assert cost.efficiency == pytest.approx(108 / 512)
    assert cost.limit == "404 of 512 devices have no image"


def test_an_all_reduce_passes_every_byte_almost_twice():
    no_hops = Pieces(hop_seconds=0.0, network_bytes=1e9)
    # 512 devices: 2 x 511/512 of 1 GB at 1 GB/s.
    assert scaling.all_reduce_seconds(1e9, 512, no_hops) == pytest.approx(2 * 511 / 512)
    assert scaling.all_reduce_seconds(1e9, 1, no_hops) == 0


def test_a_worker_writes_whole_shards_of_a_dataset():
    cost = scaling.build(1000, 512, Pieces(start_seconds=0.0, build_core_seconds=1.0))
    # 63 shards, of 16 subjects at most.
    assert cost.seconds == pytest.approx(16)
    assert cost.efficiency == pytest.approx(1000 / 512 / 16)
    assert cost.limit == "449 of 512 cores have no shard"


def test_a_job_of_pieces_is_never_faster_than_its_file_system():
    slow = Pieces(storage_bytes=1e9, start_seconds=0.0, build_core_seconds=0.1)
    # 1000 subjects of 10 MB in and 10 MB out.
    cost = scaling.build(1000, 62, slow)
    assert cost.seconds == pytest.approx(20)
    assert cost.limit == "file system"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0059, "5.9 ms"), (1.5, "1.5 s"), (119, "119 s"), (7200, "2 h"), (2.2e6, "25 d")],
)
def test_durations(seconds, text):
    assert scaling.duration(seconds) == text

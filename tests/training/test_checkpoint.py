"""Checkpoints: equal or refused, never a wrong state."""

import contextlib
import copy
import dataclasses
import gc
import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from tiny import tiny_config

from mbti_jax import sharding
from mbti_jax.commands.settings import from_config
from mbti_jax.training import checkpoint
from mbti_jax.training.checkpoint import (
    Checkpointer,
    CheckpointMismatchError,
    _checksum,
    _sum_of_bits,
    load_for_inference,
)
from mbti_jax.training.settings import TrainSettings
from mbti_jax.training.state import TrainState, create_state

# When one read of a checkpoint fails, Orbax leaves the others unfinished, and Python complains of that
# when it collects them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

METADATA = {
    "contract": {
        "data": {"fingerprint": "f00d", "train_split": "train", "sequences": ["t1", "t2"]},
        "seed": 0,
        "batch_size": 108,
        "model": {"model_channels": 8, "channel_mult": [1, 2]},
        "diffusion": {"process": "gaussian"},
        "tasks": {"prob_box": 0.5},
    },
    "inference": {"x_0_bounds": [-1.0, 1.5]},
}


def make_state(step: int) -> TrainState:
    """A state in which every array depends on the step."""
    rng = np.random.default_rng(step)
    params = {
        "large": jnp.asarray(rng.normal(size=(300, 40)), jnp.float32),
        "layer": {"bias": jnp.asarray(rng.normal(size=3), jnp.float32)},
    }
    state = create_state(params, optax.adam(1e-3))
    return jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), state)


def on_one_device() -> TrainState:
    place = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), make_state(0)
    )


def restore(workdir, metadata=METADATA, shapes=None) -> TrainState | None:
    with contextlib.closing(Checkpointer(workdir, metadata)) as checkpointer:
        return checkpointer.restore(on_one_device() if shapes is None else shapes)


def assert_equal(state: TrainState, expected: TrainState) -> None:
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def write(workdir: Path, steps, **kwargs) -> None:
    with contextlib.closing(Checkpointer(workdir, METADATA, **kwargs)) as checkpointer:
        for step in steps:
            checkpointer.save(make_state(step))


@pytest.fixture
def unfinished_reads():
    """Python collects them here."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A run with checkpoints of the steps 3 and 7; to be copied before anything is changed."""
    workdir = tmp_path_factory.mktemp("written")
    write(workdir, [3, 7])
    return workdir


@pytest.fixture
def workdir(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "run"))


def test_a_run_without_checkpoints_starts_anew(tmp_path):
    assert restore(tmp_path) is None


def test_the_newest_state_comes_back_as_it_was(workdir):
    assert_equal(restore(workdir), make_state(7))


def test_the_state_comes_back_split_over_other_devices(workdir):
    mesh = sharding.make_mesh()

    def place(leaf):
        split = leaf.shape == (300, 40)
        where = sharding.batch_sharding(mesh) if split else sharding.replicated(mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    state = restore(workdir, shapes=jax.tree.map(place, make_state(0)))
    assert_equal(state, make_state(7))
    shards = state.params["large"].addressable_shards
    assert [shard.data.shape for shard in shards] == [(75, 40)] * 4


def test_only_the_newest_are_kept(tmp_path):
    write(tmp_path, range(1, 6), max_to_keep=2)
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert steps == [4, 5]


def test_a_step_that_was_saved_is_not_saved_again(workdir):
    checkpointer = Checkpointer(workdir, METADATA)
    newer = make_state(8)
    checkpointer.save(TrainState(make_state(7).step, newer.params, newer.ema, newer.opt_state))
    checkpointer.close()
    assert_equal(restore(workdir), make_state(7))


def truncate(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


@pytest.mark.usefixtures("unfinished_reads")
@pytest.mark.parametrize("keep", [0.0, 0.7])
def test_truncating_any_file_never_gives_a_wrong_state(written, tmp_path, caplog, keep):
    newest = written / "checkpoints" / "7"
    names = [path.relative_to(written) for path in newest.rglob("*") if path.is_file()]
    steps = set()
    for number, name in enumerate(sorted(names)):
        workdir = Path(shutil.copytree(written, tmp_path / str(number)))
        truncate(workdir / name, keep)
        caplog.clear()
        state = restore(workdir)
        step = int(state.step)
        assert_equal(state, make_state(step))
        steps.add(step)
        if step == 3:
            (report,) = (r for r in caplog.records if "cannot be read" in r.getMessage())
            assert report.levelno >= logging.WARNING
            assert "checkpoints/7" in report.getMessage()
            assert (workdir / "checkpoints" / "7.unreadable").is_dir()
    # Some files are not needed to restore, the arrays are.
    assert steps == {3, 7}


def manifest(workdir: Path, item: str, step: int = 7) -> Path:
    return workdir / "checkpoints" / str(step) / item / "manifest.ocdbt"


@pytest.mark.usefixtures("unfinished_reads")
def test_a_run_resumes_past_what_was_set_aside(workdir):
    for _ in range(2):  # The second time, the name `7.unreadable` is taken.
        truncate(manifest(workdir, "train"), 0.5)
        assert_equal(restore(workdir), make_state(3))
        write(workdir, [7])
        assert_equal(restore(workdir), make_state(7))


@pytest.mark.usefixtures("unfinished_reads")
def test_nothing_readable_is_an_error_and_not_a_new_start(workdir):
    for step in (3, 7):
        truncate(manifest(workdir, "train", step), 0.5)
    for _ in range(2):  # The same command again does not start anew either.
        with pytest.raises(ValueError, match="none of the checkpoints"):
            restore(workdir)


def other(path: str, value) -> dict:
    metadata = copy.deepcopy(METADATA)
    *parents, last = path.split(".")
    node = metadata
    for name in parents:
        node = node[name]
    node[last] = value
    return metadata


@pytest.mark.parametrize(
    ("name", "value", "was"),
    [
        ("data.fingerprint", "beef", "f00d"),
        ("data.train_split", "test", "train"),
        ("data.sequences", ["t1"], r"\['t1', 't2'\]"),
        ("seed", 1, "0"),
        ("batch_size", 64, "108"),
        ("model.model_channels", 16, "8"),
        ("tasks.prob_box", 0.25, "0.5"),
        ("tasks.new", 1, "absent"),
    ],
)
def test_another_run_is_an_error_that_says_what_differs(workdir, name, value, was):
    with pytest.raises(CheckpointMismatchError, match=f"{name} is .* here, was '?{was}'? there"):
        restore(workdir, other(f"contract.{name}", value))
    # Nothing was set aside: with the right settings the run resumes.
    assert_equal(restore(workdir), make_state(7))


def test_every_difference_is_named_and_nothing_else(workdir):
    metadata = other("contract.seed", 5)
    metadata["contract"]["data"]["fingerprint"] = "beef"
    with pytest.raises(CheckpointMismatchError) as error:
        restore(workdir, metadata)
    message = str(error.value)
    assert "seed is 5" in message
    assert "data.fingerprint" in message
    assert "batch_size" not in message
    assert "prob_box" not in message


def test_what_is_not_in_the_contract_may_change(workdir):
    assert_equal(restore(workdir, other("inference.x_0_bounds", [-1, 9])), make_state(7))


def test_inference_reads_the_average_and_the_metadata(workdir, caplog):
    for name in ("8.unreadable", "9.orbax-checkpoint-tmp"):
        shutil.copytree(workdir / "checkpoints" / "3", workdir / "checkpoints" / name)
    ema, metadata = load_for_inference(workdir)
    assert_equal(ema, make_state(7).ema)
    assert metadata == {**METADATA, "step": 7}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.usefixtures("unfinished_reads")
def test_inference_needs_neither_the_optimizer_nor_write_access_to_damaged_files(workdir, caplog):
    truncate(manifest(workdir, "train"), 0.5)
    assert load_for_inference(workdir)[1]["step"] == 7
    truncate(manifest(workdir, "ema"), 0.5)
    ema, metadata = load_for_inference(workdir)
    assert metadata["step"] == 3
    assert_equal(ema, make_state(3).ema)
    assert "checkpoints/7" in caplog.text
    assert (workdir / "checkpoints" / "7").is_dir()
    truncate(manifest(workdir, "ema", 3), 0.5)
    with pytest.raises(ValueError, match="no complete, readable checkpoint"):
        load_for_inference(workdir)


def test_inference_from_a_folder_without_checkpoints_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoints"):
        load_for_inference(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def change(config: ConfigDict, path: str, value) -> ConfigDict:
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    node = config
    for name in parents:
        node = node[name]
    node[last] = value
    return config


def contract_of(config: ConfigDict) -> dict:
    return from_config(TrainSettings, config).contract("f00d")


def test_a_config_fixes_what_a_resumed_run_computes():
    config = tiny_config()
    config.data.window = 64
    reference = contract_of(config)
    # Through JSON and back, as a checkpoint stores it.
    assert json.loads(json.dumps(reference)) == reference
    for path, value in [
        ("seed", 9),
        ("batch_size", 12),
        ("ema_decay", 0.5),
        ("data.train_split", "test"),
        ("data.sequences", ("t2",)),
        ("data.joint", True),
        ("data.tumor_repeats", 1),
        ("data.window", 72),
        ("data.image_size", 32),
        ("model.model_channels", 16),
        ("model.neighbors", 1),
        ("model.mirror", True),
        ("model.dtype", "bfloat16"),
        ("tasks.prob_box", 0.1),
        ("diffusion.schedule", "cosine"),
        ("diffusion.drop_condition", 0.2),
        ("diffusion.prediction", "x_0"),
        ("augmentation.max_angle", 5.0),
        ("augmentation.crop_height", 8),
        ("optimizer.method", "muon"),
        ("optimizer.learning_rate", 1.0),
    ]:
        assert contract_of(change(config, path, value)) != reference, path
    # Older contracts have neither neighbors nor a choice of augmentation.
    assert not {"neighbors", "mirror"} & reference["model"].keys()
    assert "augmentation" not in reference
    turned = contract_of(change(config, "augmentation.max_angle", 5.0))["augmentation"]
    assert turned == {"vertical_flip": 0.5, "horizontal_flip": 0.5, "max_angle": 5.0}
    for path, value in [
        ("num_steps", 5),
        ("log_every", 7),
        ("checkpoint_every", 7),
        ("validate_every", 7),
        ("max_to_keep", 9),
        ("accumulation", 2),
        ("fully_sharded", True),
        ("multihost", True),
        ("model.remat", True),
        ("data.num_threads", 1),
        ("data.dataset", "elsewhere"),
        ("workdir", "elsewhere"),
        # Which weights they are says `started_from`.
        ("init_from", "elsewhere"),
    ]:
        assert contract_of(change(config, path, value)) == reference, path


@pytest.mark.parametrize("item", ["train", "ema", "metadata"])
def test_items_of_two_checkpoints_mixed_are_refused(workdir, item):
    newest = workdir / "checkpoints" / "7"
    shutil.rmtree(newest / item)
    shutil.copytree(workdir / "checkpoints" / "3" / item, newest / item)
    with pytest.raises(CheckpointMismatchError, match="7 is mixed from several"):
        restore(workdir)
    assert newest.is_dir()
    if item == "train":
        # Inference does not read it.
        assert_equal(load_for_inference(workdir)[0], make_state(7).ema)
    else:
        with pytest.raises(CheckpointMismatchError, match="7 is mixed from several"):
            load_for_inference(workdir)


def test_a_checkpoint_under_the_name_of_another_step_is_refused(workdir):
    (workdir / "checkpoints" / "7").rename(workdir / "checkpoints" / "9")
    with pytest.raises(CheckpointMismatchError, match=r"9 is mixed from several.*step 7"):
        restore(workdir)


def test_the_checksum_does_not_depend_on_the_devices_and_sees_every_bit():
    tree = make_state(3).params
    expected = _checksum(tree)
    split = sharding.batch_sharding(sharding.make_mesh())
    assert _checksum({**tree, "large": jax.device_put(tree["large"], split)}) == expected
    bits = np.asarray(tree["large"]).view(np.uint32)
    places = 2 * np.arange(bits.size, dtype=np.uint64) + 1
    by_numpy = int((bits.ravel() * places % 2**32).sum() % 2**32)
    assert int(_sum_of_bits(tree["large"])) == by_numpy
    for change in (bits ^ (np.arange(bits.size).reshape(bits.shape) == 77), bits[::-1]):
        assert _checksum({**tree, "large": jnp.asarray(change.view(np.float32))}) != expected
    assert _checksum({"larger": tree["large"], "layer": tree["layer"]}) != expected


def test_a_checkpoint_without_checksums_is_read(workdir):
    for step in (3, 7):
        path = workdir / "checkpoints" / str(step) / "metadata" / "metadata"
        metadata = json.loads(path.read_text())
        del metadata["checksums"]
        path.write_text(json.dumps(metadata))
    assert_equal(restore(workdir), make_state(7))
    assert load_for_inference(workdir)[1] == {**METADATA, "step": 7}


def test_arrays_far_beyond_their_files_are_not_read(tmp_path, monkeypatch, caplog):
    """A few bytes may announce any shape."""
    bomb = dataclasses.replace(make_state(7), ema={"w": jnp.zeros((1000, 1000))})
    with contextlib.closing(Checkpointer(tmp_path, METADATA)) as checkpointer:
        checkpointer.save(bomb)
    assert load_for_inference(tmp_path)[1]["step"] == 7
    monkeypatch.setattr(checkpoint, "_MIN_BYTES", 2**20)
    with pytest.raises(ValueError, match="no complete, readable checkpoint"):
        load_for_inference(tmp_path)
    assert "ema is said to hold 4,000,000 bytes of arrays, but its files have" in caplog.text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[" * 100_000, "recursion"),
        (b"{}", "no entry 'contract'"),
        (b"[1]", "no entry 'contract'"),
        (b'{"contract": {}, "inference": {}}', "no part 'data'"),
        (b'{"contract": {"data": 3}, "inference": {}}', "no part 'data'"),
        (b'{"contract": {}, "inference": {"x_0_bounds": [0, 1e-300]}}', "x_0_bounds must be"),
        (b'{"contract": {}, "inference": {"guidance_weight": 1e39}}', "guidance_weight must"),
        (b'{"contract": {}, "inference": {"num_steps": 0}}', "num_steps must"),
        (b'{"contract": {}, "inference": {"sampler": 3}}', "sampler must"),
        (b" " * 2**24 + b"{}", "too large for metadata"),
    ],
    ids=lambda value: repr(value)[:25],
)
def test_metadata_that_is_none_is_reported(workdir, caplog, content, problem):
    for step in (3, 7):
        path = workdir / "checkpoints" / str(step) / "metadata" / "metadata"
        path.write_bytes(content)
    with pytest.raises(ValueError, match="no complete, readable checkpoint"):
        load_for_inference(workdir)
    assert problem in caplog.text


@pytest.mark.parametrize("name", ["pixel_size_mm", "slice_distance_mm"])
def test_a_size_that_was_not_known_then_is_no_difference(workdir, name):
    metadata = other(f"contract.data.{name}", 2.0)
    assert_equal(restore(workdir, metadata), make_state(7))
    with contextlib.closing(Checkpointer(workdir, metadata)) as checkpointer:
        checkpointer.save(make_state(9))
    assert_equal(restore(workdir, metadata), make_state(9))
    with pytest.raises(CheckpointMismatchError, match=rf"{name} is 1.0 here, was 2.0 there"):
        restore(workdir, other(f"contract.data.{name}", 1.0))


def test_a_run_from_before_flows_resumes(workdir):
    """Its contract lacks what came later, which it did by default."""
    metadata = copy.deepcopy(METADATA)
    metadata["contract"]["diffusion"] |= {"zero_terminal_snr": False, "time_sampling": "uniform"}
    assert_equal(restore(workdir, metadata), make_state(7))
    metadata["contract"]["diffusion"]["zero_terminal_snr"] = True
    with pytest.raises(CheckpointMismatchError, match="zero_terminal_snr is True here, was False"):
        restore(workdir, metadata)

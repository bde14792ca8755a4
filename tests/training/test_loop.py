"""The order of work in the loop, around a step that only counts."""

import contextlib
import dataclasses
import json
import logging
import math
import re
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fake_slices import FakeSlices
from tiny import tiny_config, tiny_settings

from configs import baseline
from mbti_jax.commands import train
from mbti_jax.commands.settings import from_config
from mbti_jax.fields import FieldError
from mbti_jax.training import loop
from mbti_jax.training.loop import NonFiniteLossError, _loop
from mbti_jax.training.settings import TrainSettings
from mbti_jax.training.state import TrainState, create_state
from mbti_jax.training.writer import MetricsWriter, read_metrics


class Recorder:
    """Checkpointer and validation in one: notes the steps at which it is called."""

    def __init__(self):
        self.saved, self.validated, self.waited = [], [], False

    def save(self, state: TrainState) -> None:
        self.saved.append(int(state.step))

    def wait(self) -> None:
        self.waited = True

    def run(self, step: int, params, writer, cancel) -> bool:
        if not cancel():
            self.validated.append(step)
        return not cancel()


@dataclasses.dataclass
class Stopping:
    """Asked after update `stop_at`, or in the validation after update `in_validation_of`."""

    stop_at: int | None
    in_validation_of: int | None = None
    left_at: list[int] = dataclasses.field(default_factory=list)
    done: int = 0

    def __call__(self, done: int) -> bool:
        self.done = done
        return done == self.stop_at

    def is_asked(self) -> bool:
        return self.done == self.in_validation_of

    @contextlib.contextmanager
    def left_to_others(self):
        self.left_at.append(self.done)
        yield


def run_loop(
    workdir,
    *,
    start=0,
    stop_at=None,
    bad=None,
    end=math.inf,
    clock=None,
    second=None,
    stopping=None,
):
    """Runs the loop; `bad` is (step, metric, value), each step takes a second of `clock`.

    From the update `second` on another step is used, of ten times the loss.

    Returns (recorder, error, metrics).
    """
    settings = dataclasses.replace(
        tiny_settings(), num_steps=10, checkpoint_every=4, validate_every=5, log_every=2
    )
    state = create_state({"w": jnp.zeros(3)}, optax.sgd(1.0))
    state = jax.tree.map(lambda x: x, state)
    state = TrainState(jnp.int32(start), state.params, state.ema, state.opt_state)

    def train_step(state, batch):
        step = int(state.step)
        if clock is not None:
            clock[0] += 1
        assert batch["number"] == step
        metrics = {"loss": 1.0 + step, "grad_norm": 1.0, "loss_q1": np.nan if step % 3 else 2.0}
        if bad is not None and bad[0] == step:
            metrics[bad[1]] = bad[2]
        return TrainState(state.step + 1, state.params, state.ema, state.opt_state), metrics

    def other_step(state, batch):
        state, metrics = train_step(state, batch)
        return state, {**metrics, "loss": 10 * metrics["loss"]}

    batches = ({"number": np.array([step])} for step in range(start, 1000))
    recorder, error = Recorder(), None
    writer = MetricsWriter(workdir, start + 1)
    try:
        _loop(
            settings,
            state,
            {0: train_step} if second is None else {0: train_step, second: other_step},
            batches,
            (recorder, recorder, writer),
            stopping or Stopping(stop_at),
            end,
        )
    except NonFiniteLossError as raised:
        error = raised
    writer.close()
    return recorder, error, read_metrics(workdir / "metrics.jsonl")


def test_saves_and_validates_when_due_and_at_the_end(tmp_path):
    recorder, error, metrics = run_loop(tmp_path)
    assert error is None
    assert recorder.saved == [4, 8, 10]
    assert recorder.validated == [5, 10]
    assert recorder.waited
    assert [record["step"] for record in metrics] == [2, 4, 6, 8, 10]
    # Losses 1, 2, ..., averaged over the two steps that end there.
    assert [record["train/loss"] for record in metrics] == [1.5, 3.5, 5.5, 7.5, 9.5]
    # A quarter without any timestep is left out of the mean, and of the line where there was none.
    assert [record.get("train/loss_q1") for record in metrics] == [2.0, 2.0, None, 2.0, 2.0]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0]) == metrics[0]


@pytest.mark.parametrize("start", [0, 2, 4, 6])
def test_another_step_takes_over(tmp_path, start):
    """Whether the run began before, at, or after the update that is the first with it."""
    stopping = Stopping(None)
    recorder, error, metrics = run_loop(tmp_path, start=start, second=4, stopping=stopping)
    assert error is None
    expected = {2: 1.5, 4: 3.5, 6: 55.0, 8: 75.0, 10: 95.0}
    losses = {record["step"]: record["train/loss"] for record in metrics}
    assert losses == {step: loss for step, loss in expected.items() if step > start}
    # While a step is compiled later on, an interrupt ends the run at once: it is saved.
    assert stopping.left_at == ([4] if start < 4 else [])
    assert recorder.saved[: len(stopping.left_at)] == stopping.left_at


def test_parts_of_slices_are_followed_by_whole_ones(tmp_path, monkeypatch):
    used = {}

    def make(pipeline, *_, **__):
        height, width = pipeline.augmentation.crop_size(pipeline.image_size)
        return lambda state, batch: (
            state,
            {"height": jnp.int32(height), "width": jnp.int32(width)},
        )

    def note(settings, state, steps, *_):
        for first, step in steps.items():
            state, seen = step(state, None)
            used[first] = (int(seen["height"]), int(seen["width"]))
        return True

    monkeypatch.setattr(loop, "make_train_step", make)
    monkeypatch.setattr(loop, "Validation", lambda *arguments: Mock())
    monkeypatch.setattr(loop, "SliceSource", lambda *arguments: FakeSlices())
    monkeypatch.setattr(loop, "_loop", note)
    config = tiny_config()
    config.augmentation.update(crop_height=4, crop_width=8, crop_updates=3)
    assert train.main(config, str(tmp_path))
    assert used == {0: (4, 8), 3: (16, 16)}
    config.augmentation.update(crop_height=0, crop_width=0)
    with pytest.raises(
        FieldError, match=r"augmentation.crop_updates needs crop_height or crop_width"
    ):
        from_config(TrainSettings, config)


@pytest.mark.parametrize("step", [5, 10])
def test_stopping_in_a_validation_saves(tmp_path, caplog, step):
    caplog.set_level(logging.INFO)
    recorder, _, _ = run_loop(tmp_path, stopping=Stopping(None, in_validation_of=step))
    assert recorder.saved[-1] == step
    assert recorder.waited
    assert step not in recorder.validated
    assert f"stopped at step {step}, saved but not validated; the same" in caplog.text


def test_stopping_saves_at_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    recorder, _, metrics = run_loop(tmp_path, stop_at=7)
    assert recorder.saved == [4, 7]
    assert recorder.waited
    assert metrics[-1]["step"] == 6
    assert "stopped at step 7, saved" in caplog.text


def test_the_end_of_the_time_is_an_end(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    clock = [0.0]

    def now():
        # No two looks at a clock see the same.
        clock[0] += 1e-6
        return clock[0]

    monkeypatch.setattr(loop.time, "perf_counter", now)
    recorder, _, metrics = run_loop(tmp_path, end=7.0, clock=clock)
    assert recorder.saved == [4, 7] and recorder.validated == [5, 7]
    assert "the time is over at step 7 of 10" in caplog.text
    assert run_loop(tmp_path, start=7, end=7.0, clock=clock)[0].saved == []
    # A new run makes a step at least; and with more time it goes on.
    assert run_loop(tmp_path / "new", end=0.0, clock=clock)[0].saved == [1]
    recorder, _, metrics = run_loop(tmp_path, start=7, end=math.inf, clock=clock)
    assert recorder.saved == [8, 10]
    assert [record["step"] for record in metrics] == [2, 4, 6, 8, 10]


def test_a_resumed_loop_writes_what_is_missing(tmp_path):
    run_loop(tmp_path, stop_at=6)
    recorder, _, metrics = run_loop(tmp_path, start=6)
    assert recorder.saved == [8, 10]
    assert [record["step"] for record in metrics] == [2, 4, 6, 8, 10]


def test_a_finished_run_does_nothing(tmp_path):
    recorder, error, metrics = run_loop(tmp_path, start=10)
    assert (recorder.saved, recorder.validated, error, metrics) == ([], [], None, [])


@pytest.mark.parametrize(
    ("step", "saved", "validated"), [(3, [], []), (4, [4], []), (7, [4], [5]), (9, [4, 8], [5])]
)
@pytest.mark.parametrize(
    ("metric", "value"), [("loss", np.nan), ("loss", np.inf), ("grad_norm", np.inf)]
)
def test_what_is_not_finite_stops_the_run_before_anything_is_saved_of_it(
    tmp_path, step, saved, validated, metric, value
):
    recorder, error, metrics = run_loop(tmp_path, bad=(step, metric, value))
    assert recorder.saved == saved
    assert recorder.validated == validated
    assert f"step {step}" in str(error)
    assert str(value) in str(error)
    assert "optimizer.learning_rate" in str(error)
    assert all(record["step"] <= step for record in metrics)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log_every", 0),
        ("batch_size", -1),
        ("num_pictures", 0),
        ("num_steps", 0),
        ("seed", -1),
        ("ema_decay", 1.0),
        ("picture_steps", 1001),
        ("guidance_weight", float("nan")),
        ("optimizer.learning_rate", 0.0),
        ("data.window", 0),
        ("data.image_size", 0),
        ("model.num_groups", 0),
        ("model.patch_size", 0),
        ("diffusion.drop_condition", 10.0),
        ("tasks.max_circles", 0),
    ],
)
def test_numbers_that_cannot_be_are_refused_at_once(tmp_path, name, value):
    config = tiny_config()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(FieldError, match=f"^{re.escape(name)} must"):
        train.main(config, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_regressor_has_no_guidance():
    config = baseline.get_config()
    config.guidance_weight = 0.4
    with pytest.raises(FieldError, match=r"^guidance_weight is 0 for a regressor"):
        from_config(TrainSettings, config)

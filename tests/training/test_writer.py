"""The files of a run: metrics that survive a kill, pictures that are whole or not there."""

import json

import numpy as np
import PIL.Image
import pytest

from mbti_jax.training.writer import MetricsWriter, read_metrics


def write(workdir, steps, start_step=0):
    writer = MetricsWriter(workdir, start_step)
    for step in steps:
        writer.scalars(step, {"train/loss": 1 / step})
    writer.close()
    return workdir / "metrics.jsonl"


def test_lines_are_json_a_step_each(tmp_path):
    path = write(tmp_path, [1, 2, 3])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": step, "train/loss": 1 / step} for step in (1, 2, 3)]
    assert read_metrics(path) == lines


def test_a_line_is_on_disk_at_once(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.scalars(5, {"x": np.float32(2)})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 5, "x": 2.0}]
    writer.close()


def test_a_resumed_run_replaces_the_lines_it_writes_again(tmp_path):
    write(tmp_path, range(1, 10))
    path = write(tmp_path, range(6, 12), start_step=6)
    assert [record["step"] for record in read_metrics(path)] == list(range(1, 12))


def test_a_half_written_last_line_is_dropped(tmp_path):
    path = write(tmp_path, [1, 2])
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    # Without its line break alone, the last line is whole.
    for size in range(first, len(content) - 1):
        path.write_bytes(content[:size])
        assert [record["step"] for record in read_metrics(path)] == [1]
    write(tmp_path, [3], start_step=3)
    assert [record["step"] for record in read_metrics(path)] == [1, 3]


def test_every_line_is_strict_json_even_when_a_value_is_not_finite(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.scalars(1, {"a": float("nan"), "b": float("inf"), "c": -np.inf, "d": 1.0})
    writer.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert record["d"] == 1.0
    for name, value in (("b", np.inf), ("c", -np.inf)):
        assert isinstance(record[name], str)
        assert float(record[name]) == value
    assert np.isnan(float(record["a"]))


def test_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("shape", [(12, 20, 3), (12, 20)])
def test_a_picture_is_written_as_it_is(tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    writer = MetricsWriter(tmp_path)
    path = writer.picture(7, "samples", image)
    writer.close()
    assert path.parent == tmp_path / "pictures"
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(path)), image)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_picture_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    image = np.zeros((8, 8, 3), np.uint8)
    writer = MetricsWriter(tmp_path)
    path = writer.picture(7, "samples", image)

    def cut_short(self, file, **_):
        with open(file, "wb") as stream:
            stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(PIL.Image.Image, "save", cut_short)
    with pytest.raises(OSError, match="disk full"):
        writer.picture(7, "samples", image + 1)
    writer.close()
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(path)), image)


def test_tensorboard_gets_the_numbers_too(tmp_path):
    """Read back from the event files without TensorFlow: records are length, CRC, content, CRC."""
    writer = MetricsWriter(tmp_path)
    writer.scalars(3, {"train/loss": 0.25})
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"train/loss" in content
    assert np.float32(0.25).tobytes() in content


@pytest.mark.parametrize(
    ("damage", "lines"),
    [
        (b'{"step": 2, "train/lo', "2"),  # Cut.
        (b'{"step": 2, "a\xff\xfe": 1}', "2"),  # Not UTF-8.
        (b"\x00" * 40, "2"),
        (b'{"step": 2}{"step": 3}', "2"),
        (b'["step"]', "2"),
        (b'{"loss": 1}', "2"),
        (b'{"step": null}', "2"),
        (b"[" * 100_000, "2"),
        (b"", "2"),
        (b"garbage\nmore\n\xff", "2, 3, 4"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_damaged_line_is_named_and_costs_no_later_ones(tmp_path, caplog, damage, lines):
    path = write(tmp_path, range(1, 5))
    first, _, *later = path.read_bytes().splitlines(keepends=True)
    content = first + damage + b"\n" + b"".join(later)
    path.write_bytes(content)
    assert [record["step"] for record in read_metrics(path)] == [1, 3, 4]
    assert f"{path} is damaged and read without line {lines}" in caplog.text
    # A resumed run keeps what it can read, and the damaged file as it was.
    write(tmp_path, [4], start_step=4)
    assert [record["step"] for record in read_metrics(path)] == [1, 3, 4]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == content
    caplog.clear()
    write(tmp_path, [5], start_step=5)
    assert not caplog.text
    assert [file.name for file in tmp_path.glob("metrics*")] != []
    assert len([*tmp_path.glob("metrics.jsonl.damaged*")]) == 1


def test_a_second_damage_does_not_replace_the_copy_of_the_first(tmp_path):
    for number in range(2):
        path = write(tmp_path, [1, 2], start_step=1)
        path.write_bytes(f"damage {number}\n".encode() + path.read_bytes())
        write(tmp_path, [3], start_step=3)
    copies = sorted(tmp_path.glob("metrics.jsonl.damaged*"))
    assert [copy.read_text().splitlines()[0] for copy in copies] == ["damage 0", "damage 1"]

"""What the quickstart says, shows first, and takes; the stages themselves run in `test_run.py`."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from synthetic_cases import write_case
from tiny_inpainter import tiny_inpainter

from configs.quickstart import get_config
from mbti_jax.commands import quickstart
from mbti_jax.commands.first_picture import REQUESTS, draw_first_picture
from mbti_jax.commands.settings import from_config
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io import pictures
from tfds_brats.cases import read_case
from tfds_brats.search import find_cases

SUBJECT = "BraTS2021_00001"


@pytest.mark.parametrize("own", [False, True])
def test_the_next_step_is_one_that_was_not_just_done(tmp_path, monkeypatch, capsys, own):
    dataset = SimpleNamespace(path=tmp_path / "slices" / "1.0.0")
    index = SimpleNamespace(tumor_area=np.array([9]))
    stages = {
        "build_or_make_phantoms": lambda *_: dataset,
        "SliceSource": lambda *_: SimpleNamespace(index=index),
        "_first_picture": lambda folder: folder / "first.png",
        "train": lambda *_, **__: True,
        "draw_figure": lambda *_: tmp_path / "figure.png",
        "healthy_tissue_errors": lambda *_: {"one sample": 0.1},
    }
    for name, stage in stages.items():
        monkeypatch.setattr(quickstart, name, stage)
    monkeypatch.setattr(Inpainter, "load", lambda *_, **__: None)
    config = get_config()
    if own:
        config.update({"source": str(tmp_path / "mine"), "convention": "brats2021"})
    quickstart.main(config, str(tmp_path))
    said = capsys.readouterr().out
    last = said.splitlines()[-1]
    assert ("your own" in last) != own
    assert ("first.png" in said) != own
    assert (f"configs/train.py --config.data.dataset={dataset.path}" in last) == own


def test_minutes_count_over_all_runs(tmp_path, monkeypatch):
    settings = from_config(quickstart.QuickstartSettings, get_config())
    clock, given = [0.0], []
    monkeypatch.setattr(quickstart.time, "perf_counter", lambda: clock[0])

    def train(settings, folder, seconds):
        folder.mkdir(exist_ok=True, parents=True)
        given.append(seconds)
        clock[0] += 100
        if len(given) == 1:
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(quickstart, "train", train)

    def run(folder=tmp_path, before=10.0, minutes=4.0) -> bool:
        """Ten seconds, or so many, for what comes before training."""
        began = clock[0]
        clock[0] += before
        return quickstart._train(dataclasses.replace(settings, minutes=minutes), folder, began)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert run()
    run(minutes=10.0)
    # The same once more: nothing is left.
    run(minutes=4.0)
    assert given == [230, 120, 600 - 220 - 10, 240 - 330 - 10]
    # Data that took all of the time: training has half of it all the same.
    run(tmp_path / "slow", before=1000.0)
    assert given[-1] == 120
    for text in ("", "[]", '{"minutes": 1}', '{"seconds": 1}', '{"seconds": "x"}'):
        (tmp_path / "run" / "time.json").write_text(text)
        with pytest.raises(ValueError, match=r"run/time\.json is damaged, .*: delete it"):
            run()


def test_the_first_picture_shows_every_request(tmp_path, monkeypatch):
    write_case(tmp_path, SUBJECT)
    (files,) = find_cases(tmp_path, "brats2021")
    case, painter, cells = read_case(files), tiny_inpainter(4), []
    monkeypatch.setattr(pictures, "figure", lambda path, shown, **_: cells.extend(shown) or path)
    draw_first_picture(painter, case, tmp_path / "first.png")
    assert np.shape(cells)[:2] == (4, 1 + len(REQUESTS))
    for before, *after in cells:
        for picture in after:
            # Repainted where the tumor is, and as it was in the frame's corner.
            assert (picture != before).any()
            np.testing.assert_array_equal(picture[:4, :4], before[:4, :4])
    with pytest.raises(ValueError, match="no tumor"):
        empty = case.repainted({}, np.zeros_like(case.segmentation))
        draw_first_picture(painter, empty, tmp_path / "none.png")

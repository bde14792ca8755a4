"""What the quickstart says at its end; the stages themselves run in `test_run.py`."""

from types import SimpleNamespace

import numpy as np
import pytest

from configs.quickstart import get_config
from mbti_jax.commands import quickstart
from mbti_jax.inference.inpainter import Inpainter


@pytest.mark.parametrize("own", [False, True])
def test_the_next_step_is_one_that_was_not_just_done(tmp_path, monkeypatch, capsys, own):
    dataset = SimpleNamespace(path=tmp_path / "slices" / "1.0.0")
    index = SimpleNamespace(tumor_area=np.array([9]))
    stages = {
        "build_or_make_phantoms": lambda *_: dataset,
        "SliceSource": lambda *_: SimpleNamespace(index=index),
        "train": lambda *_: True,
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
    last = capsys.readouterr().out.splitlines()[-1]
    assert ("your own" in last) != own
    assert (f"configs/train.py --config.data.dataset={dataset.path}" in last) == own

"""The load test's clients and its report, on a tiny page for a few seconds."""

import argparse
import json
import os

import numpy as np
import pytest
from synthetic_cases import SHAPE, write_case, write_volume

pytest.importorskip("gradio", reason="needs the extra `web`")

from benchmarks import load


@pytest.fixture
def files(tmp_path):
    folder = write_case(tmp_path / "in", "Phantom_0001")
    roi = np.zeros(SHAPE, np.uint8)
    roi[6:9, 7:9, 2] = 5
    images = [folder / f"Phantom_0001_{name}.nii.gz" for name in ("t1", "t1ce", "t2", "flair")]
    return [*images, write_volume(tmp_path / "roi.nii.gz", roi)]


def test_clients_run_and_are_refused(files, tmp_path, monkeypatch):
    monkeypatch.setattr("mbti_jax.web.visitors._CLOSED_TAB", 0.5)
    monkeypatch.setattr("mbti_jax.commands.serve._SWEEP_SECONDS", 0.2)
    monkeypatch.setattr(load, "_AGAIN", 0.2)
    root = tmp_path / "page"
    # It needs Gradio.
    from tiny_server import running

    with running(root, max_sessions=4) as server:
        for seconds in (4, 20, 100):
            options = argparse.Namespace(clients=6, seconds=seconds, steps=1)
            report = load.measure(server.local_url, os.getpid(), root, files, options)
            # How many there are is a matter of the machine's speed.
            if report["runs"] and report["refusals"]:
                break
    assert report["runs"] >= 1 and report["run_seconds"]["median"] > 0
    assert not report["errors"] and not report["failures"]
    # Four users have room for their images; the others are told to try again.
    assert all("as many as it can" in text for text in report["refusals"]) and report["refusals"]
    assert report["runs_by_client"]["least"] == 0
    used = report["usage"]
    assert used["after"]["sessions"] == 0
    # Of three clients the last upload may have come too late to be loaded; such files stay for a while.
    uploaded = 3 * sum(path.stat().st_size for path in files)
    assert used["peak"]["disk"] > used["before"]["disk"]
    assert 0 <= used["after"]["disk"] - used["before"]["disk"] <= uploaded
    machine = {"cpu": "a processor", "cores": 2, "load_average": 1.0, "jax_device": "cpu"}
    text = load.format_report(json.loads(json.dumps({"machine": machine, **report})))
    assert f"| runs | {report['runs']} (" in text and "| after |" in text

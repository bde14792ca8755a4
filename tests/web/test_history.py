"""Settings of runs as JSON, runs that are kept, and what file names say."""

import dataclasses
import json
from pathlib import Path

import pytest
from web_sessions import load, painted, run

from mbti_jax.web.history import Run, RunSettings, read_settings, to_json
from mbti_jax.web.loading import LEFT_OUT, guess_sequence

SETTINGS = RunSettings(("t1", "flair"), 3, 2, 8, 0.4, "samples", "ddim", "plain", 0.0, 1.0, True)
CHOICES = {"sequences": ("t1", "t1ce", "t2", "flair"), "sampler": ("ddim", "unipc")}


@pytest.mark.parametrize("weight", [0.4, None])
def test_settings_come_back(tmp_path, weight):
    path = tmp_path / "settings.json"
    settings = dataclasses.replace(SETTINGS, guidance_weight=weight)
    path.write_text(to_json(settings))
    assert read_settings(path, CHOICES) == settings
    held = json.loads(path.read_text())["settings"]
    assert held["sequences"] == ["t1", "flair"] and held["num_steps"] == 8


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "nnU-Net plans"}, r"^s\.json: holds no settings of a run"),
        ({"version": 2}, "version must be 1, not 2"),
        ({"settings": [1]}, "settings must be a group"),
        ({"num_steps": "8"}, r"settings\.num_steps"),
        ({"num_steps": 0}, r"settings\.num_steps"),
        ({"guidance_weight": "high"}, r"settings\.guidance_weight"),
        ({"blend": 1}, r"settings\.blend must be True or False"),
        ({"lowest_noise": 2.0}, r"settings\.lowest_noise must lie in"),
        ({"sampler": "unknown"}, r"settings\.sampler cannot be 'unknown' here, but ddim, unipc"),
        ({"sequences": "t1"}, r"settings\.sequences must be a list"),
        ({"sequences": ["pd"]}, r"settings\.sequences cannot be 'pd'"),
        ({"sequences": [["t1"]]}, r"settings\.sequences"),
        ({"steps": 8}, r"settings\.steps is unknown"),
    ],
)
def test_settings_that_are_refused(tmp_path, changes, match):
    held = json.loads(to_json(SETTINGS))
    for name, value in changes.items():
        (held if name in held else held["settings"])[name] = value
    path = tmp_path / "s.json"
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=match):
        read_settings(path, CHOICES)


@pytest.mark.parametrize("content", [b"", b"[1", b"\xff\xfe", b"[" * 50_000, b" " * 200_000])
def test_what_is_no_json(tmp_path, content):
    path = tmp_path / "s.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^s\.json: is no JSON file"):
        read_settings(path, CHOICES)


def test_a_missing_field_is_named(tmp_path):
    held = json.loads(to_json(SETTINGS))
    del held["settings"]["seed"]
    path = tmp_path / "s.json"
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"settings\.seed is missing"):
        read_settings(path, CHOICES)


def test_the_last_runs_are_kept(case_files, tmp_path):
    session = load(case_files, tmp_path, "brats2021")
    painted(session, 2)
    folders = []
    for number in range(1, 4):
        result = run(session, sequences=["t1"], num_samples=1)
        folders.append(result.archive.parent)
        session.keep_run(Run(number, SETTINGS, "", {}, [result.archive], result.archive), 2)
    assert [one.number for one in session.runs] == [2, 3] and session.chosen.number == 3
    assert [folder.exists() for folder in folders] == [False, True, True]


@pytest.mark.parametrize(
    ("name", "convention", "sequence"),
    [
        ("BraTS2021_00001_t1ce.nii.gz", "", "t1ce"),
        ("BraTS-GLI-00001-000-t1c.nii.gz", "", "t1ce"),
        ("UPENN-GBM-00001_11_T1GD.nii", "", "t1ce"),
        ("mine_FLAIR.nii.gz", "brats2021", "flair"),
        ("mine-t2f.nii.gz", "brats2021", None),
        ("BraTS2021_00001_seg.nii.gz", "", LEFT_OUT),
        ("scan_17.nii.gz", "", None),
    ],
)
def test_what_names_say(name, convention, sequence):
    assert guess_sequence(Path(name), convention) == sequence

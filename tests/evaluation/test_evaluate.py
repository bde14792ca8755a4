"""The command `evaluate`: parts one after the other, what is done again, and the report of all."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import slow_parts
from ml_collections import ConfigDict
from ray_cluster import gone, kill_driver, lose_node_of, wait_until
from synthetic_cases import write_case
from tiny_inpainter import tiny_metadata, tiny_params

from configs import baseline
from configs import evaluate as config_file
from mbti_jax.commands import evaluate
from mbti_jax.evaluation import report
from mbti_jax.fields import FieldError
from mbti_jax.interop.inference_checkpoint import write_export
from tfds_brats import builder
from tfds_brats.locking import LockedError, only_process_in
from tfds_brats.reading import SliceSource

SETTINGS = {
    "healthy.num_cases": 2,
    "healthy.regressor": "/a/folder/of/mine",
    "diversity.num_slices": 1,
}


class Part:
    """A part that counts slices of the test split, and how often it was run."""

    def __init__(self, name: str, count_field: str):
        self.name, self.count_field, self.runs, self.stop = name, count_field, 0, False

    def run(self, workbench, settings, folder):
        if self.stop:
            raise KeyboardInterrupt
        self.runs += 1
        (folder / "picture.png").write_bytes(b"picture")
        count = getattr(settings, self.count_field)
        slices = workbench.slices("test", count, with_tumor=True, min_area=1)
        return {"slices": len(slices)}

    def tables(self, result):
        return f"## Part {self.name}\n\n{result['slices']} slices were counted."


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Folder with cases, their dataset, and an exported model that was trained on it."""
    folder = tmp_path_factory.mktemp("source")
    for number in range(10):
        write_case(folder / "cases", f"BraTS2021_{number:05d}", number)
    dataset = builder.build(folder / "cases", "brats2021", folder / "slices")
    metadata = tiny_metadata()
    metadata["contract"]["data"]["fingerprint"] = SliceSource(dataset, "train").fingerprint
    metadata["contract"]["batch_size"] = 8
    metadata["step"] = 250
    card = {"title": "of a test", "data": "random weights", "license": "none"}
    write_export(folder / "tiny", tiny_params(metadata), metadata, card)
    return folder


@pytest.fixture
def parts(monkeypatch):
    parts = {
        "healthy": Part("healthy", "num_cases"),
        "diversity": Part("diversity", "num_slices"),
    }
    monkeypatch.setattr(evaluate, "PARTS", parts)
    return parts


def config(source, **fields) -> ConfigDict:
    config = config_file.get_config()
    config.update({"source": str(source / "cases"), "convention": "brats2021"})
    config.update({"data_dir": str(source / "slices"), "checkpoint": str(source / "tiny")})
    config.update(fields)
    config.update_from_flattened_dict(SETTINGS)
    return config


def read(workdir):
    return json.loads((workdir / "report.json").read_text()), (workdir / "report.md").read_text()


def test_the_report_holds_every_part_and_what_it_was_made_with(source, parts, tmp_path):
    evaluate.main(config(source), str(tmp_path))
    numbers, text = read(tmp_path)
    assert [part["result"] for part in numbers["parts"].values()] == [{"slices": 2}, {"slices": 1}]
    assert (tmp_path / "healthy" / "picture.png").is_file()
    # The order: model and data, the parts, what they cost, what is not shown.
    places = [
        text.index(p) for p in ("# Evaluation of tiny", "## Part healthy", "## Part diversity")
    ]
    places += [text.index(p) for p in ("## Budget", "## What this report does not show")]
    assert places == sorted(places)
    assert "trained on 2,000 images" in text
    assert "random weights" in text
    assert "**held out**" in text
    assert "not known" not in text
    dataset = builder.build(source / "cases", "brats2021", source / "slices")
    index = SliceSource(dataset, "train").index
    tumor = (index.tumor_area > 0).sum()
    row = f"| train | {len(np.unique(index.subject))} | {len(index.subject)} | {tumor} |"
    assert row in text
    assert "| healthy | " in text
    assert "num_cases 2" in text
    # Folders differ between machines.
    assert "/a/folder" not in text
    assert str(source) not in text
    assert "jax" in text.split("## Budget")[1]


def test_finished_parts_are_not_done_again(source, parts, tmp_path):
    evaluate.main(config(source, parts=("diversity",)), str(tmp_path))
    _, text = read(tmp_path)
    assert "Part healthy" not in text
    evaluate.main(config(source), str(tmp_path))
    _, text = read(tmp_path)
    # In the order of the report, not of when they were made.
    assert text.index("Part healthy") < text.index("Part diversity")
    assert [part.runs for part in parts.values()] == [1, 1]
    evaluate.main(config(source, parts=("healthy",)), str(tmp_path))
    assert read(tmp_path)[1] == text
    assert [part.runs for part in parts.values()] == [1, 1]


def test_shares_make_the_report_that_one_process_makes(source, parts, tmp_path):
    """Whichever comes first; a share that is done again measures nothing."""
    evaluate.main(config(source), str(tmp_path / "one"))
    shared, runs = tmp_path / "shared", [part.runs for part in parts.values()]
    assert runs == [1, 1]
    evaluate.main(config(source, piece="1", pieces=2), str(shared))
    assert [part.runs for part in parts.values()] == [1, 2]
    with pytest.raises(ValueError, match=r"^1 of 2 parts are missing: healthy$"):
        evaluate.main(config(source, piece="merge"), str(shared))
    for piece in ("0", "1", "merge"):
        evaluate.main(config(source, piece=piece, pieces=2), str(shared))
    assert [part.runs for part in parts.values()] == [2, 2]
    alone, together = (read(folder) for folder in (tmp_path / "one", shared))
    for numbers, _ in (alone, together):
        assert all(part.pop("seconds") > 0 for part in numbers["parts"].values())
    assert alone[0] == together[0]
    assert alone[1].split("## Budget")[0] == together[1].split("## Budget")[0]


def test_a_run_that_is_stopped_leaves_a_report_of_finished_parts(source, parts, tmp_path):
    parts["diversity"].stop = True
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(config(source), str(tmp_path))
    _, text = read(tmp_path)
    assert "Part healthy" in text
    assert "Part diversity" not in text
    assert not list(tmp_path.glob(".partial*"))


def test_results_of_other_settings_are_not_mixed(source, parts, tmp_path):
    evaluate.main(config(source), str(tmp_path))
    other = config(source)
    other.healthy.num_cases = 1
    with pytest.raises(ValueError, match="another request"):
        evaluate.main(other, str(tmp_path))
    with pytest.raises(ValueError, match=r"another request \(other seed\)"):
        evaluate.main(config(source, seed=1), str(tmp_path))


def test_an_unknown_part_is_refused_before_anything_is_loaded(parts, tmp_path):
    with pytest.raises(ValueError, match="parts has unknown third; choose from healthy, diversity"):
        evaluate.main(config(tmp_path, parts=("third",)), str(tmp_path))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("batch_size", value) for value in (0, -1, 2.5, "x", None)),
        *(("seed", value) for value in (-1, NAN, 2**31 - 1, None)),
        *(("parts", value) for value in ("healthy", None, ("healthy", 1))),
        ("checkpoint", ""),
        ("data_dir", None),
        *(("healthy.num_cases", value) for value in (0, -1, NAN, True)),
        *(("healthy.z_sigma_mm", value) for value in (NAN, INF, -1.0, "x")),
        ("healthy.regressor", None),
        ("diversity.num_samples", 1),
        *(("control.min_area", value) for value in (0, None)),
        *(("control.segmenter.learning_rate", value) for value in (0.0, NAN, INF, 1e-60, "x")),
        ("control.segmenter.model_channels", 12),
        ("control.segmenter.num_slices", 2),
        ("control.segmenter.seed", -1),
        *(("guidance.weights", value) for value in ((), (NAN,), (1e39,), ("a",), 1.0, None)),
        *(("guidance.kinds", value) for value in ((), ("strong",), "plain")),
        *(("guidance.interval", value) for value in ((0.8, 0.2), (0.2,), (0.2, NAN))),
        *(("steps.evaluations", value) for value in ((), (0,), (2.5,), (-1,))),
        *(("steps.samplers", value) for value in ((), ("ddim",), (("ddim", "even"),), (("dim",),))),
        *(("steps.guidance_weight", value) for value in (NAN, "x", None)),
        *(("volumes.passes", value) for value in ((), (7,), (40, 40), 40)),
        *(("volumes.z_sigma_mm", value) for value in ((), (-1.0,), (2.0, 2.0), (1e4,))),
        *(
            ("volumes.tumors", value)
            for value in (("swap",), ("grow",), ("replace, random",), "move")
        ),
        ("downstream.num_slices", 2),
        ("fidelity.num_subsets", 0),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_before_anything_is_loaded(tmp_path, field, value):
    settings = config_file.get_config()
    *groups, name = field.split(".")
    group = settings
    for part in groups:
        group = group[part]
    with group.unlocked(), group.ignore_type():
        group[name] = value
    with pytest.raises(FieldError) as error:
        evaluate.main(settings, str(tmp_path / "out"))
    assert error.value.field == field
    assert not (tmp_path / "out").exists()


def test_settings_that_the_model_cannot_follow_are_named_before_cases_are_read(
    source, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluate, "build_or_make_phantoms", None)
    settings = config(source)
    settings.steps.evaluations = (10, 1001)
    with pytest.raises(
        FieldError, match=r"steps\.evaluations must be at most 1000, as the model, not 1001"
    ):
        evaluate.main(settings, str(tmp_path / "out"))
    settings = config(source)
    settings.control.num_steps = 2000
    with pytest.raises(FieldError, match=r"control\.num_steps must be at most 1000"):
        evaluate.main(settings, str(tmp_path / "out"))
    settings.parts, settings.volumes.passes = ("volumes",), (40, 1001)
    with pytest.raises(FieldError, match=r"volumes\.passes must be at most 1000, as the model's"):
        evaluate.main(settings, str(tmp_path / "out"))
    # Of parts that are not done nothing is asked.
    settings.parts = ("healthy",)
    with pytest.raises(TypeError):
        evaluate.main(settings, str(tmp_path / "out"))


def test_a_regressor_is_no_model_to_evaluate(source, tmp_path):
    metadata = tiny_metadata()
    metadata["contract"]["diffusion"] = baseline.get_config().diffusion.to_dict()
    metadata["inference"]["guidance_weight"] = 0.0
    card = {"title": "of a test", "data": "random weights", "license": "none"}
    write_export(tmp_path / "regressor", tiny_params(metadata), metadata, card)
    settings = config(source, checkpoint=str(tmp_path / "regressor"))
    with pytest.raises(FieldError, match=r"checkpoint is a regressor.*healthy\.regressor"):
        evaluate.main(settings, str(tmp_path / "out"))


def test_a_second_evaluation_of_a_folder_is_refused_and_harms_nothing(source, parts, tmp_path):
    with (
        only_process_in(tmp_path / "out"),
        pytest.raises(LockedError, match=r"process .* on .* since"),
    ):
        evaluate.main(config(source), str(tmp_path / "out"))
    evaluate.main(config(source), str(tmp_path / "out"))
    assert (tmp_path / "out" / "report.md").is_file()


def test_implausible_test_subjects_are_listed():
    head = {
        "model": {
            **{"name": "m", "step": None, "weights_sha256": "0" * 64, "note": ""},
            **{"image_size": 8, "sequences": ["t1"], "joint": False},
            **{"images_seen": None, "guidance_weight": 0.4, "continues": False, "neighbors": 0},
        },
        "dataset": {"convention": "msd", "splits": {}, "held_out": True},
        "seed": 0,
    }
    plain = report.markdown(head, {}, "")
    assert "Implausible" not in plain
    head["dataset"]["warnings"] = {"a": ["21 voxels of tumor are on background", "t1 is zero"]}
    text = report.markdown(head, {}, "")
    assert "- Implausible: a: 21 voxels of tumor are on background; t1 is zero.\n" in text


def test_every_part_has_its_settings_and_functions():
    fields = config_file.get_config()
    for name, module in evaluate.PARTS.items():
        assert name in fields
        assert callable(module.run)
        assert callable(module.tables)


def test_the_report_says_so_for_a_model_of_other_data_and_for_phantoms():
    head = {
        "model": {
            **{"name": "m", "step": None, "weights_sha256": "0" * 64, "note": ""},
            **{"image_size": 8, "sequences": ["t1", "t2"], "joint": True},
            **{"images_seen": None, "guidance_weight": 0.4, "continues": False, "neighbors": 0},
        },
        "dataset": {"convention": "phantom", "splits": {}, "held_out": False},
        "seed": 0,
    }
    text = report.markdown(head, {}, "")
    assert "trained on an unknown number of images" in text
    assert "t1, t2, jointly" in text
    assert text.count("**not known**") == 2
    # What an exporter wrote is no finding of the report.
    noted = {**head, "model": {**head["model"], "note": "Never trained on patients."}}
    text_with_note = report.markdown(noted, {}, "")
    assert 'Its exporter notes, unchecked here: "Never trained on patients."' in text_with_note
    assert text_with_note.count("never trained") == text.count("never trained")
    assert "digital phantoms" in text
    assert "Budget" not in text
    head["dataset"] |= {"convention": "msd", "held_out": True}
    text = report.markdown(head, {}, "")
    assert "not known" not in text
    assert "phantom" not in text
    assert "The model was trained on this training split" in text and "one slice at a time" in text
    # Of a run that continued another one the last alone is known.
    head["model"] |= {"continues": True, "images_seen": 800, "neighbors": 1}
    text = report.markdown(head, {}, "")
    assert "trained on 800 images, in a run that started from the weights of another one" in text
    assert "The model's last run was trained on this training split" in text
    assert "one slice at a time" not in text


def test_tables_are_markdown():
    assert report.table(["a", "b"], [["x", 1], ["y", 2.5]]).splitlines() == [
        *("| a | b |", "| --- | ---: |", "| x | 1 |", "| y | 2.5 |")
    ]
    with pytest.raises(ValueError, match="2 cells"):
        report.table(["a", "b"], [["x"]])


def test_images_seen_are_steps_times_batch():
    assert report.images_seen({"batch_size": 8}, 100) == 800
    assert report.images_seen({}, 100) is None
    assert report.images_seen({"batch_size": 8}, None) is None
    assert "cpu" in report.machine()["devices"]


def test_on_a_cluster_that_loses_its_driver_and_a_node_results_are_the_same(
    source, cluster, tmp_path, monkeypatch
):
    """Three parts, of which one is done, one is refused, and one waits while driver and node go."""
    monkeypatch.setattr(evaluate, "PARTS", slow_parts.PARTS)
    refused = (
        r"^1 of 3 parts could not be done; the others are done:\ncontrol: it has no such slice$"
    )
    values, local, out = config(source), tmp_path / "local", tmp_path / "ray"
    values.healthy.regressor = ""
    local.mkdir()
    (local / "go").touch()
    with pytest.raises(ValueError, match=refused):
        evaluate.main(values, str(local))

    def waiting() -> list[Path]:
        return [*out.glob("at.diversity.*")]

    names = ("source", "convention", "data_dir", "checkpoint")
    fields = {**{name: values[name] for name in names}, **SETTINGS, "healthy.regressor": ""}
    fields |= {"engine": "ray", "ray.address": cluster.address, "ray.workers": 1}
    kill_driver("evaluate.py", fields, out, waiting, "-m", "slow_parts")
    # Ray ends its worker once it misses the driver.
    gone(waiting())
    # A part that is done, and what was sampled for the other one.
    kept = [path for name in ("healthy", "samples") for path in (out / name).rglob("*.*")]
    before = {path: path.stat() for path in kept if path.is_file()}
    assert len(before) >= 4

    def lose() -> None:
        try:
            wait_until(lambda: len(waiting()) == 2)
            newest = max(waiting(), key=lambda path: path.stat().st_mtime_ns)
            lose_node_of(cluster, newest)
        finally:
            (out / "go").touch()

    monkeypatch.setattr(evaluate, "_measure", slow_parts.measure)
    values.engine = "ray"
    values.ray.update({"address": cluster.address, "workers": 1})
    with ThreadPoolExecutor() as pool:
        lost = pool.submit(lose)
        with pytest.raises(ValueError, match=refused):
            evaluate.main(values, str(out))
        lost.result()
    for path, stat in before.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    assert len([*out.glob("at.healthy.*")]) == 1
    assert len(waiting()) == 3
    (here, text), (there, other) = read(local), read(out)
    for numbers in (here, there):
        assert all(part.pop("seconds") > 0 for part in numbers["parts"].values())
    assert here == there
    assert text.split("## Budget")[0] == other.split("## Budget")[0]
    samples = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("sample.txt")}
        for folder in (local, out)
    ]
    assert samples[0] == samples[1] and len(samples[0]) == 2

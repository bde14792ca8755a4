"""Sets cut into pieces: the same bytes however they are cut, and whatever dies meanwhile."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ray_cluster import kill_driver, wait_until
from synthetic_cases import make_arrays, write_case, write_volume
from tiny_inpainter import tiny_metadata, tiny_params

from configs.inpaint import get_config
from mbti_jax.commands import inpaint
from mbti_jax.fields import FieldError
from mbti_jax.inference.settings import LAYOUTS
from mbti_jax.interop.inference_checkpoint import write_export
from tfds_brats.conventions import CaseError

SUBJECTS = ("BraTS2021_00001", "BraTS2021_00002")
FIELDS = {"convention": "brats2021", "tumor": "replace", "num_samples": 2, "num_steps": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    for seed, subject in enumerate(SUBJECTS):
        write_case(folder, subject, seed)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    metadata = tiny_metadata()
    card = {"title": "of a test", "data": "random weights", "license": "none"}
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_export(folder, tiny_params(metadata), metadata, card)
    return folder


def fields_of(source: Path, model: Path, **fields) -> dict:
    return {**FIELDS, "source": str(source), "checkpoint": str(model), "batch_size": 4, **fields}


def run(workdir: Path, fields: dict) -> Path:
    config = get_config()
    config.update(fields)
    inpaint.main(config, str(workdir))
    return workdir


def content(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder, byte for byte; pictures are drawn at their own pace."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def voided(tmp_path_factory) -> Path:
    """The same cases as BraTS's local inpainting has them."""
    folder = tmp_path_factory.mktemp("voided")
    for seed, subject in enumerate(SUBJECTS):
        images, labels = make_arrays(seed)
        place = folder / subject / subject
        write_volume(Path(f"{place}-t1n-voided.nii.gz"), np.where(labels > 0, 0, images["t1"]))
        write_volume(Path(f"{place}-mask.nii.gz"), (labels > 0).astype(np.uint8))
    return folder


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request, source, voided, model, tmp_path_factory) -> tuple[dict, Path]:
    """Fields, and what they give when they are run here."""
    if request.param == "brats_inpainting":
        # One sample of each case, in the ROI that is given.
        fields = fields_of(voided, model, tumor="", num_samples=1)
    else:
        fields = fields_of(source, model)
    # A slice of each is enough where the layout allows it.
    slices = {"slices": (2,), "sequences": ("t1",)} if request.param == "files" else {}
    fields |= {"layout": request.param, **slices}
    return fields, run(tmp_path_factory.mktemp(request.param), fields)


def test_shares_of_an_array_are_merged_to_the_same_bytes(layout, tmp_path, monkeypatch):
    fields, local = layout
    for number in (2, 0):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number))
        run(tmp_path, {**fields, "piece": "auto", "pieces": 3})
    assert not (tmp_path / "manifest.json").exists()
    # The second share's: of a case with one sample that one, else the second.
    missing = f"_00001, sample {fields['num_samples'] - 1}"
    with pytest.raises(CaseError, match=rf"{missing}: is missing; run its share again"):
        run(tmp_path, {**fields, "piece": "merge"})
    run(tmp_path, {**fields, "piece": "1", "pieces": 3})
    run(tmp_path, {**fields, "piece": "merge"})
    assert content(tmp_path) == content(local)


def test_a_slice_is_no_set(png, model, tmp_path):
    fields = {"image": str(png), "roi": str(png), "checkpoint": str(model)}
    with pytest.raises(FieldError, match="piece is for cases"):
        run(tmp_path, {**fields, "piece": "0", "pieces": 2})


def test_on_a_cluster_every_layout_has_the_same_bytes(layout, cluster, tmp_path):
    fields, local = layout
    if fields["layout"] == "nnunet":
        pytest.skip("is the one of the next test")
    address = {"address": cluster.address, "workers": 1}
    run(tmp_path, {**fields, "engine": "ray", "ray": address})
    assert content(tmp_path) == content(local)


def test_on_a_cluster_that_loses_its_driver_and_a_node(source, model, cluster, tmp_path):
    """A broken case, and workers that die at their work: nothing lost, nothing twice."""
    broken = tmp_path / "in"
    for subject in SUBJECTS:
        (broken / subject).mkdir(parents=True)
        for path in (source / subject).iterdir():
            (broken / subject / path.name).symlink_to(path)
    write_case(broken, "BraTS2021_00003", 7)
    path = broken / "BraTS2021_00003" / "BraTS2021_00003_t2.nii.gz"
    path.write_bytes(path.read_bytes()[:-100])
    fields = fields_of(broken, model, layout="nnunet", num_samples=3)
    refused = "1 of 3 cases could not be done; the other 2 are done:\n.*_00003_t2.*truncated"
    with pytest.raises(CaseError, match=refused):
        run(tmp_path / "local", fields)

    out = tmp_path / "ray"
    values = {**fields, "engine": "ray", "ray.address": cluster.address, "ray.workers": 2}
    kill_driver("inpaint.py", values, out, lambda: records(out))
    # A record is there once its sample is; a worker may still have made one.
    before = {path: path.stat() for path in records(out)}

    lost = next(iter(cluster.worker_nodes))

    def lose() -> None:
        wait_until(lambda: len(records(out)) > len(before))
        cluster.remove_node(lost, allow_graceful=False)

    config = dict(fields)
    config |= {"engine": "ray", "ray": {"address": cluster.address, "workers": 2}}
    with ThreadPoolExecutor() as pool:
        done = pool.submit(lose)
        with pytest.raises(CaseError, match=refused):
            run(out, config)
        done.result()
    assert content(out) == content(tmp_path / "local")
    for path, stat in before.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    assert json.loads((out / "dataset.json").read_text())["numTraining"] == 6


def records(folder: Path) -> list[Path]:
    return [*(folder / "provenance").glob("[!.]*.json")]

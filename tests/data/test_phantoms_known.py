"""Phantoms made on another machine differ by roundings, and are still those that a model knows."""

import dataclasses
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from synthetic_cases import write_case
from tiny import tiny_config
from tiny_inpainter import tiny_metadata, tiny_params

from mbti_jax import Inpainter
from mbti_jax.commands.settings import from_config
from mbti_jax.evaluation.healthy import load_rival
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.interop.inference_checkpoint import write_export
from mbti_jax.models.contract import same_data
from mbti_jax.training import loop
from mbti_jax.training.settings import TrainSettings
from tfds_brats import builder
from tfds_brats.builder import BuiltDataset
from tfds_brats.phantom import VERSION
from tfds_brats.reading import SliceSource

RECORD = {"generator": "tfds_brats.phantom", "version": VERSION, "seed": 4}


def cases(folder, count=10):
    """A stand-in for what `write_phantoms` leaves."""
    for number in range(count):
        write_case(folder, f"Phantom_{number:04d}", number, tumor_size=6)
    (folder / "phantom.json").write_text(json.dumps(RECORD))
    return folder


def build(folder, name="slices", convention="phantom"):
    return builder.build(folder, convention, folder.parent / f"{folder.name} {name}", 1)


def data_of(dataset):
    """What a contract would say of it."""
    source = SliceSource(dataset, "train")
    return {"fingerprint": source.fingerprint, "phantoms": source.phantoms}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return cases(tmp_path_factory.mktemp("here") / "phantom")


@pytest.fixture(scope="module")
def there(here, tmp_path_factory):
    """The same phantoms, one voxel of each rounded otherwise."""
    folder = tmp_path_factory.mktemp("there") / "phantom"
    shutil.copytree(here, folder)
    for path in folder.glob("*/*_t2.nii.gz"):
        image = nib.load(path)
        voxels = np.asarray(image.dataobj).copy()
        voxels[10, 10, 2] += 1
        nib.save(nib.Nifti1Image(voxels, image.affine, image.header), path)
    return folder


@pytest.fixture(scope="module")
def datasets(here, there):
    return build(here), build(there)


def test_they_are_told_by_how_they_were_made(datasets):
    ours, theirs = map(data_of, datasets)
    assert ours["fingerprint"] != theirs["fingerprint"]
    assert ours["phantoms"] == theirs["phantoms"] and same_data(ours, theirs)
    assert same_data(ours, {**ours, "phantoms": None})


@pytest.mark.parametrize("name", ["seed", "version"])
def test_others_are_others(there, datasets, tmp_path, name):
    folder = tmp_path / "phantom"
    shutil.copytree(there, folder)
    (folder / "phantom.json").write_text(json.dumps({**RECORD, name: 9}))
    assert not same_data(data_of(datasets[0]), data_of(build(folder)))


def test_fewer_are_others(datasets, tmp_path):
    # Their training split is another one.
    fewer = data_of(build(cases(tmp_path / "phantom", 20)))
    assert fewer["phantoms"]["seed"] == 4
    assert not same_data(data_of(datasets[0]), fewer)


def test_only_phantoms_have_it(tmp_path):
    folder = tmp_path / "patients"
    write_case(folder, "BraTS2021_00000")
    dataset = builder.build(folder, "brats2021", tmp_path / "slices", 1, only="train")
    assert SliceSource(dataset, "train").phantoms is None
    unknown = {"fingerprint": "a", "phantoms": None}
    assert not same_data(unknown, {"fingerprint": "b", "phantoms": None})
    assert not same_data({"fingerprint": "a"}, {"fingerprint": "b"})


def test_a_model_of_phantoms_is_held_out_and_compared_wherever_they_are_made(
    datasets, there, tmp_path
):
    metadata = tiny_metadata()
    metadata["contract"]["data"] |= data_of(datasets[0])
    inpainter = Inpainter(tiny_params(metadata), metadata, 4, "runs/tiny")
    dataset = BuiltDataset(datasets[1], there, "phantom")
    assert Workbench(inpainter, dataset, tmp_path / "samples", 0).held_out
    # A rival that was trained on what was made there.
    metadata = tiny_metadata()
    metadata["contract"]["data"] |= data_of(datasets[1])
    card = {"title": "of a test", "data": "random weights", "license": "none"}
    write_export(tmp_path / "rival", tiny_params(metadata), metadata, card)
    assert load_rival(str(tmp_path / "rival"), inpainter)


def test_a_training_records_it(datasets, tmp_path, monkeypatch):
    class Recorded(Exception):
        pass

    def record(_, metadata, *__):
        raise Recorded(metadata)

    monkeypatch.setattr(loop, "Checkpointer", record)
    config = tiny_config()
    config.data.dataset, config.data.window = str(datasets[0]), 28
    settings = dataclasses.replace(from_config(TrainSettings, config), num_steps=1)
    with pytest.raises(Recorded) as error:
        loop.train(settings, tmp_path / "run")
    (metadata,) = error.value.args
    assert metadata["contract"]["data"]["phantoms"] == data_of(datasets[0])["phantoms"]

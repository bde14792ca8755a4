"""The notebook: the same as its source, runs from top to bottom, and leaves the installed JAX alone."""

import ast
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jupytext
import nbformat
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from synthetic_cases import write_volume
from tiny_inpainter import make_slice, tiny_inpainter

from colab import address
from mbti_jax.inference.inpainter import Inpainter
from tfds_brats.cases import read_case
from tfds_brats.conventions import SEQUENCES
from tfds_brats.search import find_cases
from tfds_brats.slices import bounding_box, to_slices

NOTEBOOK = ROOT / "colab" / "inpaint.ipynb"
SOURCE = NOTEBOOK.with_suffix(".py")
# Five scenarios, several tasks at once, one's own region and slice.
NUM_PICTURES = 8


def cell(title: str) -> str:
    """The code of the cell with that title."""
    (found,) = [c.source for c in jupytext.read(SOURCE).cells if f"# @title {title}" in c.source]
    return found


def test_notebook_and_source_agree():
    """`jupytext --to ipynb --update colab/inpaint.py` makes them agree."""
    notebook, source = nbformat.read(NOTEBOOK, 4), jupytext.read(SOURCE)
    assert len(notebook.cells) == len(source.cells) > 20
    for ours, theirs in zip(notebook.cells, source.cells, strict=True):
        assert (ours.cell_type, ours.source) == (theirs.cell_type, theirs.source)
        assert ours.metadata == theirs.metadata
    assert notebook.metadata["kernelspec"] == source.metadata["kernelspec"]


def test_notebook_is_committed_with_its_pictures():
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == NUM_PICTURES
    assert not any(o.output_type == "error" for o in outputs)
    # Nothing that tells whose machine it was.
    assert "/tmp/" not in NOTEBOOK.read_text() and "/home/" not in NOTEBOOK.read_text()


def test_the_address_is_that_of_setup_cfg():
    text = SOURCE.read_text()
    url = address.address((ROOT / "setup.cfg").read_text())
    assert address.with_address(text, url) == text
    here = "https://github.com/someone/some-name"
    setup = f"[metadata]\nname = x\nurl = {here}/\n"
    there = address.with_address(text, address.address(setup))
    page = (
        "https://colab.research.google.com/github/someone/some-name/blob/main/colab/inpaint.ipynb"
    )
    assert f"({page})" in there and f'REPOSITORY = "git+{here}"' in there
    assert "no public address" not in there.partition("# %%")[2].partition("# %%")[0]
    # And back.
    assert address.with_address(there, "") == address.with_address(text, "")
    with pytest.raises(ValueError, match="Colab opens https://github"):
        address.with_address(text, "https://example.org/x")


def test_notebook_runs_from_top_to_bottom(tmp_path):
    """With fewer steps and columns, which the metadata of the settings cell tells nbmake."""
    copy = Path(shutil.copy(NOTEBOOK, tmp_path))
    # One device, as a fresh runtime has.
    environment = {name: os.environ[name] for name in os.environ if name != "XLA_FLAGS"}
    options = ["-p", "no:xdist", "-p", "no:cacheprovider", "--nbmake", "--overwrite"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", tmp_path, copy.name],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout
    outputs = [o for c in nbformat.read(copy, 4).cells if c.cell_type == "code" for o in c.outputs]
    printed = "".join(o.text for o in outputs if o.output_type == "stream")
    assert "digital phantoms only" in printed and "(cpu)" in printed
    assert sum("image/png" in o.get("data", {}) for o in outputs) == NUM_PICTURES

    (files,) = find_cases(tmp_path / "phantoms" / "1", "phantom")
    case = read_case(files)
    before = np.stack([to_slices(case.values(name))[62] for name in SEQUENCES], axis=-1)
    after = np.load(tmp_path / "inpainted" / "own_slice_000.npy")
    assert after.shape == before.shape
    # The notebook's region: an ellipse in a rectangle.
    y, x = np.mgrid[: before.shape[0], : before.shape[1]]
    inside = ((y - 109.5) / 20) ** 2 + ((x - 104.5) / 15) ** 2 < 1
    np.testing.assert_array_equal(after[~inside], before[~inside])
    assert (after[inside] != before[inside]).mean() > 0.9
    assert (tmp_path / "inpainted.zip").is_file()


class Runtime:
    """An installed world in which pip is only noted down."""

    def __init__(self, monkeypatch, folder: Path, **versions: str):
        self.versions, self.command, self.constraints = versions, None, ""
        self.upgrades = {}
        monkeypatch.chdir(folder)
        monkeypatch.setattr(metadata, "distributions", self._distributions)
        monkeypatch.setattr(metadata, "version", lambda name: self.versions[name])
        monkeypatch.setattr(subprocess, "run", self._pip)

    def _distributions(self):
        return [SimpleNamespace(name=n, version=v) for n, v in self.versions.items()]

    def _pip(self, command, check):
        assert check
        self.command = [str(part) for part in command]
        self.constraints = Path(self.command[self.command.index("--constraint") + 1]).read_text()
        self.versions |= {"mbti-jax": "0.1.0"} | self.upgrades


COLAB = {"jax": "0.7.2", "jaxlib": "0.7.2", "jax-cuda12-plugin": "0.7.2", "numpy": "2.0.2"}


def test_installation_keeps_jax(tmp_path, monkeypatch, capsys):
    """Tried for real in a fresh environment with JAX 0.7.2: pip takes an older Flax that fits it."""
    runtime = Runtime(monkeypatch, tmp_path, **COLAB, flax="0.12.0", **{"nvidia-nccl-cu12": "2.27"})
    code = cell("1. Install").replace('REPOSITORY = ""', 'REPOSITORY = "git+https://host/mbti"')
    exec(code, {})
    assert runtime.command[:4] == [sys.executable, "-m", "pip", "install"]
    assert runtime.command[-1] == "git+https://host/mbti"
    kept = {f"{n}=={v}" for n, v in COLAB.items()} | {"nvidia-nccl-cu12==2.27"}
    assert set(runtime.constraints.split()) == kept
    assert "JAX 0.7.2" in capsys.readouterr().out


def test_installation_takes_the_checkout_that_the_notebook_is_in(tmp_path, monkeypatch):
    runtime = Runtime(monkeypatch, ROOT / "colab", **COLAB)
    exec(cell("1. Install"), {})
    assert runtime.command[-1] == str(ROOT)
    # A second time there is nothing to do.
    runtime.command = None
    exec(cell("1. Install"), {})
    assert runtime.command is None


def test_installation_says_what_it_lacks_or_broke(tmp_path, monkeypatch):
    runtime = Runtime(monkeypatch, tmp_path, **COLAB)
    with pytest.raises(ValueError, match="fill in REPOSITORY"):
        exec(cell("1. Install"), {})
    runtime.upgrades = {"jaxlib": "0.11.0"}
    monkeypatch.chdir(ROOT)
    with pytest.raises(RuntimeError, match="changed jaxlib; restart"):
        exec(cell("1. Install"), {})


@pytest.fixture
def colab(monkeypatch) -> SimpleNamespace:
    """Stands in for Colab's own package: notes what is mounted, and has two files to upload."""
    noted = SimpleNamespace(mounted=[], uploads={"config.json": b"{}", "model.safetensors": b"x"})
    package = ModuleType("google.colab")
    package.drive = SimpleNamespace(mount=noted.mounted.append)
    package.files = SimpleNamespace(upload=lambda: noted.uploads)
    monkeypatch.setitem(sys.modules, "google.colab", package)
    return noted


@pytest.fixture
def loaded(monkeypatch, tmp_path) -> list[str]:
    """The models that were asked for."""
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        Inpainter, "load", lambda path, batch_size: asked.append(path) or tiny_inpainter()
    )
    return asked


def load_model(model: str, folder: str = "", in_colab: bool = False) -> None:
    settings = {"MODEL": model, "MODEL_FOLDER": folder, "IN_COLAB": in_colab, "Path": Path}
    exec(cell("4. Load the model"), settings)


def test_models_come_from_the_package_a_folder_drive_or_an_upload(colab, loaded, tmp_path):
    load_model("shipped")
    load_model("folder", "runs/mine")
    assert not colab.mounted
    load_model("Google Drive", "models/mine", in_colab=True)
    assert colab.mounted == ["/content/drive"]
    load_model("upload", in_colab=True)
    drive = "/content/drive/MyDrive/models/mine"
    assert loaded == ["phantom", "runs/mine", drive, "uploaded_model"]
    for name, content in colab.uploads.items():
        assert (tmp_path / "uploaded_model" / name).read_bytes() == content


@pytest.mark.parametrize("model", ["Google Drive", "upload"])
def test_drive_and_upload_need_colab(loaded, model):
    with pytest.raises(ValueError, match="works in Colab only"):
        load_model(model, "models/mine")
    assert not loaded


def test_a_model_folder_has_to_be_named(loaded):
    with pytest.raises(ValueError, match="fill in MODEL_FOLDER"):
        load_model("folder")


@pytest.mark.parametrize("ending", [".png", ".nii.gz"])
def test_one_file_is_painted_by_the_shipped_model_of_single_sequences(loaded, tmp_path, ending):
    image, path = make_slice(dtype=np.uint16), tmp_path / f"mine{ending}"
    if ending == ".png":
        Image.fromarray(image).save(path)
    else:
        write_volume(path, np.stack([image.T] * 3, axis=-1))
    scope = {"Path": Path, "np": np, "Inpainter": Inpainter, "read_case": read_case}
    scope |= {"MODEL": "shipped", "SEQUENCE": "flair", "IN_COLAB": False, "sequences": SEQUENCES}
    scope |= {"inpainter": tiny_inpainter(4), "phantom_files": SimpleNamespace(images={})}
    scope["phantom_files"].images |= dict.fromkeys(SEQUENCES, "phantom")
    scope |= {"to_slices": to_slices, "bounding_box": bounding_box}
    (function,) = [
        node
        for node in ast.parse(cell("5. Make a phantom")).body
        if isinstance(node, ast.FunctionDef)
    ]
    exec(ast.unparse(function), scope)
    code = cell("7. Load your own slice").replace('IMAGE = ""', f"IMAGE = {str(path)!r}")
    exec(code.replace("SLICE = 62", "SLICE = 1"), scope)
    assert loaded == ["phantom_single"] and scope["own_sequences"] == ("flair",)
    np.testing.assert_array_equal(scope["own_image"][..., 0], image)
    # Of three without names nothing says which they are.
    np.save(tmp_path / "three.npy", make_slice(channels=3))
    three = cell("7. Load your own slice").replace(
        'IMAGE = ""', f"IMAGE = {str(tmp_path / 'three.npy')!r}"
    )
    with pytest.raises(ValueError, match=r"three\.npy has 3 sequences, and nothing says which"):
        exec(three, scope)
    # A model of one's own has to fit.
    exec(code.replace("SLICE = 62", "SLICE = 1"), scope | {"MODEL": "folder"})
    assert loaded == ["phantom_single"]

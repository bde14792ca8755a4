"""The served page with the two bundled models, here by tiny ones.

A module of its own: Gradio keeps one folder and one set of paths for all servers of a process.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_inpainter import make_slice, tiny_metadata, tiny_params

from mbti_jax.inference.inpainter import Inpainter

gradio_client = pytest.importorskip("gradio_client", reason="needs the extra `web`")
pytest.importorskip("gradio", reason="needs the extra `web`")

from tiny_server import running  # noqa: E402 (it needs Gradio)


def handles(paths):
    return [gradio_client.handle_file(str(path)) for path in paths]


def test_what_is_not_all_sequences_is_painted_by_the_other_model(case_files, tmp_path):
    models = []
    for name, joint in (("phantom", True), ("phantom_single", False)):
        metadata = tiny_metadata(joint=joint)
        models.append(Inpainter(tiny_params(metadata), metadata, 4, name))
    Image.fromarray(make_slice(dtype=np.uint16)).save(tmp_path / "slice.png")
    roi = np.zeros(make_slice().shape, np.uint8)
    roi[15:20, 12:18] = 2
    Image.fromarray(roi).save(tmp_path / "roi.png")
    with running(tmp_path / "both", inpainters=models) as server:
        client = gradio_client.Client(server.local_url, verbose=False, download_files=tmp_path)
        said = client.predict(handles([tmp_path / "slice.png"]), "", [], api_name="/load")
        assert "It is painted by phantom_single, one sequence at a time." in said
        client.predict(handles([tmp_path / "roi.png"])[0], "", [], api_name="/set_roi")
        said, paths = client.predict([], 3, 1, 2, 0.4, api_name="/inpaint")
        assert said.startswith("Repainted slice 0.")
        records = [json.loads(Path(path).read_text()) for path in paths if path.endswith(".json")]
        assert [record["checkpoint"]["name"] for record in records] == ["phantom_single"]
        said = client.predict(handles(case_files), "brats2021", [], api_name="/load")
        assert "painted by" not in said

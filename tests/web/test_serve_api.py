"""The served page as a script uses it, through gradio_client."""

import json
import socket
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from synthetic_cases import SHAPE, SUFFIXES, write_case, write_volume
from tiny_inpainter import make_slice

gradio_client = pytest.importorskip("gradio_client", reason="needs the extra `web`")
httpx = pytest.importorskip("httpx", reason="needs the extra `web`")
pytest.importorskip("gradio", reason="needs the extra `web`")

from tiny_server import tiny_server  # noqa: E402 (it needs Gradio)

SUBJECT = "BraTS2021_00001"


@pytest.fixture(scope="module")
def asked_for():
    """Every address that this process asks for, from before the server starts."""
    addresses, real = set(), socket.socket.connect

    def connect(self, address):
        addresses.add(address[0] if isinstance(address, tuple) else address)
        return real(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        yield addresses


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def address(root, asked_for):
    with tiny_server(root) as url:
        yield url


@pytest.fixture
def client(address, tmp_path):
    return gradio_client.Client(address, verbose=False, download_files=tmp_path / "downloads")


@pytest.fixture
def files(tmp_path):
    folder = write_case(tmp_path / "mine", SUBJECT)
    return {name: folder / f"{SUBJECT}{suffix}.nii.gz" for name, suffix in SUFFIXES.items()}


def handles(paths):
    return [gradio_client.handle_file(str(path)) for path in paths]


def stored(path):
    return np.asarray(nib.load(path).dataobj.get_unscaled())


def test_the_endpoints(client):
    names = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(names) == {"/load", "/load_example", "/set_roi", "/inpaint", "/cancel"}


def test_a_case_is_repainted(client, files, tmp_path):
    said = client.predict(handles(files.values()), "brats2021", [], api_name="/load")
    assert SUBJECT in said and "right is on the left" in said
    roi = np.zeros(SHAPE, np.uint8)
    roi[6:9, 7, 2] = roi[7, 6:10, 2] = 1
    path = write_volume(tmp_path / "roi.nii.gz", roi)
    (handle,) = handles([path])
    said = client.predict(handle, "1:normal", ["normal"], api_name="/set_roi")
    assert "1 slice: 2" in said
    advanced = ("samples", "unipc", "projected", 0.1, 0.9)
    said, found = client.predict(["t1", "flair"], 5, 2, 2, 0.4, *advanced, api_name="/inpaint")
    assert "Repainted slice 2" in said
    found = {Path(path).name: Path(path) for path in found}
    box = np.zeros(SHAPE, bool)
    box[6:9, 6:10, 2] = True
    for name in ("t1", "flair"):
        after = found[f"{SUBJECT}{SUFFIXES[name]}-inpainted.nii.gz"]
        before = stored(files[name])
        np.testing.assert_array_equal(stored(after)[~box], before[~box])
        assert (stored(after)[box] != before[box]).any()
    np.testing.assert_array_equal(stored(found["rois.nii.gz"]), np.where(box, 5, 0))
    record = json.loads(found["provenance.json"].read_text())
    assert record["sampling"]["seed"] == 5 and record["rois"]["normal"]["mode"] == "box"
    assert record["sampling"]["sampler"] == "unipc"
    assert record["sampling"]["guidance"] == "projected"
    assert record["sampling"]["guidance_interval"] == [0.1, 0.9]
    assert f"{SUBJECT}-inpainted.zip" in found and "preview.png" in found


def test_examples(client):
    said = client.predict("remove a tumor", api_name="/load_example")
    assert said.startswith("Phantom_0000")
    said, _ = client.predict(["t1"], 0, 1, 1, 0.4, api_name="/inpaint")
    assert "Repainted slice" in said


def test_two_clients_do_not_see_each_other(client, address):
    client.predict("remove a tumor", api_name="/load_example")
    other = gradio_client.Client(address, verbose=False)
    with pytest.raises(gradio_client.exceptions.AppError, match="Load an image"):
        other.predict([], 0, 1, 1, 0.4, api_name="/inpaint")


def test_the_next_image_replaces_the_files_of_the_one_before(client, root, files, tmp_path):
    Image.fromarray(make_slice(dtype=np.uint16)).save(tmp_path / "slice.png")
    before = set((root / "sessions").iterdir())
    client.predict(handles(files.values()), "brats2021", [], api_name="/load")
    (first,) = set((root / "sessions").iterdir()) - before
    client.predict(handles([tmp_path / "slice.png"]), "", [], api_name="/load")
    (second,) = set((root / "sessions").iterdir()) - before
    assert first != second and not first.exists()


def test_errors_are_sentences(client, tmp_path):
    def said(*arguments, api_name):
        with pytest.raises(gradio_client.exceptions.AppError) as error:
            client.predict(*arguments, api_name=api_name)
        return str(error.value)

    assert "Load an image" in said([], 0, 1, 1, 0.4, api_name="/inpaint")
    assert "Choose a file" in said([], "", [], api_name="/load")
    assert "Unknown example" in said("mona lisa", api_name="/load_example")
    broken = tmp_path / "broken.nii"
    broken.write_bytes(b"this is no volume" * 40)
    text = said(handles([broken]), "", ["t1"], api_name="/load")
    assert text.startswith("broken.nii: cannot be read as NIfTI")
    client.predict("remove a tumor", api_name="/load_example")
    assert "Seed must be a whole number" in said([], 2**31, 1, 1, 0.4, api_name="/inpaint")
    assert "images; at most 32" in said([], 0, 9, 1, 0.4, api_name="/inpaint")
    upside_down = (0, 1, 1, 0.4, "samples", "ddim", "plain", 0.9, 0.1)
    assert "must go from a lower" in said([], *upside_down, api_name="/inpaint")
    assert "at least 2 for their mean" in said([], 0, 1, 1, 0.4, "mean", api_name="/inpaint")
    assert "not in the list of choices" in said([], 0, 2, 1, 0.4, "median", api_name="/inpaint")
    text = said([], 0, 2, 1, 0.4, None, api_name="/inpaint")
    assert (
        "The result must be one of samples, samples near the mean, mean, mean in one pass" in text
    )
    client.predict("remove a tumor", api_name="/load_example")
    client.predict(["t1"], 0, 2, 1, 0.4, "mean in one pass", api_name="/inpaint")


def test_a_large_upload_is_refused(client, address, root, tmp_path):
    large = tmp_path / "large.nii"
    large.write_bytes(bytes(1_500_000))
    with pytest.raises(ValueError, match="exceeds the maximum file size"):
        client.predict(handles([large]), "", ["t1"], api_name="/load")
    # A client that does not ask how much is taken is cut off by the server.
    with large.open("rb") as content:
        answer = httpx.post(f"{address}gradio_api/upload", files={"files": content}, timeout=60)
    assert answer.status_code == 413
    kept = [path for path in root.rglob("*large*") if path.is_file()]
    assert sum(path.stat().st_size for path in kept) <= 1_000_000


def test_a_run_can_be_cancelled(client):
    client.predict("remove a tumor", api_name="/load_example")
    job = client.submit([], 0, 4, 1000, 0.4, api_name="/inpaint")
    deadline = time.monotonic() + 120
    while not (job.status().progress_data or job.done()) and time.monotonic() < deadline:
        time.sleep(0.05)
    client.predict(api_name="/cancel")
    said, found = job.result()
    assert said.startswith("Cancelled") and not found, "no error"
    said, _ = client.predict(["t1"], 0, 1, 1, 0.4, api_name="/inpaint")
    assert "Repainted" in said, "a cancelled run must not stop the next one"


def test_nothing_is_sent_out(client, asked_for):
    client.predict("remove a tumor", api_name="/load_example")
    assert asked_for and asked_for <= {"127.0.0.1", "::1", "localhost"}

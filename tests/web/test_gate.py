"""What the page answers to other sites, to odd requests, and to clients that leave."""

import asyncio
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image
from tiny_inpainter import make_slice

httpx = pytest.importorskip("httpx", reason="needs the extra `web`")
pytest.importorskip("gradio", reason="needs the extra `web`")

from starlette.datastructures import Headers  # noqa: E402 (it comes with Gradio)
from starlette.responses import FileResponse  # noqa: E402
from tiny_server import running  # noqa: E402 (it needs Gradio)
from web_sessions import LIMITS  # noqa: E402

from mbti_jax.web.gate import Door, Gate, Refused  # noqa: E402
from mbti_jax.web.visitors import Visitors  # noqa: E402

PATIENCE = 60
INPAINT = [["t1"], 0, 1, 1, 0.4, "samples", "ddim", "plain", 0, 1, True]


# Whom requests come from.


def refusal(door, method="POST", **headers):
    """The status of the refusal; None if the request is let in."""
    raw = [
        (name.replace("_", "-").encode(), value.encode())
        for name, values in headers.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    try:
        door.check(method, Headers(raw=raw))
    except Refused as error:
        assert str(error).count(" ") > 3
        return error.status
    return None


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:7860", "localhost:8000", "LOCALHOST", "[::1]:7860", "127.0.1.1:7860"],
)
def test_the_own_machine(host):
    assert refusal(Door("127.0.0.1"), host=host) is None
    assert refusal(Door("::1"), host=host, origin=f"http://{host.lower()}") is None


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example"),
        *("192.168.1.5:7860", "0.0.0.0:7860", "[2001:db8::1]:7860", "2130706433", "0x7f.1"),
        *("", "[::1", "::1", "localhost@evil.example", "localhost:http", "localhost, evil.example"),
        ("localhost", "evil.example"),
        (),
    ],
)
def test_other_hosts(host):
    """A page of another site may let a name of its own point to this machine."""
    assert refusal(Door("127.0.0.1"), "GET", host=host) in (400, 421)


@pytest.mark.parametrize(
    "origin",
    [
        *("https://evil.example", "null", "", "file://", "http://localhost:3000"),
        *("http://127.0.0.1", "http://127.0.0.1:7861", "http://127.0.0.1:7860.evil.example"),
        *("http://127.0.0.1:7860@evil.example", "http://evil.example@127.0.0.1:7860"),
        *("http://127.0.0.1:7860/", "ws://127.0.0.1:7860", "http://[::1]:7860"),
        ("http://127.0.0.1:7860", "http://evil.example"),
    ],
)
def test_pages_of_other_sites(origin):
    assert refusal(Door("127.0.0.1"), host="127.0.0.1:7860", origin=origin) == 403


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:7860", "http://127.0.0.1:7860"),
        ("localhost:7860", "http://LOCALHOST:7860"),
        ("[::1]:7860", "http://[::1]:7860"),
        ("localhost", "http://localhost"),
        ("localhost", "http://localhost:80"),
        ("localhost:443", "https://localhost"),
        ("localhost", "https://localhost"),
    ],
)
def test_the_own_page(host, origin):
    assert refusal(Door("127.0.0.1"), host=host, origin=origin) is None


def test_what_browsers_say_of_the_site():
    door, host = Door("127.0.0.1"), "127.0.0.1:7860"
    for site in ("cross-site", "same-site"):
        other = {"host": host, "sec_fetch_site": site}
        assert refusal(door, "GET", **other, sec_fetch_mode="no-cors") == 403
        link = {**other, "sec_fetch_mode": "navigate"}
        assert refusal(door, "GET", **link, sec_fetch_dest="document") is None
        assert refusal(door, "GET", **link, sec_fetch_dest="iframe") == 403
        assert refusal(door, "POST", **link, sec_fetch_dest="document") == 403
    assert refusal(door, host=host, sec_fetch_site="same-origin", sec_fetch_mode="cors") is None


def test_a_page_for_others():
    door = Door("0.0.0.0", ("workstation", "Page.example"))
    for host in ("192.168.1.5:7860", "workstation:7860", "page.example", "[2001:db8::1]:7860"):
        assert refusal(door, host=host, origin=f"http://{host}") is None
    # A number cannot be a name that another site lets point here.
    assert refusal(door, host="evil.example:7860") == 421
    assert refusal(door, host="192.168.1.5:7860", origin="http://192.168.1.6:7860") == 403
    # A proxy that asks by the number, for a page that browsers know by its name.
    assert refusal(door, host="127.0.0.1:7860", origin="https://page.example") is None


# The served page.


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(root):
    with running(root) as server:
        yield server


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.local_url, timeout=PATIENCE) as client:
        yield client


def call(client, name, data, session="one"):
    """Calls a function as curl does; returns (kind of the answer, the answer)."""
    body = {"data": data, "session_hash": session}
    answer = client.post(f"gradio_api/call/{name}", json=body)
    assert answer.status_code == 200, answer.text
    number = answer.json()["event_id"]
    lines = client.get(f"gradio_api/call/{name}/{number}").text.strip().splitlines()
    return lines[-2].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))


def test_all_requests_are_checked(client, root):
    other = {"origin": "https://evil.example"}
    file = {"files": ("other.png", b"123")}
    answers = [
        client.post("gradio_api/upload", files=file, headers=other),
        client.post("gradio_api/upload", files=file, headers={"host": "evil.example"}),
        client.post("gradio_api/call/load_example", json={"data": ["x"]}, headers=other),
        client.get("gradio_api/heartbeat/abc", headers=other),
        client.get("config", headers={"host": "evil.example"}),
        client.get("/", headers={"host": "evil.example"}),
    ]
    assert [answer.status_code for answer in answers] == [403, 421, 403, 403, 421, 421]
    assert all(answer.json()["error"] for answer in answers)
    assert not list(root.rglob("*other.png"))
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "file=https://a.example/x",
        "file/HTTP://a.example",
        "proxy=https://a.hf.space/x",
        "deep_link",
    ],
)
def test_the_server_fetches_nothing_for_others(client, path):
    assert client.get(f"gradio_api/{path}").status_code == 404


def test_files_from_elsewhere(client):
    for path in ("https://a.example/a.png", "file:///etc/passwd", " HTTP://a.example"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = {"data": [[file], "", []], "session_hash": "one"}
        answer = client.post("gradio_api/call/load", json=body)
        assert answer.status_code == 400 and "have to be uploaded" in answer.json()["error"]
    kind, answer = call(client, "load", [[file | {"path": "/etc/passwd"}], "", []])
    assert kind == "error" and "cannot be" in answer["error"]


JUNK = [None, -1, 2.5, 1e308, 10**400, True, "x", [[]], [None], {"a": 1}, {"path": 5}]
WANTED = {
    "load": [[], "", []],
    "load_example": ["remove a tumor"],
    "set_roi": [None, "", [], "", 2.0, 3.0],
    "inpaint": INPAINT,
}


@pytest.mark.parametrize("name", WANTED)
def test_values_of_another_kind_are_answered_in_a_sentence(client, name):
    """Gradio itself answers {"error": null} to most of these."""
    call(client, "load_example", ["remove a tumor"])
    wanted = WANTED[name]
    requests = [[], [None] * 19] + [
        [*wanted[:i], junk, *wanted[i + 1 :]] for i in range(len(wanted)) for junk in JUNK
    ]
    for data in requests:
        kind, answer = call(client, name, data)
        if kind == "error":
            assert isinstance(answer["error"], str) and " " in answer["error"], (data, answer)
            assert "/tmp" not in answer["error"] and "Traceback" not in answer["error"]
        else:
            # A weight of -1 is one, none the one that suits, and no sampler the one that is recommended.
            assert name == "inpaint", data
            assert data[4] in (-1, 2.5, None) or None in (data[1], data[6]) or data == wanted, data


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ("[" * 100_000, "nested"),
        ('{"data": [NaN]}', "NaN is no number"),
        ('{"data": [-Infinity]}', "-Infinity is no number"),
        ("null", "must be a JSON object"),
        ("[1]", "must be a JSON object"),
        ("{}", "`data` must be a list"),
        ('{"data": {}}', "`data` must be a list"),
        ('{"data": [], "fn_index": "0"}', "no function '0'"),
        ('{"data": [], "fn_index": 99999}', "no function 99999"),
        ('{"data": [], "fn_index": true}', "no function True"),
        ('{"data": [], "session_hash": 5}', "`session_hash` must be text"),
        ('{"data": [], "session_hash": ""}', "`session_hash` must be text"),
        ('{"data": [], "trigger_id": []}', "`trigger_id` must be"),
        (json.dumps({"data": [], "session_hash": "x" * 1000}), "`session_hash` must be text"),
    ],
)
def test_requests_that_are_none(client, body, problem):
    for path in ("call/load", "run/load"):
        answer = client.post(f"gradio_api/{path}", content=body)
        assert answer.status_code == 400 and problem in answer.json()["error"]
    # Here the function's number is asked for first.
    answer = client.post("gradio_api/queue/join", content=body)
    assert answer.status_code == 400 and answer.json()["error"].count(" ") > 3


def test_functions_that_are_none(client):
    answer = client.post("gradio_api/call/nothing", json={"data": []})
    assert answer.status_code == 404 and "no function 'nothing'" in answer.json()["error"]
    # Directly, without the queue, nobody could wait in line or leave.
    answer = client.post("gradio_api/run/inpaint", json={"data": INPAINT, "session_hash": "one"})
    assert answer.status_code == 404 and "queue" in answer.json()["detail"]
    answer = client.post("gradio_api/run/cancel", json={"data": []})
    assert answer.status_code == 500 and "`session_hash`" in answer.json()["error"]


def test_painters_of_another_kind(server, client):
    call(client, "load_example", ["remove a tumor"], "painter")
    number = next(n for n, fn in server.page.fns.items() if fn.fn.__name__ == "paint")
    for value in (5, "x", [], {}, {"slice": 0, "runs": [0, 480], "box": "normal"}, {"box": [[]]}):
        # With the form, whose values say what a run would take.
        body = {"data": [value, *LONG], "session_hash": "painter", "fn_index": number}
        answer = client.post("gradio_api/run/predict", json=body)
        assert answer.status_code == 500 and "painter" in answer.json()["error"], value


def test_large_requests(client):
    answer = client.post("gradio_api/call/load", content=b" " * 16_000_001)
    assert answer.status_code == 413
    answer = client.post("gradio_api/upload", files={"files": ("a", b" " * 9_100_000)})
    assert answer.status_code == 413 and "may have 9 MB" in answer.json()["error"]

    def stream():
        for _ in range(20):
            yield b" " * 1_000_000

    answer = client.post("gradio_api/call/load", content=stream())
    assert answer.status_code == 413


# Clients that leave.


def is_free(server):
    return not any(visitor.is_busy for visitor in server.visitors._visitors.values())


def wait_for(condition, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


LONG = [["t1"], 0, 16, 1000, 0.4, "samples", "ddim", "plain", 0, 1, True]


def begin_long_run(client, server, session):
    call(client, "load_example", ["remove a tumor"], session)
    body = {"data": LONG, "session_hash": session}
    number = client.post("gradio_api/call/inpaint", json=body).json()["event_id"]
    wait_for(lambda: server.visitors._visitors[session].is_busy)
    return number


def test_a_run_is_cancelled_when_its_client_is_gone(client, server):
    """Without a heartbeat: only the connection that waits for the result is there, and breaks."""
    number = begin_long_run(client, server, "gone")
    session = server.visitors._visitors["gone"].session
    with client.stream("GET", f"gradio_api/call/inpaint/{number}"):
        time.sleep(0.5)
        assert not session.cancelled.is_set() and session.running
    wait_for(session.cancelled.is_set)
    wait_for(lambda: is_free(server))
    assert not session.result_folder().exists()
    # The end of the run does not count as a return; what was loaded goes like that of all who left.
    assert server.visitors._visitors["gone"].left is not None


def test_a_run_that_nobody_listens_to_is_cancelled(client, server, monkeypatch):
    monkeypatch.setattr("mbti_jax.web.visitors._UNHEARD", 0.5)
    begin_long_run(client, server, "silent")
    wait_for(lambda: is_free(server))


def test_waiting_runs_are_cancelled_too(client, server):
    first = begin_long_run(client, server, "first")
    second = begin_long_run(client, server, "second")
    session = server.visitors._visitors["second"].session
    with client.stream("GET", f"gradio_api/call/inpaint/{first}"):
        with client.stream("GET", f"gradio_api/call/inpaint/{second}"):
            time.sleep(0.5)
        wait_for(lambda: not session.running)
        assert server.visitors._visitors["first"].session.running
    wait_for(lambda: is_free(server))


def test_a_closed_tab_takes_its_files_along(client, server, root, monkeypatch):
    monkeypatch.setattr("mbti_jax.web.visitors._CLOSED_TAB", 0.5)
    content = root / "own.png"
    Image.fromarray(make_slice(dtype=np.uint16)).save(content)
    with client.stream("GET", "gradio_api/heartbeat/tab"):
        with content.open("rb") as file:
            (path,) = client.post("gradio_api/upload", files={"files": file}).json()
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        kind, _ = call(client, "load", [[file], "", []], "tab")
        assert kind == "complete"
        folder = server.visitors._visitors["tab"].session.folder
        assert folder.exists() and list((root / "cache").rglob("own.png"))
        holder = server.page.server_app.state_holder
        assert "tab" in holder
    wait_for(lambda: "tab" not in server.visitors)
    assert not folder.exists() and not list((root / "cache").rglob("own.png"))
    assert "tab" not in holder


def test_sessions_of_others_outlast_a_flood(client, server):
    call(client, "load_example", ["remove a tumor"], "there")
    others = [call(client, "load_example", ["remove a tumor"], f"flood {n}") for n in range(18)]
    refused = [answer["error"] for kind, answer in others if kind == "error"]
    assert refused and all("try again" in text for text in refused)
    kind, answer = call(client, "inpaint", INPAINT, "there")
    assert kind == "complete" and "Repainted" in answer[0]


def test_pictures_and_results_go_with_the_session(tmp_path):
    with running(tmp_path) as server, httpx.Client(base_url=server.local_url, timeout=60) as client:
        call(client, "load_example", ["remove a tumor"])
        _, (_, files) = call(client, "inpaint", INPAINT)
        assert all("/sessions/" in file["path"] for file in files)
        assert client.get(files[0]["url"]).status_code == 200
        (folder,) = (tmp_path / "sessions").iterdir()
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        threading.Thread(target=server.visitors.close).run()
        assert client.get(files[0]["url"]).status_code == 403
    assert not folder.exists() and not list((tmp_path / "sessions").iterdir())


@pytest.mark.parametrize("when", ["before it is looked at", "before it is opened"])
def test_files_that_go_while_they_are_asked_for(tmp_path, caplog, when):
    """As those of images do in whose place newer ones are loaded: an answer, and nothing in the log."""
    path = tmp_path / "gone.bin"
    path.write_bytes(b"old")

    async def app(scope, receive, send):
        stat = path.stat() if when == "before it is opened" else None
        response = FileResponse(path, stat_result=stat)
        path.unlink()
        await response(scope, receive, send)

    door, visitors = Door("127.0.0.1"), Visitors(LIMITS, 4)
    gate = Gate(app, door, visitors, get_page=dict, bytes_of_uploads=int)

    async def ask():
        transport = httpx.ASGITransport(gate)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(f"/gradio_api/file={path}")

    answer = asyncio.run(ask())
    assert answer.status_code == 410 and "load the images again" in answer.json()["error"]
    assert not caplog.records


def test_a_password(tmp_path):
    with (
        running(tmp_path, "open sesame") as server,
        httpx.Client(base_url=server.local_url, timeout=PATIENCE) as client,
    ):
        for path in ("config", "gradio_api/heartbeat/a", "gradio_api/queue/data?session_hash=a"):
            assert client.get(path).status_code == 401
        for path in ("gradio_api/upload", "gradio_api/cancel", "gradio_api/queue/join"):
            assert client.post(path, json={"data": []}).status_code == 401
        wrong = client.post("login", data={"username": "a", "password": "sesame"})
        assert wrong.status_code == 400
        right = client.post("login", data={"username": "a", "password": "open sesame"})
        assert right.status_code == 200
        kind, _ = call(client, "load_example", ["remove a tumor"])
        assert kind == "complete"

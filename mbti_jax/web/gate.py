"""The gate that every request passes: whom it comes from, what it may hold, and who still listens."""

import contextlib
import dataclasses
import json
import logging
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mbti_jax.web.addresses import client_of, host_and_port, is_address, is_loopback, share
from mbti_jax.web.uploads import MAX_FILES
from mbti_jax.web.visitors import Visitors

_API = "/gradio_api"
# What is asked by a call of a function, and how one listens for its result.
_CALLS = re.compile(rf"{_API}/(queue/join|(?:run|api|call)/[^/]+)/?")
_RESULTS = re.compile(rf"{_API}/call/[^/]+/([^/]+)")
_TAB, _JOIN, _FILE = f"{_API}/heartbeat/", f"{_API}/queue/join", f"{_API}/file="
# Gradio's ways that the page does not need: to fetch from other servers, to call functions without a
# session, to keep sessions, videos or code on disk.
_NEEDLESS = re.compile(
    rf"(?:{_API}/(?:proxy=|file[=/][a-z]+:|component_server|call/v2|process_recording|deep_link|run-history"
    rf"|undo-vibe|vibe|stream/)|/monitoring).*",
    re.IGNORECASE | re.DOTALL,
)
_MB = 10**6
# Of a request that is no upload. The mask of the largest slice takes about half of it.
_BODY_BYTES = 16 * _MB
# Calls of one session, and of all, that may wait.
_CALLS_PER_SESSION, _CALLS_OF_ALL = 16, 128
_KEY_CHARACTERS = 128
_PORTS = {"http": 80, "https": 443}

_log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that is not answered: why, and the HTTP status."""

    def __init__(self, problem: str, status: int = 403):
        super().__init__(problem)
        self.problem, self.status = problem, status


@dataclasses.dataclass(frozen=True)
class Door:
    """Where the page is served.

    Attributes:
        host: the address that the server listens on.
        names: further names that lead to it, such as a proxy's.
    """

    host: str
    names: tuple[str, ...] = ()

    def check(self, method: str, headers: Headers) -> None:
        """Refuses requests of other sites' pages, and those that reached this server by another's name.

        Browsers send the name in the address bar as Host, and the site whose page asks as Origin. A page
        of another site may well send requests here, also by a name of its own that it lets point here
        (DNS rebinding); neither may be answered. A number as Host cannot be made to point elsewhere.
        """
        hosts = headers.getlist("host")
        try:
            (text,) = hosts
            name, port = host_and_port(text)
        except ValueError:
            raise Refused(
                "the request does not say in one Host header whom it is for", 400
            ) from None
        own = {self.host.lower(), "localhost", *(other.lower() for other in self.names)}
        is_own_number = is_loopback(name) if is_loopback(self.host) else is_address(name)
        if name not in own and not is_own_number:
            raise Refused(
                f"this page is not served as {name}; whoever serves it has to name that host in the "
                "setting host_names",
                421,
            )
        for origin in headers.getlist("origin"):
            if not self._is_same_site(origin, name, port):
                raise Refused("pages of other sites may not use this page")
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode")
        dest = headers.get("sec-fetch-dest", "document")
        is_link = (method, mode, dest) == ("GET", "navigate", "document")
        if site not in ("same-origin", "none") and not is_link:
            raise Refused("pages of other sites may not use this page")

    def _is_same_site(self, origin: str, name: str, port: int | None) -> bool:
        parts = urlsplit(origin)
        if parts.scheme not in _PORTS or parts.path or parts.query or parts.fragment:
            return False  # Also "null", of files and of frames in a sandbox.
        default = _PORTS[parts.scheme]
        try:
            sender = host_and_port(parts.netloc, default)
        except ValueError:
            return False
        behind_proxy = sender[0] in {other.lower() for other in self.names}
        return behind_proxy or sender == (name, port or default)


class Gate:
    """ASGI middleware in front of Gradio."""

    def __init__(
        self,
        app: ASGIApp,
        door: Door,
        visitors: Visitors,
        get_page: Callable[[], Any],
        bytes_of_uploads: Callable[[], int],
    ):
        """Wraps an app.

        Args:
            door: where the page is served.
            visitors: who is on it.
            get_page: gives the running `gradio.Blocks`.
            bytes_of_uploads: measures those on disk.
        """
        self._app = app
        self._door = door
        self._visitors = visitors
        self._get_page = get_page
        self._bytes_of_uploads = bytes_of_uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        is_started = False

        async def note_start(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            if scope["type"] != "http":
                raise Refused("the page uses no web sockets")
            headers = Headers(scope=scope)
            self._door.check(scope["method"], headers)
            await self._pass(scope, headers, receive, note_start)
        except ClientDisconnect:
            return
        except Exception as error:
            if not isinstance(error, Refused):
                _log.warning("a request to %s failed", scope.get("path"), exc_info=True)
                error = Refused(
                    "the request cannot be understood; it asks for nothing there is", 400
                )
            if is_started or scope["type"] != "http":
                raise
            content = {"error": error.problem, "detail": error.problem}
            response = JSONResponse(content, error.status, headers={"connection": "close"})
            await response(scope, receive, send)

    async def _pass(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        path, client = scope["path"], client_of((scope.get("client") or ("",))[0])
        if _NEEDLESS.fullmatch(path):
            raise Refused("there is nothing here", 404)
        with contextlib.ExitStack() as stack:
            if scope["method"] == "POST":
                self._check_login(scope, headers, path)
                if path.rstrip("/") == f"{_API}/upload":
                    on_disk = await to_thread.run_sync(self._bytes_of_uploads)
                    upload = self._upload(headers, client, receive, on_disk)
                    receive = stack.enter_context(upload)
                else:
                    receive = await self._request(path, headers, client, receive)
            elif (key := self._listens_as(scope, path)) is not None:
                self._check_login(scope, headers, path)
                is_tab = path.startswith(_TAB)
                broken = stack.enter_context(
                    _refusing(self._visitors.connected(key, client, is_tab))
                )
                receive, send = _watched(receive, send, broken)
            if path.startswith(_FILE):
                await self._send_file(scope, receive, send)
            else:
                await self._app(scope, receive, send)

    async def _send_file(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Images and results go when newer ones are loaded, also while they are being asked for."""
        try:
            # Starlette starts its answer before it opens the file.
            await self._app(scope, receive, _started_late(send))
        except Exception:
            if Path(scope["path"].removeprefix(_FILE)).exists():
                raise
            raise Refused("this file is not kept any more; load the images again", 410) from None

    def _listens_as(self, scope: Scope, path: str) -> str | None:
        """The session hash of a client that holds a connection, or None."""
        path = path.rstrip("/")
        if scope["method"] != "GET":
            return None
        if path.startswith(_TAB):
            return _key(path.removeprefix(_TAB))
        if path == f"{_API}/queue/data":
            (key,) = parse_qs(scope["query_string"].decode()).get("session_hash", [""])
            return _key(key)
        if match := _RESULTS.fullmatch(path):
            queue = self._get_page()._queue
            of_event = (k for k, ids in queue.pending_event_ids_session.items() if match[1] in ids)
            key = next(of_event, None)
            if key is None:
                raise Refused("there is no call of this number, or its result was fetched", 404)
            return key
        return None

    def _check_login(self, scope: Scope, headers: Headers, path: str) -> None:
        """Gradio itself asks for the password, but not everywhere."""
        app = scope["app"]
        if app.auth is None or not path.startswith(_API):
            return
        cookies = headers.get("cookie", "")
        tokens = re.findall(
            rf"access-token-(?:unsecure-)?{re.escape(app.cookie_id)}=([^;\s]+)", cookies
        )
        if not any(token in app.tokens for token in tokens):
            raise Refused("log in first", 401)

    async def _request(self, path: str, headers: Headers, client: str, receive: Receive) -> Receive:
        """Reads a request that is no upload; checks it if it calls a function."""
        body = bytearray()
        announced = headers.get("content-length", "0")
        more = True
        while more:
            if len(body) > _BODY_BYTES or int(announced) > _BODY_BYTES:
                raise Refused(f"the request has more than {_BODY_BYTES // _MB} MB", 413)
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if _CALLS.fullmatch(path):
            body = self._checked_call(bytes(body), path, client)
        return _replayed(bytes(body), receive)

    def _checked_call(self, body: bytes, path: str, client: str) -> bytes:
        call = _parsed(body)
        page = self._get_page()
        if not isinstance(call.get("data"), list):
            raise Refused("`data` must be a list of the function's inputs", 400)
        number = call.get("fn_index")
        if number is not None and (type(number) is not int or number not in page.fns):
            raise Refused(
                f"there is no function {number!r:.40}: `fn_index` must be its number", 400
            )
        name = path.rstrip("/").rpartition("/")[2]
        if number is None and path.startswith(_JOIN):
            raise Refused("`fn_index` must be the number of a function", 400)
        if number is None and name not in [fn.api_name for fn in page.fns.values()]:
            raise Refused(f"there is no function {name!r:.40}", 404)
        if type(call.get("trigger_id")) not in (int, type(None)):
            raise Refused("`trigger_id` must be a whole number", 400)
        if f"{_API}/call/" in path and call.get("session_hash") is None:
            # Gradio would make one up that nobody knows of.
            call["session_hash"] = secrets.token_hex(8)
            body = json.dumps(call).encode()
        if (key := call.get("session_hash")) is not None:
            try:
                self._visitors.of(_key(key), client)
            except ValueError as error:
                raise Refused(str(error), 503) from error
            self._check_waiting(page._queue, key, client)
        return body

    def _check_waiting(self, queue: Any, key: str, client: str) -> None:
        """One client's calls must not fill the queue."""
        waiting = queue.event_ids_to_events.values()
        mine = len(queue.pending_event_ids_session.get(key, ()))
        of_client = sum(client_of(_client_host(event.request)) == client for event in waiting)
        if mine >= _CALLS_PER_SESSION or of_client >= share(_CALLS_OF_ALL, client):
            raise Refused(
                "too many of your requests are waiting for an answer; try again later", 503
            )

    @contextlib.contextmanager
    def _upload(self, headers: Headers, client: str, receive: Receive, on_disk: int):
        limits = self._visitors.limits
        most = MAX_FILES * limits.upload_mb * _MB + _MB
        announced = int(headers.get("content-length", most))
        if announced > most:
            raise Refused(f"an upload may have {most // _MB} MB, not {announced // _MB} MB", 413)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > announced:
                raise Refused(f"an upload may have {announced} bytes, not more", 413)
            return message

        with _refusing(self._visitors.uploading(client, announced, on_disk)):
            yield counted


def _parsed(body: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        call = json.loads(body, parse_constant=refuse)
    except RecursionError:
        raise Refused("the request is nested too deeply", 400) from None
    except ValueError as error:
        raise Refused(f"the request is not JSON: {error}", 400) from None
    if not isinstance(call, dict):
        raise Refused("the request must be a JSON object", 400)
    if _asks_for_address(call.get("data")):
        raise Refused("files have to be uploaded; the page fetches none", 400)
    return call


def _asks_for_address(value: Any) -> bool:
    """Whether one of the files in it is to be fetched from another server."""
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and re.match(r"\s*[a-z]+:", path, re.IGNORECASE):
            return True
        value = list(value.values())
    return isinstance(value, list) and any(map(_asks_for_address, value))


def _key(key: Any) -> str:
    if not isinstance(key, str) or not 0 < len(key) <= _KEY_CHARACTERS:
        raise Refused(f"`session_hash` must be text of 1 to {_KEY_CHARACTERS} characters", 400)
    return key


def _client_host(request: Any) -> str:
    return request.client.host if request.client else ""


@contextlib.contextmanager
def _refusing(context):
    """The context, with a ValueError on entering it as `Refused`."""
    with contextlib.ExitStack() as stack:
        try:
            value = stack.enter_context(context)
        except ValueError as error:
            raise Refused(str(error), 503) from error
        yield value


def _replayed(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _started_late(send: Send) -> Send:
    """The same, with the start of an answer sent together with its first part."""
    held: list[Message] = []

    async def hold(message: Message) -> None:
        if message["type"] == "http.response.start":
            held.append(message)
            return
        while held:
            await send(held.pop())
        await send(message)

    return hold


def _watched(receive: Receive, send: Send, broken: Callable[[], None]) -> tuple[Receive, Send]:
    """The same, with a call of `broken` if the client goes before the end of the answer."""
    is_complete = False

    async def watch() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect" and not is_complete:
            broken()
        return message

    async def note_end(message: Message) -> None:
        nonlocal is_complete
        is_complete = message["type"] == "http.response.body" and not message.get(
            "more_body", False
        )
        await send(message)

    return watch, note_end

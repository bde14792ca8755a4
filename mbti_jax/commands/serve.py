"""The task that serves the web page (`configs/serve.py`)."""

import asyncio
import dataclasses
import functools
import getpass
import hmac
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mbti_jax.commands.settings import from_config
from mbti_jax.fields import Count, FieldError, Name, check_fields
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.load import JOINT, SINGLE, load_model
from mbti_jax.web.addresses import is_host, is_loopback
from mbti_jax.web.examples import make_phantom
from mbti_jax.web.line import Line
from mbti_jax.web.storage import (
    UPLOAD_SECONDS,
    bytes_in,
    delete_old_files,
    ending_on_signals,
    give_back_memory,
    server_folder,
)
from mbti_jax.web.uploads import Limits
from mbti_jax.web.visitors import Visitors
from tfds_brats.cases import Case

_MAX_PORT = 2**16 - 1
# Requests of all users that Gradio's queue takes, and its threads besides those of waiting runs.
_MAX_QUEUED, _THREADS = 128, 24
_SWEEP_SECONDS = 2.0
_PASSWORD = "MBTI_PASSWORD"
_LEAST_PASSWORD = 8
# A wrong password is answered after so long, which makes trying many slow.
_WRONG_PASSWORD_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What the page is served with; see `configs/serve.py`."""

    checkpoint: Name
    batch_size: Count
    host: Name
    port: int
    open: bool
    host_names: tuple[str, ...]
    max_waiting: Count
    max_sessions: Count
    num_steps: Count | None
    limits: Limits

    def __post_init__(self):
        check_fields(self)
        for name in self.host_names:
            if not is_host(name):
                raise FieldError("host_names", f"must be names such as page.example, not {name!r}")


def main(config: ConfigDict, workdir: str) -> None:
    """Serves the page until it is interrupted; see `configs/serve.py`.

    Raises:
        ValueError: Gradio is missing, the port is in use, others could use the page and there is no
            password, or a setting or the model cannot be used.
    """
    settings = from_config(ServeSettings, config)
    check_address(settings.host, settings.port)
    import_gradio()
    password = read_password(settings)
    # Each step is reported: on a CPU a step takes longer than reporting it.
    names = [JOINT, SINGLE] if settings.checkpoint == JOINT else [settings.checkpoint]
    inpainters = [Inpainter(*load_model(name), settings.batch_size, name) for name in names]
    with ending_on_signals() as end, server_folder(workdir or None) as root:
        # Uploads under way lie in the folder for temporary files.
        tempfile.tempdir = str(root)
        page = start(inpainters, make_phantom(root / "phantom"), settings, root, password)
        try:
            # At once, also into a file or a pipe: nothing else is printed before the end.
            print(f"Open {page.local_url} (Ctrl-C ends it).", flush=True)
            end.wait()
        finally:
            page.close()
            tempfile.tempdir = None


class Server:
    """The running page.

    Attributes:
        page: the `gradio.Blocks`.
        visitors: who is on it.
    """

    def __init__(self, page: Any, visitors: Visitors, cache: Path):
        self.page, self.visitors = page, visitors
        self._ended = threading.Event()
        self._cleaner = threading.Thread(target=self._clean, args=(cache,), daemon=True)
        self._cleaner.start()

    @property
    def local_url(self) -> str:
        return self.page.local_url

    def close(self) -> None:
        """Stops all runs, and the server."""
        self._ended.set()
        self.visitors.close()
        self.page.close(verbose=False)
        self._cleaner.join()

    def _clean(self, cache: Path) -> None:
        while not self._ended.wait(_SWEEP_SECONDS):
            if self.visitors.sweep():
                give_back_memory()
            # What Gradio does not know of, such as uploads that were broken off.
            delete_old_files(cache, UPLOAD_SECONDS)


def start(
    inpainters: Sequence[Inpainter],
    example: Case,
    settings: ServeSettings,
    root: Path,
    password: str | None = None,
) -> Server:
    """Starts the server in the background.

    Args:
        inpainters: the models, of which the first is the one that the page speaks of.
        example: see `examples.load_example`.
        settings: see `configs/serve.py`.
        root: folder for uploads and results; the caller deletes it.
        password: that everybody has to give; default none.
    """
    cache, sessions = root / "cache", root / "sessions"
    # Gradio reads these when it is imported, or the page is built.
    os.environ["GRADIO_TEMP_DIR"] = str(cache)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # It would keep what users send and get on a server elsewhere, if they have an account there.
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    # It computes statistics of so many requests after each one.
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
    import gradio
    from starlette.middleware import Middleware

    from mbti_jax.web import page
    from mbti_jax.web.actions import Actions
    from mbti_jax.web.gate import Door, Gate

    visitors = Visitors(settings.limits, settings.max_sessions)
    actions = Actions(inpainters, visitors, Line(settings.max_waiting), example, sessions)
    blocks = page.build(actions, inpainters[0], settings.num_steps)
    # The queue has to be joined, where everybody waits and may leave; a direct call runs to its end.
    blocks.queue(max_size=_MAX_QUEUED, default_concurrency_limit=4, api_open=False)
    # Results and pictures are served from where they lie, and go with their session.
    gradio.set_static_paths([sessions])
    gate = Middleware(
        Gate,
        door=Door(settings.host, (*settings.host_names, *own_names(settings.host))),
        visitors=visitors,
        get_page=lambda: blocks,
        bytes_of_uploads=functools.partial(bytes_in, cache),
    )
    # Gradio awaits it, whatever its type says.
    auth: Any = functools.partial(_is_password, password) if password else None
    # An IPv6 address is written in brackets in the page's own.
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    blocks.launch(
        server_name=host,
        server_port=settings.port,
        share=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
        auth=auth,
        auth_message="Any user name will do.",
        max_threads=settings.max_waiting + _THREADS,
        max_file_size=settings.limits.upload_mb * 10**6,
        app_kwargs={"middleware": [gate]},
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        **page.appearance(),
    )
    visitors.forget = functools.partial(_forget, blocks)
    return Server(blocks, visitors, cache)


def read_password(settings: ServeSettings) -> str | None:
    """The password of the page, from the environment or typed in; None if there shall be none.

    Raises:
        ValueError: others can reach the page, and neither a password nor that it is open is given.
    """
    password = os.environ.pop(_PASSWORD, None)
    is_alone = is_only_here(settings.host)
    if password is None and not is_alone and not settings.open:
        if not sys.stdin.isatty():
            raise ValueError(
                f"others can reach {settings.host}: set a password in the environment variable "
                f"{_PASSWORD}, or let everybody use the page with --config.open=True"
            )
        password = getpass.getpass("Password for the page: ")
    if password is not None and len(password) < _LEAST_PASSWORD:
        raise ValueError(f"the password must have at least {_LEAST_PASSWORD} characters")
    if not is_alone:
        who = "with the password" if password else "without a password"
        print(
            f"Warning: everybody who reaches {settings.host}, port {settings.port}, can use this page "
            f"{who}. What they send and get, and the password, can be read on the way: put a proxy with "
            "TLS in front of it."
        )
    return password


def import_gradio() -> None:
    """Raises ValueError if Gradio is not installed."""
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            'the web page needs Gradio, which is not installed: pip install ".[web]"'
        ) from error


def check_address(host: str, port: int) -> None:
    """Raises ValueError if nothing can listen there, before the model is loaded."""
    if not 0 < port <= _MAX_PORT:
        raise FieldError("port", f"is {port}; ports are 1 to {_MAX_PORT}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}); another program may "
            f"use it: choose another with --config.port={min(port + 1, _MAX_PORT)}"
        ) from error


def is_only_here(host: str) -> bool:
    """Whether nobody but this machine can reach what listens on a host."""
    return all(map(is_loopback, _addresses_of(host)))


def own_names(host: str) -> tuple[str, ...]:
    """The names of this machine, under which others reach a host that is not on this machine alone."""
    return () if is_only_here(host) else (socket.gethostname(), socket.getfqdn())


def _addresses_of(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [str(address[0]) for *_, address in found]


async def _is_password(password: str, _: str, given: str) -> bool:
    if hmac.compare_digest(given.encode(), password.encode()):
        return True
    await asyncio.sleep(_WRONG_PASSWORD_SECONDS)
    return False


def _forget(blocks: Any, key: str) -> None:
    """Deletes what Gradio keeps of a session."""
    holder, queue = blocks.server_app.state_holder, blocks._queue
    for kept in (holder.session_data, holder.time_last_used, queue.pending_event_ids_session):
        kept.pop(key, None)

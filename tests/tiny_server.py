"""The web page, served by a thread of the tests, with a tiny model of random weights."""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from synthetic_cases import write_case
from tiny_inpainter import tiny_metadata, tiny_params

from configs.serve import get_config
from mbti_jax.commands import serve
from mbti_jax.commands.settings import from_config
from mbti_jax.inference.inpainter import Inpainter
from tfds_brats.cases import Case, read_case
from tfds_brats.search import find_cases


def tiny_example(folder: Path) -> Case:
    """A synthetic case in place of the phantom, which takes longer to make."""
    write_case(folder, "Phantom_0000")
    (files,) = find_cases(folder, "phantom")
    return read_case(files)


@contextlib.contextmanager
def tiny_server(root: Path) -> Iterator[str]:
    """Yields the page's address."""
    with running(root) as server:
        yield server.local_url


@contextlib.contextmanager
def running(
    root: Path,
    password: str | None = None,
    inpainters: Sequence[Inpainter] = (),
    **settings: Any,
) -> Iterator[serve.Server]:
    """Yields the server.

    Args:
        root: its folder.
        password: of the page.
        inpainters: its models; by default one of a single sequence.
        **settings: fields that differ from those of `configs/serve.py`.
    """
    metadata = tiny_metadata()
    inpainters = inpainters or [Inpainter(tiny_params(metadata), metadata, 4, "runs/tiny")]
    config = get_config()
    config.num_steps = 2
    config.limits = {"upload_mb": 1, "volume_mb": 2, "pixels": 100_000, "images": 32}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        config.port = free.getsockname()[1]
    with config.unlocked():
        config.update(settings)
    settings = from_config(serve.ServeSettings, config)
    server = serve.start(inpainters, tiny_example(root / "in"), settings, root, password)
    try:
        yield server
    finally:
        server.close()

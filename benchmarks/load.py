"""The web page under load: runs, refusals, memory and disk, with many clients at once.

    python -m benchmarks.load --output=load.json
    python -m benchmarks.load --clients=4 --seconds=30

It starts the page with the bundled model, for this machine alone, in a process and a folder of their
own, and ends it. Every client is a page that holds its connection, loads an image and asks for one run
after the other: half of them with the phantom of the examples, half upload four NIfTI files and an ROI.
A client that is refused tries again a second later. What is left is measured when all are gone.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import random
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np

from benchmarks.timing import describe_machine
from mbti_jax.web.storage import bytes_in
from tfds_brats.phantom import write_phantoms

_PACKAGES = ("jax", "gradio", "starlette", "uvicorn", "numpy")
_MAX_CLIENTS, _MAX_SECONDS = 200, 3600
# Seconds: of the server's start, of one answer, until sessions of closed tabs are gone, between two
# looks at memory and disk, and before a refused client tries again.
_START, _ANSWER, _GONE, _LOOK, _AGAIN = 300, 300, 150, 0.5, 1.0
_RUN_FILES = ("t1", "t1ce", "t2", "flair")
_MB = 1e6


@dataclasses.dataclass
class Tally:
    """What clients met with.

    Attributes:
        seconds: of each run, by client.
        refusals: sentences and how often they came; they say to try again.
        errors: other sentences.
        failures: connections that broke or took too long.
    """

    seconds: dict[int, list[float]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    refusals: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    errors: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    failures: collections.Counter = dataclasses.field(default_factory=collections.Counter)


class Answered(Exception):
    """The page answered with a sentence instead of a result."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=300, help="for how long they ask for runs")
    parser.add_argument("--steps", type=int, default=5, help="steps of a run")
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(arguments)
    if not 1 <= options.clients <= _MAX_CLIENTS:
        parser.error(f"clients must be 1 to {_MAX_CLIENTS}")
    if not 1 <= options.seconds <= _MAX_SECONDS:
        parser.error(f"seconds must be 1 to {_MAX_SECONDS}")
    with tempfile.TemporaryDirectory(prefix="mbti_load_") as folder:
        files = write_inputs(Path(folder) / "inputs")
        with served(Path(folder) / "page") as (url, pid):
            report = measure(url, pid, Path(folder) / "page", files, options)
    report = {"machine": describe_machine(_PACKAGES), "date": date.today().isoformat(), **report}
    print(format_report(report))
    if options.output:
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")


def write_inputs(folder: Path) -> list[Path]:
    """Four sequences of a phantom, and an ROI in one of its slices."""
    write_phantoms(folder, num_subjects=1, seed=2)
    (case,) = (path for path in folder.iterdir() if path.is_dir())
    files = [case / f"{case.name}_{name}.nii.gz" for name in _RUN_FILES]
    image = nib.load(files[0])
    brain = np.asarray(image.dataobj) > 0
    labels = np.zeros(image.shape, np.uint8)
    z = int(brain.sum((0, 1)).argmax())
    x, y = np.argwhere(brain[..., z]).mean(0).astype(int)
    labels[x - 8 : x + 8, y - 8 : y + 8, z] = 5
    roi = folder / "roi.nii.gz"
    nib.save(nib.Nifti1Image(labels * brain, image.affine), roi)
    return [*files, roi]


@contextlib.contextmanager
def served(workdir: Path) -> Iterator[tuple[str, int]]:
    """The page in a process of its own: (address, process)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "run.py", "--config=configs/serve.py", f"--config.port={port}"]
    workdir.mkdir(parents=True)
    process = subprocess.Popen(
        [*command, f"--workdir={workdir}"], cwd=Path(__file__).parent.parent, stdout=sys.stderr
    )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + _START
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(url)
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the page did not start")
            time.sleep(0.5)
        yield url, process.pid
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def measure(
    url: str, pid: int, workdir: Path, files: Sequence[Path], options: argparse.Namespace
) -> dict[str, Any]:
    """Lets clients use a page.

    Args:
        url: its address.
        pid: its process.
        workdir: the folder with its files.
        files: what clients upload, see `write_inputs`.
        options: clients, seconds and steps.

    Returns:
        Plain JSON values.
    """
    usage = Usage(pid, workdir)
    at_start = usage.now()
    # The first run compiles.
    asyncio.run(_warm_up(url, files, options.steps))
    before = _settled(usage, workdir)
    with usage.watched():
        tally = asyncio.run(_crowd(url, files, options))
    at_end = usage.now()
    after = _settled(usage, workdir)
    runs = [tally.seconds[number] for number in range(options.clients)]
    every = [seconds for one in runs for seconds in one]
    return {
        **{name: getattr(options, name) for name in ("clients", "seconds", "steps")},
        "runs": len(every),
        "runs_per_minute": 60 * len(every) / options.seconds,
        "run_seconds": _spread(every),
        "runs_by_client": _spread(list(map(len, runs))),
        "refusals": dict(tally.refusals),
        "errors": dict(tally.errors),
        "failures": dict(tally.failures),
        "usage": {
            "at_start": at_start,
            "before": before,
            "peak": usage.peak,
            "at_end": at_end,
            "after": after,
        },
    }


def format_report(report: dict[str, Any]) -> str:
    """A report as text."""
    machine = report["machine"]
    head = (
        f"{report['clients']} clients, {report['seconds']} s, {report['steps']} steps a run; "
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average']:.1f}, "
        f"{machine['jax_device']}"
    )
    seconds, by_client = report["run_seconds"], report["runs_by_client"]
    lines = [
        head,
        "",
        "| | |",
        "|---|---|",
        f"| runs | {report['runs']} ({report['runs_per_minute']:.1f} a minute) |",
        f"| seconds of a run, with its waiting | median {seconds['median']:.1f}, at most "
        f"{seconds['most']:.1f} |",
        f"| runs of a client | {by_client['least']:.0f} to {by_client['most']:.0f}, median "
        f"{by_client['median']:.0f} |",
    ]
    for name in ("refusals", "errors", "failures"):
        lines.append(f"| {name} | {sum(report[name].values())} |")
    lines += ["", "| MB | memory | disk |", "|---|---|---|"]
    for name, used in report["usage"].items():
        memory = "" if used["memory"] is None else f"{used['memory'] / _MB:.0f}"
        lines.append(f"| {name.replace('_', ' ')} | {memory} | {used['disk'] / _MB:.1f} |")
    for name in ("refusals", "errors", "failures"):
        lines += [f"{name}: {count} x {text}" for text, count in report[name].items()]
    return "\n".join(lines)


class Usage:
    """What a process takes of memory, and a folder of the disk, in bytes."""

    def __init__(self, pid: int, folder: Path):
        self._pid, self._folder = pid, folder
        self.peak: dict[str, Any] = {"memory": None, "disk": 0}

    def now(self) -> dict[str, Any]:
        return {"memory": _resident(self._pid), "disk": bytes_in(self._folder)}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Keeps the peaks."""
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(_LOOK):
                for name, value in self.now().items():
                    if value is not None:
                        self.peak[name] = max(self.peak[name] or 0, value)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def _resident(pid: int) -> int | None:
    """Bytes of a process in memory; None where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _settled(usage: Usage, workdir: Path) -> dict[str, Any]:
    """What is used once all sessions are gone, or after `_GONE` seconds."""
    deadline = time.monotonic() + _GONE
    while any(workdir.glob("**/sessions/*")) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    return {**usage.now(), "sessions": len(list(workdir.glob("**/sessions/*")))}


def _spread(numbers: Sequence[float]) -> dict[str, float]:
    if not numbers:
        return {"least": 0.0, "median": 0.0, "most": 0.0}
    return {
        "least": min(numbers),
        "median": statistics.median(numbers),
        "most": max(numbers),
    }


async def _warm_up(url: str, files: Sequence[Path], steps: int) -> None:
    async with _Client(url) as client:
        await client.load(None)
        await client.run(steps)


async def _crowd(url: str, files: Sequence[Path], options: argparse.Namespace) -> Tally:
    tally, until = Tally(), time.monotonic() + options.seconds
    clients = [
        _use(number, url, files if number % 2 else None, options.steps, until, tally)
        for number in range(options.clients)
    ]
    await asyncio.gather(*clients)
    return tally


async def _use(
    number: int, url: str, files: Sequence[Path] | None, steps: int, until: float, tally: Tally
) -> None:
    """One client, from its arrival to its leaving."""
    # Not all at once.
    await asyncio.sleep(random.Random(number).uniform(0, 2))
    async with _Client(url) as client:
        is_loaded = False
        while (left := until - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    if not is_loaded:
                        await client.load(files)
                        is_loaded = True
                    start = time.monotonic()
                    await client.run(steps)
                    tally.seconds[number].append(time.monotonic() - start)
            except Answered as error:
                kind = tally.refusals if "try again" in str(error) else tally.errors
                kind[str(error)] += 1
                await asyncio.sleep(_AGAIN)
            except TimeoutError:  # The time is over.
                break
            except httpx.HTTPError as error:
                tally.failures[type(error).__name__] += 1
                await asyncio.sleep(_AGAIN)


class _Client:
    """A page, as far as the server sees it."""

    def __init__(self, url: str):
        self._http = httpx.AsyncClient(base_url=f"{url.rstrip('/')}/gradio_api/", timeout=_ANSWER)
        self._key = secrets.token_hex(8)
        self._uploaded: list[dict[str, Any]] = []

    async def __aenter__(self) -> "_Client":
        self._tab = asyncio.create_task(self._hold())
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._tab.cancel()
        with contextlib.suppress(asyncio.CancelledError, httpx.HTTPError):
            await self._tab
        await self._http.aclose()

    async def load(self, files: Sequence[Path] | None) -> None:
        """Loads an example, or uploads images and an ROI."""
        if files is None:
            await self._call("load_example", ["remove a tumor"])
            return
        if not self._uploaded:
            self._uploaded = [await self._upload(path) for path in files]
        *images, roi = self._uploaded
        await self._call("load", [images, "phantom", []])
        await self._call("set_roi", [roi, "", [], "", 1, 0, 0, -1, 0])

    async def run(self, steps: int) -> None:
        """Asks for a run, waits for it, and fetches its archive."""
        settings = [random.randrange(2**31), 1, steps, 0.4, "samples", "ddim", "plain", 0, 1, True]
        _, files = await self._call("inpaint", [[], *settings])
        answer = await self._http.get(f"file={files[0]['path']}")
        answer.raise_for_status()

    async def _hold(self) -> None:
        """Keeps the connection of the page open; one that was refused is asked for again."""
        while True:
            async with self._http.stream("GET", f"heartbeat/{self._key}", timeout=None) as stream:
                async for _ in stream.aiter_bytes():
                    pass
            await asyncio.sleep(_AGAIN)

    async def _upload(self, path: Path) -> dict[str, Any]:
        answer = await self._http.post("upload", files={"files": (path.name, path.read_bytes())})
        _check(answer)
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    async def _call(self, name: str, data: list[Any]) -> list[Any]:
        answer = await self._http.post(
            f"call/{name}", json={"data": data, "session_hash": self._key}
        )
        _check(answer)
        number = answer.json()["event_id"]
        kind = ""
        async with self._http.stream("GET", f"call/{name}/{number}") as stream:
            async for line in stream.aiter_lines():
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: ") and kind in ("complete", "error"):
                    content = json.loads(line.removeprefix("data: "))
                    if kind == "error":
                        raise Answered(content["error"] if isinstance(content, dict) else content)
                    return content
        raise httpx.RemoteProtocolError("the answer ended before its end")


def _check(answer: httpx.Response) -> None:
    if answer.is_error:
        try:
            text = answer.json()["detail"]
        except (ValueError, KeyError):
            text = answer.text
        raise Answered(f"{text}")


if __name__ == "__main__":
    main()

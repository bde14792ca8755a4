"""Pieces on Ray: actors that load their context once, and are replaced where they die.

Ray itself would start an actor again and repeat its calls (`max_restarts`, `max_task_retries`); here the
driver does, so that a piece which kills every worker that it meets is given up by itself.
"""

import collections
import logging
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from mbti_jax.engine.settings import RaySettings
from mbti_jax.engine.work import PieceError, Work
from mbti_jax.fields import FieldError

_log = logging.getLogger(__name__)

# Results are a few words each.
_OBJECT_STORE_BYTES = 100 * 10**6
# Between looks at the signals that Python may have received.
_SECONDS = 1.0
# After how many of those to say that nothing happens, since no node has room for a worker.
_PATIENCE = 60
# Workers that may die one after the other before any of them was ready for a piece.
_MAX_STILLBORN = 5
# Packages whose messages a worker sends back.
_TALKING = ("mbti_jax", "tfds_brats")


class Worker:
    """An actor: calls the function of a `Work` with one piece after the other."""

    def __init__(self, work: Work, folder: str):
        self._work, self._context, self._is_loaded = work, None, False
        self._folder = folder
        self._messages: list[str] = []
        for name in _TALKING:
            logger = logging.getLogger(name)
            logger.setLevel(logging.INFO)
            logger.addHandler(_Kept(self._messages))

    def ready(self) -> None:
        """Returns once the actor runs."""

    def run(self, piece: Any) -> tuple[str, Any, list[str]]:
        """What became of a piece.

        Returns:
            "done" and its result, "reported" and a sentence, or "raised" and an exception; and what was
            logged.
        """
        self._messages.clear()
        work = self._work
        try:
            if not self._is_loaded:
                # Relative paths are those of the driver.
                _enter(self._folder)
                self._context, self._is_loaded = work.make_context(), True
        except Exception as error:
            return "raised", _portable(error), list(self._messages)
        try:
            return "done", work.function(self._context, piece), list(self._messages)
        except work.reported as error:
            return "reported", str(error), list(self._messages)
        except Exception as error:
            return "raised", _portable(error), list(self._messages)


class _Kept(logging.Handler):
    def __init__(self, messages: list[str]):
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(self.format(record))


def _enter(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise OSError(
            f"{folder} is not on {socket.gethostname()}, a node of the cluster ({error.strerror}): "
            "start from a folder that all nodes share"
        ) from error


def _portable(error: Exception) -> Exception:
    """The exception as the driver can read it, with where it came from."""
    where = "".join(traceback.format_exception(error))
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In a worker:\n{where}")
    return error


def run_on_ray(
    work: Work, pieces: Sequence[Any], settings: RaySettings, move: Callable[[bool], None]
) -> Generator[Any, None, None]:
    """Results of pieces in order; see `pieces.run_pieces`.

    Raises:
        FieldError: the extra is missing.
        ConnectionError: there is no cluster at the address, or its nodes cannot start a worker.
        Exception: whatever a piece raised that concerns all.
    """
    ray = _import_ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(ray, settings)
    pool = None
    try:
        pool = _Pool(ray, work, settings, len(pieces))
        yield from pool.run(pieces, move)
    finally:
        if pool is not None:
            pool.close()
        if is_ours:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        problem = "is ray, which is not installed: pip install 'mbti-jax[ray]', or use local"
        raise FieldError("engine", problem) from error
    return ray


def _connect(ray: Any, settings: RaySettings) -> None:
    address = settings.address or os.environ.get("RAY_ADDRESS", "")
    options = {"log_to_driver": False, "logging_level": logging.WARNING}
    if not address:
        # Nobody asked for statistics to be sent.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        cores = os.cpu_count() or 1
        ray.init(
            "local",
            num_cpus=max(cores, settings.workers * settings.cpus),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **options,
        )
        return
    try:
        ray.init(address, **options)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({reason}): start one with `ray start --head`, give "
            "its address, or leave it empty for a cluster of this machine alone"
        ) from error


class _Pool:
    """The actors, and what each of them is doing."""

    def __init__(self, ray: Any, work: Work, settings: RaySettings, num_pieces: int):
        self._ray, self._retries = ray, settings.retries
        self._needs: dict[str, Any] = {"num_cpus": settings.cpus}
        number, total = settings.workers, ray.cluster_resources()
        gpus = int(total.get("GPU", 0)) if work.loads_model else 0
        if gpus:
            self._needs["num_gpus"] = 1
        nodes = sum(node["Alive"] for node in ray.nodes())
        cores = int(total.get("CPU", 0)) // settings.cpus
        number = number or gpus or (nodes if work.loads_model else cores) or 1
        # Once, and not with each actor.
        self._work = ray.put(work)
        # Under the names that files of the package have on every node.
        self._class = ray.remote(Worker)
        self._actors: set[Any] = set()
        self._idle: list[Any] = []
        # Future -> (actor, number of the piece; None for one that starts).
        self._running: dict[Any, tuple[Any, int | None]] = {}
        self._stillborn, self._silent = 0, 0
        for _ in range(min(number, num_pieces)):
            self._start()

    def _start(self) -> None:
        options = {**self._needs, "scheduling_strategy": "SPREAD"}
        actor = self._class.options(**options).remote(self._work, os.getcwd())
        self._actors.add(actor)
        self._running[actor.ready.remote()] = (actor, None)

    def close(self) -> None:
        """Ends the actors at once; a piece that one is at stays undone."""
        for actor in self._actors:
            self._ray.kill(actor)

    def run(self, pieces: Sequence[Any], move: Callable[[bool], None]) -> Iterator[Any]:
        waiting = collections.deque(range(len(pieces)))
        deaths = [0] * len(pieces)
        results: dict[int, Any] = {}
        for following in range(len(pieces)):
            while following not in results:
                while waiting and self._idle:
                    self._give(self._idle.pop(), waiting.popleft(), pieces)
                for actor, number, outcome in self._finished():
                    if outcome is None:
                        self._replace(actor, number)
                        if number is not None:
                            deaths[number] += 1
                            if deaths[number] <= self._retries:
                                waiting.appendleft(number)
                                continue
                            results[number] = _died(pieces[number], deaths[number])
                    else:
                        kind, value, messages = outcome
                        for message in messages:
                            _log.info(message)
                        if kind == "raised":
                            raise value
                        if number is not None:
                            results[number] = PieceError(value) if kind == "reported" else value
                        self._idle.append(actor)
                    if number is not None:
                        move(isinstance(results[number], PieceError))
            yield results.pop(following)

    def _give(self, actor: Any, number: int, pieces: Sequence[Any]) -> None:
        self._running[actor.run.remote(pieces[number])] = (actor, number)

    def _finished(self) -> Iterator[tuple[Any, int | None, Any]]:
        """(actor, number of its piece, outcome, None if it died) of what has ended."""
        done, _ = self._ray.wait([*self._running], timeout=_SECONDS)
        is_working = any(number is not None for _, number in self._running.values())
        self._silent = 0 if done or is_working else self._silent + 1
        if self._silent == _PATIENCE:
            _log.info(
                f"No node has room for a worker, which needs {self._needs}; waiting for one. "
                f"The cluster has {self._ray.cluster_resources()}"
            )
        for future in done:
            actor, number = self._running.pop(future)
            try:
                outcome = self._ray.get(future)
            except self._ray.exceptions.RayTaskError as error:
                raise ConnectionError(_cannot_start(error)) from error
            except self._ray.exceptions.RayError as error:
                if getattr(error, "actor_init_failed", False):
                    raise ConnectionError(_cannot_start(error)) from error
                self._stillborn += number is None
                if self._stillborn > _MAX_STILLBORN:
                    raise ConnectionError(_cannot_start(error)) from error
                outcome = None
            else:
                self._stillborn = 0
                outcome = ("done", None, []) if number is None else outcome
            yield actor, number, outcome

    def _replace(self, actor: Any, number: int | None) -> None:
        self._actors.discard(actor)
        # One that was said to be dead may only be out of reach.
        self._ray.kill(actor)
        what = "as it started" if number is None else "with a piece, which is done again"
        _log.info(f"A worker died {what}.")
        self._start()


def _died(piece: Any, times: int) -> PieceError:
    name = str(piece)
    often = "once" if times == 1 else f"{times} times, each time another one"
    return PieceError(f"{name}: its worker died {often}, perhaps for lack of memory")


def _cannot_start(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        f"the cluster's nodes cannot run a worker ({lines[-1] if lines else type(error).__name__}): the "
        "same version of this package, with its dependencies, has to be installed on each of them"
    )

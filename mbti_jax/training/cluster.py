"""The processes of a run on several hosts: they find each other, agree, and end together.

What they tell each other here goes through the key-value store of JAX's coordination service, which
process 0 runs, and not through the devices: a collective operation waits for all processes, and so would
wait forever for one that failed or was killed.
"""

import contextlib
import itertools
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from mbti_jax.fields import FieldError
from mbti_jax.training.store import shared_store

# A process that has not been heard of for so long is taken for dead, and all others end.
SILENCE_SECONDS = 30.0
# JAX's own limits, for when process 0 itself is gone or a process cannot end: later than the above.
_HEARTBEAT_SECONDS, _SHUTDOWN_SECONDS = 60, 60
# Others may take their time with what all have to do; one that died is noticed much earlier.
_PATIENCE_MS = 3_600_000
_ADDRESS = "JAX_COORDINATOR_ADDRESS"
# How many processes there are and which this one is, by the name of its variable, where JAX does not
# find it out by itself: on plain machines, and with Open MPI from version 5 on.
_COUNTS = ("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE")
_NUMBERS = ("JAX_PROCESS_ID", "OMPI_COMM_WORLD_RANK")

T = TypeVar("T")

logger = logging.getLogger(__name__)
_calls = itertools.count()


class ElsewhereError(RuntimeError):
    """What all processes do together failed in another one.

    Attributes:
        kind: name of the class of the error there.
        problem: its message.
    """

    def __init__(self, process: int, kind: str, problem: str):
        super().__init__(f"in process {process}: {kind}: {problem}")
        self.kind, self.problem = kind, problem


def join_cluster(multihost: bool) -> None:
    """Finds the other processes of a run on several hosts; before anything else asks JAX for devices.

    SLURM, Open MPI up to version 4 and TPUs are found by JAX. Elsewhere the environment says where
    process 0 is (JAX_COORDINATOR_ADDRESS, host:port), how many processes there are (JAX_NUM_PROCESSES)
    and which this one is (JAX_PROCESS_ID).

    Raises:
        FieldError: there is no cluster, or the environment contradicts itself; or this version of JAX
            has no store for what processes tell each other.
    """
    if not multihost or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            **_given(os.environ),
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise FieldError(
            "multihost",
            f"is True, but no cluster was found: {error} On machines without one, set {_ADDRESS} to "
            f"HOST:PORT of process 0, {_COUNTS[0]} and {_NUMBERS[0]}",
        ) from error
    # Now, and not after an hour of work.
    shared_store()


def _given(environment: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `jax.distributed.initialize` that the environment states in full; else none."""
    count = next((name for name in _COUNTS if name in environment), None)
    number = next((name for name in _NUMBERS if name in environment), None)
    if _ADDRESS not in environment or count is None or number is None:
        stated = [name for name in (_COUNTS[0], _NUMBERS[0]) if name in environment]
        if stated:
            names = (_ADDRESS, _COUNTS[0], _NUMBERS[0])
            missing = [name for name in names if name not in environment]
            raise ValueError(f"{', '.join(stated)} is set, but not {' and '.join(missing)}.")
        return {}
    address = environment[_ADDRESS]
    if not address.rpartition(":")[2].isdigit():
        raise ValueError(f"{_ADDRESS} is {address!r}, not HOST:PORT.")
    try:
        processes = {
            "num_processes": int(environment[count]),
            "process_id": int(environment[number]),
        }
    except ValueError as error:
        raise ValueError(f"{count} and {number} must be whole numbers.") from error
    if count == _COUNTS[1]:
        # One device each of those of its host, as JAX does it with version 4.
        processes["local_device_ids"] = int(environment["OMPI_COMM_WORLD_LOCAL_RANK"])
    return {
        "coordinator_address": address,
        "cluster_detection_method": "deactivate",
        **processes,
    }


def agree(items: Mapping[str, Any]) -> None:
    """Checks that all processes have the same items.

    Args:
        items: JSON values by name.

    Raises:
        ValueError: in every process, naming the items that differ, their values, and where.
    """
    if jax.process_count() == 1:
        return
    key, me = f"mbti/agree/{next(_calls)}", jax.process_index()
    mine = json.loads(json.dumps(dict(items)))
    if me == 0:
        shared_store().key_value_set(f"{key}/first", json.dumps(mine))
    first = json.loads(_get(f"{key}/first"))
    differing = [
        f"{name} is {_short(mine, name)} in process {me} on {socket.gethostname()} and "
        f"{_short(first, name)} in process 0"
        for name in sorted(first.keys() | mine.keys())
        if name not in first or name not in mine or first[name] != mine[name]
    ]
    _raise_where_any(key, "; ".join(differing))


def _short(items: Mapping[str, Any], name: str) -> str:
    return repr(items[name])[:80] if name in items else "absent"


def _raise_where_any(key: str, problem: str) -> None:
    """Process 0 collects what each has to say, and all raise what there is."""
    me = jax.process_index()
    shared_store().key_value_set(f"{key}/of/{me}", problem)
    if me == 0:
        all_of_them = [_get(f"{key}/of/{number}") for number in range(jax.process_count())]
        shared_store().key_value_set(f"{key}/all", "; ".join(filter(None, all_of_them)))
    if found := _get(f"{key}/all"):
        raise ValueError(f"the processes of this run do not have the same: {found}")


def of_first(value: T) -> T:
    """Process 0's value, a JSON value, in all processes."""
    if jax.process_count() == 1:
        return value
    key = f"mbti/first/{next(_calls)}"
    if jax.process_index() == 0:
        shared_store().key_value_set(key, json.dumps(value))
    return json.loads(_get(key))


def everywhere(work: Callable[[], T]) -> T:
    """What `work` returns, once it has succeeded in all processes.

    Raises:
        ElsewhereError: it failed in another process. Where it failed, its own error is raised.
    """
    if jax.process_count() == 1:
        return work()
    key, me = f"mbti/everywhere/{next(_calls)}", jax.process_index()
    result, error = None, None
    try:
        result = work()
    except Exception as raised:
        error = raised
    said = [] if error is None else [me, type(error).__name__, _first_line(error)]
    shared_store().key_value_set(f"{key}/of/{me}", json.dumps(said))
    if me == 0:
        said = [_get(f"{key}/of/{number}") for number in range(jax.process_count())]
        failed = next((text for text in said if text != "[]"), "[]")
        shared_store().key_value_set(f"{key}/failed", failed)
    failed = json.loads(_get(f"{key}/failed"))
    if error is not None:
        raise error
    if failed:
        raise ElsewhereError(*failed)
    return result  # pyright: ignore[reportReturnType] (None is what the work returned, then)


def compiled_by_all(function: Any) -> Callable:
    """A jitted function that all processes have compiled before one of them runs it.

    One that runs waits for the others in its first collective operation, and on CPUs for 30 s at most.

    Args:
        function: of `jax.jit`; its arguments always have the shapes of the first call.
    """
    if jax.process_count() == 1:
        return function
    compiled = []

    def call(*arguments: Any) -> Any:
        if not compiled:
            compiled.append(everywhere(lambda: function.lower(*arguments).compile()))
        return compiled[0](*arguments)

    return call


class Together:
    """While open, all processes end when one does so with an error, or dies.

    A thread of every process counts up a number in the store. Process 0 sees whose number stands still
    for `SILENCE_SECONDS`, as does that of a killed process or of a host without power. It says so in the
    store, as does a process whose own work raises; the thread of every other process reads it there,
    logs it, and ends its process, whatever that is waiting for. When process 0 is killed, the store is
    gone, and JAX ends the others at once with a message of its own.

    With a single process it does nothing.
    """

    _ENDED = "mbti/ended"

    def __init__(self):
        self._done = threading.Event()
        self._period = SILENCE_SECONDS / 15
        # Of each process: its count, and when it was first read.
        self._heard: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> "Together":
        if jax.process_count() > 1:
            self._me = jax.process_index()
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self.tell(kind, error, traceback)
        self._done.set()

    def tell(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Ends the other processes if there is an error; an `__exit__`.

        Called before anything is closed that might wait for the others.
        """
        if error is None or jax.process_count() == 1 or self._done.is_set():
            return
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Most likely another process is gone: then the thread ends this one before the time is over.
            self._done.wait(SILENCE_SECONDS + 3 * self._period)
        self._say(f"ended with {kind.__name__}: {_first_line(error)}", self._me)
        self._done.set()

    def _say(self, what: str, process: int) -> None:
        where = f"process {process}" + (
            f" on {socket.gethostname()}" if process == self._me else ""
        )
        # Another process may have said something before.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            shared_store().key_value_set(
                self._ENDED, json.dumps([process == self._me, where, what])
            )

    def _watch(self) -> None:
        mine = f"mbti/alive/{self._me}"
        try:
            while not self._done.wait(self._period):
                shared_store().key_value_increment(mine, 1)
                if self._me == 0:
                    self._listen()
                if found := _try_get(self._ENDED):
                    self._end(*json.loads(found))
            # A process that is done is not silent.
            shared_store().key_value_delete(mine)
        except jax.errors.JaxRuntimeError:
            # Process 0 is gone, with the store: JAX says so and ends this process.
            return

    def _listen(self) -> None:
        now = time.monotonic()
        counts = dict(shared_store().key_value_dir_get("mbti/alive/"))
        self._heard = {
            key: self._heard[key] if self._heard.get(key, ("",))[0] == count else (count, now)
            for key, count in counts.items()
        }
        for key, (_, since) in self._heard.items():
            if now - since > SILENCE_SECONDS:
                what = f"has not been heard of for {now - since:.0f} s: killed, or its host is gone"
                self._say(what, int(key.rpartition("/")[2]))

    def _end(self, can_leave: bool, where: str, what: str) -> None:
        logger.error(
            "%s %s. This process ends, too; when the cause is mended, start all again, and they resume "
            "from the newest checkpoint",
            where,
            what,
        )
        if can_leave:
            # So that the one that failed need not wait for this one.
            with contextlib.suppress(Exception):
                jax.distributed.shutdown()
        elif self._me == 0:
            # Until all have read it.
            time.sleep(3 * self._period)
        os._exit(1)


def _get(key: str) -> str:
    return shared_store().blocking_key_value_get(key, _PATIENCE_MS)


def _try_get(key: str) -> str | None:
    """The value, or None where there is none yet."""
    try:
        return shared_store().key_value_try_get(key)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

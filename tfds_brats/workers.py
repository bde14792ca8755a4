"""Running a function over cases in worker processes, with results in order."""

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

import cv2
from tqdm import tqdm

logger = logging.getLogger(__name__)

# In a row, without a result in between.
_MAX_DEATHS = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_num_workers() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """Worker processes that read and encode cases; one worker means this process itself.

    They are spawned, because forking a process with threads (JAX's, for one) can deadlock.
    """

    def __init__(self, num_workers: int):
        self._num_workers = num_workers
        self._executor = _start(num_workers) if num_workers > 1 else None

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], label: str
    ) -> Generator[Result, None, None]:
        """Yields function(item) for every item in order, with a progress bar named `label`.

        The workers run only a few items ahead, so that results do not pile up in memory. Exceptions of
        the function are raised here. What a worker was doing when it died is done once more by others.

        Raises:
            ChildProcessError: worker processes died twice without a result in between.
        """
        with tqdm(total=len(items), desc=label, unit="subject", dynamic_ncols=True) as bar:
            for result in self._results(function, items):
                bar.update()
                yield result

    def _results(self, function, items):
        executor = self._executor
        if executor is None:
            yield from map(function, items)
            return
        # Items in order, each with the future of its result once it is submitted.
        items, pending, deaths = iter(items), deque(), 0
        while True:
            try:
                for item in itertools.islice(items, 2 * self._num_workers - len(pending)):
                    pending.append([item, None])
                for entry in pending:
                    entry[1] = entry[1] or self._submit(executor, function, entry[0])
                if not pending:
                    return
                result = pending[0][1].result()
            except BrokenProcessPool as error:
                deaths += 1
                if deaths == _MAX_DEATHS:
                    raise ChildProcessError(
                        "worker processes died, perhaps for lack of memory; "
                        f"try fewer than {self._num_workers} workers"
                    ) from error
                logger.warning("A worker process died; what it was doing is done again.")
                self.close()
                self._executor = executor = _start(self._num_workers)
                for entry in pending:
                    if entry[1] is not None and _is_lost(entry[1]):
                        entry[1] = None
                continue
            deaths = 0
            pending.popleft()
            yield result

    def _submit(self, executor, function, item):
        try:
            # It starts a process that is not there yet.
            with _interrupts_wait():
                return executor.submit(function, item)
        except OSError as error:
            raise OSError(_no_workers(self._num_workers, error)) from error

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._executor is not None:
            # Nobody waits for what they are doing.
            for process in [*(self._executor._processes or {}).values()]:
                process.terminate()
        self.close()

    def close(self) -> None:
        """Ends the processes when they are done with what they do; items not yet started are dropped."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


def _is_lost(future: Future) -> bool:
    return future.cancelled() or isinstance(future.exception(), BrokenProcessPool)


def _start(num_workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    try:
        return ProcessPoolExecutor(num_workers, context, _start_worker)
    except OSError as error:
        raise OSError(_no_workers(num_workers, error)) from error


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C has no effect until the end, nor in a process that is started, which ignores it then.

    While it imports its modules it would otherwise die of it with a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _no_workers(count: int, error: OSError) -> str:
    return (
        f"cannot start {count} worker processes ({error.strerror}); they need file handles (see "
        "`ulimit -n`) and shared memory (/dev/shm): raise those limits, or use fewer with num_workers=1"
    )


def _start_worker() -> None:
    # Ctrl-C reaches the whole process group; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A killed parent cannot, and a worker must not outlive it.
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()
    cv2.setNumThreads(1)

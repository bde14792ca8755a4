"""A process of a run on several hosts, started by tests: python one_of_several.py WORK [ARGUMENTS].

The time after which a silent process is taken for dead is 8 s instead of 30.
"""

import logging
import os
import runpy
import signal
import sys
import time

import jax

from mbti_jax.training import cluster

cluster.SILENCE_SECONDS = 8.0


def agree() -> None:
    """Something fails in process 1 alone, then nowhere; some things are alike, and then some are not."""
    me = jax.process_index()
    print(cluster.of_first(me))
    try:
        cluster.everywhere(lambda: 1 // (1 - me))
    except (ZeroDivisionError, cluster.ElsewhereError) as error:
        print(f"{type(error).__name__}: {error}")
    print(cluster.everywhere(lambda: me + 7))
    cluster.agree({"alike": [1, 2]})
    try:
        cluster.agree({"alike": 1, "batch_size": 10 + me, "the data's fingerprint": str(me) * 3})
    except ValueError as error:
        print(error)


def end(how: str, which: str) -> None:
    """One process ends, while the others wait for something that never comes."""
    with cluster.Together():
        # Until the threads of all have been heard of.
        cluster.everywhere(lambda: time.sleep(1))
        if jax.process_index() == int(which):
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("no space left")
        time.sleep(600)


def compiled_by_first(function):
    """As `cluster.compiled_by_all`; the others find in the cache on disk what process 0 compiled."""
    by_all = cluster.compiled_by_all(function)
    waited = []

    def call(*arguments):
        if not waited and jax.process_index() == 0:
            function.lower(*arguments).compile()
        if not waited:
            waited.append(cluster.everywhere(lambda: None))
        return by_all(*arguments)

    return call


def train(config: str, workdir: str, cannot_read: str) -> None:
    """Trains; process `cannot_read` cannot read the arrays of the newest checkpoint."""
    import orbax.checkpoint as ocp

    from mbti_jax.commands import train as command
    from mbti_jax.training import loop, validation

    read, failed = ocp.CompositeCheckpointHandler.restore, []

    def restore(self, directory, args):
        if jax.process_index() == int(cannot_read) and "train" in args and not failed:
            failed.append(directory)
            raise OSError(5, "Input/output error")
        return read(self, directory, args)

    ocp.CompositeCheckpointHandler.restore = restore
    # Nothing is drawn: a sampler takes as long to compile as all the rest.
    validation.Validation._sample = lambda self, params, *_: self._pictured.x_0
    loop.compiled_by_all = compiled_by_first
    command.main(runpy.run_path(config)["get_config"](), workdir)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    work, *arguments = sys.argv[1:]
    if work != "train":
        cluster.join_cluster(True)
    {"agree": agree, "end": end, "train": train}[work](*arguments)

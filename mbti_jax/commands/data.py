"""Command `data`: case folders as a dataset of slices."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

from ml_collections import ConfigDict

from mbti_jax.commands.settings import from_config
from mbti_jax.engine.pieces import run_pieces
from mbti_jax.engine.settings import EngineSettings
from mbti_jax.engine.work import PieceError, Work
from mbti_jax.fields import FieldError, Interval
from tfds_brats.builder import build, build_piece, merge_pieces


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(EngineSettings):
    """Settings of the command; a piece is a share of the dataset's shards.

    Attributes:
        source, convention: the cases.
        data_dir: folder of the dataset, if it is not the workdir.
        num_workers: processes of this machine that read and encode; 0 for one per core.
    """

    source: str
    convention: str
    data_dir: str
    num_workers: Annotated[int, Interval(0, 1024)]

    def __post_init__(self):
        super().__post_init__()
        if self.engine != "local" and self.num_workers:
            raise FieldError("num_workers", "is for engine=local; ray.workers says how many on Ray")


def main(config: ConfigDict, workdir: str) -> None:
    """Builds the dataset in `workdir`, see `configs/data.py`.

    Raises:
        ValueError, OSError: see `build`, or two folders are given.
    """
    settings = from_config(Settings, config)
    if not settings.source:
        raise ValueError("give the folder of the cases, --config.source=DIR")
    if settings.data_dir and workdir not in (config.workdir, settings.data_dir):
        raise FieldError("data_dir", f"and workdir name two folders, here also {workdir}; give one")
    what = settings.source, settings.convention, settings.data_dir or workdir
    num_workers, share = settings.num_workers or None, settings.share()
    if settings.is_merge:
        merge_pieces(*what)
    elif share is not None:
        build_piece(*what, share, num_workers)
    elif settings.engine == "local":
        build(*what, num_workers)
    else:
        build(*what, run=functools.partial(_run, settings))


def _run(
    settings: Settings, function: Callable[[Any], Any], items: Sequence[Any], label: str
) -> Iterator[Any]:
    """The results of a function on the engine; see `tfds_brats.dataset.Run`.

    Raises:
        ChildProcessError: when all else is done, for items whose workers died.
    """
    work = Work(_call, functools.partial(_same, function), reported=())
    lost = []
    for _, result in run_pieces(work, items, settings, label=label):
        if isinstance(result, PieceError):
            lost.append(result.message)
        else:
            yield result
    if lost:
        raise ChildProcessError(
            f"{len(lost)} of {len(items)} pieces could not be done, such as {lost[0]}; what is complete "
            "is kept, and the same command does the rest: give a worker more memory, which is to say "
            "more cores of a node, with --config.ray.cpus"
        )


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _same(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return function

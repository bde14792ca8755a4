"""What a run takes, in words."""

import statistics
import time
from collections.abc import Sequence

from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.inference.forecast import duration, forecast, work
from mbti_jax.web.session import Session
from tfds_brats.cases import Case


class Pace:
    """How fast a run goes, by its median step: neither compiling nor waiting for others counts."""

    def __init__(self):
        self._seconds: list[float] = []
        self._last: tuple[int, float] | None = None
        self._total = 0

    def add(self, done: int, total: int) -> None:
        """So many steps are done."""
        now, self._total = time.perf_counter(), total
        if self._last is not None and done > self._last[0]:
            self._seconds.append((now - self._last[1]) / (done - self._last[0]))
        self._last = done, now

    def of_run(self) -> float | None:
        """Seconds of all steps; None if there were not two."""
        return statistics.median(self._seconds) * self._total if self._seconds else None


def cost_of(
    session: Session, sequences: Sequence[str], sampling: Sampling, num_samples: int
) -> str:
    """What a run over several slices will take, measured by a step: while it begins; else ""."""
    source = session.source
    if not isinstance(source, Case) or len(session.painted) < 2:
        return ""
    count = _images(session, sequences, num_samples)
    return f": {forecast(session.inpainter, sampling, count, source.spacing[2])}"


def cost_ahead(
    session: Session,
    seconds: float | None,
    sequences: Sequence[str],
    sampling: Sampling,
    num_samples: int,
) -> str:
    """What a run would take, in words to be said before it is asked for.

    Args:
        session: what is painted.
        seconds: of a pass of a batch, in an earlier run; None if there was none.
        sequences, sampling, num_samples: see `results.run`.

    Raises:
        ValueError: the settings do not go together.
    """
    sampling.check_num_samples(num_samples)
    slices, inpainter = len(session.painted), session.inpainter
    batches = -(-_images(session, sequences, num_samples) // inpainter.batch_size)
    evaluations = inpainter.passes(sampling)["evaluations"]
    what = (
        f"{slices} slice{'s' * (slices > 1)}, {num_samples} sample{'s' * (num_samples > 1)}: "
        f"{work(batches, evaluations)}"
    )
    if seconds is None:
        return f"{what}. How long that takes will be known after a first run, which compiles, too."
    whole = seconds * passes_of(session, sequences, sampling, num_samples)
    return f"{what}, about {duration(whole)} at the pace of the last run."


def _images(session: Session, sequences: Sequence[str], num_samples: int) -> int:
    """How many images the network paints in a run."""
    each = len(sequences or session.sequences) if session.inpainter.num_channels == 1 else 1
    return len(session.painted) * num_samples * each


def passes_of(
    session: Session, sequences: Sequence[str], sampling: Sampling, num_samples: int
) -> int:
    """How many passes of a batch through the network a run takes."""
    batches = -(-_images(session, sequences, num_samples) // session.inpainter.batch_size)
    return batches * session.inpainter.passes(sampling)["network_passes"]

"""How gradients change the weights."""

import dataclasses
from typing import Any, Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from mbti_jax.fields import FieldError, Positive, check_fields

# Root mean square of an update of Muon over the learning rate: as large as one of Adam, so that the same
# learning rates suit both (Liu et al. 2025, arXiv 2502.16982).
_RMS = 0.2
# Of the learning rate after its decay, of that before.
_LAST_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer of a run.

    Attributes:
        learning_rate: of either method.
        method: "adam" (Kingma & Ba 2015), as the paper; or "muon" (Jordan et al. 2024): the momentum of
            every kernel, as the matrix from all its inputs to its outputs, is replaced by the nearest
            matrix whose singular values are all about 1, scaled to the size of an update of Adam. Norms
            and biases have Adam with Nesterov's momentum. It holds one array as large as the weights,
            Adam two.
        decay: the updates between which the learning rate falls linearly to a tenth; empty for a
            constant one. The average of the weights does much of the same.

    Raises:
        FieldError: a value that cannot be used.
    """

    learning_rate: Positive
    method: Literal["adam", "muon"] = "adam"
    decay: tuple[int, ...] = ()

    def __post_init__(self):
        check_fields(self)
        if self.decay and not (len(self.decay) == 2 and 0 <= self.decay[0] < self.decay[1]):
            problem = f"must be empty or two ascending numbers of updates, not {self.decay}"
            raise FieldError("decay", problem)

    def make(self) -> optax.GradientTransformation:
        """optax's optimizer; `init` and `update` need the parameters."""
        rate: Any = self.learning_rate
        if self.decay:
            first, last = self.decay
            rate = optax.linear_schedule(rate, _LAST_SHARE * rate, last - first, first)
        if self.method == "adam":
            return optax.adam(rate)
        return muon(rate, consistent_rms=_RMS, muon_weight_dimension_numbers=_matrices)


def _matrices(params: Any) -> Any:
    """For every kernel [..., in, out], which axes are summed over and which is the output."""

    def of(leaf: jax.Array) -> MuonDimensionNumbers | None:
        last = leaf.ndim - 1
        return MuonDimensionNumbers(tuple(range(last)), (last,)) if last > 0 else None

    return jax.tree.map(of, params)

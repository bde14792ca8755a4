"""Types of arrays, beside those of `jaxtyping`."""

import jax
import numpy as np
from jaxtyping import Float, Key, Num

# Functions of both kinds of array take this one: numpy arrays on the host, JAX arrays in a program.
AnyArray = jax.Array | np.ndarray
# A batch of images; a number and a typed key per example.
Images = Float[AnyArray, "B H W C"]
Numbers = Num[AnyArray, " B"]
Keys = Key[jax.Array, " B"]

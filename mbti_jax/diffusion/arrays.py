"""Types of arrays, beside those of `jaxtyping`."""

import jax
import numpy as np

# Functions of both kinds of array take this one: numpy arrays on the host, JAX arrays in a program.
AnyArray = jax.Array | np.ndarray

"""The key-value store that the processes of a run share: here alone is used what JAX keeps private."""

from typing import Any

import jax

from mbti_jax.fields import FieldError

_METHODS = (
    "blocking_key_value_get",
    "key_value_delete",
    "key_value_dir_get",
    "key_value_increment",
    "key_value_set",
    "key_value_try_get",
)


def shared_store() -> Any:
    """The client of JAX's coordination service, after `jax.distributed.initialize`.

    JAX publishes no way to it (looked up in 0.10.2 and 0.11.2): `jax.distributed` has `initialize`,
    `is_initialized`, and `shutdown`, and all that `jax.experimental.multihost_utils` has are operations
    of the devices, which wait for processes that may be gone. Orbax takes the same way as here.

    Raises:
        FieldError: this version of JAX keeps it elsewhere.
    """
    try:
        from jax._src import distributed

        client = distributed.global_state.client
    except (ImportError, AttributeError):
        client = None
    if missing := [name for name in _METHODS if not hasattr(client, name)]:
        problem = (
            f"cannot be True with jax {jax.__version__}, whose processes share no store that this "
            f"program knows (it lacks {', '.join(missing)}): install the jax of constraints.txt"
        )
        raise FieldError("multihost", problem)
    return client

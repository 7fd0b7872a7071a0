"""A run in several processes: how they find each other, which of them writes, and what they must agree on.

Every process runs the same program on its own devices; only inside the step do they communicate. The first process
alone writes. All read the same workdir and data set.
"""

import hashlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from orc_jax.errors import UserError

# A process that stops answering ends the others after this many seconds.
HEARTBEAT_TIMEOUT = 60
SHUTDOWN_TIMEOUT = 30


def join(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Joins the processes of a run; to be called before anything else that uses JAX's devices.

    `coordinator` is "host:port" of the first process, or "auto" under a scheduler that JAX knows; None leaves how many
    processes there are, and which this is, to the scheduler.

    Raises:
        UserError: if they cannot find each other.
    """
    address = None if coordinator == "auto" else coordinator
    try:
        jax.distributed.initialize(
            address,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"--coordinator={coordinator}: the processes of the run cannot be joined: {error}. Accepted: auto under "
            "SLURM, on TPU pods, GKE or with MPI; else host:port of the first process, with --num_processes and "
            "--process_id"
        ) from error


def is_main() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def require_equal(value: Any, what: str) -> None:
    """Raises `RuntimeError`, which says `what` differs, unless all processes hold the same `value`, by its `repr`."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(repr(value).encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    if (digests != digests[:1]).any():
        raise RuntimeError(f"the processes of this run differ in {what}; here: {value!r}")

"""Several processes that train one model together (`jax.distributed`); trivial with one process.

Every function except `connect`, `all_alive` and `is_process_0` is a collective: all processes must call it,
in the same order.
"""

import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxcxr.errors import InputError, OthersEndedError

Value = TypeVar("Value")

_NUMBERS = ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX")
"""Variables that number the processes, the first one that is set."""
_ADDRESSES = ("JAX_COORDINATOR_BIND_ADDRESS", "JAX_COORDINATOR_ADDRESS")
"""Variables that say where process 0 listens, the first one that is set."""

SENTENCE_BYTES = 4096
"""Length to which an error message is cut on its way to the other processes."""
LAST_GOODBYE_SECONDS = 7 * 24 * 3600
"""How long a finished process waits for the others: process 0 evaluates the model after training."""
SILENCE_SECONDS = 45
"""How long a process may be silent before the others end; while it computes or compiles, a thread answers."""


def connect(environment: Mapping[str, str] = os.environ) -> bool:
    """Join the other processes of this job, if any; call it before JAX touches a device.

    JAX itself finds the others under SLURM (`srun`), Open MPI and, if the `kubernetes` package is installed,
    in an indexed Kubernetes job. Elsewhere three variables name them: `JAX_COORDINATOR_ADDRESS` (host:port of
    process 0, the same in all), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (0, 1, ...). Process 0 listens on
    that address alone, or on `JAX_COORDINATOR_BIND_ADDRESS`. From then on only process 0 prints to the
    screen.

    Returns:
        Whether there are other processes.

    Raises:
        InputError: the variables are incomplete, process 0 cannot listen where it is told to, or the others
            were not found.
    """
    if not _has_company(environment):
        return False
    try:
        jax.distributed.initialize(
            **_named(environment),
            coordinator_bind_address=_bind_address(environment),
            heartbeat_timeout_seconds=SILENCE_SECONDS,
            shutdown_timeout_seconds=LAST_GOODBYE_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"the other processes of this job could not be joined: {reason}") from error
    if not is_process_0():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - for the rest of the process's life
    return jax.process_count() > 1


def _has_company(environment: Mapping[str, str]) -> bool:
    """Whether the environment names several processes.

    The batch script of a SLURM job is a single process, and so is a Kubernetes job without the `kubernetes`
    package.
    """
    if "JAX_COORDINATOR_ADDRESS" in environment:
        return True
    if any(int(environment.get(size, "1")) > 1 for size in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")):
        return True
    indexed_job = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    return indexed_job and importlib.util.find_spec("kubernetes") is not None


def _named(environment: Mapping[str, str]) -> dict[str, Any]:
    """Number of processes and this process's number, if the environment names them; else JAX detects them."""
    names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    named = {argument: environment[name] for argument, name in names.items() if name in environment}
    for argument, value in named.items():
        if not value.isdecimal():
            raise InputError(
                f"environment variable {names[argument]}: expected a whole number, found {value!r}"
            )
    return {argument: int(value) for argument, value in named.items()}


def _bind_address(environment: Mapping[str, str]) -> str | None:
    """Where process 0 listens for the others; None in the others, and where JAX finds the address itself.

    By default JAX listens on all interfaces, whatever address is named, and ends without a word if it cannot
    listen on one, which is therefore tried before.
    """
    name = next((name for name in _ADDRESSES if name in environment), None)
    number = next((environment[number] for number in _NUMBERS if number in environment), None)
    if name is None or number != "0":
        return None
    address = environment[name]
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"environment variable {name}: expected host:port, found {address!r}")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(place)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"environment variable {name}: process 0 cannot listen on {address} ({error}); name an "
            f"address and a free port of its machine by JAX_COORDINATOR_BIND_ADDRESS (0.0.0.0:{port} is all "
            "of its interfaces)"
        ) from error
    return address


@contextmanager
def all_alive() -> Iterator[None]:
    """Say in one sentence that another process has ended, where the communication with it fails.

    Raises:
        OthersEndedError: as it says; nothing that was saved is lost.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1 or not _is_of_others(error):
            raise
        reason = str(error).strip().partition("\n")[0][:200]
        raise OthersEndedError(
            f"another process of this job has ended, or cannot be reached ({reason}); the ledger and the "
            "newest checkpoint are complete: start all processes again with --resume (their number may "
            "change)"
        ) from error


def _is_of_others(error: Exception) -> bool:
    """Whether the error is that of a connection to another process; on CPUs such an error is a ValueError."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" not in str(error)[:200]
    return "Gloo" in str(error)


def is_process_0() -> bool:
    """Whether this is process 0, which writes the run folder."""
    return jax.process_index() == 0


def run_on_all_processes(act: Callable[[], Value]) -> Value:
    """The result of `act`, once it has succeeded in every process.

    Raises:
        InputError: `act` raised one, in this or another process; all processes raise, so that none waits for
            one that has given up.
    """
    if jax.process_count() == 1:
        return act()
    value, own = None, None
    try:
        value = act()
    except InputError as error:
        own = error
    heard = _everyones_sentences("" if own is None else str(own))
    if own is not None:
        raise own
    if heard:
        raise InputError(heard[0])
    return value  # type: ignore[return-value]


def run_on_process_0(act: Callable[[], Value]) -> Value | None:
    """The result of `act` in process 0; the other processes wait and get None."""
    return run_on_all_processes(lambda: act() if is_process_0() else None)


def process_0_first(act: Callable[[], Value]) -> Value:
    """The result of `act`, run in process 0 and then in the others, which find what process 0 has made."""
    made = run_on_process_0(act)
    return run_on_all_processes(lambda: made if is_process_0() else act())  # type: ignore[return-value]


def broadcast_from_process_0(value: int) -> int:
    """Process 0's value, in every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def largest_of_processes(value: int) -> int:
    """The largest of all processes' values."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def _everyones_sentences(own: str) -> list[str]:
    """The error messages of all processes that have one, in order of process."""
    encoded = own.encode()[:SENTENCE_BYTES]
    mine = np.zeros(SENTENCE_BYTES, np.uint8)
    mine[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(mine)).astype(np.uint8)
    sentences = [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in gathered]
    return [sentence for sentence in sentences if sentence]

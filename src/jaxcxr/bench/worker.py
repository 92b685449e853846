"""A contender in a process of its own, which runs when it is told to: it shares no memory, threads or caches
with another.
"""

import contextlib
import ctypes
import gc
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax

from jaxcxr.bench.case import AnyCase, Contender, NetworkCase
from jaxcxr.training.cpu_allocator import keep_memory


def build(name: str, case: AnyCase) -> Contender:
    """The contender `name`; its library is imported here and not before."""
    if name.startswith(("torch", "opacus")):
        from jaxcxr.bench.torch_peers import contender

        return contender(name, case)
    if isinstance(case, NetworkCase):
        from jaxcxr.bench.jax_networks import contender

        return contender(name, case)
    from jaxcxr.bench.ours import contender

    return contender(name, case)


def serve(pipe: Connection, name: str, case: AnyCase) -> None:
    """Answer requests until the pipe closes: ('sums',), ('time', n), ('peak', n), ('rate', dtype),
    ('least_flops',), ('device',).

    An answer is ('ok', value), or ('error', one line) after which the process ends.
    """
    # The libraries talk; what they say would tear the table on the screen.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # or a first step would be one without compilation the next time
    if name.startswith("jaxcxr") or case.peers_keep_memory:
        keep_memory()
    with contextlib.suppress(OSError):
        # A contender that asks for more memory than there is ends itself, not its neighbours.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    try:
        made: Contender | None = None
        while True:
            request = pipe.recv()
            if request[0] == "device":
                device = jax.devices()[0]
                answer: Any = {"platform": device.platform, "kind": device.device_kind}
            elif request[0] == "rate":
                from jaxcxr.bench.ours import product_rate

                answer = product_rate(request[1])
            elif request[0] == "least_flops":
                from jaxcxr.bench.jax_networks import least_flops_of

                answer = least_flops_of(case) if isinstance(case, NetworkCase) else case.least_flops()
            else:
                begin = time.perf_counter()
                made = made or build(name, case)
                answer = _answer(made, request, begin)
            pipe.send(("ok", answer))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is its row in the table
        lines = str(error).strip().splitlines() or [""]
        pipe.send(("error", f"{type(error).__name__}: {lines[0][:300]}"))


def _answer(contender: Contender, request: tuple[Any, ...], begin: float) -> Any:
    match request:
        case ("sums",):
            sums = contender.step()
            seconds = time.perf_counter() - begin
            return contender.on_host(sums), seconds
        case ("time", int(repetitions)):
            contender.step()  # fetches code and data back into the caches that others have used meanwhile
            return [_timed(contender) for _ in range(repetitions)]
        case ("peak", int(repetitions)):
            return peak_bytes(contender, repetitions)
    raise ValueError(request)


def _timed(contender: Contender) -> float:
    begin = time.perf_counter()
    contender.step()
    return time.perf_counter() - begin


def peak_bytes(contender: Contender, repetitions: int) -> int | None:
    """Most memory that a step needs: parameters, batch and everything alive at once during the step.

    On an accelerator its allocator knows. On a CPU it is the growth of the process's resident memory over its
    idle state (weights, code and batch loaded, free memory given back), from the kernel's high-water mark,
    plus parameters and batch. None where the kernel keeps no such mark.
    """
    on_device = contender.device_peak()
    if on_device is not None:
        contender.step()
        return contender.device_peak()
    contender.step()
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        idle = _status("VmRSS")
    except (OSError, AttributeError):
        return None
    for _ in range(repetitions):
        contender.step()
    return _status("VmHWM") - idle + contender.held_bytes


def _status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")

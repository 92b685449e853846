"""The benchmark: contenders checked against each other, then timed in turns.

Each contender is a process of its own (`worker`). All exist at once and exactly one runs at any time; the
rounds are interleaved, so that a machine that slows down slows all of them.
"""

import dataclasses
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jaxcxr.atomic import write_json
from jaxcxr.bench.case import AnyCase, GradientSums
from jaxcxr.bench.worker import serve

OURS = ("jaxcxr vmap", "jaxcxr nonprivate", "jaxcxr layerwise")
"""Turns are taken in this order: each private step next to the one that it is compared with, which halves the
scatter of the ratio between rounds where the machine's speed varies.
"""
PEERS: Mapping[str, tuple[str, ...]] = {
    "opacus": ("torch nonprivate", "opacus hooks", "opacus functorch", "opacus ew", "opacus ghost"),
    "jax_privacy": ("jax_privacy clipped_grad",),
}
AGREEMENT = {"float32": 1e-3, "bfloat16": 5e-2}
"""Largest relative L2 distance of two gradient sums that count as equal."""
TURN_SECONDS = 2.0
"""A turn repeats the step until about this long, three to ten times."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender on one case, as in `results.json`.

    Attributes:
        name: of the contender.
        size, batch, dtype: of the case.
        median_s: time of a step (gradient sum; no noise, no update).
        spread_s: between the quartiles of the step times.
        images_per_s: batch / median_s.
        peak_bytes: see `worker.peak_bytes`.
        ratio_to_nonprivate: to the non-private step of the same library: the median over rounds of the ratio
            in a round.
        error: why there are no figures.
        network: of the case.
    """

    name: str
    size: int
    batch: int
    dtype: str
    median_s: float | None = None
    spread_s: float | None = None
    images_per_s: float | None = None
    peak_bytes: int | None = None
    ratio_to_nonprivate: float | None = None
    error: str | None = None
    network: str = "resnet9"


@dataclasses.dataclass(frozen=True)
class Details:
    """What stands behind a row, as in `details.json`.

    Attributes:
        row: the row.
        distance: relative L2 distance of the gradient sum to the reference's.
        first_step_s: time to build the contender and run it once, compilation included.
        share_of_product_rate: least flops of the step / (median_s x the machine's matrix-product rate).
        seconds: every step time, one list a round.
    """

    row: Row
    distance: float | None = None
    first_step_s: float | None = None
    share_of_product_rate: float | None = None
    seconds: tuple[tuple[float, ...], ...] = ()


class Worker:
    """The parent's end of one contender's process; after an error it answers nothing more.

    What is not answered by `deadline` (of `time.monotonic`), or within `limit_s` of being asked, is an error,
    and ends the process.
    """

    def __init__(
        self, name: str, case: AnyCase, deadline: float | None = None, limit_s: float | None = None
    ) -> None:
        self._deadline, self._limit_s = deadline, limit_s
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, case), daemon=True)
        self._process.start()
        theirs.close()
        self.error: str | None = None

    def ask(self, *request: Any) -> Any:
        """The answer, or None with `error` set."""
        if self.error is not None:
            return None
        try:
            self._pipe.send(request)
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            limits = [seconds for seconds in (left, self._limit_s) if seconds is not None]
            if self._pipe.poll(min(limits, default=None)):
                outcome, value = self._pipe.recv()
            else:
                self._process.kill()
                why = "the time was over" if min(limits) == left else f"no answer within {self._limit_s:g} s"
                outcome, value = "error", f"not measured: {why}"
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            killed = " (out of memory?)" if self._process.exitcode == -9 else ""
            outcome, value = "error", f"the process ended with status {self._process.exitcode}{killed}"
        if outcome == "error":
            self.error = value
            return None
        return value

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


def names_of(peers: Sequence[str]) -> tuple[str, ...]:
    """The contenders of a benchmark, this package's first."""
    return (*OURS, *(name for peer in peers for name in PEERS[peer]))


def nonprivate_of(name: str) -> str:
    """The non-private step that a private one is compared with: of the same library, on the same network
    code.
    """
    return "torch nonprivate" if name.startswith(("torch", "opacus")) else "jaxcxr nonprivate"


def measure(
    case: AnyCase,
    names: Sequence[str],
    rounds: int,
    say: Callable[[str], None],
    turn_s: float = TURN_SECONDS,
    deadline: float | None = None,
    limit_s: float | None = None,
) -> list[Details]:
    """Check, then time the contenders on one case.

    A contender that fails, whose sum differs from the reference (the first of the private ones, usually
    `jaxcxr vmap`), that has no figures by the deadline (of `time.monotonic`), or that takes longer than
    `limit_s` over its first step or over a turn, has a row with its error.
    """
    workers: dict[str, Worker] = {}
    try:
        distances, first_steps, peaks = {}, {}, {}
        references: dict[bool, GradientSums] = {}
        for name in names:
            say(f"{case.network} {case.size} x {case.batch} {case.dtype}: preparing {name}")
            worker = workers[name] = Worker(name, case, deadline, limit_s)
            answer = worker.ask("sums")
            if answer is None:
                continue
            sums, first_steps[name] = answer
            private = not name.endswith("nonprivate")
            distances[name] = distance(sums, references.setdefault(private, sums))
            if not distances[name] <= AGREEMENT[case.dtype]:
                worker.error = (
                    f"its gradient sum differs from the reference by {distances[name]:.2g} of the "
                    "reference's norm"
                )
                continue
            peaks[name] = worker.ask("peak", 2)
        asked = workers.get("jaxcxr nonprivate")
        rate, flops = (asked.ask("rate", case.dtype), asked.ask("least_flops")) if asked else (None, None)
        seconds = _take_turns(workers, rounds, say, turn_s, deadline)
    finally:
        for worker in workers.values():
            worker.close()
    return [
        Details(
            row=_row(case, name, seconds, peaks.get(name), workers[name].error),
            distance=distances.get(name),
            first_step_s=first_steps.get(name),
            share_of_product_rate=flops / (float(np.median(np.concatenate(seconds[name]))) * rate)
            if rate and flops and workers[name].error is None
            else None,
            seconds=tuple(tuple(turn) for turn in seconds[name]),
        )
        for name in names
    ]


def _take_turns(
    workers: Mapping[str, Worker],
    rounds: int,
    say: Callable[[str], None],
    turn_s: float,
    deadline: float | None,
) -> dict[str, list[list[float]]]:
    """The step times of each contender by round; after the first round, none is begun that would not end in
    time.
    """
    seconds: dict[str, list[list[float]]] = {name: [] for name in workers}
    order = list(workers)
    begins: list[float] = []
    for index in range(rounds):
        begins.append(time.monotonic())
        if index and deadline is not None and 2 * begins[-1] - begins[-2] > deadline:
            break
        say(f"round {index + 1} of {rounds}")
        for name in order[index % len(order) :] + order[: index % len(order)]:
            usual = np.median(seconds[name][-1]) if seconds[name] else turn_s / 3
            turn = workers[name].ask("time", int(np.clip(turn_s / usual, 3, 10)))
            if turn is not None:
                seconds[name].append(turn)
    return seconds


def _row(
    case: AnyCase,
    name: str,
    seconds: Mapping[str, Sequence[Sequence[float]]],
    peak: int | None,
    error: str | None,
) -> Row:
    if error is not None:
        return Row(name, case.size, case.batch, case.dtype, error=error, network=case.network)
    times = np.concatenate(seconds[name])
    median = float(np.median(times))
    low, high = np.percentile(times, [25, 75])
    return Row(
        name=name,
        size=case.size,
        batch=case.batch,
        dtype=case.dtype,
        median_s=median,
        spread_s=float(high - low),
        images_per_s=case.batch / median,
        peak_bytes=peak,
        ratio_to_nonprivate=ratio(seconds[name], seconds.get(nonprivate_of(name), ())),
        network=case.network,
    )


def ratio(turns: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> float | None:
    """Median over rounds of the ratio of two contenders' medians in a round; None if one missed a round."""
    if not base or len(turns) != len(base):
        return None
    return float(np.median([np.median(a) / np.median(b) for a, b in zip(turns, base, strict=True)]))


def distance(sums: GradientSums, reference: GradientSums) -> float:
    """|sums - reference| / |reference| over all parameters."""
    squared = sum(float(np.sum((sums[name] - reference[name]).astype(np.float64) ** 2)) for name in reference)
    norm = sum(float(np.sum(reference[name].astype(np.float64) ** 2)) for name in reference)
    return float(np.sqrt(squared / norm))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    libraries = ("jax", "jaxlib", "flax", "jax-privacy", "torch", "opacus", "numpy")
    versions = {}
    for library in libraries:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def write_results(details: Sequence[Details], out: Path) -> None:
    """Write `results.json` (the rows) and `details.json`; each appears complete or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    contents = {
        "results.json": [dataclasses.asdict(d.row) for d in details],
        "details.json": {"machine": machine(), "rows": [dataclasses.asdict(d) for d in details]},
    }
    for name, content in contents.items():
        write_json(out / name, content)

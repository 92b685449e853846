"""What the devices are fed: each step's films, drawn, read, augmented, cut and placed while the step before runs."""

import dataclasses
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from jaxcxr.data.augment import flip_rotate
from jaxcxr.data.store import Split
from jaxcxr.privacy import noise, sampling
from jaxcxr.training.objective import Microbatch
from jaxcxr.training.plan import Plan
from jaxcxr.training.step import Step

IN_MEMORY_BYTES = 2 << 30
"""Training films up to this size are read once and kept in memory."""


@dataclasses.dataclass
class Waiting:
    """Seconds in which the devices had nothing to do because the next batch was not there yet, since last asked."""

    seconds: float = 0.0

    def take(self) -> float:
        """The seconds so far; counting begins anew."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def batches(
    plan: Plan, secret: bytes, step_functions: Step, first: int, last: int, waiting: Waiting, busy: Callable[[], bool]
) -> Generator[list[Microbatch], None, None]:
    """The placed microbatches of steps `first` to `last` - 1, each made on a thread while the step before it runs.

    An empty batch is an empty list. With several processes each makes its own rows of every microbatch; all have the same
    number, also where one's rows are all padding.

    Args:
        plan: of the run.
        secret: of the run.
        step_functions: where the rows go.
        first: step to begin with.
        last: step to end before.
        waiting: counts the time that the devices wait.
        busy: whether the devices are still at work.
    """
    read = _reader(plan.split)

    def prepare(step: int) -> list[Microbatch]:
        films, size = drawn_films(plan, secret, step), step_functions.microbatch_size
        own = size // jax.process_count()
        starts = range(jax.process_index() * own, len(films) + jax.process_index() * own, size)
        return [
            step_functions.place(microbatch(plan, secret, step, films, slice(start, start + own), read)) for start in starts
        ]

    with ThreadPoolExecutor(max_workers=1) as thread:
        upcoming = thread.submit(prepare, first) if first < last else None
        for step in range(first, last):
            assert upcoming is not None
            began = time.perf_counter()
            batch = upcoming.result()
            if not busy():
                waiting.seconds += time.perf_counter() - began
            upcoming = thread.submit(prepare, step + 1) if step + 1 < last else None
            yield batch


def drawn_films(plan: Plan, secret: bytes, step: int) -> Int[np.ndarray, "units films"]:
    """The films of each unit in the batch of one step, -1 where a unit has fewer than the others."""
    if plan.mechanism is None:
        return sampling.poisson_batch(secret, step, len(plan.split), plan.sample_rate)[:, None]
    units = plan.mechanism.draw(secret, step, len(plan.units))
    key = noise.derive_key(secret, "films of a unit", step)
    return sampling.records_of_units(units, plan.units, plan.films_per_unit, key)


def microbatch(
    plan: Plan,
    secret: bytes,
    step: int,
    films: Int[np.ndarray, "units films"],
    rows: slice,
    read: Callable[[np.ndarray], np.ndarray],
) -> dict[str, np.ndarray]:
    """Some rows of a batch: their films read, rows beyond its end masked padding.

    Padding repeats nothing of the batch: it is black films with unknown labels.

    Args:
        plan: of the run.
        secret: of the run.
        step: which the batch belongs to.
        films: indices of the batch's films; -1 for none.
        rows: of the batch.
        read: indices -> images.
    """
    size, side, findings = rows.stop - rows.start, plan.split.size, plan.split.labels.shape[1]
    wanted = films[rows]
    padded = np.full((size, films.shape[1]), -1, np.int64)
    padded[: len(wanted)] = wanted
    is_film = padded >= 0
    indices = padded[is_film]
    images, labels = read(indices), plan.split.labels[indices]
    if plan.config.training.augmentation == "flip_rotate":
        rng = np.random.default_rng(noise.derive_key(secret, f"augmentation from row {rows.start}", step).tolist())
        images, labels = flip_rotate(images, labels, plan.config.data.findings, rng)
    batch = {
        "image": np.zeros((*padded.shape, side, side), np.uint8),
        "label": np.full((*padded.shape, findings), np.nan, np.float32),
        "is_film": is_film,
        "is_real": np.arange(size) < len(wanted),
    }
    batch["image"][is_film], batch["label"][is_film] = images, labels
    return batch


def _reader(split: Split) -> Callable[[Any], np.ndarray]:
    if len(split) * split.size**2 <= IN_MEMORY_BYTES:
        images = split.read_all()
        return lambda indices: images[indices]
    return split.read

"""What the devices are fed: each step's films, drawn, read, augmented, cut and placed while the step before
runs.
"""

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
from jaxcxr.errors import InputError
from jaxcxr.privacy import noise, sampling
from jaxcxr.training import build
from jaxcxr.training.distributed import the_first_says
from jaxcxr.training.objective import FILMS, Microbatch
from jaxcxr.training.plan import RunPlan
from jaxcxr.training.step import Step

IN_MEMORY_BYTES = 2 << 30
"""Training films up to this size are read once and kept in memory."""
PIECE_BYTES = 256 << 20
"""Films go to the devices, where they are kept there, in pieces of this size."""


@dataclasses.dataclass
class Waiting:
    """Seconds in which the devices had nothing to do because the next batch was not there yet, since last
    asked.
    """

    seconds: float = 0.0

    def take(self) -> float:
        """The seconds so far; counting begins anew."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def batches(
    plan: RunPlan,
    secret: bytes,
    step_functions: Step,
    first: int,
    last: int,
    waiting: Waiting,
    busy: Callable[[], bool],
) -> Generator[list[Microbatch], None, None]:
    """The placed microbatches of steps `first` to `last` - 1, each made on a thread while the step before it
    runs.

    An empty batch is an empty list. With several processes each makes its own rows of every microbatch; all
    have the same number, also where one's rows are all padding.

    Args:
        plan: of the run.
        secret: of the run, bound to what it trains (`records.binding`).
        step_functions: where the rows go.
        first: step to begin with.
        last: step to end before.
        waiting: counts the time that the devices wait.
        busy: whether the devices are still at work.
    """
    on_device = bool(the_first_says(build.films_on_device(plan)))
    kept = {FILMS: films_on_devices(plan.split, step_functions.replicate)} if on_device else {}
    read = None if on_device else _reader(plan.split)

    def prepare(step: int) -> list[Microbatch]:
        size = step_functions.microbatch_size
        films = drawn_films(plan, secret, step, places=size // step_functions.devices)
        own = size // jax.process_count()
        starts = range(jax.process_index() * own, len(films) + jax.process_index() * own, size)
        rows = [microbatch(plan, secret, step, films, slice(start, start + own), read) for start in starts]
        return [{**step_functions.place(piece), **kept} for piece in rows]

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


def drawn_films(plan: RunPlan, secret: bytes, step: int, places: int = 1) -> Int[np.ndarray, "units films"]:
    """The films of each unit in the batch of one step, in the order in which they are summed; -1 where a unit
    has fewer than the others, and in all of a row that is padding.

    The order is drawn from the secret. With discrete noise, and for moments, each unit also has a place of
    its own in the microbatch of a device (`privacy.hardened_sum`), so that some places stay empty: `places`
    units are handled at once.

    Raises:
        InputError: the batch is larger than sums have room for (`Mechanism.most_units`).
    """
    if plan.mechanism is None:
        return sampling.poisson_batch(secret, step, len(plan.split), plan.sample_rate)[:, None]
    present = len(plan.units)
    units = plan.mechanism.draw(secret, step, present)
    if len(units) > plan.mechanism.most_units:
        raise InputError(
            f"privacy.dataset_size: at a declared N of {plan.mechanism.n_units} step {step} drew "
            f"{len(units)} units, where "
            f"about {plan.mechanism.expected_batch_size} are expected and sums have room for "
            f"{plan.mechanism.most_units}; "
            "declare a number nearer to the units that are there"
        )
    films = sampling.records_of_units(
        units, plan.units, plan.films_per_unit, noise.derive_key(secret, "films of a unit", step)
    )
    if not build.in_places(plan):
        return films[sampling.in_random_order(secret, step, present, units)]
    films = np.concatenate([films, np.full((1, films.shape[1]), -1, np.int64)])  # which -1 points to
    return films[sampling.in_places(secret, step, present, units, places).ravel()]


def microbatch(
    plan: RunPlan,
    secret: bytes,
    step: int,
    films: Int[np.ndarray, "units films"],
    rows: slice,
    read: Callable[[np.ndarray], np.ndarray] | None,
) -> dict[str, np.ndarray]:
    """Some rows of a batch: their films read, each as often as there are views, rows beyond its end masked
    padding.

    Padding repeats nothing of the batch: it is black films with unknown labels.

    Args:
        plan: of the run.
        secret: of the run, bound to what it trains (`records.binding`).
        step: which the batch belongs to.
        films: indices of the batch's films; -1 for none.
        rows: of the batch.
        read: indices -> images; None gives the indices instead, of films that are on the devices already.
    """
    size, side, findings = rows.stop - rows.start, plan.split.size, plan.split.labels.shape[1]
    training = plan.config.training
    wanted = films[rows]
    padded = np.full((size, films.shape[1]), -1, np.int64)
    padded[: len(wanted)] = wanted
    padded = np.repeat(padded, training.views, axis=1)
    is_film = padded >= 0
    indices = padded[is_film]
    labels = plan.split.labels[indices]
    batch = {
        "label": np.full((*padded.shape, findings), np.nan, np.float32),
        "is_film": is_film,
        "is_real": is_film.any(axis=1),
    }
    if read is None:
        batch["label"][is_film] = labels
        return {"index": np.maximum(padded, 0).astype(np.int32), **batch}
    images = read(indices)
    if training.augmentation == "flip_rotate" and plan.mechanism is not None:
        images, labels = _views_of_their_own(plan, secret, step, indices, images, labels)
    elif training.augmentation == "flip_rotate":
        rng = np.random.default_rng(
            noise.derive_key(secret, f"augmentation from row {rows.start}", step).tolist()
        )
        images, labels = flip_rotate(images, labels, plan.config.data.findings, rng)
    batch["image"] = np.zeros((*padded.shape, side, side), np.uint8)
    batch["image"][is_film], batch["label"][is_film] = images, labels
    return batch


def _views_of_their_own(
    plan: RunPlan, secret: bytes, step: int, indices: Any, images: Any, labels: Any
) -> tuple[Any, Any]:
    """Augment each film's views by a key of (secret, step, film).

    What a unit gives then depends on itself alone: one unit more or less changes its own contribution and no
    other, wherever it would stand in the batch.
    """
    key, views = noise.derive_key(secret, "views of a film", step).tolist(), plan.config.training.views
    images, labels = images.copy(), labels.copy()
    for first in range(0, len(indices), views):  # the views of a film stand side by side
        rng, of_film = np.random.default_rng([*key, int(indices[first])]), slice(first, first + views)
        images[of_film], labels[of_film] = flip_rotate(
            images[of_film], labels[of_film], plan.config.data.findings, rng
        )
    return images, labels


def films_on_devices(split: Split, replicate: Callable[[Any], Any]) -> Any:
    """All films of a split, in order, on every device; the host never holds more than a piece of them."""
    shape = (len(split), split.size, split.size)
    rows = max(1, PIECE_BYTES // split.size**2)
    everywhere = replicate(np.zeros((), np.uint8)).sharding
    films = jax.jit(lambda: jax.numpy.zeros(shape, np.uint8), out_shardings=everywhere)()
    fill = jax.jit(
        lambda films, piece, at: jax.lax.dynamic_update_slice(films, piece, (at, 0, 0)), donate_argnums=0
    )
    for first in range(0, len(split), rows):
        piece = split.read(np.arange(first, min(first + rows, len(split)))).astype(np.uint8)
        films = fill(films, replicate(piece), np.int32(first))
    return films


def _reader(split: Split) -> Callable[[Any], np.ndarray]:
    if len(split) * split.size**2 <= IN_MEMORY_BYTES:
        images = split.read_all()
        return lambda indices: images[indices]
    return split.read

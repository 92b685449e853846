"""Feed the devices: sample, read, augment and place each step's images while the previous step runs."""

import dataclasses
import functools
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
from jaxcxr.training.distributed import broadcast_from_process_0
from jaxcxr.training.objective import FILMS, Microbatch
from jaxcxr.training.plan import RunPlan
from jaxcxr.training.step import Step

IN_MEMORY_BYTES = 2 << 30
"""Training images up to this size are read once and kept in memory."""
PIECE_BYTES = 256 << 20
"""Size of the pieces in which images are copied to the devices if they are kept there."""


@dataclasses.dataclass
class Waiting:
    """Seconds in which the devices were idle because the next batch was not ready, since last asked."""

    seconds: float = 0.0

    def take(self) -> float:
        """The seconds so far; resets the counter."""
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
    """Placed microbatches of steps `first` to `last` - 1, each prepared while the previous step runs.

    An empty batch is an empty list. With several processes, each prepares its own rows of every microbatch;
    all have the same number of microbatches, even if one's rows are all padding.

    Args:
        plan: of the run.
        secret: of the run, bound to what it trains (`records.binding`).
        step_functions: where the rows go.
        first: first step.
        last: one beyond the last step.
        waiting: counts the time for which the devices wait.
        busy: whether the devices are still computing.
    """
    on_device = bool(broadcast_from_process_0(build.films_on_device(plan)))
    kept = {FILMS: images_on_devices(plan.split, step_functions.replicate)} if on_device else {}
    read = None if on_device else _reader(plan.split) if plan.head is None else plan.head.rows.read

    def prepare(step: int) -> list[Microbatch]:
        size = step_functions.microbatch_size
        images = sampled_images(plan, secret, step, places=size // step_functions.devices)
        own = size // jax.process_count()
        starts = range(jax.process_index() * own, len(images) + jax.process_index() * own, size)
        rows = [microbatch(plan, secret, step, images, slice(start, start + own), read) for start in starts]
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


def sampled_images(
    plan: RunPlan, secret: bytes, step: int, places: int = 1
) -> Int[np.ndarray, "units images"]:
    """The images of each unit in one step's batch, as indices, in the order of summation.

    -1 pads units with fewer images than others, and fills rows that are all padding. The order is random,
    derived from the secret. With discrete noise, and for moments, each unit has a fixed place in the
    microbatch of a device (`privacy.hardened_sum`), so that some places stay empty; `places` units are
    handled at once.

    Raises:
        InputError: the batch exceeds the capacity of the sum (`Mechanism.most_units`).
    """
    if plan.mechanism is None:
        return sampling.poisson_batch(secret, step, len(plan.split), plan.sample_rate)[:, None]
    present = len(plan.units)
    units = plan.mechanism.draw(secret, step, present, groups_of(plan, secret))
    if len(units) > plan.mechanism.most_units:
        raise InputError(
            f"privacy.dataset_size: at a declared N of {plan.mechanism.n_units} step {step} drew "
            f"{len(units)} units, where about {plan.mechanism.expected_batch_size} are expected and sums "
            f"have room for {plan.mechanism.most_units}; declare a number nearer to the units that are there"
        )
    images = sampling.records_of_units(
        units, plan.units, plan.images_per_unit, noise.derive_key(secret, "films of a unit", step)
    )
    if not build.in_places(plan):
        return images[sampling.in_random_order(secret, step, present, units)]
    images = np.concatenate([images, np.full((1, images.shape[1]), -1, np.int64)])  # the row at index -1
    return images[sampling.in_places(secret, step, present, units, places).ravel()]


def groups_of(plan: RunPlan, secret: bytes) -> Int[np.ndarray, " units"] | None:
    """The group of each unit, where groups take turns; else None."""
    assert plan.mechanism is not None
    return None if plan.mechanism.bands == 1 else _groups(secret, plan.unit_ids, plan.mechanism.bands)


@functools.lru_cache(maxsize=4)
def _groups(secret: bytes, ids: tuple[str, ...], n_groups: int) -> Int[np.ndarray, " units"]:
    return sampling.groups(secret, ids, n_groups)


def microbatch(
    plan: RunPlan,
    secret: bytes,
    step: int,
    image_indices: Int[np.ndarray, "units images"],
    rows: slice,
    read: Callable[[np.ndarray], np.ndarray] | None,
) -> dict[str, np.ndarray]:
    """Some rows of a batch: images read and repeated per augmentation, rows beyond the batch's end masked.

    Padding repeats nothing of the batch: it is black images with unknown labels. Each image occurs
    `training.augmentation_multiplicity` times (the augmentation multiplicity).

    Args:
        plan: of the run.
        secret: of the run, bound to what it trains (`records.binding`).
        step: step of the batch.
        image_indices: the batch's images (`sampled_images`); -1 for none.
        rows: rows of the batch to prepare.
        read: indices -> images; with None the result holds indices, of images that are on the devices
            already.
    """
    size, findings = rows.stop - rows.start, plan.split.labels.shape[1]
    training = plan.config.training
    wanted = image_indices[rows]
    padded = np.full((size, image_indices.shape[1]), -1, np.int64)
    padded[: len(wanted)] = wanted
    padded = np.repeat(padded, training.augmentation_multiplicity, axis=1)
    is_image = padded >= 0
    indices = padded[is_image]
    labels = plan.split.labels[indices]
    batch = {
        "label": np.full((*padded.shape, findings), np.nan, np.float32),
        "is_image": is_image,
        "is_real": is_image.any(axis=1),
    }
    if read is None:
        batch["label"][is_image] = labels
        return {"index": np.maximum(padded, 0).astype(np.int32), **batch}
    images = read(indices)
    if training.augmentation == "flip_rotate" and plan.mechanism is not None:
        images, labels = _views_of_their_own(plan, secret, step, indices, images, labels)
    elif training.augmentation == "flip_rotate":
        rng = np.random.default_rng(
            noise.derive_key(secret, f"augmentation from row {rows.start}", step).tolist()
        )
        images, labels = flip_rotate(images, labels, plan.config.data.findings, rng)
    batch["image"] = np.zeros((*padded.shape, *plan.record.shape), plan.record.dtype)
    batch["image"][is_image], batch["label"][is_image] = images, labels
    return batch


def _views_of_their_own(
    plan: RunPlan, secret: bytes, step: int, indices: Any, images: Any, labels: Any
) -> tuple[Any, Any]:
    """Images and labels, each image's views augmented with a key of (secret, step, image).

    A unit's contribution then depends on that unit alone: adding or removing a unit changes no other
    contribution, wherever the unit is in the batch.
    """
    key = noise.derive_key(secret, "views of a film", step).tolist()
    copies = plan.config.training.augmentation_multiplicity
    images, labels = images.copy(), labels.copy()
    for first in range(0, len(indices), copies):  # those of an image are consecutive
        rng, of_image = np.random.default_rng([*key, int(indices[first])]), slice(first, first + copies)
        images[of_image], labels[of_image] = flip_rotate(
            images[of_image], labels[of_image], plan.config.data.findings, rng
        )
    return images, labels


def images_on_devices(split: Split, replicate: Callable[[Any], Any]) -> Any:
    """All images of a split, in order, on every device; the host never holds more than one piece of them."""
    shape = (len(split), split.size, split.size)
    rows = max(1, PIECE_BYTES // split.size**2)
    everywhere = replicate(np.zeros((), np.uint8)).sharding
    images = jax.jit(lambda: jax.numpy.zeros(shape, np.uint8), out_shardings=everywhere)()
    fill = jax.jit(
        lambda images, piece, at: jax.lax.dynamic_update_slice(images, piece, (at, 0, 0)), donate_argnums=0
    )
    for first in range(0, len(split), rows):
        piece = split.read(np.arange(first, min(first + rows, len(split)))).astype(np.uint8)
        images = fill(images, replicate(piece), np.int32(first))
    return images


def _reader(split: Split) -> Callable[[Any], np.ndarray]:
    if len(split) * split.size**2 <= IN_MEMORY_BYTES:
        images = split.read_all()
        return lambda indices: images[indices]
    return split.read

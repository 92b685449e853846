"""Which units take part in a step: Poisson sampling from a secret.

Guarantee: unit i is in the batch of step t if and only if a 64-bit word of SHAKE-256(secret, t) falls below q
2^64, so that every unit is in every batch independently with probability q (to 2^-64), whatever the others
do. No batch is truncated, topped up or skipped, and an empty batch is a batch. The words are a function of
(secret, step) alone: an interrupted run resumes with the batches that it would have drawn.
"""

import hashlib
import hmac
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt32

_PLACES, _GROUP = b"jaxcxr places", b"jaxcxr group"


def poisson_batch(secret: bytes, step: int, n_units: int, sample_rate: float) -> Int[np.ndarray, " drawn"]:
    """Indices, ascending, of the units in the batch of one step.

    Args:
        secret: 32 bytes from the operating system (`noise.new_secret`), bound to what is trained
            (`binding.bound_secret`).
        step: number of the step; each (secret, step) has its own independent words.
        n_units: size of the data set.
        sample_rate: q in [0, 1], the accounted probability of each unit.
    """
    if not 0.0 <= sample_rate <= 1.0:
        raise ValueError(f"sample_rate: expected a probability in [0, 1], found {sample_rate}")
    if sample_rate == 1.0:
        return np.arange(n_units)
    words = _words(b"jaxcxr poisson", secret, step, n_units)
    return np.flatnonzero(words < np.uint64(int(sample_rate * 2.0**64)))


def groups(secret: bytes, ids: Sequence[str], n_groups: int) -> Int[np.ndarray, " units"]:
    """The group of each unit, where groups take turns: a keyed hash of its id, modulo their number.

    Guarantee: a unit's group follows from the secret and its own id alone, and stays the same whoever else is
    there.

    Args:
        secret: of the run, bound to what it trains (`binding.bound_secret`).
        ids: of the units; equal ones share a group, as the images of one patient do.
        n_groups: how many groups there are.
    """

    def group(unit: str) -> int:
        word = hmac.digest(secret, _GROUP + unit.encode(), "sha256")[:16]
        return int.from_bytes(word, "little") % n_groups

    found = {unit: group(unit) for unit in dict.fromkeys(ids)}
    return np.fromiter((found[unit] for unit in ids), np.int64, len(ids))


def records_of_units(
    units: Int[np.ndarray, " drawn"],
    records: Sequence[Int[np.ndarray, " of_unit"]],
    most: int,
    key: UInt32[np.ndarray, "4"],
) -> Int[np.ndarray, "drawn most"]:
    """At most `most` records of each drawn unit, -1 where it has fewer; of more a fresh random choice.

    What a unit gives depends on itself and the key alone: a unit added or removed changes its own row only.

    Args:
        units: indices of the drawn units.
        records: the records of every unit, at least one each.
        most: bound on the records of a unit in one step.
        key: of this step and this purpose (`noise.derive_key`).
    """
    chosen = np.full((len(units), most), -1, np.int64)
    for row, unit in enumerate(units):
        kept = records[unit]
        if len(kept) > most:
            kept = np.random.default_rng([*key.tolist(), int(unit)]).choice(kept, most, replace=False)
        chosen[row, : len(kept)] = kept
    return chosen


def in_random_order(
    secret: bytes, step: int, n_units: int, units: Int[np.ndarray, " drawn"]
) -> Int[np.ndarray, " drawn"]:
    """Positions of the drawn units in an order drawn from the secret.

    In which microbatch a unit is summed, and beside whom, then depends on no order of the data: nobody can
    arrange a data set so that the rounding of sums adds up.
    """
    return np.argsort(_words(_PLACES, secret, step, n_units)[units], kind="stable")


def in_places(
    secret: bytes, step: int, n_units: int, units: Int[np.ndarray, " drawn"], places: int
) -> Int[np.ndarray, "rows places"]:
    """Positions of the drawn units, each in its own place of some row, -1 where there is none.

    Guarantee: a unit's place (the column) is drawn for it alone. One unit more lengthens its own column; the
    others stay in theirs, be it in another row (`hardened_sum`).
    """
    words = _words(_PLACES, secret, step, n_units)[units]
    place = ((words >> np.uint64(32)) * np.uint64(places) >> np.uint64(32)).astype(np.int64)
    columns = [np.flatnonzero(place == column) for column in range(places)]
    rows = np.full((max((len(column) for column in columns), default=0), places), -1, np.int64)
    for index, column in enumerate(columns):
        rows[: len(column), index] = column[np.argsort(words[column], kind="stable")]
    return rows


def _words(purpose: bytes, secret: bytes, step: int, n_units: int) -> np.ndarray:
    """One random 64-bit word for each unit in a step."""
    stream = hashlib.shake_256(purpose + secret + step.to_bytes(8, "little")).digest(8 * n_units)
    return np.frombuffer(stream, dtype="<u8")

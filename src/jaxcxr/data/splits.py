"""Patient-level train/valid/test splits: each patient's split follows from the patient's own id and a key.

HMAC-SHA256(key, purpose and patient id), read as a 64-bit number, is compared with the cumulative fractions.
No other patient, label, number of images or order of rows has any influence: adding or removing a patient
changes nobody else's split, and the training splits of two neighbouring cohorts differ by that patient alone,
as differential privacy under add/remove of one unit requires. The price: shares of findings and groups are
balanced in expectation only. Of n patients with a rare finding, a split of fraction f gets f n, with a
standard deviation of sqrt(n f (1 - f)).

Source: the paper (Patient Cohort) allocates patients, not images, to training and test; HMAC as a keyed
pseudo-random function: RFC 2104, FIPS 198-1.
"""

import dataclasses
import hashlib
import hmac
import secrets
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from jaxcxr.config import STRICT
from jaxcxr.data.manifest import SPLITS, text_of
from jaxcxr.errors import InputError

KEY_BYTES = 16
GIVEN: Mapping[str, object] = {"method": "given"}
"""Record of splits taken from the source: a column of the table, a published list, a recipe."""
_SIDES, _VALID = "train, valid or test", "valid, from train"
"""Purposes, so that one key gives independent splits for each."""

Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclasses.dataclass(frozen=True)
class SplitDraw:
    """Random splits by patient: the fraction of the patients in each, and the key.

    Attributes:
        train, valid, test: fractions; they sum to 1, and hold in expectation.
        key: at least 32 hexadecimal digits (128 bits). The same key, fractions and patient ids give the same
            splits, so two stores of one cohort share them. Null takes a new one from the operating system for
            each store, which `store.json` then keeps.
        seed: instead of `key`, a number from which the key is derived; whoever knows the number knows the
            splits.
        stratified: true is refused: stratification by findings made each patient's split depend on all
            others.
    """

    __pydantic_config__ = STRICT
    train: Fraction
    valid: Fraction
    test: Fraction
    seed: int | None = None
    key: str | None = dataclasses.field(default=None, repr=False)
    stratified: bool = False

    def keyed(self, begun: str | None = None) -> "SplitDraw":
        """These splits with their key: given, from the seed, of the unfinished build (`begun`), or new.

        Raises:
            InputError: the fractions do not lie in [0, 1] or do not sum to 1, the key is too short or not
                hexadecimal, key and seed are both set, or stratified splits are asked for.
        """
        check_fractions(self.fractions())
        if self.stratified:
            raise InputError(
                "draw.stratified: dealing patients by their findings made a patient's split depend on other "
                "patients and is no longer done; remove the line (a keyed hash of the patient id balances "
                "the splits in expectation)"
            )
        if self.key is not None and self.seed is not None:
            raise InputError("draw: expected key or seed, found both")
        if self.key is not None:
            return dataclasses.replace(self, key=_checked(self.key))
        if self.seed is not None:
            return dataclasses.replace(self, key=key_of_seed(self.seed), seed=None)
        return dataclasses.replace(self, key=begun or secrets.token_hex(KEY_BYTES))

    def fractions(self) -> dict[str, float]:
        """Fraction of the patients in each split."""
        return {"train": self.train, "valid": self.valid, "test": self.test}


def key_of_seed(seed: int) -> str:
    """The key derived from a seed; anyone who knows the seed knows it."""
    return hashlib.sha256(f"jaxcxr split key of seed {seed}".encode()).hexdigest()[: 2 * KEY_BYTES]


def split_by_patient(frame: pd.DataFrame, draw: SplitDraw) -> pd.DataFrame:
    """The table with a `split` column: every patient, with all of their images, in one split.

    Args:
        frame: has a `patient_id` column; no other column is read.
        draw: with its key (`SplitDraw.keyed`).

    Returns:
        A copy of `frame` with the column.
    """
    return frame.assign(split=_by_hash(text_of(frame, "patient_id"), draw.fractions(), draw, _SIDES))


def valid_from_train(frame: pd.DataFrame, fraction: float, draw: SplitDraw) -> pd.DataFrame:
    """The table with about `fraction` of the training patients moved to `valid`.

    For sources without a validation split. The caller must know from the source, not from the rows, whether
    it publishes one: otherwise one patient in `valid` would decide for all patients in `train`.
    """
    sides = _by_hash(text_of(frame, "patient_id"), {"train": 1 - fraction, "valid": fraction}, draw, _VALID)
    moved = [new if old == "train" else old for old, new in zip(frame["split"], sides, strict=True)]
    return frame.assign(split=moved)


def described(draw: SplitDraw, fractions: Mapping[str, float]) -> dict[str, Any]:
    """Record of a keyed split, as `store.json` keeps it."""
    return {"method": "keyed hash", "key": draw.key, "fractions": dict(fractions)}


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Refuse fractions that do not lie in [0, 1] and sum to 1."""
    parts = np.array(list(fractions.values()), dtype=np.float64)
    if not np.all((parts >= 0) & (parts <= 1)) or not np.isclose(parts.sum(), 1):
        raise InputError(
            f"split fractions: expected numbers in [0, 1] that sum to 1, found {dict(fractions)}"
        )


def _by_hash(
    patients: Sequence[str] | np.ndarray, fractions: Mapping[str, float], draw: SplitDraw, purpose: str
) -> list[str]:
    if draw.key is None:
        raise ValueError("a draw without its key; expected SplitDraw.keyed() before")
    names = [name for name in SPLITS if fractions.get(name, 0) > 0]
    # Upper ends below 2^64; the last split takes the rest, whatever the rounding of the sum.
    ends = (np.cumsum([fractions[name] for name in names])[:-1] * 2.0**64).tolist()
    key = hmac.digest(bytes.fromhex(draw.key), purpose.encode(), "sha256")
    side = {
        patient: names[bisect_right(ends, int.from_bytes(hmac.digest(key, patient.encode(), "sha256")[:8]))]
        for patient in set(patients)
    }
    return [side[patient] for patient in patients]


def _checked(key: str) -> str:
    try:
        size = len(bytes.fromhex(key))
    except ValueError:
        size = 0
    if size < KEY_BYTES or len(key) != 2 * size:
        raise InputError(
            f"draw.key: expected at least {2 * KEY_BYTES} hexadecimal digits ({8 * KEY_BYTES} bits, as "
            f"`openssl rand -hex {KEY_BYTES}` prints them, in quotes), found {len(key)} characters that are "
            "not"
        )
    return key.lower()

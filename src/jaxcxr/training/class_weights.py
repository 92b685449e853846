"""Weights of positive labels: declared; exact (not covered by the guarantee); or noised and paid for."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxcxr import accounting
from jaxcxr.config import Experiment
from jaxcxr.data.store import Split
from jaxcxr.errors import InputError
from jaxcxr.privacy.class_counts import (
    NoisedCounts,
    class_counts_entry,
    class_counts_grid,
    noised_class_counts,
)
from jaxcxr.records.ledger import Statistic
from jaxcxr.training import objective

BUDGET_SHARE = 0.1
"""Part of the budget that the counts would cost if they were released alone."""
LEAST_RATE = 0.01
"""Noised rates are kept between this and 1 - this, so that no class weight runs away."""


def weights_at_once(config: Experiment, split: Split) -> Float[np.ndarray, "findings"] | None:
    """Class weights, one per finding; None if they depend on noised counts.

    Raises:
        InputError: for the paper's weights, a finding lacks positives or negatives.
    """
    training, findings = config.training, config.data.findings
    if training.class_weights == "noised":
        return None
    if training.class_weights == "none":
        return np.ones(len(findings), np.float32)
    if training.class_weights == "public":
        return objective.positive_weights(np.asarray(training.positive_rates))
    try:
        return objective.positive_weights(objective.positive_rates(split.labels, findings))
    except ValueError as error:
        raise InputError(f"training.class_weights 'paper', training split: {error}") from error


def counts_entry(config: Experiment) -> Statistic | None:
    """The ledger entry of noised class counts; None if the configuration does not ask for them.

    Raises:
        InputError: they alone exceed the budget, or their noise does not fit its grid.
    """
    privacy = config.privacy
    if privacy is None or config.training.class_weights != "noised":
        return None
    sigma = privacy.class_counts_noise_multiplier
    if sigma is None:
        sigma = class_counts_noise(privacy.epsilon, privacy.delta)
    entry = class_counts_entry(len(config.data.findings), sigma)
    try:
        class_counts_grid(entry)
    except ValueError as error:
        raise InputError(
            f"privacy.class_counts_noise_multiplier: {error} (found {sigma:g}); expected one between about "
            "0.1 and 1e6"
        ) from error
    alone = accounting.epsilon_pld([entry.spending], privacy.delta)
    if alone >= privacy.epsilon:
        raise InputError(
            f"privacy.epsilon {privacy.epsilon:g}: the noised class counts alone cost {alone:.4g} at a "
            f"class_counts_noise_multiplier of {sigma:g}: nothing is left for training"
        )
    return entry


def class_counts_noise(epsilon: float, delta: float, share: float = BUDGET_SHARE) -> float:
    """Noise multiplier with which the counts alone would cost `share` of the budget.

    Raises:
        ValueError: epsilon or delta is out of range.
    """
    return accounting.calibrated_noise(share * epsilon, delta, 1.0, 1)


def draw_counts(config: Experiment, split: Split, entry: Statistic, secret: bytes) -> NoisedCounts:
    """The noised counts of the training labels, the same for the same secret.

    If the patient is the unit, a patient counts once. The counts are a release: `entry` must be in the ledger
    before.

    Args:
        config: of the experiment.
        split: the training images.
        entry: ledger entry of the counts.
        secret: of the run, bound to what it trains (`records.binding`).
    """
    assert config.privacy is not None  # Experiment.check
    patients = None if config.privacy.unit == "image" else pd.factorize(split.frame["patient_id"])[0]
    return noised_class_counts(split.labels, entry.noise_multiplier, secret, patients)


def noised_rates(counts: NoisedCounts) -> Float[np.ndarray, "findings"]:
    """Share of positives among the known labels of each finding, within [LEAST_RATE, 1 - LEAST_RATE]."""
    known = np.maximum(counts.positives, 0) + np.maximum(counts.negatives, 0)
    rates = np.maximum(counts.positives, 0) / np.maximum(known, 1)
    return np.clip(rates, LEAST_RATE, 1 - LEAST_RATE).astype(np.float32)

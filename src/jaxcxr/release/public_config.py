"""The configuration as it is released: what decides the training, and nothing else.

Private paths are blanked. What a reader cannot need is reset to its default: how the model is judged, how
often a row is logged, where images are kept, options of choices that were not made. What is left follows from
the card (`agreement`), or is a choice of words, or is rounded to `DIGITS` significant digits; no number is
free to be an identifier of five digits or more. Findings, and the network's name and options, are the only
texts.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcxr.accounting import steps_of_epochs
from jaxcxr.config import EvaluationConfig, Experiment, HeadConfig, PrivacyConfig, TrainingConfig
from jaxcxr.report.card.plain_text import pretences, spaced_plainly
from jaxcxr.run_folder import CONFIG
from jaxcxr.training.weights import PACKAGED, weights_folder

BLANK = "not released"
"""Replacement for a private path in a released configuration."""
DIGITS = 4
MOST_SIZE, MOST_VIEWS, MOST_WIDTH = 4096, 256, 4096
"""Largest image side, number of augmented views and width of a network in a release."""
LONGEST_FINDING = 80
MOST_FINDINGS = 500
MOST_DIRECTIONS = 512
_CLIPPING = {
    "automatic": ("stability",),
    "adaptive": ("clip_quantile", "clip_learning_rate", "clip_share"),
}
"""Fields of `privacy` that one rule of clipping alone uses."""


def public_config(config: Experiment) -> Experiment:
    """What is released of a configuration; the same again for what is released already.

    Weights that come with the package keep their name: everybody has them.
    """
    weights = config.model.weights
    if weights is not None and not is_packaged(weights):
        weights = BLANK
    head = config.head if config.training.keeps_features else HeadConfig()
    if head.public is not None:
        head = dataclasses.replace(head, public=BLANK)
    return dataclasses.replace(
        config,
        head=head,
        data=dataclasses.replace(config.data, store=BLANK, synthetic=None, on_device="auto"),
        model=dataclasses.replace(config.model, weights=weights, pretraining=None, remat=False),
        privacy=None if config.privacy is None else _public_privacy(config.privacy),
        training=_public_training(config),
        evaluation=EvaluationConfig(),
    )


def _public_privacy(privacy: PrivacyConfig) -> PrivacyConfig:
    unused = [name for rule, names in _CLIPPING.items() if rule != privacy.clipping for name in names]
    if privacy.unit != "patient":
        unused.append("images_per_patient")
    used = [name for names in _CLIPPING.values() for name in names if name not in unused]
    rounded = {name: _rounded(getattr(privacy, name)) for name in used}
    return dataclasses.replace(privacy, method="layerwise", **_defaults(PrivacyConfig, unused), **rounded)


def _public_training(config: Experiment) -> TrainingConfig:
    training = config.training
    unused = ["microbatch_size", "log_every", "checkpoint_every"]
    unused += [] if training.optimizer == "sgd" else ["momentum"]
    unused += [] if training.averaging == "ema" else ["ema_decay"]
    unused += [] if training.averaging == "tail" else ["tail_share"]
    rounded: dict[str, Any] = {
        name: _rounded(getattr(training, name))
        for name in ("learning_rate", "momentum", "ema_decay", "tail_share", "warmup_steps")
        if name not in unused
    }
    if training.positive_rates is not None:
        rounded["positive_rates"] = tuple(_rounded(rate) for rate in training.positive_rates)
    if training.epochs is not None:
        rounded["epochs"] = _shortest_epochs(config, training.epochs)
    return dataclasses.replace(training, **_defaults(TrainingConfig, unused), **rounded)


def _shortest_epochs(config: Experiment, epochs: float) -> float:
    """As few digits as give the same number of steps."""
    size = None if config.privacy is None else config.privacy.dataset_size
    if size is None:
        return epochs
    steps = steps_of_epochs(epochs, size, config.training.expected_batch_size)
    shorter = (float(f"{epochs:.{digits}g}") for digits in range(1, 17))
    return next(
        (
            e
            for e in shorter
            if e > 0 and steps_of_epochs(e, size, config.training.expected_batch_size) == steps
        ),
        epochs,
    )


def _rounded(value: float | int) -> Any:
    return type(value)(float(f"{value:.{DIGITS}g}"))


def _defaults(cls: Any, names: list[str]) -> dict[str, Any]:
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    return {name: defaults[name] for name in names}


def is_packaged(weights: str) -> bool:
    """Whether a configuration's weights are the package's own."""
    parts = Path(weights).parts
    return (
        len(parts) == len(PACKAGED) + 1
        and parts[: len(PACKAGED)] == PACKAGED
        and weights_folder(weights).is_dir()
    )


def not_public(config: Experiment, steps_planned: int | None) -> Iterator[str]:
    """A sentence for every value that no released configuration has.

    Args:
        config: to be checked.
        steps_planned: of the card; None if it cannot be read.
    """
    public = public_config(config).digest_fields()
    for key, found in config.digest_fields().items():
        if found != public.get(key):
            yield f"{CONFIG}: {key} is {found!r}; expected {public.get(key)!r} in a release"
    if config.training.seed is not None:
        yield f"{CONFIG}: training.seed: a seeded run is not for release"
    ranges: dict[str, tuple[float, float]] = {
        "data.size": (config.data.size, MOST_SIZE),
        "model.width": (config.model.width, MOST_WIDTH),
        "training.augmentation_multiplicity": (config.training.augmentation_multiplicity, MOST_VIEWS),
        "training.learning_rate": (config.training.learning_rate, 1e4),
        "data.findings (their number)": (len(config.data.findings), MOST_FINDINGS),
    }
    if steps_planned is not None:
        ranges["training.warmup_steps"] = (config.training.warmup_steps, steps_planned)
    for key, (found_number, most) in ranges.items():
        if found_number > most:
            yield f"{CONFIG}: {key} is {found_number}; expected at most {most:g} in a release"
    if config.head.directions is not None and config.head.directions > MOST_DIRECTIONS:
        yield f"{CONFIG}: head.directions is {config.head.directions}; expected at most {MOST_DIRECTIONS}"
    own = [("network", config.model.network), *(("options", option) for option in config.model.options)]
    for field, text in own:
        if not _is_plain(text) or any(len(number) > DIGITS for number in re.findall(r"\d+", text)):
            yield (
                f"{CONFIG}: model.{field}: {text[:LONGEST_FINDING]!r} is no plain text of at most "
                f"{LONGEST_FINDING} characters without numbers of more than {DIGITS} digits"
            )
    for finding in config.data.findings:
        if not _is_plain(finding):
            yield (
                f"{CONFIG}: data.findings: {finding[:LONGEST_FINDING]!r} is no plain name of at most "
                f"{LONGEST_FINDING} printable characters"
            )


def _is_plain(finding: str) -> bool:
    """A name in one line without invisible characters, and without forms that only look like others."""
    return (
        0 < len(finding) <= LONGEST_FINDING
        and finding.strip() == finding
        and finding.isprintable()
        and unicodedata.is_normalized("NFKC", finding)
        and spaced_plainly(finding) == finding
        and not any(pretences(finding))
    )

"""The recommended recipe: what to train, how many films at once and how fast, by a rule that looks at no
private result.

The rule sees the declared number of units N, the budget epsilon and how many film passes may be computed.
docs/recipes.md says why it is as it is; configs/recommended.yaml holds its numbers.
"""

import dataclasses
import itertools
import math
from typing import Annotated, Literal

from pydantic import Field

from jaxcxr.config import STRICT, Experiment, Positive, PositiveInt, Scope, Views
from jaxcxr.data.findings import can_be_mirrored
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Band:
    """What is chosen where N times epsilon is at most `up_to`.

    Attributes:
        up_to: largest N * epsilon of the band; null has no end.
        scope: which parameters are trained.
        expected_batch_size: of the run, where the film passes allow it (see `Rule.min_steps`).
        epochs: most film passes over N.
        drift: learning rate times the root of the number of steps: about how far an adaptive optimiser that
            sees nothing but noise carries a weight.
    """

    __pydantic_config__ = STRICT
    up_to: Positive | None
    scope: Scope
    expected_batch_size: PositiveInt
    epochs: Positive
    drift: Positive


@dataclasses.dataclass(frozen=True)
class Rule:
    """The recommended recipe.

    Attributes:
        bands: by rising `up_to`; the last one has no end.
        min_steps: a batch that would leave fewer steps is made smaller.
        l2_clip_norm: of the clipped gradients; null leaves the configuration's.
        optimizer, decay, averaging, tail_share, ema_decay: as in the training configuration.
        prediction_views: as in the model configuration; `one` where a sided finding is predicted without its
            other side.
    """

    __pydantic_config__ = STRICT
    bands: tuple[Band, ...]
    min_steps: PositiveInt
    l2_clip_norm: Positive | None = None
    optimizer: Literal["nadam", "sgd", "adam_bc"] = "nadam"
    decay: Literal["none", "cosine"] = "none"
    averaging: Literal["none", "ema", "tail"] = "tail"
    tail_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    prediction_views: Views = "one"

    def band(self, n_units: int, epsilon: float) -> Band:
        """The band of a cohort and a budget.

        Raises:
            InputError: the bands do not rise, or the last one has an end.
        """
        ends = [band.up_to for band in self.bands]
        rising = all(a is not None and (b is None or a < b) for a, b in itertools.pairwise(ends))
        if not ends or ends[-1] is not None or not rising:
            raise InputError(f"bands: expected rising values of up_to and null as the last one, found {ends}")
        return next(band for band in self.bands if band.up_to is None or n_units * epsilon <= band.up_to)


def recommended(config: Experiment, n_units: int, rule: Rule) -> Experiment:
    """A private experiment with its recipe replaced by the rule's, for no more film passes than it would take
    itself.

    Args:
        config: the experiment; its expected batch times its steps are the film passes that may be computed.
        n_units: declared, public number of units.
        rule: the recommended recipe.

    Raises:
        InputError: the experiment is not private, or the rule is none.
    """
    if config.privacy is None:
        raise InputError("the recommended recipe is for private runs: privacy is null")
    training = config.training
    band = rule.band(n_units, config.privacy.epsilon)
    epochs = (
        training.epochs if training.steps is None else training.steps * training.expected_batch_size / n_units
    )
    assert epochs is not None  # Experiment.check
    passes = min(epochs, band.epochs) * n_units
    batch = max(1, min(band.expected_batch_size, round(passes / rule.min_steps), n_units))
    steps = max(1, round(passes / batch))
    changed = dataclasses.replace(
        training,
        expected_batch_size=batch,
        steps=steps,
        epochs=None,
        learning_rate=band.drift / math.sqrt(steps),
        scope=band.scope,
        optimizer=rule.optimizer,
        decay=rule.decay,
        averaging=rule.averaging,
        tail_share=rule.tail_share,
        ema_decay=rule.ema_decay,
        warmup_steps=0,
    )
    privacy = config.privacy
    if rule.l2_clip_norm is not None:
        privacy = dataclasses.replace(privacy, l2_clip_norm=rule.l2_clip_norm)
    return with_views(dataclasses.replace(config, training=changed, privacy=privacy), rule)


def with_views(config: Experiment, rule: Rule) -> Experiment:
    """An experiment, private or not, that averages its predictions as the rule says; the rule's only word on
    one without privacy, which private ones are compared with.
    """
    if not can_be_mirrored(config.data.findings):
        return config
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, prediction_views=rule.prediction_views)
    )

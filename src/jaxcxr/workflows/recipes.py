"""Recipes: what to train, how many images at once and how fast, by rules that look at no private result.

`recommended` chooses between the head alone, on kept features (`training.head`), and the whole network. It
sees the declared number of units N, the budget epsilon, the number of findings, whether public weights are
there to start from, and how many image passes may be computed. docs/recipes.md says why it is as it is;
configs/recommended.yaml holds its numbers.
"""

import dataclasses
import itertools
import math
from typing import Annotated, Literal

from pydantic import Field

from jaxcxr import accounting
from jaxcxr.config import STRICT, Experiment, Formerly, Positive, PositiveInt, Scope, Views
from jaxcxr.data.findings import can_be_mirrored, has_sides
from jaxcxr.errors import InputError
from jaxcxr.training.directions import MOST, number_of_directions
from jaxcxr.training.head_data import can_be_calibrated
from jaxcxr.training.weights import provenance, weights_folder

AGREEMENT = 0.15
"""Length of the mean clipped gradient over the clip norm, at the start of a head: about what it was where a
head learnt something."""
AGREEMENT_OF_WEIGHTS = 0.03
"""The same where the head is that of the weights, and knows the findings: on drawn images it gained nothing
where noise was 0.034 in length (N = 8,000 at epsilon 0.29), and 0.02 of AUROC where it was 0.011 (32,000).
"""
SMALL_BATCH = 64
"""Units; below, noise is added so often and divided by so little that private training seldom learns."""


@dataclasses.dataclass(frozen=True)
class Band:
    """What is chosen where N times epsilon is at most `up_to`.

    Attributes:
        up_to: largest N * epsilon of the band; null has no end.
        scope: which parameters are trained.
        expected_batch_size: of the run, where the image passes allow it (see `Rule.min_steps`).
        epochs: most image passes over N.
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
class HeadRule:
    """The head alone: every step releases the clipped mean gradient of everybody.

    Attributes:
        up_to: the head is recommended where N epsilon, over the root of the number of findings, is at most
            this.
        up_to_random: the same where the network below starts from random weights.
        up_to_epochs: the head is also recommended where the network starts from given weights, and fewer
            passes over N than this may be computed.
        steps: of everybody.
        clip: the clip norm is this over the root of the number of findings, in units in which public images
            have coordinates of length 1, and residuals at a head of zero are 1 / 2: 1 / 2 clips few images,
            and a small one makes all count alike.
        length: how far all steps together go from the head of the weights where N epsilon over the root of
            the number of findings is 100, in Newton's steps along the steepest direction (`training.head`) of
            an image that is not clipped; it grows with the root of that number.
        longest: bound on this length, and the length without privacy.
        from_zero, from_public: what both are multiplied by where the steps start at zero, or at a head of
            public images.
        thumbnail: as in the model configuration, where the steps do not start from the head of the weights.
        stage_statistics: networks with which the head sees the statistics of stages there, too.
        test_time_augmentation: as in the model configuration, where no finding has a side; features are
            computed for every view. Where one has, the head is trained on images as they are, and predicts
            those.
    """

    __pydantic_config__ = STRICT
    up_to: Positive
    up_to_random: Positive
    up_to_epochs: Positive | None = None
    steps: PositiveInt = 32
    clip: Positive = 0.125
    length: Positive = 8.0
    longest: Positive = 32.0
    from_zero: Positive = 0.5
    from_public: Positive = 0.1875
    thumbnail: Annotated[int, Field(ge=0, le=64)] = 16
    stage_statistics: tuple[str, ...] = ("efficientnet_lite0",)
    test_time_augmentation: Annotated[Views, Formerly("prediction_views")] = "mirrored"

    def learning_rate(self, signal: float | None, start: str) -> float:
        """Of each step.

        Args:
            signal: N epsilon over the root of the number of findings; None without privacy.
            start: as in the head's configuration.
        """
        length = self.longest if signal is None else min(self.longest, self.length * math.sqrt(signal / 100))
        length *= {"weights": 1.0, "calibrated": 1.0, "zero": self.from_zero, "public": self.from_public}[
            start
        ]
        return length / self.steps * (0.5 / self.clip if signal is not None else 1.0)


@dataclasses.dataclass(frozen=True)
class Rule:
    """The recommended recipe.

    Attributes:
        head: of the head alone, and where it is recommended.
        bands: by rising `up_to`; the last one has no end.
        min_steps: a batch that would leave fewer steps is made smaller.
        l2_clip_norm: of the clipped gradients; null leaves the configuration's.
        optimizer, decay, averaging, tail_share, ema_decay: as in the training configuration.
        test_time_augmentation: as in the model configuration; `one` where a sided finding is predicted
            without its other side.
    """

    __pydantic_config__ = STRICT
    bands: tuple[Band, ...]
    min_steps: PositiveInt
    head: HeadRule | None = None
    l2_clip_norm: Positive | None = None
    optimizer: Literal["nadam", "sgd", "adam_bc"] = "nadam"
    decay: Literal["none", "cosine"] = "none"
    averaging: Literal["none", "ema", "tail"] = "tail"
    tail_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    test_time_augmentation: Annotated[Views, Formerly("prediction_views")] = "one"

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
    """A private experiment with its recipe replaced by the rule's, for no more image passes than it would
    take itself.

    Args:
        config: the experiment; its expected batch times its steps are the image passes that may be computed.
        n_units: declared, public number of units.
        rule: the recommended recipe.

    Raises:
        InputError: the experiment is not private, or the rule is none.
    """
    if config.privacy is None:
        raise InputError("the recommended recipe is for private runs: privacy is null")
    if _is_for_the_head(config, n_units, rule):
        return of_the_head(config, n_units, rule)
    training = config.training
    band = rule.band(n_units, config.privacy.epsilon)
    passes = _passes(config, n_units, band)
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


def of_the_head(config: Experiment, n_units: int, rule: Rule) -> Experiment:
    """An experiment, private or not, that trains the head alone on kept features.

    Args:
        config: the experiment; its head section, if it has one, says where directions and start come from.
        n_units: declared, public number of units.
        rule: of the recipes.

    Raises:
        InputError: the rule has no numbers for the head.
    """
    head = rule.head
    if head is None:
        raise InputError("rule.head: the recipe of the head needs its numbers, found null")
    findings = len(config.data.findings)
    signal = None if config.privacy is None else _signal(config, n_units)
    section = dataclasses.replace(config.head, start=start_of_head(config))
    changed = dataclasses.replace(
        config.training,
        expected_batch_size=n_units,
        microbatch_size=None,
        steps=head.steps,
        epochs=None,
        optimizer="sgd",
        momentum=0.0,
        learning_rate=head.learning_rate(signal, section.start),
        decay="none",
        warmup_steps=0,
        scope="head_on_features",
        augmentation="none",
        augmentation_multiplicity=1,
        averaging="none",
        class_weights="none",
        positive_rates=None,
    )
    privacy = config.privacy
    if privacy is not None:
        privacy = dataclasses.replace(
            privacy,
            clipping="flat",
            l2_clip_norm=head.clip / math.sqrt(findings),
            noise_multiplier=None,
            class_counts_noise_multiplier=None,
        )
    model = config.model
    if section.start not in ("weights", "calibrated"):  # which were trained without one
        stages = model.network in head.stage_statistics
        model = dataclasses.replace(model, thumbnail=head.thumbnail, stage_statistics=stages)
    if not has_sides(config.data.findings):
        model = dataclasses.replace(model, test_time_augmentation=head.test_time_augmentation)
    return dataclasses.replace(config, model=model, training=changed, privacy=privacy, head=section)


def start_of_head(config: Experiment) -> Literal["weights", "calibrated", "zero", "public"]:
    """Where a head begins, by public facts alone: as the configuration says, except that from random weights
    it is zero, where the weights have a head of zeros it is one of public images, if these have labels, and
    where they have another one it is calibrated on public images, if these have labels.
    """
    head, weights = config.head, config.model.weights
    if weights is None:
        return "zero"
    if head.start != "weights":
        return head.start
    told = provenance(weights_folder(weights))
    if told.get("head") != "zero":
        drawn = bool(((told.get("config") or {}).get("data") or {}).get("synthetic"))
        return "calibrated" if can_be_calibrated(config, drawn) else "weights"
    if head.public is None or not can_be_calibrated(config, trained_on_drawn=False):
        return "zero"
    return "public"


def _signal(config: Experiment, n_units: int) -> float:
    assert config.privacy is not None
    return n_units * config.privacy.epsilon / math.sqrt(len(config.data.findings))


def _is_for_the_head(config: Experiment, n_units: int, rule: Rule) -> bool:
    if rule.head is None:
        return False
    most = rule.head.up_to_random if config.model.weights is None else rule.head.up_to
    return _signal(config, n_units) <= most or _passes_are_few(config, n_units, rule)


def _passes_are_few(config: Experiment, n_units: int, rule: Rule) -> bool:
    if rule.head is None or rule.head.up_to_epochs is None or config.model.weights is None:
        return False
    return _epochs(config, n_units) < rule.head.up_to_epochs


def _epochs(config: Experiment, n_units: int) -> float:
    """Passes over N that the configuration allows."""
    training = config.training
    epochs = (
        training.epochs if training.steps is None else training.steps * training.expected_batch_size / n_units
    )
    assert epochs is not None  # Experiment.check
    return epochs


def _passes(config: Experiment, n_units: int, band: Band) -> float:
    """Image passes of a run by the rule: those of the configuration, but at most the band's."""
    return min(_epochs(config, n_units), band.epochs) * n_units


def by_recipe(recipe: str, config: Experiment, n_units: int, rule: Rule) -> tuple[Experiment, list[str]]:
    """An experiment by a recipe, `recommended` or `head`, and what it chose and why, a sentence each."""
    if recipe == "head":
        chosen = of_the_head(config, n_units, rule)
        warnings = [] if chosen.privacy is None else _hopeless(chosen, n_units)
        return chosen, [_of_the_head_in_words(chosen), *warnings]
    if config.privacy is None:
        return with_views(config, rule), []
    chosen = recommended(config, n_units, rule)
    return chosen, choice(config, chosen, n_units, rule)


def _of_the_head_in_words(chosen: Experiment) -> str:
    t = chosen.training
    starts = {
        "weights": "that of its weights",
        "calibrated": "that of its weights, calibrated on public images",
        "zero": "zero",
        "public": "a head of the public images",
    }
    start = starts[chosen.head.start]
    clipped = "" if chosen.privacy is None else f", clip norm {chosen.privacy.l2_clip_norm:.3g}"
    return (
        f"the head alone, on features that are computed once, starting from {start}: {t.steps} steps "
        f"of all {t.expected_batch_size:,} units at learning rate {t.learning_rate:g}{clipped}"
    )


def choice(config: Experiment, chosen: Experiment, n_units: int, rule: Rule) -> list[str]:
    """What the rule chose for a private experiment and why, whether the image passes of its configuration
    bind the batch, and warnings, a sentence each.
    """
    assert config.privacy is not None
    why = _why(config, chosen, n_units, rule)
    if chosen.training.keeps_features:
        return [f"the rule chose {_of_the_head_in_words(chosen)}", *why, *_hopeless(chosen, n_units)]
    made, band = chosen.training, rule.band(n_units, config.privacy.epsilon)
    told = [
        f"the rule chose {made.steps} steps of {made.expected_batch_size} expected units, learning rate "
        f"{made.learning_rate:.2g}, scope {made.scope}",
        *why,
    ]
    passes, wanted = _passes(config, n_units, band), min(band.expected_batch_size, n_units)
    if made.expected_batch_size < wanted:
        told.append(
            f"image passes bind: the configuration allows {passes / n_units:.3g} passes over {n_units:,} "
            f"units, so that a batch has {made.expected_batch_size} of them where the rule would take "
            f"{wanted}; about {math.ceil(wanted * rule.min_steps / n_units)} epochs would allow that"
        )
    if made.expected_batch_size < SMALL_BATCH:
        told.append(
            f"WARNING: a batch of {made.expected_batch_size} expected units: private training seldom learns "
            "from batches this small; allow more image passes, or take --recipe head"
        )
    return told


def _why(config: Experiment, chosen: Experiment, n_units: int, rule: Rule) -> list[str]:
    """What the rule decides by between head and whole network; nothing if it does not."""
    if rule.head is None:
        return []
    start, most = "given", rule.head.up_to
    if config.model.weights is None:
        start, most = "random", rule.head.up_to_random
    if _signal(config, n_units) > most and _passes_are_few(config, n_units, rule):
        return [
            f"why the head alone: the configuration allows {_epochs(config, n_units):.2g} passes over "
            f"{n_units:,} units, fewer than {rule.head.up_to_epochs:g}, from which on the whole network is "
            "recommended"
        ]
    part = "the head alone" if chosen.training.keeps_features else "the whole network"
    relation = "at most" if chosen.training.keeps_features else "above"
    return [
        f"why {part}: N epsilon / sqrt(findings) = {_signal(config, n_units):,.0f} is {relation} "
        f"{most:,.0f}, up to which the head alone is recommended from {start} weights"
    ]


def _hopeless(chosen: Experiment, n_units: int) -> list[str]:
    """A warning where the noise of all releases is longer than the mean gradient is likely to be."""
    privacy, findings = chosen.privacy, len(chosen.data.findings)
    assert privacy is not None
    k = number_of_directions(n_units, privacy.epsilon, findings, MOST, MOST + 1)
    noise = (
        accounting.calibrated_noise(privacy.epsilon, privacy.delta, 1.0, 1)
        * math.sqrt(findings * k)
        / n_units
    )
    most = AGREEMENT_OF_WEIGHTS if chosen.head.start in ("weights", "calibrated") else AGREEMENT
    if noise <= most:
        return []
    kept = chosen.head.start != "zero"
    instead = (
        "the head it starts from is not expected to get better" if kept else "expect little more than chance"
    )
    return [
        f"WARNING: at N = {n_units:,} and epsilon {privacy.epsilon:g} the noise is {noise:.2g} of the clip "
        f"norm in length, and a mean clipped gradient seldom more than {most:g}: {instead}; nothing is "
        "spent yet"
    ]


def with_views(config: Experiment, rule: Rule) -> Experiment:
    """An experiment, private or not, that averages its predictions as the rule says; the rule's only word on
    one without privacy, which private ones are compared with.
    """
    if not can_be_mirrored(config.data.findings):
        return config
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, test_time_augmentation=rule.test_time_augmentation)
    )

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from jaxcxr.config import Experiment, load
from jaxcxr.errors import InputError
from jaxcxr.workflows.recipes import Band, Rule, choice, recommended
from tests.conftest import changed

ROOT = Path(__file__).resolve().parents[2]
RULE = Rule(
    bands=(Band(1e4, "head", 512, 5.0, 0.2), Band(None, "all", 4096, 30.0, 0.03)),
    min_steps=100,
    averaging="ema",
    decay="cosine",
)


def private(**training: Any) -> Experiment:
    return changed(load(Experiment, ROOT / "configs" / "paper_private.yaml"), "training", **training)


def with_epsilon(config: Experiment, epsilon: float) -> Experiment:
    return changed(config, "privacy", epsilon=epsilon)


def test_a_small_budget_trains_less_of_the_network() -> None:
    config = private(epochs=None, steps=7_500)
    small, large = (
        recommended(with_epsilon(config, epsilon), 20_000, RULE).training for epsilon in (0.5, 0.51)
    )
    assert (small.scope, large.scope) == ("head", "all")
    assert (small.expected_batch_size, large.expected_batch_size) == (512, 4096)


@pytest.mark.parametrize(
    ("epochs", "batch", "steps"), [(150.0, 4096, 1124), (2.0, 3070, 100), (30.0, 4096, 1124)]
)
def test_film_passes_are_those_of_the_experiment_or_fewer(epochs: float, batch: int, steps: int) -> None:
    config = private(epochs=epochs)
    t = recommended(config, 153_502, RULE).training
    assert (t.expected_batch_size, t.steps, t.epochs) == (batch, steps, None)
    assert t.learning_rate == pytest.approx(0.03 / math.sqrt(steps))
    assert (t.averaging, t.decay) == ("ema", "cosine")
    assert batch * steps <= min(epochs, 30.0) * 153_502 * 1.001


@pytest.mark.parametrize(("epochs", "binds"), [(2.0, True), (30.0, False)])
def test_the_choice_is_said_and_whether_image_passes_bind_it(epochs: float, binds: bool) -> None:
    config = private(epochs=epochs)
    said = choice(config, recommended(config, 153_502, RULE), 153_502, RULE)
    batch, steps = (3070, 100) if binds else (4096, 1124)
    assert said[0].startswith(f"the rule chose {steps} steps of {batch} expected units, learning rate 0.00")
    assert len(said) == 1 + binds
    if binds:
        assert "allows 2 passes over 153,502 units, so that a batch has 3070 of them" in said[1]
        assert "would take 4096; about 3 epochs would allow that" in said[1]


def test_nothing_but_the_training_changes() -> None:
    config = private()
    found = recommended(config, 153_502, RULE)
    assert dataclasses.replace(found, training=config.training) == config


def test_a_rule_may_set_the_clip_norm_and_average_views() -> None:
    rule = dataclasses.replace(RULE, l2_clip_norm=5.0, prediction_views="mirrored")
    found = recommended(private(), 153_502, rule)
    assert found.privacy is not None
    assert (found.privacy.l2_clip_norm, found.model.prediction_views) == (5.0, "mirrored")
    one_sided = changed(private(), "data", findings=("atelectasis_left",))
    assert recommended(one_sided, 153_502, rule).model.prediction_views == "one"


def test_what_is_not_the_recipe_stays() -> None:
    config = private()
    found = recommended(config, 153_502, RULE)
    for field in ("class_weights", "positive_rates", "seed", "microbatch_size"):
        assert getattr(found.training, field) == getattr(config.training, field)


def test_what_is_no_rule_is_refused() -> None:
    for ends in ((None, 1e4), (1e4, 1e4, None), (1e4,), ()):
        bands = tuple(Band(end, "head", 512, 5.0, 0.2) for end in ends)
        with pytest.raises(
            InputError, match="bands: expected rising values of up_to and null as the last one"
        ):
            recommended(private(), 1000, dataclasses.replace(RULE, bands=bands))
    with pytest.raises(InputError, match="privacy is null"):
        recommended(dataclasses.replace(private(), privacy=None), 1000, RULE)

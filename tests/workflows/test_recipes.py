import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from jaxcxr.config import Experiment, HeadConfig
from jaxcxr.config_files import load
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.workflows.recipes import Band, HeadRule, Rule, by_recipe, choice, recommended, start_of_head
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
    rule = dataclasses.replace(RULE, l2_clip_norm=5.0, test_time_augmentation="mirrored")
    found = recommended(private(), 153_502, rule)
    assert found.privacy is not None
    assert (found.privacy.l2_clip_norm, found.model.test_time_augmentation) == (5.0, "mirrored")
    one_sided = changed(private(), "data", findings=("atelectasis_left",))
    assert recommended(one_sided, 153_502, rule).model.test_time_augmentation == "one"


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


WITH_HEAD = dataclasses.replace(RULE, head=HeadRule(up_to=1000.0, up_to_random=500.0))


@pytest.mark.parametrize(
    ("n_units", "epsilon", "weights", "by_head"),
    [
        (2828, 1.0, "some", True),  # 1,000 over the root of the paper's eight findings
        (2829, 1.0, "some", False),
        (28_280, 0.1, "some", True),
        (1414, 1.0, None, True),
        (1415, 1.0, None, False),
    ],
)
def test_the_rule_takes_the_head_at_a_small_signal(
    n_units: int, epsilon: float, weights: str | None, by_head: bool
) -> None:
    config = with_epsilon(changed(private(), "model", weights=weights), epsilon)
    found, told = by_recipe("recommended", config, n_units, WITH_HEAD)
    assert found.training.keeps_features == by_head
    assert ("the head alone" in told[0]) == by_head
    assert any(f"{n_units * epsilon / math.sqrt(8):,.0f}" in sentence for sentence in told)
    found.check()
    if found.training.keeps_features:
        t = found.training
        assert (t.expected_batch_size, t.scope, t.optimizer) == (n_units, "head_on_features", "sgd")
        assert found.privacy is not None
        assert found.privacy.l2_clip_norm == pytest.approx(0.125 / math.sqrt(8))
        assert found.head.start == ("zero" if weights is None else "weights")


@pytest.mark.parametrize(
    ("steps", "weights", "by_head"),
    [(1999, "some", True), (2000, "some", False), (1999, None, False)],
)
def test_the_rule_takes_the_head_where_few_passes_are_allowed(
    steps: int, weights: str | None, by_head: bool
) -> None:
    """100 images in each of 2,000 steps are two passes over 100,000 units."""
    head = HeadRule(up_to=1000.0, up_to_random=500.0, up_to_epochs=2.0)
    config = private(epochs=None, steps=steps, expected_batch_size=100)
    config = with_epsilon(changed(config, "model", weights=weights), 1.0)
    found, told = by_recipe("recommended", config, 100_000, dataclasses.replace(RULE, head=head))
    assert found.training.keeps_features == by_head
    assert ("allows 2 passes over 100,000 units, fewer than 2" in told[1]) == by_head
    without = dataclasses.replace(RULE, head=dataclasses.replace(head, up_to_epochs=None))
    assert not by_recipe("recommended", config, 100_000, without)[0].training.keeps_features


def test_the_recipe_of_the_head_serves_any_cohort_also_without_privacy() -> None:
    config = private()
    large, _ = by_recipe("head", config, 10**6, WITH_HEAD)
    assert large.training.expected_batch_size == 10**6
    without, told = by_recipe("head", dataclasses.replace(config, privacy=None), 500, WITH_HEAD)
    without.check()
    assert "clip norm" not in told[0]
    assert without.training.learning_rate == pytest.approx(32 / 32)
    assert without.model.thumbnail == 0  # its weights have a head that was trained without one
    with pytest.raises(InputError, match="the recipe of the head needs its numbers"):
        by_recipe("head", config, 500, RULE)


def test_steps_are_longer_where_there_is_more_signal_up_to_a_bound() -> None:
    rule = HeadRule(up_to=1.0, up_to_random=1.0)
    for start, factor in (("weights", 1.0), ("calibrated", 1.0), ("zero", 0.5), ("public", 0.1875)):
        lengths = [
            rule.learning_rate(signal, start) * rule.steps * rule.clip / 0.5
            for signal in (25.0, 100.0, 400.0, 1e5)
        ]
        assert lengths == pytest.approx([4 * factor, 8 * factor, 16 * factor, 32 * factor])


def test_the_head_section_says_where_to_start_and_which_images_are_public() -> None:
    config = changed(
        dataclasses.replace(private(), head=HeadConfig("zero", "stores/public", 7)), "model", weights="some"
    )
    assert by_recipe("head", config, 500, WITH_HEAD)[0].head == config.head
    assert not by_recipe("recommended", config, 10**6, WITH_HEAD)[0].training.keeps_features


def test_a_head_of_zeros_gives_way_to_one_of_labelled_public_images(
    tiny_store: Store, tmp_path: Path
) -> None:
    (tmp_path / "provenance.json").write_text('{"head": "zero"}')
    config = changed(private(), "model", weights=str(tmp_path))
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, findings=("cardiomegaly",)),
        head=HeadConfig(public=str(tiny_store.path)),
    )
    assert "cardiomegaly" in tiny_store.findings
    assert start_of_head(config) == "public"
    chosen, told = by_recipe("head", config, 500, WITH_HEAD)
    assert (chosen.head.start, chosen.model.thumbnail) == ("public", 16)
    assert not chosen.model.stage_statistics  # of networks with which they were compared alone
    other = changed(config, "model", network="efficientnet_lite0")
    assert by_recipe("head", other, 500, WITH_HEAD)[0].model.stage_statistics
    assert "starting from a head of the public images" in told[0]
    assert start_of_head(changed(config, "head", start="zero")) == "zero"
    assert start_of_head(changed(config, "head", public=None)) == "zero"
    assert start_of_head(changed(config, "data", findings=("mass",))) == "zero"  # no labels of it


def test_the_head_of_the_weights_is_calibrated_where_public_labels_serve(
    tiny_store: Store, tmp_path: Path
) -> None:
    """Labels of a store serve any weights, those of drawn images only weights that were trained on such."""
    config = changed(private(), "model", weights=str(tmp_path))
    labelled = changed(config, "head", public=str(tiny_store.path))
    for told, by_drawn in (
        ('{"head": "map"}', "weights"),
        ('{"config": {"data": {"synthetic": null}}}', "weights"),
        ('{"config": {"data": {"synthetic": {"domain": "public"}}}}', "calibrated"),
    ):
        (tmp_path / "provenance.json").write_text(told)
        assert (start_of_head(config), start_of_head(labelled)) == (by_drawn, "calibrated")
    assert start_of_head(changed(config, "data", findings=("mass",))) == "weights"
    assert start_of_head(changed(labelled, "data", findings=("mass",))) == "weights"
    assert start_of_head(changed(labelled, "head", start="zero")) == "zero"
    chosen, said = by_recipe("head", labelled, 500, WITH_HEAD)
    assert (chosen.head.start, chosen.model.thumbnail) == ("calibrated", 0)
    assert "that of its weights, calibrated on public images" in said[0]
    plain = by_recipe("head", changed(labelled, "head", public=None), 500, WITH_HEAD)[0]
    assert chosen.training.learning_rate == plain.training.learning_rate


@pytest.mark.parametrize(
    ("findings", "views"), [(("atelectasis_left", "atelectasis_right"), "one"), (("mass",), "mirrored")]
)
def test_a_head_predicts_mirrored_views_where_it_is_trained_on_them(
    findings: tuple[str, ...], views: str
) -> None:
    config = changed(private(), "data", findings=findings)
    assert by_recipe("head", config, 500, WITH_HEAD)[0].model.test_time_augmentation == views


def test_what_cannot_beat_its_start_is_said_before_anything_is_spent() -> None:
    config = with_epsilon(changed(private(), "model", weights="some"), 0.1)
    assert any(said.startswith("WARNING") for said in by_recipe("recommended", config, 50, WITH_HEAD)[1])
    assert any(said.startswith("WARNING") for said in by_recipe("head", config, 50, WITH_HEAD)[1])
    config = with_epsilon(config, 1.0)
    for n_units, start, warns in ((2000, "zero", False), (2000, "weights", True), (10_000, "weights", False)):
        told = by_recipe("head", changed(config, "head", start=start), n_units, WITH_HEAD)[1]
        assert any(said.startswith("WARNING") for said in told) == warns

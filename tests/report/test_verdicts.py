import dataclasses

import numpy as np
import pandas as pd
import pytest

from jaxcxr.accounting import Spending
from jaxcxr.accounting.attack_bounds import attack_bounds
from jaxcxr.accounting.guarantee import Guarantee
from jaxcxr.config import EvaluationConfig
from jaxcxr.eval.evaluate import evaluate
from jaxcxr.report.bounds import lower_text, round_down, round_up, upper_text
from jaxcxr.report.conclusions import run_conclusions
from jaxcxr.report.screen import groups_text
from jaxcxr.report.sweep_conclusions import sweep_conclusions
from jaxcxr.report.verdicts import (
    NO_BETTER,
    WORSE,
    against_guessing,
    against_start,
    calls_sentences,
    findings_against_guessing,
    found_by_attack,
    strength,
    strength_sentence,
)
from tests.report.films import predicted_films

FINDINGS = ["congestion", "hernia"]
CONFIG = EvaluationConfig(redraws=40, groups=())


def judged(table: pd.DataFrame) -> pd.DataFrame:
    return evaluate(table, FINDINGS, CONFIG)


@pytest.fixture(scope="module")
def guessing() -> pd.DataFrame:
    """A model that knows nothing of hernia and never calls it, and calls everybody congested."""
    table = predicted_films(0.0, FINDINGS)
    rng = np.random.default_rng(1)
    table["p_hernia"] = 0.2 * rng.random(len(table))
    return evaluate(
        table, FINDINGS, dataclasses.replace(CONFIG, threshold="fixed", fixed_thresholds=(0.0, 0.5))
    )


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.359, 0.536, NO_BETTER), (0.5, 0.6, NO_BETTER), (0.4, 0.5, NO_BETTER), (0.3, 0.49, WORSE), (0.501, 0.6, ""), (np.nan, np.nan, "")],
)  # fmt: skip
def test_a_model_is_better_than_guessing_only_if_its_interval_says_so(low, high, verdict):
    assert against_guessing({"ci_low": low, "ci_high": high}) == verdict
    assert against_guessing(None) == ""


def test_a_model_that_guesses_is_told_so_on_the_page_and_on_the_screen(guessing):
    page = " ".join(run_conclusions(guessing, None, private=False))
    assert "): no better than guessing (0.5), as far as these images show. AUROC is" in page
    assert (
        "no better than guessing, as far as these images show (the interval holds 0.5): Congestion and Hernia"
        in page
    )
    assert "average AUROC: no better than guessing (0.5)" in groups_text(guessing)
    good = judged(predicted_films(2.5, FINDINGS, male="nobody"))
    good = good.assign(ci_low=good["ci_low"].clip(lower=0.6))
    assert findings_against_guessing(good) == ""
    assert "guessing" not in " ".join(run_conclusions(good, None, private=False))


def test_a_finding_that_nobody_or_everybody_is_called_positive_for(guessing):
    said = calls_sentences(guessing)
    assert said[0].startswith("No test image is called positive for Hernia")
    assert said[1].startswith("Every test image is called positive for Congestion")
    assert set(said) <= set(groups_text(guessing).splitlines())
    none_found = guessing.copy()
    rates = (none_found["finding"] == "hernia") & (none_found["metric"] == "selection_rate")
    none_found.loc[rates, "value"] = 0.01  # some are called, but none of those who have it
    assert "None of the test images that have the finding is called positive for Hernia." in calls_sentences(
        none_found
    )
    assert calls_sentences(judged(predicted_films(2.0, FINDINGS))) == ()


@pytest.mark.parametrize(
    ("difference", "low", "high", "said"),
    [
        (0.05, 0.01, 0.09, "The model is worse than the weights that training started from (average AUROC 0.800): training lost 0.050 (95 % interval 0.010 to 0.090)."),
        (0.05, -0.01, 0.11, "The model is not shown to be better than the weights that training started from (average AUROC 0.800): training changed it by −0.050 (−0.110 to 0.010), which is not distinguishable from zero."),
        (-0.05, -0.09, -0.01, "The model is better than the weights that training started from (average AUROC 0.800) by 0.050 (95 % interval 0.010 to 0.090)."),
        (np.nan, np.nan, np.nan, ""),
    ],
)  # fmt: skip
def test_a_model_is_set_against_the_weights_it_started_from(difference, low, high, said):
    row = {"value_a": 0.8, "difference": difference, "ci_low": low, "ci_high": high}
    assert against_start(row) == said
    assert against_start(None) == ""


def test_a_sweep_says_which_models_are_worse_than_their_start():
    rows = {
        8.0: {"difference": -0.1, "ci_low": -0.2, "ci_high": -0.05},
        2.0: {"difference": 0.01, "ci_low": -0.02, "ci_high": 0.04},
        0.5: {"difference": 0.1, "ci_low": 0.05, "ci_high": 0.2},
    }
    evaluation = judged(predicted_films(2.5, FINDINGS))
    evaluations = pd.concat([evaluation.assign(epsilon=e) for e in rows])
    said = next(s for s in sweep_conclusions(evaluations, None, None, rows) if "training started from" in s)
    assert said.endswith(
        "better: ε = 8 (+0.100, 0.050 to 0.200), and "
        "worse: ε = 0.5 (−0.100, −0.200 to −0.050), and not shown to be better: ε = 2 (−0.010, −0.040 to 0.020)."
    )


@pytest.mark.parametrize(
    ("sigma", "verdict", "said"),
    [(0.4, "weak", "does not rule out an attacker who finds"), (1.0, "moderate", "; guessing finds 1."), (4.0, "strong", "no attacker finds more than")],
)  # fmt: skip
def test_the_strength_of_a_promise_follows_from_the_bound_on_attacks(sigma, verdict, said):
    spent = [Spending(0.05, sigma, 200)]
    found, exact = (
        found_by_attack(Guarantee(tuple(spent)), 1e-5),
        attack_bounds(spent, 1e-5).true_positive_rate[0.01],
    )
    assert exact <= found <= min(1.0, exact * 1.0001)
    assert strength(found) == verdict
    sentence = strength_sentence(found, "patients")
    assert sentence.startswith(f"This promise alone is {verdict}: ")
    assert said in sentence
    shown = float(sentence.partition(" of every 100 patients")[0].split()[-1])
    assert 100 * found <= shown <= 100 * found * 1.01 + 1e-9


def test_a_promise_without_noise_is_weak():
    assert strength(found_by_attack(Guarantee((Spending(0.05, 0.0, 1),)), 1e-5)) == "weak"


def test_bounds_in_few_digits_stay_bounds():
    for value in (0.123456789, 1.99995, 7.8815, 0.3, 123456.7, 1e-9):
        for digits in (3, 4, 6):
            low, high = round_down(value, digits), round_up(value, digits)
            assert low is not None
            assert high is not None
            assert low <= value * (1 + 1e-12)
            assert high >= value * (1 - 1e-12)
            assert high - low <= 1.001 * 10.0 ** (np.floor(np.log10(value)) + 1 - digits)
            assert float(lower_text(value, digits)) <= value * (1 + 1e-12)
            assert float(upper_text(value, digits)) >= value * (1 - 1e-12)
    assert (round_up(0.3), round_up(np.inf), upper_text(np.inf), upper_text(None)) == (
        0.3,
        None,
        "without limit",
        "without limit",
    )

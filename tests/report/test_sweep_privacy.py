import dataclasses
import json
from pathlib import Path

import pytest

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.accounting.selection import choose_best, publish_all
from jaxcxr.errors import InputError
from jaxcxr.records.ledger import Entry, Terms
from jaxcxr.report.bounds import upper_text
from jaxcxr.report.sweep_privacy import sweep_cost, write_cost
from tests.run_files import CONFIG, write_plain_run, write_run

CHEAP, EXPENSIVE = [Spending(0.05, 2.0, 50)], [Spending(0.05, 1.2, 50)]
DELTA = 1e-5


def sweep(
    folder: Path,
    name: str,
    sigma: float,
    delta: float = DELTA,
    fingerprint: str = "ab",
    seeded: bool = False,
    run: str = "",
) -> None:
    assert CONFIG.privacy is not None
    privacy = dataclasses.replace(CONFIG.privacy, epsilon=2.0, delta=delta)
    training = dataclasses.replace(CONFIG.training, steps=50)
    terms = Terms("image", "add_remove", 100, fingerprint, seeded, run or name)
    steps = [Entry(step, 0.05, sigma, 1.5) for step in range(50)]
    write_run(folder / name, terms, steps, dataclasses.replace(CONFIG, privacy=privacy, training=training))


def test_a_sweep_folder_is_read_from_its_ledgers(tmp_path: Path) -> None:
    sweep(tmp_path, "epsilon_1", 2.0)
    sweep(tmp_path, "epsilon_2", 1.2)
    write_plain_run(tmp_path / "non_private")
    (tmp_path / "untouched").mkdir()  # public weights: nothing was trained on the films
    (tmp_path / "untouched" / "run.json").write_text('{"weights_sha256": "00"}')
    cost = sweep_cost(tmp_path)
    assert [run.name for run in cost.runs] == ["epsilon_1", "epsilon_2"]
    assert cost.unprotected == ("non_private",)
    assert cost.publish_all == publish_all([CHEAP, EXPENSIVE], DELTA)
    assert cost.runs[1].epsilon == accounting.epsilon_pld(EXPENSIVE, DELTA)
    assert cost.choose_best == min(
        choose_best([CHEAP, EXPENSIVE], DELTA, repetitions=kind) for kind in ("poisson", "geometric")
    )


def test_a_sweep_says_what_it_costs_on_the_screen_and_in_a_file(tmp_path: Path) -> None:
    sweep(tmp_path, "epsilon_1", 2.0)
    sweep(tmp_path, "epsilon_2", 1.2)
    write_plain_run(tmp_path / "non_private")
    said = write_cost(tmp_path)
    cost = sweep_cost(tmp_path)
    assert f"publishing all 2 private models costs epsilon {upper_text(cost.publish_all.upper)}" in said
    assert f"the best one alone would cost {upper_text(cost.choose_best)}" in said
    assert "non_private has no guarantee" in said
    found = json.loads((tmp_path / "privacy.json").read_text())
    assert found["claim"]["publish_all"] == {
        "epsilon_upper": cost.publish_all.upper,
        "epsilon_lower": cost.publish_all.lower,
    }
    assert found["claim"]["choose_best_of_a_fixed_list"]["epsilon_upper"] == cost.publish_all.upper
    assert found["claim"]["choose_best_of_a_random_number"]["mean"] == 2
    assert found["without_any_guarantee"] == ["non_private"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeded": True}, "b had a seed .* run the sweep without a seed"),
        ({"run": "a"}, "a and b come from the same secret"),
    ],
)
def test_runs_that_share_their_noise_have_no_joint_claim(tmp_path: Path, change: dict, message: str) -> None:
    """With one noise, scaled differently, two models give it away: their difference is free of it."""
    sweep(tmp_path, "a", 2.0)
    sweep(tmp_path, "b", 1.2, **change)
    with pytest.raises(InputError, match=f"no joint epsilon holds: {message}"):
        sweep_cost(tmp_path)
    assert write_cost(tmp_path).startswith("no joint epsilon holds")
    found = json.loads((tmp_path / "privacy.json").read_text())
    assert found["claim"] is None
    assert "no joint epsilon holds" in found["why"]


@pytest.mark.parametrize(
    ("change", "message"), [({"fingerprint": "cd"}, "data_fingerprint"), ({"delta": 1e-6}, "have delta")]
)
def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    sweep(tmp_path, "a", 2.0)
    sweep(tmp_path, "b", 2.0, **change)
    with pytest.raises(InputError, match=message):
        sweep_cost(tmp_path)
    with pytest.raises(InputError, match="found none"):
        sweep_cost(tmp_path / "a")

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.errors import InputError
from jaxcxr.records.ledger import Entry, Statistic, Terms
from jaxcxr.records.spent import spent_of
from jaxcxr.release.gate import passage
from jaxcxr.report.card.card import make_card
from jaxcxr.report.evaluated_runs import read_run
from jaxcxr.report.run_facts import read_facts
from jaxcxr.report.sweep_privacy import sweep_cost
from jaxcxr.run_folder import is_private, is_trained
from tests.conftest import load_script
from tests.run_files import write_plain_run, write_run

COUNTS = Statistic("class_counts", 20.0, 2**0.5)
STEPS = [Entry(step, 0.05, 1.0, 1.5) for step in range(4)]
TERMS = Terms("image", "add_remove", 200, "ab12", seeded=False, run="0f" * 16)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run after four of five steps, with a checkpoint of the fourth."""
    folder = write_run(tmp_path / "sweep" / "run", TERMS, [COUNTS, *STEPS])
    (folder / "checkpoints" / "4").mkdir(parents=True)
    return folder


def test_what_was_spent_is_what_the_ledger_says(run: Path) -> None:
    spent = spent_of(run)
    assert spent is not None
    assert spent.spendings == [Spending(1.0, 20.0, 1), Spending(0.05, 1.0, 4)]
    assert (spent.steps, spent.steps_planned, spent.newest_checkpoint) == (4, 5, 4)
    assert (spent.budget, spent.delta, spent.sample_rate, spent.noise_multiplier) == (3.0, 1e-4, 0.05, 1.0)
    assert spent.bounds() == accounting.epsilon_bounds(spent.spendings, 1e-4)
    assert spent.head == json.loads((run / "ledger.jsonl").read_text().splitlines()[-1])["chain"]
    assert len(spent.heads) == 6
    assert is_private(run)


def test_runs_without_privacy_and_folders_where_nothing_was_trained(tmp_path: Path) -> None:
    assert spent_of(write_plain_run(tmp_path / "plain")) is None
    assert is_trained(tmp_path / "plain")
    (tmp_path / "untouched").mkdir()
    (tmp_path / "untouched" / "run.json").write_text('{"weights_sha256": "00"}')
    assert spent_of(tmp_path / "untouched") is None
    assert not is_trained(tmp_path / "untouched")
    with pytest.raises(InputError, match=r"no run there \(run\.json is missing\)"):
        spent_of(tmp_path)


def account(run: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["account.py", "--run", str(run)])
        load_script("account.py").main()


def through_the_gate(run: Path) -> None:
    with passage(run):
        pass


DOORS: dict[str, Callable[[Path], object]] = {
    "account.py --run": account,
    "account.py --sweep": lambda run: sweep_cost(run.parent),
    "report": read_facts,
    "summary.csv": read_run,
    "privacy card": make_card,
    "release and export": through_the_gate,
}


def shortened(run: Path) -> None:
    """The end of the ledger is lost: its chain is whole, and says less than was spent."""
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join(lines[:-2]))


def foreign(run: Path) -> None:
    shutil.rmtree(run)
    write_run(run, dataclasses.replace(TERMS, dataset_size=20_000), STEPS, n_units=200)


def cheaper(run: Path) -> None:
    shutil.rmtree(run)
    write_run(
        run,
        TERMS,
        [dataclasses.replace(entry, noise_multiplier=9.0) for entry in STEPS],
        noise_multiplier=1.0,
    )


def generous(run: Path) -> None:
    (run / "run.json").write_text((run / "run.json").read_text().replace('"delta": 0.0001', '"delta": 0.01'))


def unprotected(run: Path) -> None:
    (run / "config.yaml").write_text(
        (write_plain_run(run.parent.parent / "plain") / "config.yaml").read_text()
    )


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (shortened, "a checkpoint is of step 4, but ledger.jsonl has 2 steps: lines were lost"),
        (lambda run: (run / "ledger.jsonl").unlink(), "no such ledger"),
        (foreign, "ledger.jsonl and run.json are about different data; they differ in n_units"),
        (cheaper, "noise_multiplier of step 0 is 9.0 in ledger.jsonl, 1.0 in run.json"),
        (generous, r"privacy.delta is 0.0001 in config.yaml, 0.01 in run.json"),
        (unprotected, "trained without privacy according to config.yaml, with it according to run.json"),
    ],
    ids=["cut at its end", "no ledger", "of other data", "cheaper steps", "delta edited", "configuration swapped"],
)  # fmt: skip
def test_a_ledger_that_is_cut_or_at_odds_gives_the_same_sentence_at_every_door(
    run: Path, door: str, spoil: Callable[[Path], object], sentence: str
) -> None:
    spoil(run)
    with pytest.raises(InputError, match=sentence):
        DOORS[door](run)


def test_no_figure_is_taken_from_a_damaged_run(run: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    for change, sentence in (
        ({"delta": 1.5}, "delta: expected a number between 0 and 1, found 1.5"),
        ({"epsilon": "much"}, "epsilon: expected a positive number, found 'much'"),
        ({"sample_rate": True}, "sample_rate: expected a positive number, found True"),
        ({"steps": 5.0}, "steps: expected a whole number, found 5.0"),
        ({"l2_clip_norm": 2.0}, "privacy.l2_clip_norm is 1.5 in config.yaml, 2.0 in run.json"),
        ({"epsilon": 30.0}, "privacy.epsilon is 3.0 in config.yaml, 30.0 in run.json"),
    ):
        (run / "run.json").write_text(json.dumps(facts | change))
        with pytest.raises(InputError, match=sentence):
            spent_of(run)

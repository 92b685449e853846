"""A tuning: one model, one budget; nothing that was not chosen leaves, and no figure leaves the choice out."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.accounting.selection import Choice
from jaxcxr.cli.account import rows_of
from jaxcxr.cli.sweep import main
from jaxcxr.config import Experiment
from jaxcxr.config_files import dump, load
from jaxcxr.errors import InputError
from jaxcxr.privacy import noise
from jaxcxr.records.spent import spent_of
from jaxcxr.records.tuning import TUNING, TuningLedger, TuningTerms
from jaxcxr.release.build import build_release
from jaxcxr.report.card.card_facts import NOT_CHOSEN, UNDECIDED
from jaxcxr.report.card.card_schema import read_card
from jaxcxr.run_folder import CHECKPOINTS, SECRET
from jaxcxr.workflows import experiment, tuning
from jaxcxr.workflows.tuning import Grid, candidate_configs, draws, tune
from tests.conftest import changed

BUDGET = 4.0
GRID = Grid({"training.learning_rate": [1e-3, 3e-3]}, 2.0)
THREE = noise.new_secret(5)
"""A secret whose tuning makes three runs or so: found by `found_secret`."""


@pytest.fixture(scope="module")
def base(tiny_config: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A run that may be released, on a copy of the tiny store, whose register is its own."""
    store = tmp_path_factory.mktemp("tuned") / "store"
    shutil.copytree(tiny_config.data.store, store)
    config = changed(tiny_config, "data", store=str(store))
    config = changed(config, "training", seed=None, steps=4, checkpoint_every=4, class_weights="none")
    config = changed(config, "evaluation", redraws=10, groups=())
    assert config.privacy is not None
    return changed(config, "privacy", dataset_size=60, unit="patient_one_image", delta=1e-3)


def silent(_: str) -> None:
    """In the place of `print`."""


class Killed(BaseException):
    """A kill at a chosen moment."""


@dataclasses.dataclass
class Tuned:
    """A tuning of three runs that was killed twice, and its chosen run."""

    base: Experiment
    out: Path
    chosen: Path
    before: list[str]


@pytest.fixture(scope="module")
def tuned(base: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Killed after a run was trained and before it was scored, then after the scores and before the choice."""
    out = tmp_path_factory.mktemp("tunings") / "tune"
    with pytest.MonkeyPatch.context() as patch:
        for module in (tuning, experiment):  # pages are for tests/report
            patch.setattr(module, "report_run", lambda *_, **__: None)
        patch.setattr(tuning, "number_of_runs", lambda *_: 3)
        real, runs = tuning._scored, []

        def killed_once(folder: Path, *rest: Any) -> Any:
            runs.append(folder.name)
            if runs.count("run_001") == 1 and folder.name == "run_001":
                raise Killed
            return real(folder, *rest)

        patch.setattr(tuning, "_scored", killed_once)
        with pytest.raises(Killed):
            tune(base, GRID, BUDGET, out, silent)
        undecided = spent_of(out / "run_000")
        assert undecided is not None
        assert undecided.tuning is not None
        assert undecided.tuning.standing == "undecided"
        with pytest.raises(InputError, match="not chosen yet"):
            build_release(out / "run_000")
        trained = json.loads((out / "run_001" / "run.json").read_text())
        best, choices = tuning._best, []

        def killed_at_first(ledger: Any) -> Any:
            choices.append(best(ledger))
            if len(choices) == 1:
                raise Killed
            return choices[-1]

        patch.setattr(tuning, "_best", killed_at_first)
        with pytest.raises(Killed):
            tune(base, GRID, BUDGET, out, silent)
        with pytest.raises(InputError, match="not chosen yet"):
            build_release(out / str(choices[0]))
        chosen = tune(base, GRID, BUDGET, out, silent)
        assert runs == ["run_000", "run_001", "run_001", "run_002"]
        assert json.loads((out / "run_001" / "run.json").read_text()) == trained  # not begun anew
        assert tune(base, GRID, BUDGET, out, silent) == chosen
        assert (len(runs), len(choices), choices[0]) == (4, 2, choices[1])
    assert chosen is not None
    return Tuned(base, out, chosen, runs)


def test_the_card_the_account_and_run_json_give_the_total(tuned: Tuned) -> None:
    spent = spent_of(tuned.chosen)
    assert spent is not None
    own = accounting.epsilon_pld(spent.spendings, spent.delta)
    total = Choice((tuple(spent.spendings),), GRID.mean_runs, GRID.repetitions).epsilon(spent.delta)
    assert own < 0.8 * BUDGET < 0.99 * BUDGET < total <= BUDGET
    assert spent.bounds().upper == total
    assert json.loads((tuned.chosen / "run.json").read_text())["epsilon"] == BUDGET
    from jaxcxr.cli.account import Arguments

    (row,) = rows_of(Arguments(run=tuned.chosen, replace_one=True))
    assert row["epsilon"] == total < row["epsilon_replace_one"]
    assert "epsilon_pld" not in row
    built = build_release(tuned.chosen)
    assert built.for_release
    card = read_card(built.folder / "privacy_card.json")
    assert card.claim.epsilon_upper == pytest.approx(total, rel=1e-5)
    assert (card.claim.epsilon_upper or 0.0) >= total
    assert card.tuning is not None
    assert (card.tuning.candidates, card.tuning.varied) == (2, ["training.learning_rate"])
    assert all(row.epsilon_upper is not None and row.epsilon_upper > own for row in card.profile[-2:])
    said = " ".join([*card.covered, *card.not_covered, *card.assumptions, *card.how_strong, *card.explained])
    assert "geometric distribution, mean 2" in said
    assert "costs each of them another epsilon of at most 3.99" in said or "at most 4 at the same" in said
    assert "mu =" not in said
    assert "run_0" not in (built.folder / "privacy_card.html").read_text()  # nor how many runs there were


def test_a_run_that_was_not_chosen_cannot_leave(tuned: Tuned) -> None:
    from jaxcxr.cli.account import Arguments

    for run in ("run_000", "run_001", "run_002"):
        folder = tuned.out / run
        if folder == tuned.chosen:
            continue
        assert not (folder / CHECKPOINTS).exists()
        with pytest.raises(InputError, match=NOT_CHOSEN.split(":")[0]):
            build_release(folder)
        with pytest.raises(InputError, match="it was not chosen: the cost of the choice"):
            rows_of(Arguments(run=folder))
    with pytest.raises(InputError, match="holds a tuning, of which one run may leave"):
        rows_of(Arguments(sweep=tuned.out))
    assert "not chosen yet" in UNDECIDED


@pytest.mark.parametrize("act", ["alone", "fact removed", "ledger rewritten"])
def test_a_run_does_not_shake_off_its_tuning(tuned: Tuned, tmp_path: Path, act: str) -> None:
    other = next(r for r in ("run_000", "run_001", "run_002") if tuned.out / r != tuned.chosen)
    shutil.copytree(tuned.out, tmp_path / "copy", ignore=shutil.ignore_patterns("release"))
    copy = tmp_path / "copy" / other
    if act == "alone":
        shutil.copytree(copy, tmp_path / "run")
        with pytest.raises(InputError, match=r"is one run of a tuning, and tuning.jsonl"):
            build_release(tmp_path / "run")
        return
    if act == "fact removed":
        facts = json.loads((copy / "run.json").read_text())
        del facts["tuning"]
        (copy / "run.json").write_text(json.dumps(facts))
        with pytest.raises(InputError, match="is not the file that was written"):
            build_release(copy)
        (copy / "digests.json").unlink()
        with pytest.raises(InputError, match=r"changed after it was begun.*run\.tuning"):
            build_release(copy)
        return
    lines = (tmp_path / "copy" / TUNING).read_text().splitlines()
    (tmp_path / "copy" / TUNING).write_text(
        "\n".join([*lines[:-1], lines[-1].replace(tuned.chosen.name, other)])
    )
    with pytest.raises(InputError, match=r"lines were lost|was edited"):
        build_release(copy)


def test_another_grid_budget_or_configuration_is_refused(tuned: Tuned) -> None:
    ledger = (tuned.out / TUNING).read_bytes()
    for base, grid, budget, named in (
        (tuned.base, Grid({"training.learning_rate": [1e-3, 5e-3]}, 2.0), BUDGET, "candidates of the grid"),
        (tuned.base, dataclasses.replace(GRID, mean_runs=3.0), BUDGET, "mean_runs"),
        (tuned.base, GRID, 5.0, "budget"),
        (changed(tuned.base, "training", steps=5), GRID, BUDGET, "configuration"),
    ):
        with pytest.raises(InputError, match=f"begun otherwise; it differs in (the )?{named}"):
            tune(base, grid, budget, tuned.out, silent)
    assert (tuned.out / TUNING).read_bytes() == ledger


def test_of_two_that_begin_at_once_one_makes_secret_and_terms(
    base: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, began = tmp_path / "tune", tuning._require_validation, []

    def another_begins(*_: Any) -> None:
        monkeypatch.setattr(tuning, "_require_validation", real)
        began.append(tuning._begun(base, GRID, BUDGET, out, silent))

    monkeypatch.setattr(tuning, "_require_validation", another_begins)
    _, ledger, secret = tuning._begun(base, GRID, BUDGET, out, silent)
    ((_, other, others_secret),) = began
    assert (ledger.terms, ledger.head_of_terms, secret) == (other.terms, other.head_of_terms, others_secret)
    assert len((out / TUNING).read_text().splitlines()) == 1


def test_another_secret_would_draw_the_runs_anew(tuned: Tuned, tmp_path: Path) -> None:
    shutil.copytree(tuned.out, tmp_path / "copy", ignore=shutil.ignore_patterns("run_*"))
    (tmp_path / "copy" / SECRET).write_bytes(bytes(32))
    with pytest.raises(InputError, match="drawn anew, after results"):
        tune(tuned.base, GRID, BUDGET, tmp_path / "copy", silent)
    assert (tuned.out / SECRET).stat().st_mode & 0o077 == 0


def test_the_score_decides_and_its_noise_is_paid_for(tuned: Tuned) -> None:
    ledger = TuningLedger(tuned.out)
    assert ledger.terms is not None
    scores = {run: line.score for run, line in ledger.scored.items()}
    assert len(scores) == 3
    assert max(scores, key=lambda run: scores[run]) == tuned.chosen.name
    score = Choice(((Spending(1.0, ledger.terms.score_noise_multiplier, 1),),), 2.0, "geometric")
    assert 0.99 * BUDGET < score.epsilon(1e-3) <= BUDGET
    quiet = ledger.terms.model_copy(update={"score_noise_multiplier": 0.1})
    predictions = tuned.chosen / "predictions.parquet"

    def spread(terms: TuningTerms) -> float:
        keys = (noise.derive_key(THREE, "x", i) for i in range(12))
        return float(np.std([tuning.score_of(predictions, terms, key) for key in keys]))

    assert 0 < 5 * spread(quiet) < spread(ledger.terms)


def test_runs_and_settings_are_drawn_from_the_secret_alone() -> None:
    first = draws(THREE, GRID, 5)
    assert first == draws(THREE, GRID, 5)
    many = [draws(noise.new_secret(i), GRID, 5) for i in range(400)]
    numbers = np.array([len(found) for found in many])
    assert numbers.min() == 1
    assert abs(numbers.mean() - 2.0) < 5 * np.sqrt(
        2.0 / 400
    )  # the geometric law has variance mean (mean - 1)
    assert abs((numbers == 1).mean() - 0.5) < 5 * 0.5 / 20
    counts = np.bincount([candidate for found in many for candidate in found], minlength=5)
    assert len(counts) == 5
    assert np.all(abs(counts / counts.sum() - 0.2) < 5 * 0.4 / np.sqrt(counts.sum()))


def test_no_run_at_all_is_no_model(base: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "draws", lambda *_: [])
    told: list[str] = []
    grid = dataclasses.replace(GRID, repetitions="poisson")
    assert tune(base, grid, BUDGET, tmp_path / "none", told.append) is None
    assert "the number of runs that was drawn is 0" in told[-1]
    monkeypatch.setattr(tuning, "draws", lambda *_: [0])  # drawing again does not help
    scored = tuning.Scored(run="run_000", candidate=0, score=0.0, name="", ledger="")
    monkeypatch.setattr(tuning, "_run", lambda *_: None)
    monkeypatch.setattr(tuning, "_scored", lambda *_: scored)
    with pytest.raises(InputError, match="is complete"):
        tune(base, grid, BUDGET, tmp_path / "none", told.append)


def bad(**vary: list[Any]) -> Grid:
    return Grid({name.replace("__", "."): values for name, values in vary.items()}, 2.0)


@pytest.mark.parametrize(
    ("grid", "budget", "message"),
    [
        (Grid({}), 4.0, "vary: expected fields with one value or more each, found none"),
        (bad(training__learning_rate=[]), 4.0, "one value or more"),
        (bad(training__speed=[1]), 4.0, "no such field 'training.speed'"),
        (
            bad(training__learning_rate=[1e-3, -1.0]),
            4.0,
            "candidate with training.learning_rate -1.0: .*learning_rate: expected",
        ),
        (bad(training__expected_batch_size=[6, 600]), 4.0, "expected_batch_size: expected at most the 60"),
        (bad(privacy__delta=[1e-3, 1e-2]), 4.0, "privacy.delta: is the same for all candidates"),
        (bad(data__store=["a", "b"]), 4.0, "data.store: is the same"),
        (bad(training__learning_rate=[1e-3, 1e-3]), 4.0, "holds a value twice"),
        (Grid({"training.learning_rate": [1e-3]}, 90.0), 0.005, "is spent before the first run"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_drawn(
    base: Experiment, tmp_path: Path, grid: Grid, budget: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tune(base, grid, budget, tmp_path / "out", silent)
    assert not (tmp_path / "out" / TUNING).exists()


def test_the_command(
    base: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, grid = tmp_path / "base.yaml", Path("configs/tuning.yaml")
    dump(base, config)
    assert load(Grid, grid).candidates()
    begun: list[tuple[Any, ...]] = []
    monkeypatch.setattr(tuning, "tune", lambda *given: begun.append(given))
    main(["--tune", str(grid), "--budget", "2.04", "--config", str(config), "--training.steps", "5"])
    assert begun == [
        (changed(base, "training", steps=5), load(Grid, grid), 2.04, Path("runs/tune-tuning-epsilon_2.04"))
    ]
    for arguments in (
        ["--tune", str(grid)],
        ["--budget", "1"],
        ["--tune", str(grid), "--budget", "1", "--recipe", "head"],
    ):
        with pytest.raises(InputError, match="--tune"):
            main([*arguments, "--config", str(config)])
    monkeypatch.setattr(tuning, "rehearse", lambda *_: tuning_rehearsal())
    main(["--tune", str(grid), "--budget", "2.04", "--config", str(config), "--dry-run"])
    said = capsys.readouterr().out
    assert "runs:      4 on average (geometric), each with one of 6 candidates" in said
    assert "is left for it" in said
    empty = tmp_path / "empty.yaml"
    empty.write_text("vary: {}\n")
    with pytest.raises(InputError, match=r"empty.yaml: vary: expected"):
        main(["--tune", str(empty), "--budget", "2.04", "--config", str(config), "--dry-run"])


def tuning_rehearsal() -> Any:
    return type("Rehearsal", (), {"lines": lambda _: ["steps: 5"]})()


def test_a_seed_or_noise_of_its_own_is_refused(base: Experiment) -> None:
    for section, fields, message in (
        ("training", {"seed": 3}, "training.seed: expected null"),
        ("privacy", {"noise_multiplier": 2.0}, "noise_multiplier: expected null"),
    ):
        with pytest.raises(InputError, match=message):
            candidate_configs(changed(base, section, **fields), GRID, BUDGET)
    with pytest.raises(InputError, match="privacy: expected a private"):
        candidate_configs(dataclasses.replace(base, privacy=None), GRID, BUDGET)

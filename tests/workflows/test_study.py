import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxcxr.atomic import BusyError
from jaxcxr.config import Experiment
from jaxcxr.config_files import load
from jaxcxr.errors import InputError
from jaxcxr.launch.jobs import claimed
from jaxcxr.report.figures.study_figures import with_other_questions, write_study
from jaxcxr.workflows import experiment, study
from jaxcxr.workflows.study import Arm, Question, Study, cells, comparisons, interval_of, results

ROOT = Path(__file__).resolve().parents[2]
ARMS = {
    "paper": Arm({"training.learning_rate": 1e-3}, {"0.29": {"training.learning_rate": 1e-4}}),
    "recommended": Arm(recipe="recommended"),
    "before": Arm(recipe="untouched"),
}
SEEDS = (1, 2, 3)


def study_of(**questions: Question) -> Study:
    asked = questions or {"recipe": Question("Which recipe?", "paper", ARMS, (0.29, 7.89), SEEDS)}
    return Study(
        str(ROOT / "configs/study/private.yaml"), str(ROOT / "configs/study/recommended_whole.yaml"), asked
    )


def test_the_grid_is_every_arm_budget_and_seed() -> None:
    found = list(cells(study_of()))
    assert len({(c.arm, c.epsilon, c.seed) for c in found}) == len(found) == 3 * 2 * 3
    by_key = {(c.arm, c.epsilon, c.seed): c for c in found}
    paper = by_key["paper", 7.89, 2].config
    assert (paper.training.learning_rate, paper.training.seed) == (1e-3, 2)
    assert paper.privacy is not None
    assert paper.privacy.epsilon == 7.89
    assert by_key["paper", 0.29, 2].config.training.learning_rate == 1e-4
    assert {by_key["recommended", epsilon, 1].config.training.averaging for epsilon in (0.29, 7.89)} == {
        "tail"
    }
    assert len({c.digest for c in found}) == 3 * 2 * 2 + 1  # untouched weights have neither budget nor seed


def test_questions_share_their_runs() -> None:
    one = Question("?", "a", {"a": Arm(), "b": Arm({"privacy.l2_clip_norm": 0.5})}, (1.0,), (1,))
    other = Question(
        "?",
        "a",
        {"a": Arm({"privacy.l2_clip_norm": 1.5}), "c": Arm({"model.activation": "relu"})},
        (1.0,),
        (1,),
    )
    assert len({c.digest for c in cells(study_of(one=one, other=other))}) == 3


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (Arm({"training.speed": 1}), r"questions.q.arms.a: no such field 'training.speed'"),
        (
            Arm({"privacy.l2_clip_norm": -1.0}),
            r"questions.q.arms.a: privacy.l2_clip_norm: expected greater than or equal to 0.000001",
        ),
        (
            Arm({"training.augmentation_multiplicity": 4}),
            r"questions.q.arms.a: training.augmentation_multiplicity: 4 equal copies are one",
        ),
    ],
)
def test_an_arm_that_cannot_be_is_named(arm: Arm, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(cells(study_of(q=Question("?", "a", {"a": arm}, (1.0,), (1,)))))


def test_a_reference_must_be_an_arm() -> None:
    with pytest.raises(InputError, match=r"questions.q.reference: expected one of a; found 'b'"):
        list(cells(study_of(q=Question("?", "b", {"a": Arm()}, (1.0,), (1,)))))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs are drawn at random instead of trained: the recommended recipe is better, the more so by seed."""
    done: list[str] = []

    def predict(config: Experiment, folder: Path, skill: float, seed: int) -> None:
        rng = np.random.default_rng(0)
        n = 400
        frame = pd.DataFrame(
            {
                "image_id": [f"f{i}" for i in range(n)],
                "patient_id": [f"p{i // 2}" for i in range(n)],
                "split": "test",
                "age": rng.uniform(20, 90, n),
                "sex": rng.choice(["F", "M"], n),
            }
        )
        for finding in config.data.findings:
            y = rng.integers(0, 2, n)
            frame[f"y_{finding}"] = y.astype(np.float32)
            noise = np.random.default_rng(seed).normal(size=n)
            frame[f"p_{finding}"] = (
                1 / (1 + np.exp(-(skill * y + rng.normal(size=n) + 0.3 * noise)))
            ).astype(np.float32)
        folder.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(folder / "predictions.parquet")
        (folder / "run.json").write_text(json.dumps({"noise_multiplier": 1.0}))
        (folder / "checkpoints").mkdir()
        done.append(folder.name)

    def run(config: Experiment, out: Path, resume: bool, say: Any) -> object:
        assert resume is False
        predict(config, out, 1.0 if config.training.averaging == "none" else 1.5, config.training.seed or 0)
        return object()

    monkeypatch.setattr(experiment, "run_experiment", run)
    monkeypatch.setattr(
        experiment, "evaluate_untouched", lambda config, out, **_: predict(config, out, 0.2, 0)
    )
    monkeypatch.setattr(study, "REDRAWS", 40)
    return done


def test_a_study_runs_what_is_missing_once_and_reports(trained: list[str], tmp_path: Path) -> None:
    asked = study_of(recipe=Question("Which recipe?", "paper", ARMS, (0.29,), SEEDS))
    assert not study.run(asked, tmp_path, minutes=0.0, say=lambda _: None)
    assert len(trained) <= 1
    assert study.run(asked, tmp_path, say=lambda _: None)
    assert len(trained) == len(set(trained)) == 3 + 3 + 1
    assert study.run(asked, tmp_path, say=lambda _: None)
    assert len(trained) == 7
    assert not list(tmp_path.glob("*/checkpoints"))
    table, compared = results(asked, tmp_path), comparisons(asked, tmp_path)
    assert len(table) == 9
    row = compared.set_index(["arm", "estimate"]).loc[("recommended", "auroc")]
    of = table.pivot_table(index="seed", columns="arm", values="auroc")
    assert row["difference"] == pytest.approx((of["recommended"] - of["paper"]).mean())
    assert row["ci_low"] < row["difference"] < row["ci_high"]
    assert row["films_low"] < row["difference"] < row["films_high"]
    assert row["value_low"] < row["value"] < row["value_high"]
    write_study(table, compared, {"recipe": "Which recipe?"}, tmp_path / "report")
    text = (tmp_path / "report" / "ablations.md").read_text()
    assert f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]" in text
    assert (tmp_path / "report" / "ablations.png").exists()
    _assert_other_questions_stay(table, compared, tmp_path / "report")


def _assert_other_questions_stay(table: pd.DataFrame, compared: pd.DataFrame, report: Path) -> None:
    """A second question, whose arms are named by numbers, goes before the first, whose rows stay as they are; twice over."""
    before = (report / "results.csv").read_text().splitlines()
    names = {"recipe": "1.5", "paper": "1.5", "recommended": "3", "before": "none"}
    questions = ["other", "recipe"]
    for _ in range(2):
        tables = []
        for name, found in (("results.csv", table), ("comparisons.csv", compared)):
            renamed = found.assign(question="other", arm=[names[arm] for arm in found["arm"]])
            tables.append(with_other_questions(renamed, report / name, questions))
        write_study(tables[0], tables[1], {"other": "Another?", "recipe": "Which recipe?"}, report)
    after = (report / "results.csv").read_text().splitlines()
    assert after[0] == before[0]
    assert after[len(before) :] == before[1:]
    assert [line.split(",")[0] for line in after[1 : len(before)]] == ["other"] * (len(before) - 1)
    text = (report / "ablations.md").read_text()
    assert text.index("Another?") < text.index("Which recipe?")
    assert "other" not in set(with_other_questions(table, report / "results.csv", ["recipe"])["question"])


def test_intervals_cover_films_and_seeds() -> None:
    rng = np.random.default_rng(0)
    films = np.concatenate([[0.0], rng.normal(0, 0.01, 400)])  # equal for all seeds
    draws = np.asarray([0.02, 0.03, 0.07])[:, None] + films
    found = interval_of(draws)
    assert found["difference"] == pytest.approx(0.04)
    of_films, of_seeds = films[1:].var(ddof=1), np.var([0.02, 0.03, 0.07], ddof=1) / 3
    freedom = (of_films + of_seeds) ** 2 / (of_seeds**2 / 2)
    reach = stats.t.ppf(0.975, freedom) * np.sqrt(of_films + of_seeds)
    assert found["ci_high"] - found["difference"] == pytest.approx(reach)
    assert reach > stats.t.ppf(0.975, 2) * np.sqrt(of_seeds) * 0.5
    assert np.isnan(interval_of(draws[:1])["ci_low"])


def test_the_study_that_we_ship_can_be_run() -> None:
    shipped = load(Study, ROOT / "configs" / "ablations.yaml")
    shipped = dataclasses.replace(
        shipped, experiment=str(ROOT / shipped.experiment), rule=str(ROOT / shipped.rule)
    )
    found = list(cells(shipped))
    assert {c.epsilon for c in found if c.question == "recipe"} == {0.29, 1.06, 7.89}
    assert all(len(q.seeds) >= 3 for q in shipped.questions.values())


def test_a_run_that_another_launcher_makes_is_left_to_it(trained: list[str], tmp_path: Path) -> None:
    arms = {"a": Arm(), "b": Arm({"privacy.l2_clip_norm": 0.5})}
    asked = study_of(q=Question("?", "a", arms, (1.0,), (1,)))
    first, second = study.unfinished(asked, tmp_path)
    with claimed(tmp_path, first):
        assert not study.run(asked, tmp_path, say=lambda _: None)
        with pytest.raises(BusyError, match=f"{first}: another process is at work on it"):
            study.run_cell(study.cell_of(asked, first), tmp_path)
    assert trained == [second]
    study.run_cell(study.cell_of(asked, first), tmp_path)
    study.run_cell(study.cell_of(asked, first), tmp_path)  # what is complete is not made again
    assert trained == [second, first]
    assert study.unfinished(asked, tmp_path) == {}
    with pytest.raises(InputError, match="--part x: the study has no such run"):
        study.cell_of(asked, "x")

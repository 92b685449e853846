"""Every script as a user would call it, on the smallest data that it takes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
COHORT = ["--data.synthetic.n-train", "300", "--data.synthetic.n-valid", "150", "--data.synthetic.n-test", "150"]
NET = ["--model.width", "32", "--training.microbatch-size", "4", "--training.expected-batch-size", "4", "--training.steps", "2"]


def script(name: str, *arguments: str, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert "Warning" not in done.stdout
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's configurations made small, where the scripts run."""
    home = tmp_path_factory.mktemp("home")
    (home / "configs").mkdir()
    for path in (ROOT / "configs").glob("*.yaml"):
        text = path.read_text()
        text = text.replace("size: 64", "size: 32").replace("n_train: 8000", "n_train: 300")
        text = (
            text.replace("n_valid: 1000", "n_valid: 150")
            .replace("n_test: 2000", "n_test: 150")
            .replace("n_test: 1000", "n_test: 150")
        )
        text = text.replace("redraws: 1000", "redraws: 20").replace("activation: mish", "activation: mish\n  width: 32")
        (home / "configs" / path.name).write_text(text)
    return home


@pytest.fixture(scope="module")
def swept(home: Path) -> Path:
    script("pretrain", "--out", "weights/synthetic-64", "--config", "configs/pretrain_synthetic.yaml", *NET[2:], cwd=home)
    done = script("sweep", "--eps", "8", "inf", "--out", "sweep", *NET[2:], cwd=home)
    assert "average AUROC" in done.stdout
    assert "before training" in done.stdout
    return home / "sweep"


def test_sweep_writes_what_it_promises(swept: Path) -> None:
    summary = pd.read_csv(swept / "summary.csv")
    assert list(summary.columns[:11]) == [
        "epsilon", "delta", "noise_multiplier", "sample_rate", "steps", "finding", "metric", "mean", "std", "ci_low", "ci_high",
    ]  # fmt: skip
    assert set(summary["epsilon"]) == {8.0, float("inf")}
    assert set(summary["metric"]) == {"auroc", "accuracy", "specificity", "sensitivity"}
    for name in ("figure_2.png", "figure_2.svg", "tables/table_epsilon_8.md", "tables/table_non_private.tex"):
        assert (swept / name).stat().st_size > 500
    for folder in ("epsilon_8", "non_private"):
        for name in ("config.yaml", "run.json", "metrics.jsonl", "predictions.parquet", "evaluation.csv", "checkpoints"):
            assert (swept / folder / name).exists()
    assert (swept / "epsilon_8" / "ledger.jsonl").read_text().count("\n") == 3
    assert not (swept / "non_private" / "ledger.jsonl").exists()
    table = pd.read_parquet(swept / "epsilon_8" / "predictions.parquet")
    assert table["split"].value_counts().to_dict() == {"valid": 150, "test": 150}


def test_finished_budgets_are_not_run_again(swept: Path, home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in swept.glob("*/metrics.jsonl")}
    script("sweep", "--eps", "8", "--out", "sweep", *NET[2:], cwd=home)
    assert {path: path.stat().st_mtime_ns for path in swept.glob("*/metrics.jsonl")} == before
    assert set(pd.read_csv(swept / "summary.csv")["epsilon"]) == {8.0, float("inf")}
    changed = script("sweep", "--eps", "8", "--out", "sweep", *NET[2:], "--training.learning-rate", "0.1", cwd=home, expect=2)
    assert "training.learning_rate" in changed.stderr


def test_train_and_evaluate(swept: Path, home: Path) -> None:
    done = script("train", "--out", "one", *NET[2:], cwd=home)
    assert "average" in done.stdout
    again = script("train", "--out", "one", *NET[2:], cwd=home, expect=2)
    assert "--resume" in again.stderr
    script("train", "--out", "one", "--resume", *NET[2:], cwd=home)
    script("evaluate", "one/predictions.parquet", "--out", "judged", "--redraws", "10", cwd=home)
    assert set(pd.read_csv(home / "judged" / "evaluation.csv")["finding"]) >= {"cardiomegaly", "average"}


def test_account_answers_in_numbers(tmp_path: Path) -> None:
    arguments = ["--eps", "2.04", "--n", "5000", "--batch", "100", "--epochs", "3", "--delta", "6e-6"]
    answer = json.loads(script("account", *arguments, "--json", cwd=tmp_path).stdout)
    assert {"noise_multiplier", "epsilon_pld", "epsilon_rdp", "steps", "sample_rate", "delta"} <= answer.keys()
    assert answer["steps"] == 150
    assert 2.03 < answer["epsilon_pld"] <= 2.04 < answer["epsilon_rdp"]
    assert "noise_multiplier" in script("account", *arguments, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--eps", "0", "--n", "100", "--batch", "10", "--steps", "5", "--delta", "1e-4"], "expected a positive number"),
        (["--eps", "1", "--n", "100", "--batch", "101", "--steps", "5", "--delta", "1e-4"], "--batch"),
        (["--eps", "1", "--n", "100", "--batch", "10", "--steps", "5", "--delta", "0.02"], "less than 1/N"),
        (["--eps", "1", "--n", "100", "--batch", "10", "--delta", "1e-4"], "exactly one"),
    ],
)
def test_account_refuses_what_makes_no_sense(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    assert complaint in script("account", *arguments, cwd=tmp_path, expect=2).stderr


def test_contact_sheet_draws(tmp_path: Path) -> None:
    script("contact_sheet", "--out", "sheet.png", cwd=tmp_path)
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


@pytest.mark.skipif(not (ROOT / ".." / "shared" / "data" / "radiographs").is_dir(), reason="the real radiographs are not here")
def test_real_radiographs_from_files_to_a_private_model(home: Path, tmp_path: Path) -> None:
    films = ROOT / ".." / "shared" / "data" / "radiographs"
    source = str(ROOT / "configs" / "prepare_example.yaml")
    script("prepare", "--source", source, "--table", str(films / "metadata.csv"), "--images", str(films), "--out", "real", "--size", "32", cwd=tmp_path)  # fmt: skip
    store = json.loads((tmp_path / "real" / "store.json").read_text())
    finding = store["findings"][0]
    shutil.copy(home / "configs" / "demo.yaml", tmp_path / "demo.yaml")
    arguments = [
        "--config",
        "demo.yaml",
        "--out",
        "run",
        "--data.store",
        "real",
        "--data.synthetic",
        "None",
        "--data.findings",
        finding,
    ]
    arguments += ["--model.weights", "None", "--model.pretraining", "None", "--training.class-weights", "none", "--training.positive-rates", "None"]  # fmt: skip
    arguments += ["--evaluation.threshold", "youden_test"]
    done = script("train", *arguments, *NET[2:], cwd=tmp_path)
    assert finding in done.stdout

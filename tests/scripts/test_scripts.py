"""Every script as a user would call it, on the smallest data that it takes; those that compile much, or start processes of their
own, in a process of their own.
"""

import contextlib
import dataclasses
import fnmatch
import io
import json
import logging
import os
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jaxcxr.config import DataConfig, Experiment, ModelConfig
from jaxcxr.config_files import dump, load
from jaxcxr.training.plan import RunPlan
from tests.conftest import FINDINGS, changed, declared

ROOT = Path(__file__).resolve().parents[2]
REAL_FILMS = ROOT / ".." / "shared" / "data" / "radiographs"


@dataclasses.dataclass(frozen=True)
class Said:
    """What a script printed."""

    stdout: str
    stderr: str


def _checked(code: Any, expect: int, said: Said) -> Said:
    assert code == expect, said.stderr
    for trouble in ("Traceback", "Warning", "Error:"):
        assert trouble not in said.stderr
        assert trouble not in said.stdout
    return said


def process(name: str, *arguments: str, cwd: Path, expect: int = 0) -> Said:
    """Call a script in a process of its own."""
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    # where the package is, and the network of `home`
    path = os.pathsep.join(str(ROOT / place) for place in ("src", "."))
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    return _checked(done.returncode, expect, Said(done.stdout, done.stderr))


def call(name: str, *arguments: str, cwd: Path, expect: int = 0) -> Said:
    """Call a script in this process, which has imported and compiled most of what it needs."""
    stdout, stderr = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        pytest.MonkeyPatch.context() as patch,
        _console_undone(),
    ):
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        try:
            runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    return _checked(code, expect, Said(stdout.getvalue(), stderr.getvalue()))


@contextlib.contextmanager
def _console_undone() -> Iterator[None]:
    """Give back what `jaxcxr.cli.console.quiet` takes for the whole process: other tests watch the logs and warnings."""
    loggers = [logging.getLogger(), logging.getLogger("absl")]
    before = [(logger, logger.level, list(logger.filters)) for logger in loggers]
    hook = sys.unraisablehook
    with warnings.catch_warnings():
        yield
    sys.unraisablehook = hook
    for logger, level, filters in before:
        logger.setLevel(level)
        logger.filters = filters


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory, tiny_plan: RunPlan, tiny_nonprivate_config: Experiment
) -> Path:
    """A folder with the demo's configurations made small, where the scripts run.

    Their network compiles in seconds; the paper's is trained by the README's first command.
    """
    home = tmp_path_factory.mktemp("home")
    (home / "configs").mkdir()
    tiny, mechanism = tiny_plan.config, tiny_plan.mechanism
    assert tiny.privacy is not None
    assert mechanism is not None
    for name in ("demo", "demo_nonprivate", "pretrain_synthetic"):
        config = load(Experiment, ROOT / "configs" / f"{name}.yaml")
        cohort = config.data.synthetic
        assert cohort is not None
        few = dataclasses.replace(cohort, n_train=200, n_valid=100 if cohort.n_valid else 0, n_test=100)
        config = changed(config, "data", size=32, synthetic=few, findings=FINDINGS)
        recipe = None if name == "pretrain_synthetic" else "configs/pretrain_synthetic.yaml"
        config = changed(
            config,
            "model",
            network="tests.training.tiny:TinyNet",
            activation=ModelConfig().activation,
            weights=recipe and "weights/synthetic-64",
            pretraining=recipe,
        )
        like = tiny if config.privacy else tiny_nonprivate_config
        if config.privacy:
            private = dataclasses.replace(
                tiny.privacy, epsilon=7.89, noise_multiplier=mechanism.noise_multiplier
            )
            config = dataclasses.replace(config, privacy=private)
        config = dataclasses.replace(config, training=like.training)
        config = changed(config, "training", steps=2, seed=None, **declared(tiny_plan))
        dump(changed(config, "evaluation", redraws=20), home / "configs" / f"{name}.yaml")
    return home


PAPER = ["--recipe", "paper"]
"""The demo's configuration as it is, which here has a tiny network."""


@pytest.fixture(scope="module")
def swept(home: Path) -> Path:
    done = process("sweep", *PAPER, "--eps", "7.89", "inf", "--out", "sweep", cwd=home)
    assert "average AUROC" in done.stdout
    assert "before training" in done.stdout
    assert "At ε = 7.89, in average AUROC, private training bought" in done.stdout
    return home / "sweep"


def test_sweep_writes_what_it_promises(swept: Path) -> None:
    summary = pd.read_csv(swept / "summary.csv")
    assert list(summary.columns[:12]) == [
        "epsilon", "delta", "noise_multiplier", "sample_rate", "steps", "finding", "metric",
        "value", "ci_low", "ci_high", "bootstrap_mean", "std",
    ]  # fmt: skip
    assert set(summary["epsilon"]) == {7.89, float("inf")}
    assert set(summary["metric"]) >= {"auroc", "accuracy", "specificity", "sensitivity"}
    gained, auroc = pd.read_csv(swept / "gains.csv"), summary.loc[summary["finding"] == "average"]
    auroc = auroc.loc[auroc["metric"] == "auroc"].set_index("epsilon")["value"]
    assert list(gained["epsilon"]) == [float("inf"), 7.89]  # both began from the same weights
    assert gained["after"].tolist() == pytest.approx(auroc.loc[gained["epsilon"]].tolist())
    assert (gained["after"] - gained["before"]).tolist() == pytest.approx(gained["gain"].tolist())
    for name in (
        "figure_2.png",
        "figure_2.svg",
        "tables/table_epsilon_7.89.md",
        "tables/table_non_private.tex",
    ):
        assert (swept / name).stat().st_size > 500
    for folder in ("epsilon_7.89", "non_private"):
        for name in (
            "config.yaml",
            "run.json",
            "metrics.jsonl",
            "predictions.parquet",
            "evaluation.csv",
            "checkpoints",
        ):
            assert (swept / folder / name).exists()
    assert (swept / "epsilon_7.89" / "ledger.jsonl").read_text().count('"step"') == 2
    assert not (swept / "non_private" / "ledger.jsonl").exists()
    table = pd.read_parquet(swept / "epsilon_7.89" / "predictions.parquet")
    assert table["split"].value_counts().to_dict() == {"valid": 100, "test": 100}
    assert table.attrs["schema_version"] == 1
    for folder, said in (
        ("", "ε = 7.89"),
        ("epsilon_7.89", "non-private minus private"),
        ("non_private", "epsilon is infinite"),
    ):
        assert said in (swept / folder / "report.html").read_text()


def test_the_documentation_names_every_file_that_a_run_writes(swept: Path) -> None:
    page = (ROOT / "docs" / "run_folder.md").read_text(encoding="utf-8")
    section = page.partition("## A run folder")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    patterns = [re.sub(r"<step>", "*", name) for name in named]
    for folder in ("epsilon_7.89", "non_private"):
        for path in (swept / folder).rglob("*"):
            file = path.relative_to(swept / folder).as_posix()
            known = any(
                fnmatch.fnmatch(file, f"{pattern}*" if pattern.endswith("/") else pattern)
                for pattern in patterns
            )
            assert path.is_dir() or known, (
                f"docs/run_folder.md does not say what {file} is, and whether it may leave"
            )


def test_finished_budgets_are_not_run_again(swept: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda *_, **__: None
    )  # figures are drawn by the test above
    before = {path: path.stat().st_mtime_ns for path in swept.glob("*/metrics.jsonl")}
    alone = (swept / "figure_2.svg").read_bytes()
    call("sweep", *PAPER, "--eps", "7.89", "--out", "sweep", "--beside", "sweep", cwd=home)
    assert b"sweep, private" in (swept / "figure_2.svg").read_bytes()
    assert b"sweep, private" not in alone
    assert {path: path.stat().st_mtime_ns for path in swept.glob("*/metrics.jsonl")} == before
    assert set(pd.read_csv(swept / "summary.csv")["epsilon"]) == {7.89, float("inf")}
    refused = call(
        "sweep",
        *PAPER,
        *("--eps", "7.89", "--out", "sweep", "--training.learning-rate", "0.1"),
        cwd=home,
        expect=2,
    )
    assert "training.learning_rate: 0.001 there, 0.1 now" in refused.stderr
    refused = call("sweep", "--eps", "7.89", "--beside", "nowhere", cwd=home, expect=2)
    assert "--beside nowhere: expected a finished sweep folder" in refused.stderr


def test_pretrain_writes_weights_once(swept: Path, home: Path) -> None:
    said = call("pretrain", "--out", "weights/again", cwd=home)
    assert "weights/again: weights and provenance.json" in said.stdout
    provenance = json.loads((home / "weights" / "again" / "provenance.json").read_text())
    assert provenance["config"]["data"]["synthetic"]["domain"] == "public"
    assert (
        "weights/again: exists already"
        in call("pretrain", "--out", "weights/again", cwd=home, expect=2).stderr
    )
    assert (
        home / "weights" / "synthetic-64" / "provenance.json"
    ).exists()  # the sweep made those that it starts from


def test_train_and_evaluate(swept: Path, home: Path) -> None:
    assert "average" in call("train", "--out", "one", cwd=home).stdout
    assert "--resume" in call("train", "--out", "one", cwd=home, expect=2).stderr
    (home / "one" / "report.html").unlink()
    call("train", "--out", "one", "--resume", cwd=home)
    assert (
        "Average AUROC" in (home / "one" / "report.html").read_text()
    )  # a finished run without a page is given one
    call("evaluate", "one/predictions.parquet", "--out", "judged", "--redraws", "10", cwd=home)
    assert "for one image added or removed" in (home / "judged" / "report.html").read_text()
    assert set(pd.read_csv(home / "judged" / "evaluation.csv")["finding"]) >= {"cardiomegaly", "average"}


PLAN = ["--n", "5000", "--batch", "100", "--epochs", "3", "--delta", "6e-6"]


def test_account_answers_in_numbers(tmp_path: Path) -> None:
    answer = json.loads(process("account", "--eps", "2.04", *PLAN, "--json", cwd=tmp_path).stdout)
    assert {
        "noise_multiplier",
        "epsilon_pld",
        "epsilon_rdp",
        "steps",
        "sample_rate",
        "delta",
    } <= answer.keys()
    assert answer["steps"] == 150
    assert 2.03 < answer["epsilon_pld"] <= 2.04 < answer["epsilon_rdp"]
    assert "noise_multiplier" in call("account", "--eps", "2.04", *PLAN, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["--eps", "0", "--n", "100", "--batch", "10", "--steps", "5", "--delta", "1e-4"],
            "expected a positive number",
        ),
        (["--eps", "1", "--n", "100", "--batch", "101", "--steps", "5", "--delta", "1e-4"], "--batch"),
        (["--eps", "1", "--n", "100", "--batch", "10", "--steps", "5", "--delta", "0.02"], "less than 1/N"),
        (["--eps", "1", "--n", "100", "--batch", "10", "--delta", "1e-4"], "exactly one"),
    ],
)
def test_account_refuses_what_makes_no_sense(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    said = call("account", *arguments, cwd=tmp_path, expect=2)
    assert said.stderr.startswith("error: ")
    assert said.stderr.count("\n") == 1
    assert complaint in said.stderr


def test_contact_sheet_draws(tmp_path: Path) -> None:
    call("contact_sheet", "--out", "sheet.png", "--size", "64", cwd=tmp_path)
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


@pytest.mark.skipif(not REAL_FILMS.is_dir(), reason="the real radiographs are not here")
def test_real_radiographs_from_files_to_a_private_model(home: Path, tmp_path: Path) -> None:
    table = pd.read_csv(REAL_FILMS / "metadata.csv", dtype=str, keep_default_na=False)
    table[table["source"].str.startswith("nih")].to_csv(tmp_path / "table.csv", index=False)
    source = (ROOT / "configs" / "prepare_example.yaml").read_text()
    source = source.replace("same_patient:", "# same_patient:")
    key = "  key: '00112233445566778899aabbccddeeff'\n"  # by some keys a split has no image of a finding
    (tmp_path / "source.yaml").write_text(source.replace("  test: 0.25\n", f"  test: 0.25\n{key}"))
    files = ["--source", "source.yaml", "--table", "table.csv", "--images", str(REAL_FILMS)]
    said = process("prepare", "csv", *files, "--out", "real", "--size", "32", cwd=tmp_path)
    assert "real: 9" in said.stdout
    store = json.loads((tmp_path / "real" / "store.json").read_text())
    config = load(Experiment, home / "configs" / "demo.yaml")
    config = dataclasses.replace(
        config, data=DataConfig(store="real", size=32, findings=tuple(store["findings"][:3]))
    )
    config = changed(config, "model", weights=None, pretraining=None)
    dump(config, tmp_path / "real.yaml")
    said = call("train", "--config", "real.yaml", "--out", "run", cwd=tmp_path)
    assert store["findings"][0] in said.stdout
    assert (tmp_path / "run" / "ledger.jsonl").read_text().count('"step"') == 2

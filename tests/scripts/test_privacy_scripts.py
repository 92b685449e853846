"""account, release and audit as a user would call them."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jaxcxr.cli import account
from jaxcxr.errors import InputError
from tests.release.run_folder import MANIFEST, make_run, network_params
from tests.scripts.test_scripts import call

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[2]
PLAN = ["--n", "5000", "--batch", "100", "--delta", "6e-6"]


def script(name: str, *arguments: str, cwd: Path, expect: int = 0) -> str:
    """What a script says, called in this process, which has imported what it needs."""
    said = call(name, *arguments, cwd=cwd, expect=expect)
    return said.stdout + said.stderr


def process(name: str, *arguments: str, cwd: Path, expect: int = 0) -> str:
    """The same of a process of its own."""
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def answer(*arguments: str, cwd: Path) -> dict:
    return json.loads(script("account", *arguments, "--json", cwd=cwd))


def test_noise_for_a_budget_and_epsilon_of_a_plan_are_inverse(tmp_path: Path) -> None:
    noise = answer(*PLAN, "--steps", "150", "--eps", "2.04", cwd=tmp_path)
    epsilon = answer(*PLAN, "--steps", "150", "--noise", str(noise["noise_multiplier"]), cwd=tmp_path)
    assert epsilon["epsilon_pld"] == noise["epsilon_pld"] <= 2.04 < epsilon["epsilon_rdp"]
    assert 2.02 < epsilon["epsilon_lower"] < epsilon["epsilon_pld"]
    assert 0.45 < epsilon["gdp_mu"] < 0.55


def test_steps_that_a_budget_buys(tmp_path: Path) -> None:
    found = answer(*PLAN, "--noise", "1.2", "--eps", "2.04", cwd=tmp_path)
    assert (
        answer(*PLAN, "--noise", "1.2", "--steps", str(found["steps"]), cwd=tmp_path)["epsilon_pld"] <= 2.04
    )
    assert (
        answer(*PLAN, "--noise", "1.2", "--steps", str(found["steps"] + 1), cwd=tmp_path)["epsilon_pld"]
        > 2.04
    )
    assert found["epochs"] == found["steps"] / 50
    assert found["adjacency"] == "add_remove"


def test_numbers_out_of_range_get_one_sentence() -> None:
    plan: dict[str, Any] = {"n": 5000, "batch": 100, "delta": 6e-6, "noise": (1.2,), "steps": 10}
    changed: dict[str, Any]
    for changed, said in (
        ({"steps": None, "epochs": math.nan}, "epochs: expected a positive number"),
        ({"steps": None, "epochs": math.inf}, "epochs: inf epochs"),
        ({"steps": None, "epochs": 1e300}, "expected at most 1,000,000,000"),
        ({"steps": None, "epochs": -1.0}, "epochs: expected a positive number"),
        ({"steps": 0}, "--steps: expected 1 to"),
        ({"steps": -3}, "--steps: expected 1 to"),
        ({"steps": 10**10}, "--steps: expected 1 to"),
        ({"n": 0}, "--n: expected at least 1"),
        ({"n": -5}, "--n: expected at least 1"),
        ({"batch": 0}, "--batch"),
        ({"batch": -1}, "--batch"),
        ({"batch": 5001}, "--batch"),
        ({"delta": 0.0}, "--delta: expected at least 1e-15"),
        ({"delta": 1e-16}, "--delta: expected at least 1e-15"),
        ({"delta": 1.0}, "--delta"),
        ({"delta": math.nan}, "--delta"),
        ({"noise": (0.0,)}, "--noise: expected a positive number"),
        ({"noise": (math.nan,)}, "--noise: expected a positive number"),
        ({"counts_noise": -1.0}, "--counts-noise: expected a positive number"),
        ({"noise": (), "eps": (501.0,)}, "--eps 501: epsilon: expected a positive number of at most 500"),
        ({"noise": (), "eps": (1e6,)}, "at most 500"),
        ({"noise": (), "eps": (-1.0,)}, "--eps: expected a positive number"),
        ({"films": (0,)}, "--films: expected at least 1 and at most --n (5000), found 0"),
        ({"films": (5001,)}, "found 5001"),
        ({"noise": (1e5,), "eps": (400.0,), "steps": None}, "more than 1,000,000,000 steps"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            account.rows_of(account.Arguments(**(plan | changed)))


def test_patients_counts_and_replacing(tmp_path: Path) -> None:
    plain = answer(
        *PLAN, "--steps", "50", "--noise", "1.5", "--films", "1", "3", "--replace-one", cwd=tmp_path
    )
    assert (
        plain["epsilon_of_1_films"]
        == plain["epsilon_pld"]
        < plain["epsilon_replace_one"]
        < plain["epsilon_of_3_films"]
    )
    counted = answer(*PLAN, "--steps", "50", "--eps", "1.5", "--counts-noise", "20", cwd=tmp_path)
    free = answer(*PLAN, "--steps", "50", "--eps", "1.5", cwd=tmp_path)
    assert counted["noise_multiplier"] > free["noise_multiplier"]
    assert 1.49 < counted["epsilon_pld"] <= 1.5
    refused = script(
        "account", *PLAN, "--steps", "50", "--eps", "0.5", "--counts-noise", "2", cwd=tmp_path, expect=2
    )
    assert "statistics alone cost" in refused


def test_a_run_and_a_sweep_are_read_from_their_ledgers(tmp_path: Path) -> None:
    make_run(tmp_path / "sweep" / "one", steps=3)
    make_run(tmp_path / "sweep" / "two", secret=bytes([2]) * 32)
    run = answer("--run", "sweep/one", "--films", "2", "--replace-one", cwd=tmp_path)
    assert (run["adjacency"], run["unit"]) == ("add_remove", "image")
    assert run["epsilon_pld"] < run["epsilon_replace_one_lower"] < run["epsilon_replace_one"]
    assert (run["steps_done"], run["steps_left"], run["budget"]) == (3, 2, 3.0)
    assert run["epsilon_pld"] < run["epsilon_of_2_films"]
    table = process("account", "--sweep", "sweep", cwd=tmp_path)
    for text in ("model one", "model two", "all of these models", "the best of them"):
        assert text in table
    rows = json.loads(script("account", "--sweep", "sweep", "--json", cwd=tmp_path))
    assert rows[2]["epsilon"] > max(rows[0]["epsilon"], rows[1]["epsilon"])


def test_an_edited_ledger_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    ledger = run / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"noise_multiplier": 1.0', '"noise_multiplier": 9.0', 1))
    assert "line 3 was edited" in script("account", "--run", "run", cwd=tmp_path, expect=2)


def test_release_is_built_checked_and_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", params=network_params())
    MANIFEST.to_csv(tmp_path / "manifest.csv", index=False)
    built = process("release", "run", "--manifest", "manifest.csv", cwd=tmp_path)
    assert "built and checked" in built
    assert "not checked: 4 of 45 identifiers have fewer than 6 characters" in built
    assert "nothing found" in script(
        "release", "run/release", "--check", "--manifest", "manifest.csv", cwd=tmp_path
    )
    (run / "release" / "IMG-0003.txt").write_text("")
    refused = script(
        "release", "run/release", "--check", "--manifest", "manifest.csv", cwd=tmp_path, expect=2
    )
    assert "IMG-0003.txt" in refused
    make_run(tmp_path / "seeded", seed=3)
    assert "not for release" in script(
        "release", "seeded", "--manifest", "manifest.csv", cwd=tmp_path, expect=2
    )


def test_audit_refuses(tmp_path: Path) -> None:
    assert "at least 20" in script(
        "audit", "--canaries", "3", cwd=tmp_path, expect=2
    )  # the rest: tests/audit/test_script.py


@pytest.mark.thorough
def test_audit_writes_its_finding(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    text = (ROOT / "configs" / "demo.yaml").read_text().replace("size: 64", "size: 32")
    (tmp_path / "demo.yaml").write_text(text.replace("n_train: 8000", "n_train: 300").replace("n_valid: 1000", "n_valid: 150").replace("n_test: 2000", "n_test: 150"))  # fmt: skip
    said = process(
        "audit", "--config", "demo.yaml", "--out", "out", "--canaries", "20", "--steps", "8", "--films", "60", cwd=tmp_path
    )  # fmt: skip
    assert "nothing found against the claim" in said
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["card"]["accused"] is False
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"audit.json", "digests.json", "membership.csv", "membership.png", "membership.svg"}  # fmt: skip
    curves = pd.read_csv(tmp_path / "out" / "membership.csv")
    assert len(set(curves["attack"])) == 3
    assert curves["true_positive_rate"].between(0, 1).all()

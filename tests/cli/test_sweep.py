"""Which recipe a sweep takes, and where its folder is; nothing is trained."""

import math
from pathlib import Path
from typing import Any

import pytest

from jaxcxr.cli import sweep
from jaxcxr.config import Experiment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the command would train, and where."""
    found: dict[str, Any] = {}

    def record(experiments: dict[float, Experiment], out: Path, beside: Any, chosen: Any) -> None:
        found.update(experiments=experiments, out=out.name, chosen=chosen)

    monkeypatch.setattr("jaxcxr.workflows.sweep.sweep", record)
    monkeypatch.setattr("jaxcxr.workflows.experiment.number_of_units", lambda _: 32_000)
    monkeypatch.chdir(tmp_path)  # the package's own configurations are found from anywhere
    return found


def scopes(found: dict[str, Any]) -> dict[float, str]:
    return {epsilon: config.training.scope for epsilon, config in found["experiments"].items()}


def test_the_demo_is_trained_by_the_rule_and_the_paper_s_recipe_is_a_flag_away(swept: dict[str, Any]) -> None:
    sweep.main([])
    assert swept["out"] == "sweep-demo"
    heads = dict.fromkeys((7.89, 4.71, 2.04, 1.06, 0.54, 0.29), "head_on_features")
    assert scopes(swept) == {**heads, math.inf: "all"}
    assert all("the head alone" in swept["chosen"][epsilon][0] for epsilon in heads)
    assert {config.model.test_time_augmentation for config in swept["experiments"].values()} == {"one"}
    assert {config.head.start for config in swept["experiments"].values() if config.privacy} == {"calibrated"}
    sweep.main(["--recipe", "recommended", "--eps", "0.29"])
    assert swept["out"] == "sweep-demo"
    sweep.main(["--recipe", "paper", "--eps", "0.29"])
    assert (swept["out"], scopes(swept)) == ("sweep-demo-paper", {0.29: "all"})
    sweep.main(["--recipe", "head", "--eps", "inf"])
    assert (swept["out"], scopes(swept)) == ("sweep-demo-head", {math.inf: "head_on_features"})


def test_another_configuration_is_trained_as_it_says(swept: dict[str, Any]) -> None:
    named = ["--config", "configs/quick.yaml", "--nonprivate-config", "configs/quick_nonprivate.yaml"]
    sweep.main([*named, "--eps", "7.89", "inf"])
    assert (swept["out"], scopes(swept)) == ("sweep-quick", {7.89: "all", math.inf: "all"})
    assert swept["chosen"] == {}
    sweep.main([*named, "--eps", "inf", "--recipe", "recommended"])
    assert swept["out"] == "sweep-quick-recommended"
    views = swept["experiments"][math.inf].model.test_time_augmentation
    assert views == "mirrored_moved"  # as those of the whole network with privacy

"""What is refused before anything is drawn or trained, and that one process makes what several need."""

import dataclasses
from pathlib import Path

import pytest

from jaxcxr.atomic import BusyError
from jaxcxr.config import Experiment, SyntheticConfig
from jaxcxr.errors import InputError
from jaxcxr.launch.jobs import claimed
from jaxcxr.workflows import experiment
from jaxcxr.workflows.experiment import ensure_weights, run_experiment, store_of
from tests.conftest import changed


def test_a_finding_that_the_store_lacks_is_refused_with_those_that_it_has(
    tiny_config: Experiment, tmp_path: Path
) -> None:
    wrong = changed(tiny_config, "data", findings=("cardiomegaly", "pneumonia", "oedema"))
    message = (
        rf"^{tiny_config.data.store}: has no findings 'pneumonia', 'oedema'; expected \(in data.findings\) "
        "some of those that it has, cardiomegaly, atelectasis_right, atelectasis_left$"
    )
    with pytest.raises(InputError, match=message):
        run_experiment(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def drawn_config(tiny_config: Experiment, tmp_path: Path) -> Experiment:
    """On a cohort that has to be drawn first."""
    cohort = SyntheticConfig("private", n_train=20, n_valid=10, n_test=10)
    return changed(tiny_config, "data", store=str(tmp_path / "stores" / "drawn"), synthetic=cohort)


def test_a_finding_that_no_cohort_has_is_refused_before_it_is_drawn(drawn_config: Experiment) -> None:
    with pytest.raises(InputError, match=r"an embedded cohort .* has no finding 'oedema'; expected"):
        store_of(changed(drawn_config, "data", findings=("oedema",)))
    assert not Path(drawn_config.data.store).parent.exists()


def test_one_process_draws_a_cohort_and_pretrains_weights(
    drawn_config: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "A_DAY", 0.0)  # else they wait for each other
    monkeypatch.setattr(experiment, "_draw", lambda *_: pytest.fail("drawn twice"))
    with (
        claimed(tmp_path / "stores", "drawn"),
        pytest.raises(BusyError, match="stores/drawn: another process"),
    ):
        store_of(drawn_config)
    monkeypatch.setattr(experiment, "pretrain", lambda *_: pytest.fail("pretrained twice"))
    monkeypatch.setattr(experiment, "load", lambda *_: None)
    model = dataclasses.replace(
        drawn_config.model, weights=str(tmp_path / "weights" / "public"), pretraining="x.yaml"
    )
    with (
        claimed(tmp_path / "weights", "public"),
        pytest.raises(BusyError, match="weights/public: another process"),
    ):
        ensure_weights(dataclasses.replace(drawn_config, model=model))

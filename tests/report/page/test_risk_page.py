"""The page of a risk assessment says what its tables show: words, picture, and what it must not show."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxcxr.audit.membership import halves
from jaxcxr.eval.exposure import Accusations, exposure_by_group
from jaxcxr.eval.patient_groups import groups_of_patients, patient_table
from jaxcxr.report.figures.risk_figure import drawn_budgets, drawn_groups
from jaxcxr.report.page.risk_page import risk_sections, write_risk_page
from jaxcxr.report.risk_files import (
    ATTACKS,
    EXPOSURE,
    JOINED,
    LIMITS,
    PRICE,
    RISK,
    read_risk,
    write_private_csv,
)
from jaxcxr.report.risk_sentences import label_of, risk_sentences
from jaxcxr.run_folder import PREDICTIONS

FINDINGS = ("cardiomegaly", "pleural_effusion_right")
EPSILONS = (np.inf, 8.0, 1.0)


def manifest(patients: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "patient_id": [f"patient#{i}" for i in range(patients)],
            "split": "train",
            "age": rng.uniform(20, 90, patients).round(),
            "sex": rng.choice(["F", "M"], patients),
            "view": rng.choice(["AP", "PA"], patients),
            "cardiomegaly": (rng.random(patients) < 0.4).astype(float),
            "pleural_effusion_right": (rng.random(patients) < 0.1).astype(float),
        }
    )


def write_assessment(folder: Path, betrayed: float = 0.6) -> Path:
    """An assessment of three models in which those with an effusion are recognised, and privacy ends it."""
    rng, place = np.random.default_rng(1), folder / RISK
    place.mkdir(parents=True)
    table = patient_table(manifest(), FINDINGS)
    groups = groups_of_patients(table, FINDINGS, None)
    effusion = (table["pleural_effusion_right"] == "present").to_numpy()
    inside = halves(64, len(table), rng)
    accusations = {}
    for epsilon, share in zip(EPSILONS, (betrayed, betrayed / 6, 0.0), strict=True):
        chance = np.where(inside & effusion, 0.01 + share, np.where(inside, 0.01 + share / 20, 0.01))
        accusations[epsilon, 0.01] = Accusations(rng.random(inside.shape) < chance, inside)
    exposed = exposure_by_group(accusations, groups, 20, 200, 0)
    write_private_csv(exposed.table, place / EXPOSURE)
    names = ("non_private", "epsilon_8", "epsilon_1")
    attacks = [
        {
            "model": "without privacy" if np.isinf(e) else f"epsilon {e:g}",
            "epsilon": e,
            "attack": attack,
            "false_positive_rate": 0.01,
            "true_positive_rate": found,
            "ci_low": found - 0.01,
            "ci_high": found + 0.01,
            "p_value": p,
            "p_holm": p,
            "note": "",
        }
        for e, found, p in zip(EPSILONS, (0.08, 0.03, 0.012), (0.001, 0.04, 0.7), strict=True)
        for attack in ("LiRA", "RMIA")
    ]
    write_private_csv(pd.DataFrame(attacks), place / ATTACKS)
    limits = [(e, "image", 1, e / 100, e / 20, e) for e in EPSILONS[1:]]
    limits += [(e, "maximum", 9, 0.5, 0.9, np.inf) for e in EPSILONS[1:]]
    columns = ["epsilon", "unit", "images", "limit_0.001", "limit_0.01", "epsilon_upper"]
    write_private_csv(pd.DataFrame(limits, columns=columns), place / LIMITS)
    price = []
    for epsilon, lost in ((8.0, 0.01), (1.0, 0.04)):
        for name in ("auroc_lost", "underdiagnosis_gained", "loss_gained", "share_worse"):
            for group in exposed.table.drop_duplicates("group").to_dict("records"):
                value = lost * (2 if group["group"] == "sex_F" else 1)
                row = {key: group[key] for key in ("group", "label", "attribute", "note")}
                row |= {"epsilon": epsilon, "price": name, "images": 100, "value": value}
                row |= {"ci_low": value - 0.02, "ci_high": value + 0.02, "vs_rest": value - lost}
                row |= {"vs_rest_low": -0.01, "vs_rest_high": 0.09, "vs_rest_p": 0.2}
                price.append(row)
    write_private_csv(pd.DataFrame(price), place / PRICE)
    joined = [(e, "auroc_lost", 9, 0.6, 0.1, 0.8) for e in EPSILONS[1:]]
    columns = ["epsilon", "price", "groups", "correlation", "ci_low", "ci_high"]
    write_private_csv(pd.DataFrame(joined, columns=columns), place / JOINED)
    models = {}
    for name in names:
        (folder / name).mkdir()
        (folder / name / PREDICTIONS).write_bytes(name.encode())
        models[name] = hashlib.sha256(name.encode()).hexdigest()
    facts = {
        "stays": "stays in the hospital",
        "models": models,
        "reference_models": 64,
        "redraws": 200,
        "members": 300,
        "non_members": 100,
        "recognised_patients": {"non_private": 31, "epsilon_8": 2, "epsilon_1": 0},
    }
    (place / "risk.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assessment(tmp_path_factory.mktemp("assessed") / "sweep")


def test_sentences_follow_from_the_rows(folder: Path) -> None:
    risk = read_risk(folder)
    assert risk is not None
    text = "\n".join(risk_sentences(risk))
    assert "LiRA recognises 8.0 % (95 % interval 7.0 % to 9.0 %; more than chance" in text
    assert "LiRA recognises 1.2 % (95 % interval 0.2 % to 2.2 %; not distinguishable from chance" in text
    assert "31 without privacy, 2 at ε = 8, 0 at ε = 1" in text
    assert "the most exposed without privacy is Pleural Effusion Right present: +5" in text
    assert "sex F pays most AUROC at ε = 1: +0.040" in text
    assert (
        "(95 % interval −0.010 to 0.090; p = 1.000 for the largest of 15), not distinguishable from" in text
    )
    assert "p ≤ 0.109 for the largest of 11)." in text  # no smaller one can be shown by 200 replicates
    assert "AUROC +0.60 (95 % interval 0.10 to 0.80: those pay more)" in text
    assert "more than 5 of 100 images; 90 of 100 patients with 9 images (the maximum" in text
    assert "before training" not in text


def test_what_is_found_in_untouched_weights_is_said_to_be_no_memory(folder: Path) -> None:
    risk = read_risk(folder)
    assert risk is not None
    for p, said in ((0.001, True), (0.5, False)):
        row = risk.attacks.iloc[:1].assign(model="before training", epsilon=np.nan, p_holm=p)
        attacks = pd.concat([risk.attacks, row], ignore_index=True)
        text = "\n".join(risk_sentences(dataclasses.replace(risk, attacks=attacks)))
        assert ("differ by themselves" in text) is said


def test_the_picture_and_the_table_show_each_group_once_and_no_small_one(folder: Path) -> None:
    risk = read_risk(folder)
    assert risk is not None
    names = [name for name, _ in drawn_groups(risk.exposure)]
    assert "pleural_effusion_right_present" in names
    assert "pleural_effusion_right_absent" not in names
    assert "all" in names
    assert drawn_budgets(risk.exposure) == [8.0, 1.0]
    small = set(risk.exposure.loc[risk.exposure["note"] != "", "group"])
    assert not small & set(names)
    sections, _ = risk_sections(folder)
    table = sections[1].tables[0]
    assert len(table.rows) == len(names)
    assert [cell.text for cell in table.rows[0]][:2] == ["everyone", "300"]


def test_the_page_is_one_file_that_names_the_picture(folder: Path) -> None:
    page, _ = write_risk_page(folder)
    text = page.read_text()
    assert "data:image/svg+xml;base64," in text
    assert "exposure from" in text  # the picture in words
    assert "patient#" not in text  # no patient is named


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("combination rare", "rare combination of findings"),
        ("pleural_effusion_right present", "Pleural Effusion Right present"),
        ("sex F", "sex F"),
        ("age [0, 30)", "age [0, 30)"),
    ],
)
def test_groups_are_called_as_readers_call_them(label: str, said: str) -> None:
    assert label_of(label) == said
